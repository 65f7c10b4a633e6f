"""The prompt of a task: the text around a row that asks a language model for one of two answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

__all__ = ["PromptFormat", "answer_tokens", "head_tokens"]


@dataclass(frozen=True)
class PromptFormat:
    r"""
    A prompt as data: `instruction`, examples with their answers, and the text to classify between `prefix` and
    `suffix`.

    Args:
        answers (`tuple[str, str]`): Texts of class 0 and class 1, each with the space before it. Only their first
            tokens that differ are read.
        instruction (`str`): Text in front of everything.
        suffix (`str`): Text between a question and its answer.
        separator (`str`): Text behind each example.
        prefix (`str`): Text in front of each question.

    Raises:
        ValueError: A part is no text, or the answers are not two different texts.
    """

    answers: tuple[str, str] = (" 0", " 1")
    instruction: str = ""
    suffix: str = "\nAnswer:"
    separator: str = "\n\n"
    prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.answers, str) or len(self.answers) != 2 or self.answers[0] == self.answers[1]:
            raise ValueError(f"answers: got {self.answers!r}, expected two different texts, of class 0 and class 1.")
        parts = {name: getattr(self, name) for name in ("instruction", "suffix", "separator", "prefix")}
        for name, part in {**parts, **{f"answers[{n}]": answer for n, answer in enumerate(self.answers)}}.items():
            if not isinstance(part, str):
                raise ValueError(f"{name}: got {part!r}, expected a text. Put it in quotes.")

    @classmethod
    def for_classes(cls, class_names: Sequence[str]) -> "PromptFormat":
        """Returns the format with answers 0 and 1, as in the paper, after a line that says what they mean."""
        return cls(instruction=f"Answer 0 for {class_names[0]} and 1 for {class_names[1]}.\n\n")

    def example(self, text: str, label: int) -> str:
        """Returns a text with its answer, as it stands in a few-shot prompt."""
        return f"{self.prefix}{text}{self.suffix}{self.answers[label]}{self.separator}"

    def prompt(self, text: str, examples: Sequence[str] = ()) -> str:
        """Returns the prompt of a text, behind examples that [`PromptFormat.example`] made."""
        return f"{self.instruction}{''.join(examples)}{self.prefix}{text}{self.suffix}"

    def text_of(self, prompt: str) -> str:
        """Returns the text of a prompt without examples."""
        return prompt.removeprefix(self.instruction + self.prefix).removesuffix(self.suffix)


def answer_tokens(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> tuple[list[int], tuple[int, int]]:
    """
    Returns the tokens that both answers begin with (a lone space, in some tokenizers), and the first two that differ.

    Raises:
        ValueError: The answers have no tokens that differ, are joined with the suffix, or begin with an unknown word;
            take others. Or the tokenizer adds a token behind a text, so that no answer would be read behind a prompt.
    """
    # The answers are tokenized behind a suffix, because some tokenizers join an answer with the text before it.
    before = tokenizer("x" + form.suffix, add_special_tokens=False)["input_ids"]
    whole = tokenizer("x" + form.suffix)["input_ids"]
    if whole[len(whole) - len(before) :] != before:
        raise ValueError(
            f"The tokenizer adds {tokenizer.convert_ids_to_tokens(whole[-1:])} behind a text, where its answer should "
            "be read; take a tokenizer that adds nothing there."
        )
    behind = [tokenizer("x" + form.suffix + answer, add_special_tokens=False)["input_ids"] for answer in form.answers]
    for answer, ids in zip(form.answers, behind, strict=True):
        if ids[: len(before)] != before:
            raise ValueError(f"The tokenizer joins {form.suffix!r} with {answer!r}; use another suffix.")
    shared: list[int] = []
    for position, (first, second) in enumerate(zip(*behind, strict=False)):
        if first != second:
            for answer, token in zip(form.answers, (first, second), strict=True):
                if token == tokenizer.unk_token_id:
                    raise ValueError(f"The tokenizer does not know the answer {answer!r}; use another word.")
            return shared, (first, second)
        if position >= len(before):
            shared.append(first)
    raise ValueError(
        f"The answers {form.answers[0]!r} and {form.answers[1]!r} have the same tokens, or those of one begin those "
        "of the other; use others."
    )


def head_tokens(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> tuple[int, int]:
    """
    Returns the tokens of both answers, of which a head can be made that predicts the token behind a prompt.

    Raises:
        ValueError: As [`answer_tokens`], or the answers begin with the same token, so that the token behind a prompt
            does not tell them apart. Or the suffix ends with the padding token, which no classifier reads.
    """
    shared, pair = answer_tokens(tokenizer, form)
    last = tokenizer("x" + form.suffix, add_special_tokens=False)["input_ids"][-1]
    if form.suffix and last == tokenizer.pad_token_id:
        raise ValueError(
            f"The suffix {form.suffix!r} ends with the padding token {tokenizer.pad_token!r}, and a classifier reads "
            "the token before; use another suffix."
        )
    if shared:
        raise ValueError(
            f"The tokenizer begins both answers {form.answers[0]!r} and {form.answers[1]!r} with "
            f"{tokenizer.convert_ids_to_tokens(shared)}; use answers that differ in their first token."
        )
    return pair
