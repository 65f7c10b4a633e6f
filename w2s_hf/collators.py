"""From rows to tokens, from tokens to padded batches, and from a batch to micro-batches of bounded size."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .labels import as_probabilities

__all__ = ["WeakToStrongCollator", "prepare_rows", "split_by_tokens"]


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
    Checks the labels of rows before anything trains on them, and tokenizes a text column where there are no tokens.

    Args:
        dataset ([`~datasets.Dataset`]): Rows with `input_ids` or a text column, and labels in any form.
        name (`str`): What error messages call the dataset.
        n_classes (`int`, *optional*, defaults to `2`): C.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): For a text column.
        text_field (`str`, *optional*, defaults to `"text"`): That column.
        max_length (`int`, *optional*): Longer texts are truncated.
        needs_labels (`bool`, *optional*, defaults to `True`): Refuse rows without.

    Raises:
        ValueError: no rows, no labels where they are needed, a column `label` beside `labels`, labels that are not
            probabilities or classes (rows named), or nothing to make `input_ids` of.
    """
    columns = dataset.column_names
    if len(dataset) == 0:
        raise ValueError(f"{name}: got no rows, expected at least one.")
    if {"label", "labels"} <= set(columns):
        raise ValueError(
            f"{name}: got columns `label` and `labels`, and only one can be trained on. Rename the other one, for "
            "example to `ground_truth`."
        )
    label = next((column for column in ("labels", "label") if column in columns), None)
    if needs_labels and label is None:
        raise ValueError(f"{name}: got columns {columns}, expected a column `labels`.")
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
        raise ValueError(f"{name}: got {got}, expected `input_ids`, or `{text_field}` and a tokenizer.")
    # The function must not see the trainer: datasets pickles all that it sees to name its cache file.
    return dataset.map(
        lambda rows: tokenizer(rows[text_field], truncation=max_length is not None, max_length=max_length),
        batched=True,
        desc=f"Tokenizing {name}",
    )


@dataclass
class WeakToStrongCollator:
    """
    Pads rows with `base_collator` and makes their labels a tensor.

    Integer labels stay `(B,)` int64, so that metrics written for [`~transformers.Trainer`] read what they are used
    to; P(class 1) and lists of probabilities become `(B, C)` float32.

    Args:
        base_collator (`Callable`): Collates the rows without their labels, such as `DataCollatorWithPadding`.
        n_classes (`int`): C.

    Raises:
        ValueError: labels that are not probabilities or classes, see [`w2s_hf.labels.as_probabilities`].
    """

    base_collator: Callable[[list[dict]], dict]
    n_classes: int = 2

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        name = next((name for name in ("labels", "label") if name in features[0]), None)
        inputs = [{key: value for key, value in row.items() if key != name} for row in features]
        batch = dict(self.base_collator(inputs))
        if name is not None:
            labels = np.asarray([row[name] for row in features])
            probabilities = as_probabilities(labels, self.n_classes)
            hard = labels.ndim == 1 and labels.dtype.kind in "bui"
            batch["labels"] = torch.from_numpy(labels.astype(np.int64) if hard else probabilities)
        return batch


def split_by_tokens(batch: dict[str, torch.Tensor], max_tokens: int | None) -> list[dict[str, torch.Tensor]]:
    """
    Cuts a padded batch, sorted by length, into micro-batches of at most `max_tokens` padded tokens.

    A row longer than the budget is a micro-batch by itself. Columns that are padding in every row of a micro-batch
    are cut off, on whichever side they are.

    Args:
        batch (`dict[str, torch.Tensor]`): Tensors of first dimension B, with `attention_mask` `(B, T)`.
        max_tokens (`int` or `None`): Budget in tokens, rows times length; `None` returns the batch as it is.

    Returns:
        `list` of batches, shortest rows first; together they hold every row once.
    """
    mask = batch.get("attention_mask")
    if max_tokens is None or mask is None or mask.numel() <= max_tokens:
        return [batch]
    lengths, order = mask.sum(dim=1).sort(stable=True)
    lengths = lengths.tolist()
    cuts = [0]
    for position, length in enumerate(lengths):
        # Ascending order: the row at `position` is the longest of its micro-batch so far.
        if position > cuts[-1] and (position - cuts[-1] + 1) * length > max_tokens:
            cuts.append(position)
    micro_batches = []
    for start, end in zip(cuts, [*cuts[1:], len(lengths)], strict=True):
        rows = order[start:end]
        columns = mask[rows].any(dim=0)
        micro_batches.append(
            {
                key: value[rows][:, columns] if value.ndim == 2 and value.shape == mask.shape else value[rows]
                for key, value in batch.items()
            }
        )
    return micro_batches
