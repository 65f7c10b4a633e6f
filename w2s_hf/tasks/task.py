"""The definition of a task: the sources of its rows, and their format as texts of two classes."""

import hashlib
import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import cast

from .prompt import PromptFormat

__all__ = [
    "PARQUET_BRANCH", "AnyTask", "EmptyFieldError", "LabelError", "Source", "Task", "normal", "random_key",
    "sources_of",
]  # fmt: skip

# This branch on the Hub has converted rows. Some datasets have only a script in their main branch, which `datasets`
# does not run.
PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class Source:
    """
    A source of rows: a dataset on the Hub, or a local directory or file.

    Args:
        id (`str`): Repository on the Hub, or a path.
        config (`str`, *optional*): Configuration of the dataset. On `PARQUET_BRANCH`, it is the folder.
        revision (`str`, *optional*): Branch, tag or commit.
        rename (`dict[str, str]`, *optional*): Columns to rename, as `{name in the source: name in the task}`.
    """

    id: str
    config: str | None = None
    revision: str | None = None
    rename: dict[str, str] = field(default_factory=dict)


class AnyTask(ABC):
    """
    The attributes of tasks of all kinds: [`Task`], [`PreferenceTask`] and [`GenerationTask`].

    The constructor accepts a string instead of a tuple of one string. The attributes are always tuples.

    Attributes:
        name (`str`): The name in results.
        sources (`tuple[Source]`): The sources of the rows. If one does not load, the next one is tried.
        train_split (`tuple[str]`): Names of the training split. The first existing one is used.
        test_split (`tuple[str]`, *optional*): Names of the test split. With `None`, a fifth of the training rows is
            held out.
        description (`str`): A description of one line.
    """

    name: str
    sources: str | tuple[Source, ...]
    train_split: str | tuple[str, ...]
    test_split: str | tuple[str, ...] | None
    description: str
    has_several_schemas = False  # whether the name of a local file is recorded as the dataset

    def __post_init__(self) -> None:
        self._as_tuples("train_split", "test_split")
        if isinstance(self.sources, str):
            object.__setattr__(self, "sources", (Source(self.sources),))

    def _as_tuples(self, *names: str) -> None:
        """Converts the named fields to tuples if they are strings."""
        for name in names:
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""

    @property
    def expected_columns(self) -> str:
        """The columns as text for messages."""
        return ", ".join(self.columns)


