"""Trains every row once per epoch, in the same order on any number of processes and after a resume."""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher
from datasets import Dataset
from torch.utils.data import DataLoader, RandomSampler, Sampler

from .._compat import (
    BatchRebalanceSampler,
    LengthGroupedSampler,
    SkipBatchSampler,
    add_signature_column,
    forget_trained_tokens,
    has_length,
    rows_of_filled_step,
)
from ..probabilities import as_weights
from .mixins import TrainerMixin

__all__ = ["EpochSampler", "WholeEpochs", "refuse_weights_of_some"]

logger = logging.getLogger(__name__)


class EpochSampler(Sampler[int]):
    """
    Yields the rows of an epoch in an order that depends only on the seed and the number of the epoch.

    The order of a `RandomSampler` is the same as with accelerate's `SeedableRandomSampler`, which
    [`~transformers.Trainer`] uses. A [`LengthGroupedSampler`](https://github.com/huggingface/transformers/blob/main/src/transformers/trainer_pt_utils.py)
    would draw from torch's global generator, whose state at the start of the epoch is unknown to a resumed run.

    Args:
        sampler (`Sampler`): A sampler that draws an order from its attribute `generator`.
        seed (`int`): The seed of epoch 0.
    """

    def __init__(self, sampler: RandomSampler | LengthGroupedSampler, seed: int):
        self._sampler, self._seed, self._epoch = sampler, seed, 0
        sampler.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the epoch, from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator.manual_seed(self._seed + self._epoch)
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


