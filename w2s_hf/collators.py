"""Checks and tokenizes rows, pads them to batches, and splits batches into micro-batches of bounded size."""

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from .probabilities import as_probabilities, as_supervisor_labels, as_weights
from .tokenization import tokenize_rows

__all__ = [
    "TOKENIZE_STREAM",
    "CompletionCollator",
    "RewardPairCollator",
    "WeakToStrongCollator",
    "check_pairs",
    "move_padding",
    "prepare_rows",
    "sorted_lengths",
    "split_by_tokens",
]

logger = logging.getLogger(__name__)

# Errors contain this advice for streams and transforms of texts, which only the user can tokenize.
TOKENIZE_STREAM = (
    "Tokenize the text first: rows.map(lambda row: tokenizer(row['text'], truncation=True, max_length=512)) for a "
    "streamed dataset, or the same call in its transform."
)


def prepare_rows(
    dataset: datasets.Dataset,
    name: str,
    *,
    n_classes: int = 2,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_field: str = "text",
    max_length: int | None = None,
    needs_labels: bool = True,
) -> datasets.Dataset:
    """
    Checks the labels of rows, and tokenizes their text column if they have no tokens.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `input_ids` or a text column, and labels in any form. Rows with a transform
            ([`~datasets.Dataset.with_transform`]) are returned unchanged.
        name (`str`): The name of the dataset in messages.
        n_classes (`int`, *optional*, defaults to `2`): The number of classes, C.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The tokenizer of a text column.
        text_field (`str`, *optional*, defaults to `"text"`): The text column.
        max_length (`int`, *optional*): Limit in tokens of a text; see [`w2s_hf.tokenization.tokenize_rows`].
        needs_labels (`bool`, *optional*, defaults to `True`): Whether rows without labels are refused.

    Raises:
        ValueError: There are no rows. Labels are needed and missing. There are both `label` and `labels`. Labels are
            not probabilities or classes (the message names the rows). There is neither `input_ids` nor a text to
            tokenize. A text with a context is too long even without its context (the message names the row).
    """
    columns = dataset.column_names
    if len(dataset) == 0:
        raise ValueError(f"{name}: got no rows, expected at least one. Pass a dataset with rows.")
    if {"label", "labels"} <= set(columns):
        raise ValueError(
            f"{name}: got columns `label` and `labels`, expected one of them. Rename one of the columns, for "
            "example to `ground_truth`."
        )
    if dataset.format["type"] == "custom":
        # The transform creates the columns. The collator checks the labels of each batch.
        return dataset
    label = next((column for column in ("labels", "label") if column in columns), None)
    if needs_labels and label is None:
        raise ValueError(
            f"{name}: got columns {columns}, expected a column `labels`. Add it: integer classes, or probabilities."
        )
    if label is not None:
        ids = list(dataset["id"]) if "id" in columns else None
        try:
            as_probabilities(dataset.with_format("python")[label][:], n_classes, ids)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if "input_ids" in columns or "inputs_embeds" in columns:
        return dataset
    if text_field not in columns or tokenizer is None:
        got = f"columns {columns}" if text_field not in columns else "a text column and no processing_class"
        raise ValueError(
            f"{name}: got {got}, expected `input_ids`, or `{text_field}` and a tokenizer. Add the column, or pass the "
            "tokenizer as processing_class."
        )

    return tokenize_rows(dataset, tokenizer, max_length, text_field=text_field, name=name)


@dataclass
class WeakToStrongCollator:
    """
    Pads rows with `base_collator` and converts their labels to a tensor.

    Integer labels stay `(B,)` int64, as metrics written for [`~transformers.Trainer`] expect. P(class 1) and lists of
    probabilities become `(B, C)` float32. Weights become `weight` `(B,)` float32. The labels of K supervisors become
    `supervisor_labels` `(B, K, C)` float32.

    Args:
        base_collator (`Callable`): Collates the rows without their labels, such as `DataCollatorWithPadding`.
        n_classes (`int`): The number of classes, C.
        with_labels (`bool`, *optional*, defaults to `True`): Whether labels and weights of the rows are in the batch.

    Raises:
        ValueError: The rows have no tokens, or their labels are not probabilities or classes, see
            [`w2s_hf.labels.as_probabilities`]. Weights are not numbers that are at least 0. The labels of supervisors
            are invalid, see [`w2s_hf.probabilities.as_supervisor_labels`].
    """

    base_collator: Callable[[list[dict]], dict]
    n_classes: int = 2
    with_labels: bool = True

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        # Collators that do not pad tokens may not need tokens.
        if hasattr(self.base_collator, "tokenizer") and not {"input_ids", "inputs_embeds"} & set(features[0]):
            raise ValueError(
                f"Got rows with the columns {', '.join(features[0]) or '(none)'}, expected `input_ids`. "
                f"{TOKENIZE_STREAM}"
            )
        name = next((name for name in ("labels", "label") if name in features[0]), None)
        removed = (name, "weight", "supervisor_labels")
        inputs = [{key: value for key, value in row.items() if key not in removed} for row in features]
        batch = dict(self.base_collator(inputs))
        if name is not None and self.with_labels:
            labels = np.asarray([row[name] for row in features])
            probabilities = as_probabilities(labels, self.n_classes)
            hard = labels.ndim == 1 and labels.dtype.kind in "bui"
            batch["labels"] = torch.from_numpy(labels.astype(np.int64) if hard else probabilities)
        if self.with_labels:
            batch |= _weight_of(features) | _supervisor_labels_of(features, self.n_classes)
        return batch


