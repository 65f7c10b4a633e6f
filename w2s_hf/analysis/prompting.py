"""Scores the student before any finetuning: zero-shot and few-shot answers of a base model (paper, 5.2.1)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .. import metrics
from ..cards.markdown import markdown_table, render
from ..tasks.prompt import PromptFormat, answer_tokens
from .arguments import classes_of, probabilities_of, texts_of
from .batches import through_model
from .figures import accuracy_cell, bars, draw, intervals_of, mean_cell, over_seeds

__all__ = [
    "PromptFormat", "answer_probabilities", "balanced_scores", "encode_prompts", "few_shot_prompts", "plot_prompting",
    "prompting_section",
]  # fmt: skip


def few_shot_prompts(
    texts: Sequence[str],
    examples: Sequence[str],
    labels: Sequence[int],
    n_shots: int,
    form: PromptFormat,
    *,
    seed: int = 0,
) -> list[str]:
    """
    Returns a prompt per text, each with its own random examples, so that no single choice of examples decides.

    The choice does not depend on the labels: ground truth and weak labels are compared on the same examples.

    Args:
        texts (sequence of `str`): Texts to classify.
        examples (sequence of `str`), labels (sequence of `int`): Texts with an answer.
        n_shots (`int`): Number of examples per prompt; 0 for none.
        form ([`PromptFormat`]): Format of the prompts.
        seed (`int`, *optional*, defaults to 0): Seed of the choice of examples.

    Raises:
        ValueError: There are too few examples, not as many labels, or labels that are not classes 0 and 1.
    """
    texts, examples = texts_of(texts, "texts"), texts_of(examples, "examples")
    if len(examples) != len(labels):
        raise ValueError(
            f"Got {len(examples)} examples and {len(labels)} labels, expected one label for each example."
        )
    if not 0 <= n_shots <= len(examples):
        raise ValueError(f"n_shots: got {n_shots}, expected at most the {len(examples)} examples; take fewer.")
    classes = classes_of(labels, "labels")
    rng = np.random.default_rng(seed)
    prompts = []
    for text in texts:
        indices: Iterable[int] = rng.choice(len(examples), n_shots, replace=False) if n_shots else ()
        prompts.append(form.prompt(text, [form.example(examples[index], classes[index]) for index in indices]))
    return prompts


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], form: PromptFormat, config: PreTrainedConfig
) -> list[list[int]]:
    """
    Returns the tokens of each prompt, up to the place where its two answers differ.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model.
        prompts (sequence of `str`): Prompts, see [`few_shot_prompts`].
        form ([`PromptFormat`]): Format with the answers.
        config ([`~transformers.PreTrainedConfig`]): Configuration of the model, which says how many tokens it reads.

    Raises:
        ValueError: There are no prompts, one is empty or longer than what the model reads, or the answers do not
            differ.
    """
    prompts = texts_of(prompts, "prompts")
    if not prompts:
        raise ValueError("prompts: got none, expected at least one.")
    shared, _ = answer_tokens(tokenizer, form)
    encoded = [ids + shared for ids in tokenizer(prompts, verbose=False)["input_ids"]]
    empty = [index for index, ids in enumerate(encoded) if not ids]
    if empty:
        raise ValueError(f"The prompt {empty[0]} has no tokens, expected at least one; give the form a suffix.")
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    n_positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if n_positions is not None and len(encoded[longest]) > n_positions:
        raise ValueError(
            f"The prompt {longest} has {len(encoded[longest])} tokens, more than the {n_positions} that the model "
            "reads; take fewer examples (--prompt_shots)."
        )
    return encoded


@torch.inference_mode()
def answer_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    form: PromptFormat,
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """
    Returns the probabilities of the two answers by a language model, normalized over their tokens alone.

    Their logits are float32 whatever the model is: in bfloat16 one pair in twenty would be equal. What some models do
    to all logits (a scale, a cap) moves neither answer before the other, and is left out.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, with a padding token.
        prompts (sequence of `str`): Prompts, see [`few_shot_prompts`].
        form ([`PromptFormat`]): Format with the answers to score.
        batch_size (`int`, *optional*, defaults to 16): Prompts at a time on each rank.

    Returns:
        `np.ndarray` of shape `(N, 2)`, float32, in order, on every rank; rows sum to 1.

    Raises:
        ValueError: [`encode_prompts`] refuses a prompt, or the model makes NaN of one.
    """
    encoded = encode_prompts(tokenizer, prompts, form, model.config)
    _, pair = answer_tokens(tokenizer, form)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    of_answers: list[Any] = [None if part is None else part[list(pair)].float() for part in (head.weight, head.bias)]

    def answer(inputs: BatchEncoding) -> np.ndarray:
        inputs = inputs.to(model.device)
        # Where positions are learned, the padding in front must not count.
        positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        hidden = decoder(**inputs, position_ids=positions, use_cache=False).last_hidden_state[:, -1]
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), *of_answers).softmax(dim=-1).cpu().numpy()

    found = through_model(tokenizer, encoded, answer, batch_size=batch_size, padding_side="left", desc="Asking")
    undefined = np.flatnonzero(np.isnan(found).any(axis=1))
    if len(undefined):
        raise ValueError(
            f"Got NaN for {len(undefined)} of {len(found)} prompts, expected probabilities; the first is prompt "
            f"{undefined[0]}. Load the model in float32 or bfloat16, and look at its weights."
        )
    return found


def balanced_scores(probabilities: np.ndarray, prior: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    Returns accuracies without the preference of a model for one of the answers, which hides what it knows.

    Args:
        probabilities (`np.ndarray` of shape `(N, 2)`): As [`answer_probabilities`] returns them.
        prior (`np.ndarray` of shape `(N, 2)` or `(1, 2)`): The probabilities for the same prompts about a text without
            content, which Zhao et al. (2021) divide by.
        labels (`np.ndarray` of shape `(N,)`): True classes, for the scores alone.

    Returns:
        `accuracy_at_median` (class 1 where its probability is above the median of the rows: for balanced classes) and
        `accuracy_content_free` (class 1 where its probability is above that of the prior).

    Raises:
        ValueError: The probabilities or the prior are not `(N, 2)`, are NaN, or do not sum to 1.
    """
    probabilities, prior = probabilities_of(probabilities, "probabilities"), probabilities_of(prior, "prior")
    log_odds, log_odds_of_prior = (_log_odds(values) for values in (probabilities, prior))

    def accuracy(threshold) -> float:
        above = log_odds > threshold
        return metrics.accuracy(np.stack([~above, above], axis=1), labels)

    return {
        "accuracy_at_median": accuracy(np.median(log_odds)),
        "accuracy_content_free": accuracy(log_odds_of_prior),
    }


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    first, second = np.log(np.maximum(probabilities, 1e-300)).T
    return second - first


