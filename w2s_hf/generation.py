"""Completes prompts greedily. Completions are resumable, and equal for any batch size and number of ranks."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets.utils import tqdm
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .labels import Completion

__all__ = ["complete"]

logger = logging.getLogger(__name__)


def complete(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    keep: Path | None = None,
) -> list[Completion]:
    """
    Completes each prompt greedily, up to the tokenizer's end-of-text token.

    Prompts are sorted by length, padded on the left and split over the ranks, each of which needs the whole model.
    Every rank returns all completions, in the order of the prompts. In bfloat16, the order of two tokens of
    nearly equal probability can depend on the batch. This effect changed 1 of 200 completions of a random model, and
    no completion in float32. Sampling settings and penalties of the model's generation configuration are not used.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model, with adapters or without, in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer. It adds special tokens as in training.
        prompts (`Sequence[str]`): Texts of at least one token.
        max_new_tokens (`int`): Limit of a completion in tokens, its end-of-text token included.
        batch_size (`int`, *optional*, defaults to `16`): Prompts per batch and rank.
        keep (`Path`, *optional*):
            A directory for finished batches. A repeated call with the same prompts and `max_new_tokens` continues
            after these batches. A call with other values starts again. Use another directory for another model.

    Returns:
        `list[Completion]`: One completion per prompt.

    Raises:
        ValueError: The prompts are not strings, a prompt has no token, or the tokenizer has no end-of-text token.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts: got the string {prompts!r}, expected a list of strings. Put it in a list.")
    prompts = list(prompts)
    wrong = next((prompt for prompt in prompts if not isinstance(prompt, str)), None)
    if wrong is not None:
        raise ValueError(
            f"prompts: got a prompt of type {type(wrong).__name__}, expected strings. For a dataset, pass the column: "
            "rows['prompt']."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "tokenizer: got no end-of-text token, expected a token to end completions. Set tokenizer.eos_token."
        )
    encoded = tokenizer(prompts)["input_ids"] if prompts else []
    empty = [index for index, ids in enumerate(encoded) if not ids]
    if empty:
        raise ValueError(
            f"prompts: got {prompts[empty[0]]!r} (number {empty[0]} of {len(prompts)}), which has no token, expected "
            "at least one token. Remove this prompt."
        )
    state = PartialState()
    by_position = _earlier_completions(keep, prompts, max_new_tokens)
    # The longest prompts are first, so that a batch that does not fit into memory fails at the start.
    missing = sorted(set(range(len(prompts))) - by_position.keys(), key=lambda index: (-len(encoded[index]), index))
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        # PEFT puts virtual tokens before the padding, so that completions depend on the padding. Prefix
        # tuning depends on the padding in PEFT 0.18, but not in 0.21.
        batch_size = 1
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    own = batches[state.process_index :: state.num_processes]
    finished: list[tuple[int, Completion]] = []
    bar = tqdm(own, desc="Completing", disable=None if state.is_main_process else True)
    for batch in bar:
        completions = _complete_batch(model, tokenizer, [encoded[index] for index in batch], max_new_tokens)
        finished += zip(batch, completions, strict=True)
        if keep is not None:
            with _part(keep, state.process_index).open("a") as file:
                for index, completion in zip(batch, completions, strict=True):
                    file.write(json.dumps([index, completion.text, completion.is_cut]) + "\n")
    by_position |= dict(gather_object(finished) if state.num_processes > 1 else finished)
    return [by_position[index] for index in range(len(prompts))]


@torch.inference_mode()
def _complete_batch(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[list[int]],
    max_new_tokens: int,
) -> list[Completion]:
    inputs = tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt").to(model.device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with _generation_config(model, config):
        generate: Any = model.generate
        new = generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
    completions = []
    for prompt, tokens in zip(encoded, new, strict=True):
        is_cut = tokenizer.eos_token_id not in tokens
        end = len(tokens) if is_cut else tokens.index(tokenizer.eos_token_id)
        # The completion is decoded together with its prompt. Some tokenizers would otherwise drop its leading space.
        before = str(tokenizer.decode(prompt, skip_special_tokens=True))
        text = str(tokenizer.decode(prompt + tokens[:end], skip_special_tokens=True))
        completions.append(Completion(text[len(before) :], is_cut))
    return completions


@contextmanager
def _generation_config(model: PreTrainedModel | PeftModel, config: GenerationConfig) -> Iterator[None]:
    """
    Replaces the generation configuration of the model, from which `generate` would read penalties and similar options.
    """
    owners: list[Any] = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    before = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = config
        yield
    finally:
        for owner, own in zip(owners, before, strict=True):
            owner.generation_config = own


def _part(directory: Path, rank: int) -> Path:
    return directory / f"rank{rank}.jsonl"


def _earlier_completions(directory: Path | None, prompts: list[str], max_new_tokens: int) -> dict[int, Completion]:
    """
    Reads the completions of an interrupted call by the position of their prompts. Returns no completions if
    the prompts differ.
    """
    state = PartialState()
    completions: list[dict[int, Completion]] = [{}]
    if directory is not None and state.is_main_process:
        key = hashlib.sha256(json.dumps([max_new_tokens, *prompts]).encode()).hexdigest()
        marker = directory / "prompts.txt"
        if not marker.is_file() or marker.read_text() != key:
            directory.mkdir(parents=True, exist_ok=True)
            for part in directory.glob("rank*.jsonl"):
                part.unlink()
            marker.write_text(key)
        for part in directory.glob("rank*.jsonl"):
            whole, _, rest = part.read_text().rpartition("\n")
            for line in whole.splitlines():
                index, text, is_cut = json.loads(line)
                completions[0][index] = Completion(text, is_cut)
            if rest:  # an incomplete line of a process that was killed while writing
                part.write_text(f"{whole}\n" if whole else "")
        if completions[0]:
            logger.info(f"{len(completions[0])} of {len(prompts)} completions are cached")
    if state.num_processes > 1:
        broadcast_object_list(completions, from_process=0)
    return completions[0]