def _weight_of(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Returns the part `weight` of a batch, `(B,)` float32, or nothing for rows without weights."""
    if not any("weight" in row for row in rows):
        return {}
    values: list = [row.get("weight") for row in rows]
    # Rows of a dataset with the format of torch have tensors without dimensions.
    values = [value.item() if torch.is_tensor(value) and value.ndim == 0 else value for value in values]
    return {"weight": torch.from_numpy(as_weights(values))}


def _supervisor_labels_of(rows: list[dict], n_classes: int) -> dict[str, torch.Tensor]:
    """Returns the part `supervisor_labels` of a batch, `(B, K, C)` float32, or nothing for rows without it."""
    if not any("supervisor_labels" in row for row in rows):
        return {}
    values: list = [row.get("supervisor_labels") for row in rows]
    return {"supervisor_labels": torch.from_numpy(as_supervisor_labels(values, n_classes))}


def check_pairs(dataset: datasets.Dataset, name: str) -> None:
    """
    Checks pairs before training. No pair is dropped. A warning counts the pairs with equal responses, and the pairs
    with an empty response, because they have little information for a reward model.

    Args:
        dataset ([`~datasets.Dataset`]): Pairs in one of TRL's preference formats (text or messages, with `prompt` or
            without), or tokens in `chosen_ids` and `rejected_ids`.
        name (`str`): The name of the dataset in messages.

    Raises:
        ValueError: There are no rows. A column is missing. Soft labels are not P(chosen better) in [0, 1] (the
            message names the rows). There are both soft labels and a margin.
    """
    columns = dataset.column_names
    if len(dataset) == 0:
        raise ValueError(f"{name}: got no rows, expected at least one. Pass a dataset with rows.")
    chosen, rejected = ("chosen_ids", "rejected_ids") if "chosen_ids" in columns else ("chosen", "rejected")
    missing = [column for column in (chosen, rejected) if column not in columns]
    if missing:
        raise ValueError(
            f"{name}: got no column {missing[0]!r} (columns: {', '.join(columns)}), expected `chosen` and `rejected`, "
            "text or messages, and optionally `prompt`, their common beginning. Rename the columns."
        )
    if "soft_label" in columns:
        if "margin" in columns:
            raise ValueError(
                f"{name}: got columns `soft_label` and `margin`, expected at most one. A margin assumes that the "
                "chosen response is better, and a soft label does not. Remove one of them."
            )
        values = np.asarray(dataset.with_format("python")["soft_label"][:])
        try:
            if values.ndim != 1:
                raise ValueError(
                    f"labels: got shape {values.shape}, expected one P(chosen better) per row. "
                    "Pass one number per row."
                )
            as_probabilities(values, 2, list(dataset["id"]) if "id" in columns else None)
        except ValueError as error:
            raise ValueError(f"{name}: {str(error).replace('labels:', 'soft_label:', 1)}") from error
    if chosen == "chosen_ids":
        return
    dataset = dataset.with_format(None)
    pairs = list(zip(dataset[chosen], dataset[rejected], strict=True))
    for what, n in (
        ("identical responses", sum(first == second for first, second in pairs)),
        ("an empty response", sum(not first or not second for first, second in pairs)),
    ):
        if n:
            logger.warning(f"{name}: {n} of {len(pairs)} pairs have {what}")


@dataclass
class RewardPairCollator(DataCollatorForPreference):
    """
    Collates pairs like TRL's collator, and adds soft labels and an order of the two responses that does not depend on
    the preference.

    Adds to `input_ids` and `attention_mask` `(2B, T)` (the chosen responses, then the rejected responses):

    - `soft_label` `(B,)` float32, P(chosen better), if the rows have soft labels.
    - `weight` `(B,)` float32, if the rows have weights.
    - `supervisor_labels` `(B, K, 2)` float32, if the rows have labels of K supervisors.
    - `turned` `(B,)` bool: whether the rejected response is first when a hash of the tokens orders both responses.
      The class "the first response is better" then has prior one half. If chosen and rejected are exchanged, the
      order stays the same.

    Raises:
        ValueError: A soft label is outside [0, 1] or NaN. A weight is not a number that is at least 0. The labels of
            supervisors are invalid.
    """

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().torch_call(examples)
        if "soft_label" in examples[0]:
            labels = np.asarray([example["soft_label"] for example in examples])
            batch["soft_label"] = torch.from_numpy(as_probabilities(labels)[:, 1].copy())
        batch |= _weight_of(examples) | _supervisor_labels_of(examples, 2)
        batch["turned"] = torch.tensor(
            [_hash(example["rejected_ids"]) < _hash(example["chosen_ids"]) for example in examples]
        )
        return batch


@dataclass
class CompletionCollator(DataCollatorForLanguageModeling):
    """Collates tokens like TRL's collator, and adds `weight` `(B,)` float32 if the rows have weights."""

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        return {**super().torch_call(examples), **_weight_of(examples)}


