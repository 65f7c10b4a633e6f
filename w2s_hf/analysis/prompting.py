"""Scores the student before finetuning: zero-shot and few-shot predictions of a base model (paper, 5.2.1)."""

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
    Returns a prompt per text. Each prompt has its own random examples, so that results do not depend on one choice of
    examples.

    The choice does not depend on the labels, so ground truth and weak labels are compared on the same examples.

    Args:
        texts (sequence of `str`): Texts to classify.
        examples (sequence of `str`), labels (sequence of `int`): Labelled texts to select examples from.
        n_shots (`int`): Number of examples per prompt.
        form ([`PromptFormat`]): Format of the prompts.
        seed (`int`, *optional*, defaults to 0): Seed of the choice of examples.

    Raises:
        ValueError: There are too few examples, the numbers of examples and labels differ, or labels are not 0 or 1.
    """
    texts, examples = texts_of(texts, "texts"), texts_of(examples, "examples")
    if len(examples) != len(labels):
        raise ValueError(
            f"Got {len(examples)} examples and {len(labels)} labels, expected one label for each example."
        )
    if not 0 <= n_shots <= len(examples):
        raise ValueError(f"n_shots: got {n_shots}, expected 0 to {len(examples)}, the number of examples.")
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
    Returns the token ids of each prompt, up to the position where the two answers differ.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model.
        prompts (sequence of `str`): Prompts, see [`few_shot_prompts`].
        form ([`PromptFormat`]): Format with the answers.
        config ([`~transformers.PreTrainedConfig`]): Configuration with the maximum number of tokens.

    Raises:
        ValueError: There are no prompts, a prompt is empty or longer than the maximum of the model, or the answers
            have the same tokens.
    """
    prompts = texts_of(prompts, "prompts")
    if not prompts:
        raise ValueError("prompts: got an empty list, expected at least one prompt.")
    shared, _ = answer_tokens(tokenizer, form)
    encoded = [ids + shared for ids in tokenizer(prompts, verbose=False)["input_ids"]]
    empty = [index for index, ids in enumerate(encoded) if not ids]
    if empty:
        raise ValueError(f"Got no tokens for prompt {empty[0]}, expected at least one. Add a suffix to the format.")
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    n_positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if n_positions is not None and len(encoded[longest]) > n_positions:
        raise ValueError(
            f"Got prompt {longest} with {len(encoded[longest])} tokens, expected at most {n_positions}, the maximum "
            "of the model. Use fewer examples (--prompt_shots)."
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
    Returns the probabilities of the two answers by a language model, normalized over their two tokens.

    The logits are computed in float32 for every model, because in bfloat16 one prompt in twenty would have two equal
    logits. Some models apply a scale or a cap to all logits. This function omits the scale and the cap, which do not
    change the order of the answers.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model, with a padding token.
        prompts (sequence of `str`): Prompts, see [`few_shot_prompts`].
        form ([`PromptFormat`]): Format with the answers to score.
        batch_size (`int`, *optional*, defaults to 16): Number of prompts per batch on each rank.

    Returns:
        `np.ndarray` of shape `(N, 2)`, float32, in the order of the prompts, on every rank; rows sum to 1.

    Raises:
        ValueError: A prompt is invalid, see [`encode_prompts`], or the model returns NaN.
    """
    encoded = encode_prompts(tokenizer, prompts, form, model.config)
    _, pair = answer_tokens(tokenizer, form)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    parameters: list[Any] = [None if part is None else part[list(pair)].float() for part in (head.weight, head.bias)]

    def predict(inputs: BatchEncoding) -> np.ndarray:
        inputs = inputs.to(model.device)
        # Padding on the left must not count as positions, which matters for learned position embeddings.
        positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        hidden = decoder(**inputs, position_ids=positions, use_cache=False).last_hidden_state[:, -1]
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), *parameters).softmax(dim=-1).cpu().numpy()

    probabilities = through_model(
        tokenizer, encoded, predict, batch_size=batch_size, padding_side="left", desc="Prompting"
    )
    undefined = np.flatnonzero(np.isnan(probabilities).any(axis=1))
    if len(undefined):
        raise ValueError(
            f"Got NaN for {len(undefined)} of {len(probabilities)} prompts (first: prompt {undefined[0]}), expected "
            "probabilities. Load the model in float32 or bfloat16, and check its weights."
        )
    return probabilities


def balanced_scores(probabilities: np.ndarray, prior: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    Returns accuracies that are corrected for the preference of a model for one of the answers.

    Args:
        probabilities (`np.ndarray` of shape `(N, 2)`): A result of [`answer_probabilities`].
        prior (`np.ndarray` of shape `(N, 2)` or `(1, 2)`): Probabilities for the same prompts with a text without
            content, which Zhao et al. (2021) divide by.
        labels (`np.ndarray` of shape `(N,)`): True classes, which are used for scoring only.

    Returns:
        `dict` of two accuracies. `accuracy_at_median` predicts class 1 if its probability is above the median of all
        rows, which requires balanced classes. `accuracy_content_free` predicts class 1 if its probability is above the
        probability of the prior.

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
    Plots the accuracies of prompted and finetuned models.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed. `prompted` and `finetuned` have
            results with `accuracy` by name. `weak` and `ceiling` are accuracies.
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
            intervals=intervals, title="prompted (orange) and finetuned (blue) models",
        )  # fmt: skip

    draw(path, [(2.0 + 1.15 * len(values), panel)])


def prompting_section(entries: Sequence[dict]) -> str:
    """
    Returns the results in Markdown: the prompts, and means over the seeds.

    The arguments are described in [`plot_prompting`].
    """
    entry, form = entries[0], entries[0]["format"]
    prompt = PromptFormat(**form).prompt("TEXT").replace("\n", "\\n").replace("`", "'")
    answers = [repr(answer) for answer in form["answers"]]
    columns = {"accuracy_at_median": "at the median", "accuracy_content_free": "content-free", "auroc": "AUROC"}
    rows = [
        [name, accuracy_cell(entries, "prompted", name)]
        + [mean_cell(entries, "prompted", name, column) for column in columns]
        for name in entry["prompted"]
    ]
    scores = markdown_table(["prompt", "accuracy", *columns.values()], rows)
    return render(
        "analysis_prompting.md",
        prompt=prompt, answers=answers, n_shots=entry["n_shots"], note=entry.get("note"), scores=scores,
    )  # fmt: skip
