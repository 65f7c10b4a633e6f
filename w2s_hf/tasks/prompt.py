"""The prompt of a task: the text around a row, and the two answers a language model chooses from."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

__all__ = ["PromptFormat", "answer_tokens", "head_tokens"]


@dataclass(frozen=True)
class PromptFormat:
    r"""
    The parts of a prompt. A prompt consists of `instruction`, the examples with their answers, and the text to
    classify between `prefix` and `suffix`.

    Args:
        answers (`tuple[str, str]`): The answers for class 0 and class 1, each with its leading space. Only the first
            pair of tokens in which they differ is scored.
        instruction (`str`): The text at the beginning of the prompt.
        suffix (`str`): The text between a question and its answer.
        separator (`str`): The text after each example.
        prefix (`str`): The text before each question.

    Raises:
        ValueError: A part is not a string, or the answers are not two different strings.
    """

    answers: tuple[str, str] = (" 0", " 1")
    instruction: str = ""
    suffix: str = "\nAnswer:"
    separator: str = "\n\n"
    prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.answers, str) or len(self.answers) != 2 or self.answers[0] == self.answers[1]:
            raise ValueError(f"answers: got {self.answers!r}, expected two different texts. Set a text per class.")
        parts = {name: getattr(self, name) for name in ("instruction", "suffix", "separator", "prefix")}
        for name, part in {**parts, **{f"answers[{n}]": answer for n, answer in enumerate(self.answers)}}.items():
            if not isinstance(part, str):
                raise ValueError(f"{name}: got {part!r}, expected a text. Put it in quotes.")

    @classmethod
    def for_classes(cls, class_names: Sequence[str]) -> "PromptFormat":
        """Returns the format with the answers 0 and 1, as in the paper, and an instruction that explains them."""
        return cls(instruction=f"Answer 0 for {class_names[0]} and 1 for {class_names[1]}.\n\n")

    def example(self, text: str, label: int) -> str:
        """Returns a text with its answer, in the form that a few-shot prompt contains."""
        return f"{self.prefix}{text}{self.suffix}{self.answers[label]}{self.separator}"

    def prompt(self, text: str, examples: Sequence[str] = ()) -> str:
        """Returns the prompt of a text, after examples in the form that [`PromptFormat.example`] returns."""
        return f"{self.instruction}{''.join(examples)}{self.prefix}{text}{self.suffix}"

    def text_of(self, prompt: str) -> str:
        """Returns the text to classify within a prompt without examples."""
        return prompt.removeprefix(self.instruction + self.prefix).removesuffix(self.suffix)


def answer_tokens(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> tuple[list[int], tuple[int, int]]:
    """
    Returns the tokens of both answers that matter for scoring.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        form ([`PromptFormat`]): The prompt, with its suffix and answers.

    Returns:
        Two values:

        - The token ids that both answers begin with. In some tokenizers, this is a lone space.
        - The ids of the first two tokens that differ, for class 0 and class 1.

    Raises:
        ValueError: The answers have no tokens that differ. The tokenizer merges the answers with the suffix, or does
            not know them. The tokenizer appends a token to each text, so that no answer can follow the prompt.
    """
    # The answers are tokenized after a suffix, because some tokenizers merge an answer with the text before it.
    before = tokenizer("x" + form.suffix, add_special_tokens=False)["input_ids"]
    whole = tokenizer("x" + form.suffix)["input_ids"]
    if whole[len(whole) - len(before) :] != before:
        raise ValueError(
            f"Got a tokenizer that appends {tokenizer.convert_ids_to_tokens(whole[-1:])} to a text, expected a "
            "tokenizer that appends nothing, because the answer follows the text. Use another tokenizer or model."
        )
    behind = [tokenizer("x" + form.suffix + answer, add_special_tokens=False)["input_ids"] for answer in form.answers]
    for answer, ids in zip(form.answers, behind, strict=True):
        if ids[: len(before)] != before:
            raise ValueError(f"The tokenizer merges the suffix {form.suffix!r} and {answer!r}. Use another suffix.")
    shared: list[int] = []
    for position, (first, second) in enumerate(zip(*behind, strict=False)):
        if first != second:
            for answer, token in zip(form.answers, (first, second), strict=True):
                if token == tokenizer.unk_token_id:
                    raise ValueError(f"The tokenizer has no token for the answer {answer!r}. Use another word.")
            return shared, (first, second)
        if position >= len(before):
            shared.append(first)
    raise ValueError(
        f"Got the answers {form.answers[0]!r} and {form.answers[1]!r}, of which one begins with the tokens of the "
        "other answer, expected answers that differ in a token. Use other answers."
    )


def head_tokens(tokenizer: PreTrainedTokenizerBase, form: PromptFormat) -> tuple[int, int]:
    """
    Returns the ids of the tokens that a classification head for both answers is built from, for class 0 and class 1.

    Raises:
        ValueError: The answers have no usable tokens (see [`answer_tokens`]). Both answers begin with the same token,
            so that the token after the prompt does not distinguish them. The suffix ends with the padding token, which
            a classifier skips.
    """
    shared, pair = answer_tokens(tokenizer, form)
    last = tokenizer("x" + form.suffix, add_special_tokens=False)["input_ids"][-1]
    if form.suffix and last == tokenizer.pad_token_id:
        raise ValueError(
            f"The suffix {form.suffix!r} ends with the padding token {tokenizer.pad_token!r}, but a classifier reads "
            "the last token that is not padding. Use another suffix."
        )
    if shared:
        raise ValueError(
            f"Got the answers {form.answers[0]!r} and {form.answers[1]!r}, which both begin with the token "
            f"{tokenizer.convert_ids_to_tokens(shared)}, expected different first tokens. Use other answers."
        )
    return pair