def _hash(ids: list[int]) -> int:
    return zlib.crc32(np.asarray(ids, dtype=np.int64).tobytes())


def move_padding(batch: dict, side: str) -> dict:
    """
    Moves the padding of a batch to one side of its rows.

    Args:
        batch (`dict`): Tensors. Tensors whose shape begins with the shape of `attention_mask`, `(B, T)`, are moved,
            except `labels` and `supervisor_labels`. A batch without a mask has no padding and is not changed.
        side (`str`): `"right"` or `"left"`.

    Returns:
        `dict`: The moved batch, or the same object if the padding already is on this side.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return batch
    is_token = mask.bool()
    if is_token[:, 0 if side == "right" else -1].all():
        return batch
    # Masked positions between tokens are not moved.
    shifts = is_token.int().argmax(dim=1) if side == "right" else -is_token.flip(1).int().argmax(dim=1)
    length = mask.shape[1]
    columns = (torch.arange(length, device=mask.device) + shifts[:, None]) % length
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return {key: value[rows, columns] if _has_columns(key, value, mask) else value for key, value in batch.items()}


def _has_columns(key: str, value: object, mask: torch.Tensor) -> bool:
    """
    Returns whether a part of a batch has a value per token, as `mask` has. Labels `(B, C)` and labels of supervisors
    `(B, K, C)` can have the same shape by chance.
    """
    is_label = key in ("labels", "supervisor_labels")
    return not is_label and isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape


def sorted_lengths(batch: dict[str, torch.Tensor], n_sequences: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns the length of each row's longest sequence, ascending, and the rows in this order. Both tensors have the
    shape `(B,)` and the type int64.
    """
    lengths = batch["attention_mask"].sum(dim=1).view(n_sequences, -1).amax(dim=0)
    return lengths.sort(stable=True)


def split_by_tokens(
    batch: dict[str, torch.Tensor],
    max_tokens: int | None,
    *,
    n_sequences: int = 1,
    lengths: torch.Tensor | None = None,
) -> list[dict[str, torch.Tensor]]:
    """
    Splits a padded batch, sorted by length, into micro-batches of at most `max_tokens` padded tokens.

    A row longer than the budget is a separate micro-batch. Columns that are padding in all rows of a micro-batch are
    removed, on both sides.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Tensors with first dimension B, and `attention_mask` `(B, T)`. For rows of k sequences, tensors with first
            dimension k B, and `attention_mask` `(k B, T)`. They have the first sequences of all rows, then the second
            sequences.
        max_tokens (`int` or `None`): Budget in tokens, sequences times length. `None` returns the batch unchanged.
        n_sequences (`int`, *optional*, defaults to `1`): The number of sequences of a row, k.
        lengths (`torch.Tensor` of shape `(B,)`, ascending, *optional*):
            Lengths by which the batch is split. They are not smaller than the [`sorted_lengths`] of this batch. With
            the maximum over all ranks, all ranks split their batches at the same rows.

    Returns:
        `list` of batches, shortest rows first. Every row is in one batch.
    """
    mask = batch.get("attention_mask")
    if max_tokens is None or mask is None:
        return [batch]
    own_lengths, order = sorted_lengths(batch, n_sequences)
    planned = (own_lengths if lengths is None else lengths).tolist()
    n_tokens = [n_sequences * length for length in planned]
    if len(planned) * n_tokens[-1] <= max_tokens:
        return [batch]
    cuts = [0]
    for position, n in enumerate(n_tokens):
        # In ascending order, the row at `position` is the longest of its micro-batch so far.
        if position > cuts[-1] and (position - cuts[-1] + 1) * n > max_tokens:
            cuts.append(position)
    micro_batches = []
    for start, end in zip(cuts, [*cuts[1:], len(n_tokens)], strict=True):
        rows = order[start:end]
        sequences = torch.cat([rows + number * len(order) for number in range(n_sequences)])
        columns = mask[sequences].any(dim=0)
        micro_batches.append(
            {
                key: value[sequences][:, columns]
                if _has_columns(key, value, mask)
                else value[rows if len(value) == len(order) else sequences]
                for key, value in batch.items()
            }
        )
    return micro_batches
