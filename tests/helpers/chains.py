"""Bootstrapping chains of small students, and functions that compare them."""

import hashlib
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    TrainerState,
)

from helpers.models import make_rows, make_tokenizer
from helpers.training import arguments
from w2s_hf import BootstrapConfig, BootstrapTrainer, WeakLabels

N_LINKS = 3
LORA = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2)
SPECIAL = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}


def student(link: int, num_labels: int = 2):
    """Returns the model of link 0, 1 or 2, with new random weights. Models grow with the link."""
    size = {"hidden_size": 16 * (link + 1), "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(num_labels=num_labels, **size, **SPECIAL))


def three_parts(seed: int = 0) -> list[Dataset]:
    """Returns one dataset per link. Only the first has labels."""
    return [make_rows(16, "soft" if link == 0 else "none", seed=seed + link) for link in range(N_LINKS)]


def bootstrap(
    output_dir, rows=None, model_init=student, n_links=N_LINKS, tokenizer=None, cls=BootstrapTrainer, **kwargs
):
    """Returns a trainer. Keyword arguments that it does not accept are training arguments."""
    names = ("callbacks", "compute_metrics", "eval_dataset", "loss", "optimizers", "peft_config")
    options = {name: kwargs.pop(name) for name in names if name in kwargs}
    # With 16 rows in steps of 8, the last of 3 steps is not the last step of an epoch.
    args = arguments(output_dir, BootstrapConfig, **({"lr_scheduler_type": "linear"} | kwargs))
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    rows = three_parts() if rows is None else rows
    return cls(model_init, n_links, args, train_dataset=rows, processing_class=tokenizer, **options)


def state_of(output_dir: Path, link: int) -> TrainerState:
    return TrainerState.load_from_json(str(output_dir / f"link-{link}" / "trainer_state.json"))


def files(*directories: Path) -> dict[str, str]:
    """Returns the hash of each file."""
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for directory in directories
        for file in directory.rglob("*")
        if file.is_file()
    }


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(next(directory.glob("*model.safetensors")))


def assert_same_chain(one: Path, other: Path) -> None:
    """Checks that students and labels are the same. Files with times and paths are not compared."""
    for link in range(1, N_LINKS + 1):
        ours, theirs = weights(one / f"link-{link}"), weights(other / f"link-{link}")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), link
        assert state_of(one, link).global_step == state_of(other, link).global_step
        if link < N_LINKS:
            for of in (path.name for path in (other / f"link-{link}" / "labels").iterdir()):
                ours, theirs = (WeakLabels.load(root / f"link-{link}" / "labels" / of) for root in (one, other))
                assert ours.fingerprint == theirs.fingerprint and ours.provenance == theirs.provenance
