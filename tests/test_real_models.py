"""Tests with a pretrained decoder (30 layers, padding token = end-of-text token): batches, prompts, memory."""

import runpy

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.models import real_model
from helpers.running import ROOT
from helpers.training import arguments

from w2s_hf import WeakToStrongTrainer, load_student
from w2s_hf.analysis import last_hidden_states
from w2s_hf.generation import complete
from w2s_hf.modeling import load_tokenizer
from w2s_hf.modeling.heads import initialise_head

pytestmark = pytest.mark.real_data

TEXTS = [
    "A fine film.", "No one will laugh at this tired and endless joke.", "Dull", "It moves, it sings and it is short.",
    "Two hours of nothing", "She is wonderful", "the plot is a mess , the songs are not",
    "<|im_start|>user\nGood?<|im_end|>",
]  # fmt: skip

# Other batches change the order of the 1,536 terms of a sum. The error of a float32 sum grows with the square root of
# the number of terms. The errors of the 30 layers add up in the same way. The measured error was a fifth of the bound.
ROUNDING = 2**-24 * (1536 * 30) ** 0.5


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(real_model())


@pytest.fixture(scope="module")
def rows(tokenizer):
    return Dataset.from_dict({"input_ids": tokenizer(TEXTS)["input_ids"], "labels": [1, 0] * 4})


@pytest.fixture(scope="module")
def classifier():
    model = load_student(real_model(), num_labels=2, dtype="float32")
    initialise_head(model, "normal", seed=0)
    return model


@torch.no_grad()
def test_states_and_probabilities_do_not_depend_on_the_batch(classifier, tokenizer, rows, tmp_path):
    """The expected values are those of transformers, one row at a time without padding."""
    states, probabilities = [], []
    for ids in rows["input_ids"]:
        ids = torch.tensor([ids])
        last = -1 if ids[0, -1] != tokenizer.pad_token_id else -2  # transformers ignores the padding token
        states.append(classifier.model(ids).last_hidden_state[0, last].numpy())
        probabilities.append((classifier.score.weight @ torch.from_numpy(states[-1])).softmax(dim=-1).numpy())
    for batch_size in (1, 7, 64):
        batched = last_hidden_states(classifier, tokenizer, rows, batch_size=batch_size)
        assert np.abs(batched - states).max() < ROUNDING * np.abs(states).max()
    for batch_size in (7, 64):
        trainer = WeakToStrongTrainer(
            model=classifier,
            args=arguments(tmp_path, per_device_eval_batch_size=batch_size),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        assert np.abs(trainer.predict_proba(rows) - probabilities).max() < ROUNDING


def test_completions_do_not_depend_on_the_batch(tokenizer):
    model = load_student(real_model(), task_type="CAUSAL_LM", dtype="float32")
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2+2?"}], tokenize=False, add_generation_prompt=True
    )
    assert question.count(tokenizer.pad_token) == 2, "the system prompt of the template, and the question"
    prompts = [question, "The capital of France is", "Once upon a"]
    completions = {size: complete(model, tokenizer, prompts, max_new_tokens=13, batch_size=size) for size in (1, 64)}
    assert completions[1] == completions[64]
    assert (
        completions[1][0].text.endswith("4.")
        and not completions[1][0].is_cut
        and completions[1][1].text.startswith(" Paris")
    )


def test_estimated_memory_is_within_five_percent():
    benchmark = runpy.run_path(str(ROOT / "recipes" / "benchmarks" / "memory_on_cpu.py"))
    bytes_by_name = benchmark["measure"](real_model(), n_rows=2, length=24, n_predicted_rows=3, load_in_4bit=False)
    assert len(bytes_by_name) == 4
    for name, (measured, estimated) in bytes_by_name.items():
        assert estimated == pytest.approx(measured, rel=0.05), name
