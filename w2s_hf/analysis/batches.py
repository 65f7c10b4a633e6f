"""Applies a model to rows in batches of similar length, distributed over the ranks."""

from collections.abc import Callable, Sequence

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.utils import tqdm
from transformers import BatchEncoding, PreTrainedTokenizerBase

__all__ = ["through_model"]


def through_model(
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    predict: Callable[[BatchEncoding], np.ndarray],
    *,
    batch_size: int,
    padding_side: str,
    desc: str,
) -> np.ndarray:
    """
    Applies a function to rows of tokens, batch by batch.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer that pads.
        encoded (sequence of `list[int]`): Token ids of each row.
        predict (`Callable`): Returns an array `(B, ...)` for a padded batch of `B` rows.
        batch_size (`int`): Number of rows per batch on each rank.
        padding_side (`str`): `"left"` or `"right"`.
        desc (`str`): Label of the progress bar.

    Returns:
        `np.ndarray` of shape `(N, ...)`, in the order of the rows, on every rank.
    """
    state = PartialState()
    # The longest rows come first, so that a batch that does not fit into memory fails immediately.
    order = sorted(range(len(encoded)), key=lambda index: (-len(encoded[index]), index))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    results: list[tuple[int, np.ndarray]] = []
    own_batches = batches[state.process_index :: state.num_processes]
    for batch in tqdm(own_batches, desc=desc, disable=None if state.is_main_process else True):
        ids = {"input_ids": [encoded[index] for index in batch]}
        # Padding on the left shifts the text. Decoders therefore need a mask, even if the tokenizer returns none by
        # default.
        mask = True if padding_side == "left" else None
        padded = tokenizer.pad(ids, padding_side=padding_side, return_attention_mask=mask, return_tensors="pt")
        results += zip(batch, predict(padded), strict=True)
    by_index = dict(gather_object(results) if state.num_processes > 1 else results)
    return np.stack([by_index[index] for index in range(len(encoded))])