class WholeEpochs(TrainerMixin):
    """
    A mixin for a [`~transformers.Trainer`]. An epoch trains the same model on any number of processes, as long as
    the number of rows per optimizer step is the same.

    Collectives need a batch on every process. If the processes cannot share the rows evenly, accelerate fills the
    last batches of an epoch with its first rows (`even_batches`). This class marks the repeated rows. They
    are excluded from the loss, the number of rows of the step, and metrics. Subclasses define `_n_rows` and `_mark`.

    The column `weight` is kept, and the part `weight` of a batch, `(B,)`, is checked. Subclasses weight the losses of
    rows with it, and remove it before the forward pass.

    Three ways to split rows over processes are not supported, and cause a warning or an error when training begins:

    - an `IterableDataset` that every process reads itself (`dispatch_batches=False`),
    - `batch_rebalance` with fewer rows in the last step than batches,
    - `even_batches=False`.

    Subclasses that replace `get_train_dataloader` are not checked for these cases.
    """

    _has_weights: bool | None = None  # whether the earlier batches of this training have weights

    @abstractmethod
    def _n_rows(self, batch: dict) -> int:
        """Returns the number of rows of a batch, repeated rows included."""

    @abstractmethod
    def _mark(self, batch: dict, counts: torch.Tensor) -> dict:
        """Returns a batch that records which rows are not repeated (`counts`, `(B,)` bool)."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        add_signature_column(self, "weight")

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, RandomSampler | LengthGroupedSampler):
            return sampler
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size = self.get_total_train_batch_size(self.args)  # by default the batch of one process
        return EpochSampler(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def get_train_dataloader(self) -> DataLoader:
        """
        Builds the data loader of [`~transformers.Trainer.get_train_dataloader`].

        Raises:
            ValueError: With `even_batches=False`, some processes would have no batch in the last step of an epoch.
        """
        self._has_weights = None
        dataloader: Any = super().get_train_dataloader()
        sampler = getattr(dataloader, "batch_sampler", None)
        rebalanced = sampler.batch_sampler if isinstance(sampler, BatchSamplerShard) else sampler
        if sampler is not None and isinstance(rebalanced, BatchRebalanceSampler):
            # After `skip_first_batches`, accelerate 1.15 does not forward the number of the epoch to the sampler.
            sampler.sampler = rebalanced
            n_last = rows_of_filled_step(rebalanced)
            if n_last:
                logger.warning(
                    f"train_sampling_strategy='batch_rebalance' fills the last step of each epoch, of "
                    f"{n_last} rows, with repeated rows, one for each batch of the step. To avoid repeated rows, "
                    "set dataloader_drop_last=True or use another strategy."
                )
        elif self.accelerator.num_processes > 1:
            if isinstance(sampler, BatchSamplerShard) and hasattr(sampler.batch_sampler, "sampler"):
                # After `skip_first_batches`, accelerate 1.15 does not forward the number of the epoch without this
                # call.
                dataloader.set_sampler(sampler.batch_sampler.sampler)
                n_last = _rows_of_last_step(sampler)
                if not sampler.even_batches and 0 < n_last <= (sampler.num_processes - 1) * sampler.batch_size:
                    raise ValueError(
                        f"accelerator_config: got even_batches=False, expected True. Some of {sampler.num_processes} "
                        f"processes would have no batch in the last step of an epoch ({n_last} rows). The other "
                        "processes would wait for them. Set even_batches=True. Repeated rows are then ignored."
                    )
            elif not isinstance(dataloader, DataLoaderDispatcher):
                logger.warning(
                    "A custom dataset or sampler splits the training rows over processes. If the processes cannot "
                    "share the rows evenly, some rows may be repeated or left out. To avoid this, make the number of "
                    "rows a multiple of per_device_train_batch_size times the number of processes."
                )
        return dataloader

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | int | None]:
        """
        Fetches batches like [`~transformers.Trainer.get_batch_samples`], checks their weights, and marks rows that
        accelerate repeats.
        """
        batches = map(self._mark_repeats, map(self._check_weight, epoch_iterator))
        return super().get_batch_samples(batches, num_batches, device)

    def _check_weight(self, batch: dict) -> dict:
        """Returns a batch with `weight` `(B,)` float32, or the same batch if the training rows have no weights."""
        weight = batch.get("weight")
        if self._has_weights not in (None, weight is not None):
            raise ValueError(_SOME_WEIGHTS)
        self._has_weights = weight is not None
        if weight is None:
            rows = self.train_dataset
            if isinstance(rows, Dataset) and rows.format["type"] != "custom" and "weight" in rows.column_names:
                raise ValueError(
                    f"train_dataset: got a column `weight`, and batches with {', '.join(map(repr, batch))}, expected "
                    "'weight' among them. Return `weight` from the data collator, or remove the column."
                )
            return batch
        weight, n_rows = torch.as_tensor(weight), self._n_rows(batch)
        values = as_weights(weight.float().cpu().numpy())
        if len(values) != n_rows:
            raise ValueError(
                f"weight: got {len(values)} weights in a batch of {n_rows} rows, expected one weight per row. Return "
                "`weight` of shape (B,) from the data collator."
            )
        return {**batch, "weight": torch.from_numpy(values).to(weight.device)}

    def _mark_repeats(self, batch: dict) -> dict:
        counts = self._rows_that_count(self._n_rows(batch))
        if counts is None:
            return batch
        # gather_for_metrics must not remove rows, because TRL's metrics of the step need all processes. Repeated rows
        # are marked instead.
        self.accelerator.gradient_state.active_dataloader.remainder = 0
        return self._mark(batch, counts)

    def _rows_that_count(self, n_rows: int) -> torch.Tensor | None:
        """
        Returns which rows of this process's current batch are not repeated, `(n_rows,)` bool, or `None` if no process
        has a repeated row. The method works in training and in evaluation.
        """
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader:
            return None
        dataloader, process = state.active_dataloader, self.accelerator.process_index
        if isinstance(dataloader, DataLoaderDispatcher):
            first, n_last = process * n_rows, dataloader.remainder
            n_filled = self.accelerator.num_processes * n_rows
        else:
            sampler = dataloader.batch_sampler
            sampler = sampler.batch_sampler if isinstance(sampler, SkipBatchSampler) else sampler
            if not isinstance(sampler, BatchSamplerShard) or sampler.batch_size is None:
                return None
            n_last, n_filled = _rows_of_last_step(sampler), _rows_of_step(sampler)
            first = sampler.process_index * n_filled // sampler.num_processes
        if not 0 < n_last < n_filled:
            return None
        return torch.arange(first, first + n_rows, device=self.args.device) < n_last

    def _forget_tokens(self, n_tokens: torch.Tensor) -> None:
        """Subtracts tokens of repeated rows from the number of tokens that TRL's trainers log."""
        forget_trained_tokens(self, int(self.accelerator.gather(n_tokens).sum()))


_SOME_WEIGHTS = (
    "weight: got batches with and without 'weight', expected it in all batches or in none. Return `weight` for every "
    "batch."
)


def refuse_weights_of_some(has_weights: torch.Tensor) -> None:
    """
    Raises `ValueError` if only some processes have batches with weights. All processes call this function with the
    same `has_weights`, one number per process.
    """
    if has_weights.any() and not has_weights.all():
        raise ValueError(_SOME_WEIGHTS)


def _rows_of_step(shard: BatchSamplerShard) -> int:
    """Returns the number of rows of a full batch on all processes."""
    return shard.batch_size * (1 if shard.split_batches else shard.num_processes)


def _rows_of_last_step(shard: BatchSamplerShard) -> int:
    """
    Returns the number of rows of an epoch's last batch on all processes. It is 0 if all batches are full or the last
    batch is dropped.
    """
    sampler = getattr(shard.batch_sampler, "sampler", None)
    if shard.drop_last or not has_length(sampler):
        return 0
    return len(sampler) % _rows_of_step(shard)
