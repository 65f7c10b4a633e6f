"""Measures how well superficial features of texts predict their labels.

    w2s leak-probe --task openbookqa
    w2s leak-probe --task my_task.py --dataset_path my_rows.csv

A classifier predicts the labels from lengths, punctuation, digits, capitals, and frequent beginnings and ends of the
texts. It is trained twice:

- The first time, it reads the form: the text that the task adds around the words of the dataset. Its accuracy must
  be at chance. If it is not, the task reveals the label, and the exit code is 1. For example, right answers may be
  shown by their letter and wrong answers by their text. Columns with few different values, such as "yes" and "no",
  count as form, because they may be the label in other words.
- The second time, it reads whole texts. An accuracy above chance is a property of the dataset, such as exclamation
  marks in positive tweets. It is available to students, supervisor and ceiling alike.
"""

import argparse
import re
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, disable_progress_bars
from scipy.stats import bootstrap
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from ..command_line import CommandLine
from ..metrics import rounded
from . import find_task
from .halves import group_rows, sample_rows
from .loading import check_class_names, load_raw, pick_split
from .task import Task
from .texts import CONVERSIONS, choose_answers, read_examples

__all__ = ["Guess", "format_features", "leak_probe", "probe_texts"]

_PUNCTUATION = ".,;:?!'\"()-"
_N_FOLDS = 5
# A column with at most this many different strings has categories, such as letters or "yes" and "no". Its
# strings are not content, because they may be the label in other words.
_N_CATEGORIES = 20
# Beginnings and ends of texts are features if at least this share of texts has them.
_FREQUENT = 0.02


@dataclass(frozen=True)
class Guess:
    """
    The accuracy of labels that were predicted from superficial features.

    Args:
        accuracy (`float`): Accuracy on held-out groups. The classes are balanced, so chance is one half.
        ci95 (`tuple[float, float]`): The interval of the accuracy, by bootstrap over groups.
        n (`int`): Number of texts.
        strongest (`list[tuple[str, float]]`):
            The three best single features. Each has its name and its AUROC for class 1.
    """

    accuracy: float
    ci95: tuple[float, float]
    n: int
    strongest: list[tuple[str, float]]

    @property
    def at_chance(self) -> bool:
        """Returns whether the lower end of the interval is at or below chance."""
        return self.ci95[0] <= 0.5


