"""Cached queries of the base model of a student: its hidden states, and its answers to prompts."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors.numpy import load_file, save_file
from transformers import set_seed

from ..analysis import PromptFormat, answer_probabilities
from ..modeling import load_tokenizer
from ..modeling.spec import ModelSpec, load_base
from ..trainers.completion import autocast
from .finetuner import Finetuned, Finetuner

__all__ = ["PROBED", "ask", "hidden_states", "load_arrays", "on_rank_0", "save_arrays"]

T = TypeVar("T")

# The hidden states of these parts of the splits are computed together: linear probes are fitted, chosen and scored on
# them.
PROBED = ("student_half", "student_validation", "test")


def on_rank_0(make: Callable[[], T]) -> T:
    """
    Calls a function on rank 0 and returns its result on every rank. The last digits of a fit may differ between ranks,
    and keys of the cache depend on them.
    """
    result: list[Any] = [make() if PartialState().is_main_process else None]
    if PartialState().num_processes > 1:
        broadcast_object_list(result, from_process=0)
    return result[0]


def ask(finetuner: Finetuner, model: ModelSpec, prompts: list[str], prompt_format: PromptFormat) -> np.ndarray:
    """Returns P(answer) of a model before any finetuning, `(N, 2)`; see [`answer_probabilities`]."""
    digest = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    settings = {**finetuner.settings_of_predictions(model), "prompts": digest, "format": repr(prompt_format)}

    def build(directory: Path) -> None:
        tokenizer = load_tokenizer(model.path, revision=model.revision)
        finetuner.release()
        network = finetuner.in_place(load_base(model, "CAUSAL_LM"))
        batch_size = finetuner.args.per_device_eval_batch_size
        with autocast(finetuner.args):
            probabilities = answer_probabilities(network, tokenizer, prompts, prompt_format, batch_size=batch_size)
        save_arrays({"probabilities": probabilities}, directory)

    title = f"answers of {model.name} to {len(prompts)} prompts"
    return load_arrays(finetuner.cache.run("prompted", settings, build, title=title))["probabilities"]


def hidden_states(
    finetuner: Finetuner,
    model: ModelSpec,
    parts: dict[str, Dataset],
    *,
    seed: int,
    form: PromptFormat | None = None,
    trained: Finetuned | None = None,
) -> Path:
    """
    Returns the cached step with the last hidden states of rows, one array for each part.

    Args:
        finetuner ([`Finetuner`]): Tokenizes the rows.
        model ([`ModelSpec`]): The model before finetuning.
        parts (`dict[str, Dataset]`): The rows by the name of their array.
        seed (`int`): Seeds new layers before the head, which some encoders have.
        form ([`PromptFormat`], *optional*): The answers of `--head_init answers`, see [`prompt_of_head`].
        trained ([`Finetuned`], *optional*): The finetuned model, to read it instead of the model before finetuning.
    """
    settings = {
        **finetuner.settings_of_predictions(model),
        "trained": None if trained is None else trained.directory.name,
        "rows": [finetuner.fingerprint(rows, with_labels=False) for rows in parts.values()],
        "max_length": finetuner.args.max_length,
        "seed": seed,
    }

    def build(directory: Path) -> None:
        tokenizer = load_tokenizer(model.path, revision=model.revision)
        finetuner.release()
        set_seed(seed)
        if trained is None:
            network = finetuner.untrained(model, tokenizer, seed, form)
        else:
            network = finetuner.finished(model, trained.directory / "model")
        network = finetuner.in_place(network)
        tokens = {name: finetuner.tokenize(model, tokenizer, rows) for name, rows in parts.items()}
        batch_size = finetuner.args.per_device_eval_batch_size
        with autocast(finetuner.args):
            states = {
                name: finetuner.setting.hidden_states(network, tokenizer, rows, batch_size)
                for name, rows in tokens.items()
            }
        save_arrays(states, directory)

    n_rows = sum(len(rows) for rows in parts.values())
    title = f"hidden states of {model.name} for {n_rows} rows" + ("" if trained is None else ", finetuned")
    return finetuner.cache.run("hidden-states", settings, build, title=title)


def save_arrays(arrays: dict[str, np.ndarray], directory: Path) -> None:
    """Writes arrays to a cached step, on rank 0."""
    if PartialState().is_main_process:
        save_file(arrays, directory / "arrays.safetensors")


def load_arrays(directory: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a cached step."""
    return load_file(directory / "arrays.safetensors")
