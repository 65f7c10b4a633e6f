"""The Python examples of the README run as they stand, on a CPU and with models that take a second."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.models import make_character_tokenizer, make_language_model, make_model, make_tokenizer
from transformers import LlamaForCausalLM

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
TEXTS = [f"w{i} w{i + 1} w{2 * i}" for i in range(8)]


def example(name: str) -> str:
    """The one example that builds a trainer of this name."""
    (code,) = [code for code in EXAMPLES if f"trainer = {name}(" in code]
    return code


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """What the examples take for granted: rows, a tokenizer, a student, and the models of the Hub."""
    for size in ("0.5B", "1.5B", "7B"):
        directory = tmp_path / "Qwen" / f"Qwen2.5-{size}"
        LlamaForCausalLM(make_model("llama").config).save_pretrained(directory)
        make_tokenizer().save_pretrained(directory)
    monkeypatch.chdir(tmp_path)
    rows = Dataset.from_dict({"text": TEXTS, "labels": [0.1, 0.9] * 4})
    pairs = Dataset.from_dict({"chosen": TEXTS, "rejected": TEXTS[::-1], "soft_label": [0.8] * 8})
    puzzles = Dataset.from_dict({"prompt": ["a", "b"], "completion": [" c", " d"]})
    tokenizer = make_character_tokenizer()
    return {
        "torch": torch, "rows": rows, "other_rows": rows.remove_columns("labels"), "labelled": rows,
        "more_rows": rows, "still_more_rows": rows, "pairs": pairs, "other_pairs": pairs, "puzzles": puzzles,
        "more_puzzles": puzzles, "other_prompts": ["a"], "tokenizer": tokenizer,
        "student": make_language_model(tokenizer),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "result", "n"),
    [
        ("WeakToStrongTrainer", "probabilities", 8),
        ("RewardPairTrainer", "soft_labels", 8),
        ("CompletionTrainer", "moves", 1),
        ("BootstrapTrainer", "probabilities", 8),
    ],
)
def test_an_example_runs_where_there_is_no_gpu(name, result, n, namespace):
    imports = example("WeakToStrongTrainer").partition("from w2s_hf")[0]  # said once
    exec(imports + example(name), namespace)
    assert len(namespace[result]) == n and namespace["trainer"].state.global_step > 0
