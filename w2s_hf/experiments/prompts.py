"""The prompts with which the base model of a student is asked for the classes of rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..analysis.prompting import encode_prompts, few_shot_prompts
from ..tasks import PromptFormat, Task
from ..tasks.task import AnyTask
from .config import Own

__all__ = ["Prompts", "check_prompt_lengths", "prompt_format_of", "prompts_of"]


@dataclass(frozen=True)
class Prompts:
    """
    Creates the prompts of rows.

    Args:
        format ([`PromptFormat`]): The format of the prompts.
        in_rows ([`PromptFormat`], *optional*): The format in which the rows already are, with `--use_prompts`.
    """

    format: PromptFormat
    in_rows: PromptFormat | None = None

    def texts_of(self, rows: Sequence[str]) -> list[str]:
        """Returns the texts of rows without the prompt that `--use_prompts` adds to them."""
        return list(rows) if self.in_rows is None else [self.in_rows.text_of(text) for text in rows]

    def zero_shot(self, rows: Sequence[str]) -> list[str]:
        """Returns a prompt without examples for each row."""
        return [self.format.prompt(text) for text in self.texts_of(rows)]


def prompts_of(task: AnyTask, args: Own, world: Own) -> Prompts | None:
    """
    Returns the prompts of an experiment, or `None` if its rows have no prompt with two answers (pairs, completions).

    Args:
        task ([`AnyTask`]): The task.
        args ([`ExperimentArguments`]): The options `--prompt_form` and `--use_prompts`.
        world ([`World`], *optional*): The world of the demo, whose models know only the words of its corpus.
    """
    if not isinstance(task, Task):
        return None
    if world is None:
        return Prompts(prompt_format_of(task, args), task.prompt_format if args.use_prompts else None)
    # The demo's corpus has texts that continue `ENTITY is` with one of these words.
    dead, alive = world.answer_words
    return Prompts(PromptFormat(answers=(f" {dead}", f" {alive}"), suffix="", separator=" . "))


def prompt_format_of(task: Task, args: Own) -> PromptFormat:
    """Returns the prompt format of `--prompt_form` for real rows."""
    return PromptFormat.for_classes(task.class_names) if args.prompt_form == "01" else task.prompt_format


def check_prompt_lengths(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    prompts: Prompts,
    texts: Sequence[str],
    examples: Sequence[str],
    n_shots: int,
    seed: int,
) -> None:
    """
    Checks that prompts with examples fit the context of a model. The weak labels are not known yet, so all examples
    have the answer with more tokens.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]), config ([`~transformers.PreTrainedConfig`]): The
            tokenizer and the configuration of the model.
        prompts ([`Prompts`]): The prompts.
        texts, examples (sequence of `str`): The rows to classify, and the rows to choose examples from.
        n_shots (`int`): Number of examples per prompt.
        seed (`int`): Seed of the choice of examples.

    Raises:
        ValueError: [`~w2s_hf.analysis.prompting.encode_prompts`] refuses a prompt.
    """
    texts, examples = prompts.texts_of(texts), prompts.texts_of(examples)
    longer = int(np.argmax([len(ids) for ids in tokenizer(list(prompts.format.answers))["input_ids"]]))
    labels = [longer] * len(examples)
    of_texts = few_shot_prompts(texts, examples, labels, n_shots, prompts.format, seed=seed)
    encode_prompts(tokenizer, of_texts, prompts.format, config)
