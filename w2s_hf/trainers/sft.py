"""The SFT trainer of TRL with epochs that train on every row once, and with exact resuming."""

import logging
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader
from trl import SFTTrainer

from .epochs import WholeEpochs
from .resuming import ResumableTraining

__all__ = ["ResumableSFTTrainer"]


logger = logging.getLogger(__name__)


class ResumableSFTTrainer(WholeEpochs, ResumableTraining, SFTTrainer):
    """An [`~trl.SFTTrainer`] with epochs that are the same on any number of processes and after a resume."""

    _is_evaluating = False

    def _n_rows(self, batch: dict) -> int:
        # TRL's `padding_free` concatenates all rows. Each row begins at position 0.
        return int((batch["position_ids"] == 0).sum()) if _is_flat(batch) else len(batch["labels"])

    def _mark(self, batch: dict, counts: torch.Tensor) -> dict:
        labels = batch["labels"]
        counts = counts.to(labels.device)
        if _is_flat(batch):
            counts = counts[(batch["position_ids"] == 0).cumsum(dim=1) - 1]
        else:
            counts = counts[:, None].expand_as(labels)
        tokens = batch.get("attention_mask", torch.ones_like(labels))
        return {**batch, "labels": labels.where(counts, -100), "repeated_tokens": tokens[~counts].sum()}

    def get_train_dataloader(self) -> DataLoader:
        """Builds the data loader of [`~trl.SFTTrainer`]. Warns if the loss depends on the number of processes."""
        if self.accelerator.num_processes > 1 and not self.args.average_tokens_across_devices:
            logger.warning(
                "average_tokens_across_devices: got False, expected True. Each process divides its loss by its own "
                "number of tokens, so that the training depends on the number of processes. Set it to True."
            )
        return super().get_train_dataloader()

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | int | None]:
        """Fetches batches like [`~trl.SFTTrainer`]. A process that has only repeated rows counts 1 token, not 0."""
        batches, n_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, n_tokens.clamp(min=1) if isinstance(n_tokens, torch.Tensor) else n_tokens

    def training_step(
        self, model: nn.Module, inputs: dict, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Trains on a batch like [`~trl.SFTTrainer`]. Tokens of repeated rows are not counted."""
        repeated_tokens = inputs.pop("repeated_tokens", None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if repeated_tokens is not None:
            self._forget_tokens(repeated_tokens)
        return loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        # TRL 1.0 divides the loss of an evaluation by the number of tokens of all processes. The Trainer then weights
        # the loss by the rows of each process. TRL 1.16 uses the mean over the tokens of the process.
        return None if self._is_evaluating else super()._get_num_items_in_batch(batch_samples, device)

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Predicts like [`~trl.SFTTrainer`]. Rows that accelerate repeats to fill the last batch have no loss."""
        counts = self._rows_that_count(self._n_rows(inputs))
        if counts is not None:
            inputs = self._mark(inputs, counts)
            del inputs["repeated_tokens"]
        self._is_evaluating = True
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._is_evaluating = False


def _is_flat(batch: dict) -> bool:
    return "attention_mask" not in batch and "position_ids" in batch