def plot_prompting(entries: Sequence[dict], path: Path) -> None:
    """
    Plots the accuracy of prompted models beside that of finetuned ones.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed: `prompted` and `finetuned`, each
            name with `accuracy`; `weak` and `ceiling`, accuracies.
        path (`Path`): A `.png` file.
    """
    names = [(kind, name) for kind in ("prompted", "finetuned") for name in entries[0][kind]]
    values = {name.replace(", ", "\n"): over_seeds(entries, kind, name, "accuracy") for kind, name in names}
    colours = {name.replace(", ", "\n"): "orange" if kind == "prompted" else "blue" for kind, name in names}
    heights = {
        name.replace(" ", "\n"): float(over_seeds(entries, key).mean())
        for key, name in (("weak", "weak supervisor"), ("ceiling", "strong ceiling"))
    }
    intervals = {name.replace(", ", "\n"): intervals_of(entries, kind, name) for kind, name in names}

    def panel(axes):
        bars(
            axes, values, ylabel=f"test accuracy, n = {entries[0]['n_test']}", colours=colours, heights=heights,
            intervals=intervals, title="prompted and finetuned",
        )  # fmt: skip

    draw(path, [(2.0 + 1.15 * len(values), panel)])


def prompting_section(entries: Sequence[dict]) -> str:
    """Returns the description of the prompts in Markdown, and the scores of the prompted models: means over seeds."""
    entry, form = entries[0], entries[0]["format"]
    prompt = PromptFormat(**form).prompt("TEXT").replace("\n", "\\n").replace("`", "'")
    answers = [repr(answer) for answer in form["answers"]]
    columns = {"accuracy_at_median": "at the median", "accuracy_content_free": "content-free", "auroc": "AUROC"}
    rows = [
        [name, accuracy_cell(entries, "prompted", name)]
        + [mean_cell(entries, "prompted", name, column) for column in columns]
        for name in entry["prompted"]
    ]
    scores = markdown_table(["prompted", "accuracy", *columns.values()], rows)
    return render(
        "analysis_prompting.md",
        prompt=prompt, answers=answers, n_shots=entry["n_shots"], note=entry.get("note"), scores=scores,
    )  # fmt: skip
