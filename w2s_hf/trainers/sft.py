"""The SFT trainer of TRL with epochs that train on every row once, and with exact resuming."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from trl import SFTTrainer

from .._compat import weight_token_losses
from .epochs import WholeEpochs, refuse_weights_of_some
from .resuming import ResumableTraining

__all__ = ["ResumableSFTTrainer"]


logger = logging.getLogger(__name__)


class ResumableSFTTrainer(WholeEpochs, ResumableTraining, SFTTrainer):
    """
    An [`~trl.SFTTrainer`] with epochs that are the same on any number of processes and after a resume.

    If the batches have weights, each token has the weight of its row. The loss of a step is
    `sum(weight * loss) / sum(weight)` over the tokens of all its completions.
    """

    _is_evaluating = False
    _mean_weight: float | None = None  # of the tokens of the current step that have a loss

    def _n_rows(self, batch: dict) -> int:
        # TRL's `padding_free` concatenates all rows. Each row begins at position 0.
        return int((batch["position_ids"] == 0).sum()) if _is_flat(batch) else len(batch["labels"])

    def _mark(self, batch: dict, counts: torch.Tensor) -> dict:
        labels = batch["labels"]
        counts = _by_token(counts.to(labels.device), batch)
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
        """
        Fetches batches like [`~trl.SFTTrainer`], and computes the mean weight of the step. A process that has only
        repeated rows counts 1 token, not 0.
        """
        batches, n_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._mean_weight = None
        has_weights = any("weight" in batch for batch in batches)
        if self.accelerator.num_processes > 1:
            refuse_weights_of_some(self.accelerator.gather(torch.tensor([has_weights], device=device)))
        if has_weights:
            self._refuse_other_losses()
            sums = torch.zeros(2, device=device)
            for batch in batches:
                is_predicted = batch["labels"][:, 1:] != -100
                weight = _by_token(batch["weight"], batch)[:, 1:]
                sums += torch.stack([(weight * is_predicted).sum(), is_predicted.sum()]).to(device)
            if self.args.average_tokens_across_devices:
                sums = self.accelerator.gather(sums[None]).sum(dim=0)
            weight_sum, n = sums.tolist()
            self._mean_weight = weight_sum / max(n, 1)
        return batches, n_tokens.clamp(min=1) if isinstance(n_tokens, torch.Tensor) else n_tokens

    def training_step(
        self, model: nn.Module, inputs: dict, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Trains on a batch like [`~trl.SFTTrainer`]. Tokens of repeated rows are not counted."""
        repeated_tokens, weight = inputs.pop("repeated_tokens", None), inputs.pop("weight", None)
        with nullcontext() if weight is None else self._weighted(model, inputs, weight, num_items_in_batch):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if repeated_tokens is not None:
            self._forget_tokens(repeated_tokens)
        return loss

    @contextmanager
    def _weighted(
        self, model: nn.Module, inputs: dict, weight: torch.Tensor, n_tokens: torch.Tensor | int | None
    ) -> Iterator[None]:
        """
        Weights the losses of tokens in the outputs of a model. TRL divides their sum by the number of tokens of the
        step. Other terms, such as the router loss of a mixture of experts, have no weight.
        """
        if n_tokens is None:
            raise ValueError(
                "weight: got rows with weights and a model that does not accept `num_items_in_batch`, expected a "
                "model that accepts it. Remove the column `weight`."
            )
        labels = inputs["labels"][:, 1:]
        # The mean of these weights over the tokens of the step is 1, unless all weights are 0.
        weight = _by_token(weight, inputs)[:, 1:] / (self._mean_weight or 1)

        def weight_losses(module: nn.Module, args: tuple, outputs: Any) -> Any:
            weight_token_losses(outputs, labels, weight, n_tokens)
            return outputs

        hook = model.register_forward_hook(weight_losses)
        try:
            yield
        finally:
            hook.remove()

    def _refuse_other_losses(self) -> None:
        """Raises `ValueError` for a loss other than the cross-entropy of tokens, which alone can be weighted."""
        args: Any = self.args
        for option, value, expected in (
            ("loss_type", args.loss_type, "nll"),
            ("label_smoothing_factor", args.label_smoothing_factor, 0.0),
            ("compute_loss_func", self.compute_loss_func, None),
        ):
            if value != expected:
                raise ValueError(
                    f"{option}: got {value!r} and rows with weights, expected {expected!r}, since only the "
                    f"cross-entropy of tokens is weighted. Set {option}={expected!r}, or remove the column `weight`."
                )

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


def _by_token(values: torch.Tensor, batch: dict) -> torch.Tensor:
    """Returns the values of rows `(B,)` for each token, in the shape of the labels."""
    if _is_flat(batch):
        return values[(batch["position_ids"] == 0).cumsum(dim=1) - 1]
    return values[:, None].expand_as(batch["labels"])


def _is_flat(batch: dict) -> bool:
    return "attention_mask" not in batch and "position_ids" in batch
