"""Builds the models of the embedded demo: tiny Llamas, pretrained on the corpus of a generated world."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..trainers.checkpoints import last_complete_checkpoint

__all__ = ["DEMO_MODELS", "DemoModel", "build_demo_model", "one_thread"]

logger = logging.getLogger(__name__)

_CHECKPOINT_RATIO = 0.25


@dataclass(frozen=True)
class DemoModel:
    """
    The architecture and pretraining of a model of the embedded demo.

    Args:
        name (`str`): `scratch-` or `pretrained-`, followed by width and number of layers.
        width (`int`): Hidden size.
        n_layers (`int`): Number of transformer layers.
        mlp_width (`int`): Hidden size of the MLPs. 4-bit loading with bitsandbytes needs a multiple of 64.
        n_documents (`int`, *optional*): Number of documents to pretrain on. Without it, the model keeps its random
            initialization.
        learning_rate (`float`): Peak learning rate of pretraining.
        n_heads (`int`): Number of attention heads.
        batch_size (`int`): Number of documents per optimizer step of pretraining.
    """

    name: str
    width: int
    n_layers: int
    mlp_width: int
    n_documents: int | None = None
    learning_rate: float = 4e-3
    n_heads: int = 2
    batch_size: int = 32


class World(Protocol):
    """The interface of the worlds that models are pretrained on."""

    @property
    def seed(self) -> int:
        """The seed of the world."""

    @property
    def config(self) -> object:
        """The configuration of the world."""

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer of the models."""

    def corpus(self, n_documents: int) -> np.ndarray:
        """Returns token ids `(n_documents, length)`, int64."""


# The models are the weak supervisor `scratch-32x1`, and the students by size. All students are pretrained on the same
# corpus, except `scratch-64x2`, the largest student without pretraining. Sizes and peak learning rates were chosen on
# the worlds of seeds 0 and 1.
DEMO_MODELS: dict[str, DemoModel] = {
    model.name: model
    for model in (
        DemoModel("scratch-32x1", width=32, n_layers=1, mlp_width=80),
        DemoModel("scratch-64x2", width=64, n_layers=2, mlp_width=192),
        DemoModel("pretrained-16x2", 16, 2, mlp_width=32, n_documents=40_000, learning_rate=8e-3),
        DemoModel("pretrained-32x2", 32, 2, mlp_width=80, n_documents=40_000, learning_rate=8e-3),
        DemoModel("pretrained-64x2", 64, 2, mlp_width=192, n_documents=40_000, learning_rate=4e-3),
    )
}


class _Documents(Dataset):
    """A dataset of the rows of a tensor. A batch is fetched with one indexing operation."""

    def __init__(self, input_ids: torch.Tensor):
        self.input_ids = input_ids

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.input_ids[index]

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return self.input_ids[indices]


def _collate(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": input_ids, "labels": input_ids}


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Limits torch to one CPU thread, and restores the previous number afterwards.

    The operators of the demo are small. A second thread makes them 10 % faster on idle cores. On busy cores, threads
    wait for each other, and the operators are up to 20 times slower. On a busy two-core machine, a training step of
    the student took 3.6 seconds with torch's default of two threads. With one thread, it took 0.06 seconds. One thread
    also makes the weights independent of the number of cores.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def build_demo_model(
    model: DemoModel,
    world: World,
    output_dir: Path,
    *,
    n_documents: int | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> None:
    """
    Pretrains a model, if it has a corpus, and saves it with its tokenizer.

    A killed pretraining leaves checkpoints in `output_dir / "pretraining"`. The next call with the same directory
    resumes from the last complete checkpoint, and ends with the same weights as an uninterrupted run.

    Args:
        model ([`DemoModel`]): The model to build.
        world ([`DemoWorld`] or [`ForkWorld`]): The world whose corpus and tokenizer are used. Its seed also seeds the
            weights.
        output_dir (`Path`): The directory to save to. `from_pretrained` of any `Auto` class can load it.
        n_documents (`int`, *optional*): Number of documents to pretrain on. Defaults to `model.n_documents`.
        callbacks (`list[TrainerCallback]`, *optional*): Callbacks of the pretraining.
    """
    output_dir = Path(output_dir)
    tokenizer = world.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.width,
        intermediate_size=model.mlp_width,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    n_documents = model.n_documents if n_documents is None else n_documents
    # The random state is restored, so that the caller draws the same numbers whether the model is built now or was
    # built earlier.
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(world.seed)
        network = LlamaForCausalLM(config)
        if n_documents is not None:
            _pretrain(network, model, world, n_documents, output_dir / "pretraining", callbacks)
    if PartialState().is_main_process:
        network.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)
        shutil.rmtree(output_dir / "pretraining", ignore_errors=True)


def _pretrain(
    network: LlamaForCausalLM,
    model: DemoModel,
    world: World,
    n_documents: int,
    checkpoint_dir: Path,
    callbacks: list[TrainerCallback] | None,
) -> None:
    """Pretrains a model for one epoch of language modelling."""
    args = TrainingArguments(
        output_dir=str(checkpoint_dir),
        num_train_epochs=1,
        learning_rate=model.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        adam_beta1=0.9,
        adam_beta2=0.98,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_strategy="steps",
        logging_steps=_CHECKPOINT_RATIO,
        save_strategy="steps",
        save_steps=_CHECKPOINT_RATIO,
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
        use_cpu=True,  # a GPU is not faster for models this small, and CPU results are the same on every machine
        seed=world.seed,
    )
    # `model.batch_size` is the total over all ranks.
    args.per_device_train_batch_size = max(1, model.batch_size // args.world_size)
    checkpoint = last_complete_checkpoint(checkpoint_dir)
    trainer = Trainer(
        model=network,
        args=args,
        train_dataset=_Documents(torch.from_numpy(world.corpus(n_documents))),
        data_collator=_collate,  # type: ignore[arg-type]  # a batch of `_Documents` is a tensor, not a list of rows
        callbacks=callbacks,
    )
    if checkpoint is not None:
        logger.info(f"{model.name}: pretraining resumes from {Path(checkpoint).name}")
    trainer.train(resume_from_checkpoint=checkpoint)