@dataclass(frozen=True)
class Task(AnyTask):
    r"""
    The definition of a binary task.

    `template` formats a row as text. It is the same for both classes and cannot show the label. The form of a text
    therefore does not depend on its label. Only `fields` or `choices` can leak the label (see
    [`w2s_hf.tasks.leak_probe`]).

    The class of a text is defined either by `label`, or by `choices` and `correct`. `choices` lists the answers to a
    question. Each answer becomes a separate text (paper, A.1).

    Args:
        name (`str`): The name on the command line.
        sources (`str` or `tuple[Source]`): The sources of the rows. If one does not load, the next one is tried.
        template (`str`):
            The text, with columns and `fields` in braces, such as `"{passage}\nQuestion: {question}"`. `{answer}` is
            one of the `choices`. Put the text to be judged last, because the head of a decoder reads the last token.
        label (`str` or `Callable[[dict], int]`, *optional*):
            A column, or a function of a row. Its values are 0 and 1, false and true, or `class_names`.
        choices (`Callable[[dict], list[str]]`, *optional*): Returns the answers to the question of a row.
        correct (`Callable[[dict], int]`, *optional*): Returns the position of the right answer.
        fields (`dict[str, Callable[[dict], str]]`, *optional*): Functions for template fields that are not columns.
        reads (`str` or `tuple[str]`, *optional*): Columns that functions read and the template does not show.
        context (`str`, *optional*): The field to shorten if a text is too long. Other fields are never shortened.
            Defaults to the only field of a template with one field.
        shorten_from (`str`, *optional*, defaults to `"end"`): The side on which the context is truncated, `"start"`
            or `"end"`.
        group (`str` or `tuple`, *optional*):
            Columns or fields. Rows that are equal in any of them stay in the same part of every split. Columns in a
            nested tuple are also compared with each other: `(("sentence1", "sentence2"),)`.
        question (`str` or `tuple[str]`, *optional*):
            Columns or fields that form a question, for rows that are answers with a `label`. Equally many right and
            wrong answers to a question are kept, in the same part.
        class_names (`tuple[str, str]`, *optional*, defaults to `("no", "yes")`): The names of classes 0 and 1.
        train_split, test_split (`str` or `tuple[str]`):
            Names of the splits. The first existing name is used. The test split is never trained on.
            With `test_split=None`, a fifth of the groups of the train split is held out.
        drop_empty (`bool`, *optional*, defaults to `False`): Whether to drop rows with an empty field. By default,
            such a row raises an error.
        description (`str`, *optional*): A description of one line.
        prompt ([`PromptFormat`], *optional*):
            The prompt around a text, and the words of both answers. Defaults to
            [`PromptFormat.for_classes`], with the answers 0 and 1.

    Raises:
        ValueError: Parts of the definition contradict each other. The message names them.
    """

    name: str
    sources: str | tuple[Source, ...]
    template: str
    label: str | Callable[[dict], int] | None = None
    choices: Callable[[dict], list[str]] | None = None
    correct: Callable[[dict], int] | None = None
    fields: dict[str, Callable[[dict], str]] = field(default_factory=dict)
    reads: str | tuple[str, ...] = ()
    context: str | None = None
    shorten_from: str = "end"
    group: str | tuple[str | tuple[str, ...], ...] = ()
    question: str | tuple[str, ...] = ()
    class_names: tuple[str, str] = ("no", "yes")
    train_split: str | tuple[str, ...] = ("train",)
    test_split: str | tuple[str, ...] | None = ("test",)
    drop_empty: bool = False
    description: str = ""
    prompt: PromptFormat | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._as_tuples("reads", "group", "question")
        shown = self.shown
        bare = [
            name for _, name, spec, conversion in Formatter().parse(self.template) if name and not (spec or conversion)
        ]
        if not shown or bare != shown:
            raise ValueError(
                f"{self.name}: template: got {self.template!r}, expected columns or fields in plain braces, as in "
                "'{question}'. Correct the template."
            )
        if self.context is None and len(shown) == 1:
            object.__setattr__(self, "context", shown[0])
        if (self.label is None) == (self.choices is None) or (self.choices is None) != (self.correct is None):
            raise ValueError(
                f"{self.name}: expected either `label`, or `choices` and `correct`. Set `label` for two classes, or "
                "`choices` and `correct` for multiple choice."
            )
        if self.choices is not None and "answer" not in shown:
            raise ValueError(
                f"{self.name}: the template shows no {{answer}}, so all choices have the same text. Add {{answer}}."
            )
        if isinstance(self.label, str) and self.label in shown:
            raise ValueError(
                f"{self.name}: the template shows the column {self.label!r}, which is the label. Remove this column."
            )
        if self.context is not None and shown.count(self.context) != 1:
            raise ValueError(
                f"{self.name}: context: got {self.context!r}, expected a field that the template shows once: "
                f"{', '.join(shown)}. Name one of these."
            )
        if self.choices is not None and (self.question or "answer" in self.fields):
            raise ValueError(
                f"{self.name}: got `choices` with `question` or a field 'answer'. A row with `choices` is a question, "
                "and {answer} is one of its choices. Leave out `question` and the field 'answer'."
            )
        names = self.class_names
        if isinstance(names, str) or len(names) != 2 or names[0] == names[1]:
            raise ValueError(
                f"{self.name}: class_names: got {names!r}, expected two different names, because tasks are binary. "
                "Map more classes to class 1 by a function: label=lambda row: row['label'] in ('a', 'b')."
            )
        if self.prompt is not None and not isinstance(self.prompt, PromptFormat):
            raise ValueError(
                f"{self.name}: prompt: got {self.prompt!r}, expected a w2s_hf.tasks.PromptFormat. Create one from the "
                "text around a row and the words of both answers."
            )
        if self.shorten_from not in ("start", "end"):
            raise ValueError(
                f"{self.name}: shorten_from: got {self.shorten_from!r}, expected 'start' or 'end'. Use one of these."
            )

    @property
    def prompt_format(self) -> PromptFormat:
        """The `prompt` of the task. Defaults to a prompt with the answers 0 and 1."""
        return PromptFormat.for_classes(self.class_names) if self.prompt is None else self.prompt

    def prompted(self) -> "Task":
        """Returns the task with its prompt in the template, so that all models read it around each text."""
        form = self.prompt_format
        around = (form.instruction + form.prefix, form.suffix)
        before, after = (part.replace("{", "{{").replace("}", "}}") for part in around)
        return replace(self, template=f"{before}{self.template}{after}")

    @property
    def content_free(self) -> str:
        """The text of a row without content, which has "N/A" in every field."""
        return self._render(dict.fromkeys(self.shown, "N/A"))["text"]

    @property
    def form(self) -> str:
        """The text of the template, with the names of its fields in braces."""
        return self._render({name: f"{{{name}}}" for name in self.shown})["text"]

    @property
    def shown(self) -> list[str]:
        """The fields of the template, in order."""
        return [name for _, name, _, _ in Formatter().parse(self.template) if name is not None]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        computed = {*self.fields, *(["answer"] if self.choices is not None else [])}
        together = [name for entry in self.group for name in ((entry,) if isinstance(entry, str) else entry)]
        named = [name for name in (*self.shown, *together, *self.question) if name not in computed]
        label = [self.label] if isinstance(self.label, str) else []
        return tuple(dict.fromkeys([*named, *self.reads, *label]))

    def examples(self, row: dict) -> Iterator[dict]:
        """
        Yields the texts of a row: one text, or one per choice.

        Args:
            row (`dict`): A row of the dataset, with at least [`Task.columns`].

        Yields:
            `dict` with

            - `id` (`str`): A hash of the row's content, and the number of the choice.
            - `text` (`str`)
            - `context_start`, `context_end` (`int`): The positions in `text` between which characters may be removed.
              They are equal if no character may be removed.
            - `shorten_from` (`str`): As in the task.
            - `keys` (`list[str]`): Rows that share a key stay in one split.
            - `question` (`str`): Equal for all answers to a question. Empty if rows are independent.
            - `ground_truth` (`int`): 0 or 1.

        Raises:
            ValueError: A field is missing, empty or not text, or the label is not one of two classes.
        """
        row = {name: row[name] for name in self.columns}
        row_id = hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]
        missing = [name for name, value in row.items() if value is None]
        if missing:
            raise EmptyFieldError(f"has no {missing[0]!r}")
        computed = row | {name: function(row) for name, function in self.fields.items()}
        values = {name: _text(name, computed[name]) for name in self.shown if name in computed}
        question = " | ".join(normal(_text(name, computed[name])) for name in self.question)
        keys = [f"question: {question}"] if question else []
        for entry in self.group:
            names = (entry,) if isinstance(entry, str) else entry
            keys += [f"{names[0]}: {normal(_text(name, computed[name]))}" for name in names]
        shared = {"keys": keys or [row_id]}
        if self.choices is None or self.correct is None:
            truth = self._truth(self.label(row) if callable(self.label) else row[self.label])
            yield {"id": row_id, **self._render(values), **shared, "question": question, "ground_truth": truth}
            return
        choices, right = self.choices(row), self.correct(row)
        try:
            right = operator.index(right)
        except TypeError:
            raise ValueError(f"has {right!r} as the position of the right choice, expected an integer") from None
        if not 0 <= right < len(choices) or len(choices) < 2:
            raise ValueError(
                f"has {len(choices)} choices and {right} as the position of the right choice, expected at least two "
                "choices and the position of one of them"
            )
        for position, choice in enumerate(choices):
            yield {
                "id": f"{row_id}-{position}",
                **self._render(values | {"answer": _text("answer", choice)}),
                **shared,
                "question": row_id,
                "ground_truth": int(position == right),
            }

    def _render(self, values: dict[str, str]) -> dict:
        text, start, end = "", 0, 0
        for literal, name, _, _ in Formatter().parse(self.template):
            text += literal
            if name is not None:
                if name == self.context:
                    start, end = len(text), len(text) + len(values[name])
                text += values[name]
        return {"text": text, "context_start": start, "context_end": end, "shorten_from": self.shorten_from}

    def _truth(self, value) -> int:
        name = repr(self.label) if isinstance(self.label, str) else "label"
        if value is None or value != value:  # NaN
            raise EmptyFieldError(f"has no {name}")
        if isinstance(value, str) and not value.strip():
            raise EmptyFieldError(f"has an empty {name}")
        if isinstance(value, str) and value in self.class_names:
            return self.class_names.index(value)
        # The condition also accepts bools, and strings from a CSV that pandas wrote with a missing label in the
        # column.
        if isinstance(value, Hashable) and value in (0, 1, "0", "1", "0.0", "1.0"):
            return int(float(value))
        raise LabelError(
            f"has the label {value!r}, expected 0 or 1, or {self.class_names[0]!r} or {self.class_names[1]!r} "
            "(`class_names` of the task)"
        )


def _text(name: str, value) -> str:
    if value is None or value != value:  # NaN
        raise EmptyFieldError(f"has no {name!r}")
    if isinstance(value, list | dict):
        raise ValueError(f"has a {type(value).__name__} in {name!r}, expected text. Convert it in `fields`")
    text = str(value).strip()
    if not text:
        raise EmptyFieldError(f"has an empty {name!r}")
    return text


class EmptyFieldError(ValueError):
    """The error for a row with an empty field."""


class LabelError(ValueError):
    """The error for a row with a label that is neither of the two classes."""


def sources_of(task: AnyTask) -> tuple[Source, ...]:
    """Returns the sources of a task, which `__post_init__` converts to a tuple."""
    return cast(tuple[Source, ...], task.sources)


def normal(text: str) -> str:
    """Returns a text without case and spacing, for comparisons."""
    return " ".join(text.casefold().split())


def random_key(row_id: str, purpose: str) -> str:
    """Returns a random string that depends only on a row and a purpose."""
    return hashlib.sha256(f"{purpose}\0{row_id}".encode()).hexdigest()