def format_features(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """
    Computes superficial features of texts.

    Returns:
        `(N, F)` float64, and `F` names. The features are lengths, punctuation, digits and capitals, both of the text
        and of its last line, which has the answer. Further features are the number of lines, the form of the last
        line, and frequent last words, last lines and first words.
    """
    names = []
    for where in ("the text", "the last line"):
        names += [
            f"{what} of {where}" for what in ("characters", "words", "characters per word", "digits", "capitals")
        ]
        names += [f"number of {mark} in {where}" for mark in _PUNCTUATION]
    names += ["lines", "last line is one letter", "last line starts with a capital", "ends without punctuation"]
    rows = []
    for text in texts:
        last = text.rstrip().rpartition("\n")[2]
        row = []
        for part in (text, last):
            n_words = len(part.split())
            row += [len(part), n_words, len(part) / max(n_words, 1)]
            row += [sum(map(str.isdigit, part)), sum(map(str.isupper, part)), *map(part.count, _PUNCTUATION)]
        answer = last.rpartition(": ")[2]
        row += [text.count("\n"), len(answer) == 1, answer[:1].isupper(), text[-1:].isalnum()]
        rows.append(row)
    parts = {
        "ends in": [(text.split() or [""])[-1] for text in texts],
        "last line is": [text.rstrip().rpartition("\n")[2].rpartition(": ")[2] for text in texts],
        "begins with": [(text.split() or [""])[0] for text in texts],
    }
    features = [np.array(rows, dtype=float)]
    for description, values in parts.items():
        for value, count in Counter(values).most_common(_N_CATEGORIES):
            if _FREQUENT * len(texts) <= count < len(texts):
                features.append(np.array([[value == other] for other in values], dtype=float))
                names.append(f"{description} {value[:40]!r}")
    return np.concatenate(features, axis=1), names


def probe_texts(texts: list[str], truth: list[int], groups: list[str], *, confidence_level: float = 0.95) -> Guess:
    """
    Predicts labels from the [`format_features`] of texts, by cross-validation over groups.

    Args:
        texts (`list[str]`): The input texts of the models.
        truth (`list[int]`): Their labels, 0 or 1. Both classes have about equally many texts.
        groups (`list[str]`): Their groups. Texts of one group are held out together.
        confidence_level (`float`, *optional*, defaults to 0.95): Level of the interval.

    Raises:
        ValueError: There are fewer than ten groups, or there is only one class.
    """
    if len(set(groups)) < 10 or len(set(truth)) < 2:
        raise ValueError(
            f"Got {len(texts)} texts in {len(set(groups))} groups with the classes {sorted(set(truth))}, expected at "
            "least ten groups and both classes. Use more rows."
        )
    labels, (_, group) = np.asarray(truth), np.unique(groups, return_inverse=True)
    features, names = format_features(texts)
    varies = np.ptp(features, axis=0) > 0  # the other features cannot predict anything
    varying = features[:, varies] if varies.any() else features[:, :1]
    # A shallow model suffices: there are a few thousand texts, and leaks are simple.
    model = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=8, random_state=0)
    folds = StratifiedGroupKFold(_N_FOLDS, shuffle=True, random_state=0)
    correct = cross_val_predict(model, varying, labels, groups=group, cv=folds) == labels
    right, total = np.bincount(group, weights=correct), np.bincount(group).astype(float)

    def share(right: np.ndarray, total: np.ndarray, axis: int = -1) -> np.ndarray:
        return right.sum(axis=axis) / total.sum(axis=axis)

    interval = (float(correct.mean()),) * 2
    if np.ptp(right / total):  # otherwise all resamples are equal
        estimate = bootstrap(
            (right, total), share, paired=True, n_resamples=2000, batch=200, method="percentile",
            confidence_level=confidence_level, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        interval = (float(estimate.low), float(estimate.high))
    aurocs = [
        float(roc_auc_score(labels, column)) if differs else 0.5
        for column, differs in zip(features.T, varies, strict=True)
    ]
    strongest = sorted(zip(names, aurocs, strict=True), key=lambda pair: -abs(pair[1] - 0.5))[:3]
    return Guess(float(correct.mean()), interval, len(texts), strongest)


def leak_probe(
    task: Task,
    rows: Dataset,
    *,
    conversion: str = "pairs",
    max_rows: int = 10_000,
    confidence_level: float = 0.95,
) -> dict[str, Guess]:
    """
    Predicts the labels of a task from the text that the task adds around the words of the dataset, and from whole
    texts.

    Args:
        task ([`Task`]): The task.
        rows ([`~datasets.Dataset`]): Rows of the dataset, such as its training split.
        conversion (`str`, *optional*, defaults to `"pairs"`): As in [`w2s_hf.tasks.load_task`].
        max_rows (`int`, *optional*, defaults to 10000): Size of the random sample of a larger dataset.
        confidence_level (`float`, *optional*, defaults to 0.95): Level of the intervals.

    Returns:
        `dict` with a [`Guess`] for `"form"` (the text that the task adds) and for `"text"` (whole texts).

    Raises:
        ValueError: See [`read_examples`] and [`probe_texts`].
    """
    split = str(rows.split or "given")
    rows, numbers = sample_rows(rows, max_rows)
    examples = read_examples(task, split, rows, numbers)
    group_rows(examples)
    examples = _as_many_of_each_class(choose_answers(examples, conversion))
    content = list(_content(task, rows))
    skeletons = [skeleton(example["text"], content[example["row"]]) for example in examples]
    truth = [example["ground_truth"] for example in examples]
    groups = [example["group"] for example in examples]
    texts = {"form": skeletons, "text": [example["text"] for example in examples]}
    return {name: probe_texts(kind, truth, groups, confidence_level=confidence_level) for name, kind in texts.items()}


def _as_many_of_each_class(rows: list[dict]) -> list[dict]:
    rows_by_class = [[row for row in rows if row["ground_truth"] == label] for label in (0, 1)]
    n = min(map(len, rows_by_class))
    rng = np.random.default_rng(0)
    return [part[i] for part in rows_by_class for i in np.sort(rng.permutation(len(part))[:n])]


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _content(task: Task, rows: Dataset) -> Iterator[list[str]]:
    """
    Yields the content of each row: its strings of two letters or more, longest first. Categories are not content.
    """
    columns = [name for name in task.columns if name != task.label]
    strings = {name: [list(_strings(value)) for value in rows[name][:]] for name in columns}
    vocabularies = {name: {string for row in column for string in row} for name, column in strings.items()}
    texts = [name for name in columns if len(vocabularies[name]) > _N_CATEGORIES]
    for index, row in enumerate(rows.select_columns(list(task.columns))):
        own = {string for name in texts for string in strings[name][index]}
        # A field that is a part of a column is text of the dataset, not of the task.
        pieces = {str(function(row)).strip() for function in task.fields.values()}
        own |= {piece for piece in pieces if any(_is_piece(piece, string) for string in own)}
        yield sorted((string for string in own if len(string) > 1), key=len, reverse=True)


def _is_piece(piece: str, string: str) -> bool:
    # The first condition saves the second one, whose pattern is compiled for each piece.
    return piece in string and re.search(rf"(?<!\w){re.escape(piece)}(?!\w)", string) is not None


def skeleton(text: str, content: list[str]) -> str:
    """
    Returns `text` with `<>` instead of content. Content that occurs more than once, such as an answer that is also in
    a list of choices, becomes `<1>`, `<2>`, ...
    """
    for number, string in enumerate(content):
        # Each piece becomes one private-use character, so that a shorter piece does not match inside a longer piece.
        text = text.replace(string, chr(0xE000 + number))
    counts = Counter(re.findall(r"[\ue000-\uf8ff]", text))
    # Adjacent pieces, such as the turns of a dialogue, count as one piece.
    once = "".join(piece for piece, count in counts.items() if count == 1)
    text = re.sub(rf"[{once}](\s*[{once}])*", "<>", text) if once else text
    order: dict[str, int] = defaultdict(lambda: len(order) + 1)
    return re.sub(r"[\ue000-\uf8ff]", lambda piece: f"<{order[piece.group()]}>", text)


def _description() -> str:
    """Returns the docstring of this module, with its paragraphs wrapped to the width of a screen."""
    paragraphs = re.sub(r"\n- ", "\n\n- ", __doc__.strip()).split("\n\n")
    texts = [text if text.startswith(" ") else textwrap.fill(" ".join(text.split()), 98) for text in paragraphs]
    return "\n\n".join(texts)


def main(argv: list[str] | None = None) -> int:
    """Runs the command `w2s leak-probe` and returns the exit code."""
    parser = CommandLine(
        prog="w2s leak-probe",
        usage="w2s leak-probe --task TASK [options]",
        description=_description(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, help="name of a task, or a Python file that defines one")
    parser.add_argument(
        "--dataset_path", metavar="PATH", help="local directory or file of the rows (default: download from the Hub)"
    )
    parser.add_argument(
        "--conversion",
        choices=CONVERSIONS,
        default="pairs",
        help="rows of a multiple-choice question: one right and one wrong answer (pairs, as in the paper), or one of "
        "the two at random (coin_flip). The default is pairs.",
    )
    parser.add_argument(
        "--max_rows",
        type=int,
        default=10_000,
        metavar="N",
        help="number of rows in the random sample that is probed (default: 10000)",
    )
    args = parser.parse_args(argv)
    if args.max_rows < 10:
        parser.error(f"--max_rows: got {args.max_rows}, expected at least 10. Set a larger number.")
    disable_progress_bars()
    try:
        task = find_task(args.task)
        raw, source = load_raw(task, args.dataset_path)
        name, rows = pick_split(task, raw, task.train_split)
        check_class_names(task, name, rows)
        guesses = leak_probe(task, rows, conversion=args.conversion, max_rows=args.max_rows)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        sys.exit(f"error: {error}")
    print(f"{task.name}, {source['id']} ({source['revision']}): {guesses['text'].n} texts, half of each class")
    for name, label in (("form", "text of the task"), ("text", "whole texts")):
        guess = guesses[name]
        verdict = "at chance" if guess.at_chance else "LEAK" if name == "form" else "above chance (in the dataset)"
        print(f"  {label:20s}{rounded(guess.accuracy)} [{guess.ci95[0]:.3f}, {guess.ci95[1]:.3f}]  {verdict}")
        if not guess.at_chance:
            for feature, auroc in guess.strongest:
                print(f"{'':22s}{feature}: AUROC {auroc:.2f}")
    return 0 if guesses["form"].at_chance else 1


if __name__ == "__main__":
    sys.exit(main())
