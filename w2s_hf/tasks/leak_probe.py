"""Measures whether the form of a text tells its label.

    python -m w2s_hf.tasks.leak_probe --task openbookqa
    python -m w2s_hf.tasks.leak_probe --task my_task.py --dataset_path my_rows.csv

A classifier that sees lengths, punctuation, digits, capitals and constant beginnings or ends, and no content, guesses
the labels twice. First from what the task adds around the dataset's own words: here it must be at chance, or the task
gives the label away (as where right answers are shown by their letter and wrong ones by their text), and the exit code
is 1. Then from whole texts: what it finds beyond that lies in the rows themselves, such as exclamation marks in
positive tweets, and is there for every student, supervisor and ceiling alike. A column of few different values, such
as "yes" and "no", counts as what the task adds: it may be the label in other words.
"""

import argparse
import re
import sys
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
# A column with at most so many different strings names categories, such as letters or "yes" and "no", not content: it
# may be the label in other words.
_N_CATEGORIES = 20
# Ends, beginnings and words around the content count where at least this share of texts has them.
_FREQUENT = 0.02


@dataclass(frozen=True)
class Guess:
    """
    The accuracy of labels guessed from the form of texts.

    Args:
        accuracy (`float`): Accuracy on held-out groups; the classes are balanced, so chance is one half.
        ci95 (`tuple[float, float]`): Its interval, by bootstrap over groups.
        n (`int`): Number of texts.
        strongest (`list[tuple[str, float]]`): Features that tell most alone: name, and AUROC of "larger means yes".
    """

    accuracy: float
    ci95: tuple[float, float]
    n: int
    strongest: list[tuple[str, float]]

    @property
    def at_chance(self) -> bool:
        """Returns whether the interval includes chance, or is below it."""
        return self.ci95[0] <= 0.5


def format_features(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """
    Computes features of texts that need no reading.

    Returns:
        `(N, F)` float64, and `F` names: lengths, punctuation, digits, capitals and lines, of the text and of its last
        line, where the answer is; and whether it has one of the frequent last words, last lines or first words.
    """
    names = [
        f"{what} of {where}"
        for where in ("the text", "the last line")
        for what in ("characters", "words", "characters a word", "digits", "capitals", *_PUNCTUATION)
    ]
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
    for what, values in parts.items():
        for value, count in Counter(values).most_common(_N_CATEGORIES):
            if _FREQUENT * len(texts) <= count < len(texts):
                features.append(np.array([[value == other] for other in values], dtype=float))
                names.append(f"{what} {value[:40]!r}")
    return np.concatenate(features, axis=1), names


def probe_texts(texts: list[str], truth: list[int], groups: list[str], *, confidence_level: float = 0.95) -> Guess:
    """
    Guesses labels from [`format_features`] of texts, on groups that were not trained on.

    Args:
        texts (`list[str]`): The texts that models are given.
        truth (`list[int]`): Their labels, 0 or 1, about as many of both.
        groups (`list[str]`): Their groups; texts of one group are held out together.
        confidence_level (`float`, *optional*, defaults to 0.95): Level of the interval.

    Raises:
        ValueError: there are fewer than ten groups, or one class.
    """
    if len(set(groups)) < 10 or len(set(truth)) < 2:
        raise ValueError(
            f"got {len(texts)} texts in {len(set(groups))} groups with the classes {sorted(set(truth))}, expected at "
            "least ten groups and both classes. Take more rows."
        )
    labels, (_, group) = np.asarray(truth), np.unique(groups, return_inverse=True)
    features, names = format_features(texts)
    # Shallow: a few thousand texts, and leaks are simple.
    model = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=8, random_state=0)
    folds = StratifiedGroupKFold(_N_FOLDS, shuffle=True, random_state=0)
    correct = cross_val_predict(model, features, labels, groups=group, cv=folds) == labels
    right, total = np.bincount(group, weights=correct), np.bincount(group).astype(float)

    def share(right: np.ndarray, total: np.ndarray, axis: int = -1) -> np.ndarray:
        return right.sum(axis=axis) / total.sum(axis=axis)

    interval = (float(correct.mean()),) * 2
    if np.ptp(right / total):  # else every resample is alike
        found = bootstrap(
            (right, total), share, paired=True, n_resamples=2000, batch=200, method="percentile",
            confidence_level=confidence_level, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        interval = (float(found.low), float(found.high))
    aurocs = [float(roc_auc_score(labels, column)) for column in features.T]
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
    Guesses the labels of a task from what it adds around the dataset's words, and from whole texts.

    Args:
        task ([`Task`]): The task.
        rows ([`~datasets.Dataset`]): Rows as they are in the dataset, such as its training split.
        conversion (`str`, *optional*, defaults to `"pairs"`): As in [`w2s_hf.tasks.load_task`].
        max_rows (`int`, *optional*, defaults to 10000): Number of random rows that are taken of a larger dataset.
        confidence_level (`float`, *optional*, defaults to 0.95): Level of the intervals.

    Returns:
        `dict` with a [`Guess`] for `"form"` (what the task adds around the dataset's words) and `"text"` (everything).

    Raises:
        ValueError: see [`read_examples`] and [`probe_texts`].
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
    return {
        name: probe_texts(of_kind, truth, groups, confidence_level=confidence_level) for name, of_kind in texts.items()
    }


def _as_many_of_each_class(rows: list[dict]) -> list[dict]:
    by_class = [[row for row in rows if row["ground_truth"] == label] for label in (0, 1)]
    n = min(map(len, by_class))
    rng = np.random.default_rng(0)
    return [of_class[i] for of_class in by_class for i in np.sort(rng.permutation(len(of_class))[:n])]


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _content(task: Task, rows: Dataset) -> Iterator[list[str]]:
    """Yields the dataset's own words in each row, longest first: strings of two letters or more, but no categories."""
    columns = [name for name in task.columns if name != task.label]
    strings = {name: [list(_strings(value)) for value in rows[name]] for name in columns}
    vocabularies = {name: {string for row in of_column for string in row} for name, of_column in strings.items()}
    texts = [name for name in columns if len(vocabularies[name]) > _N_CATEGORIES]
    for index, row in enumerate(rows.select_columns(list(task.columns))):
        own = {string for name in texts for string in strings[name][index]}
        # A field that is a piece of a column is the dataset's, too, and not what the task made of it.
        pieces = {str(function(row)).strip() for function in task.fields.values()}
        own |= {piece for piece in pieces if any(_is_piece(piece, string) for string in own)}
        yield sorted((string for string in own if len(string) > 1), key=len, reverse=True)


def _is_piece(piece: str, string: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(piece)}(?!\w)", string) is not None


def skeleton(text: str, content: list[str]) -> str:
    """
    Returns `text` with `<>` for content, and `<1>`, `<2>`, ... for content that occurs again, such as an answer that
    is also listed.
    """
    for number, string in enumerate(content):
        # A private-use character a piece: found once more, it is not content again.
        text = text.replace(string, chr(0xE000 + number))
    counts = Counter(re.findall(r"[\ue000-\uf8ff]", text))
    # However many pieces stand in a row, such as the turns of a dialogue, they are one.
    once = "".join(piece for piece, count in counts.items() if count == 1)
    text = re.sub(rf"[{once}](\s*[{once}])*", "<>", text) if once else text
    order: dict[str, int] = defaultdict(lambda: len(order) + 1)
    return re.sub(r"[\ue000-\uf8ff]", lambda piece: f"<{order[piece.group()]}>", text)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = CommandLine(
        prog="python -m w2s_hf.tasks.leak_probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, help="Name of a task, or a Python file that defines one.")
    parser.add_argument("--dataset_path", help="Local directory or file of rows; else they come from the Hub.")
    parser.add_argument("--conversion", choices=CONVERSIONS, default="pairs", help="How questions become rows.")
    parser.add_argument("--max_rows", type=int, default=10_000, help="Rows of the dataset to look at (10000).")
    args = parser.parse_args(argv)
    if args.max_rows < 10:
        parser.error(f"--max_rows: got {args.max_rows}, expected at least 10.")
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
    for name, what in (("form", "what the task adds"), ("text", "whole texts")):
        guess = guesses[name]
        verdict = "at chance" if guess.at_chance else "LEAK" if name == "form" else "in the dataset's own rows"
        print(f"  {what:20s}{rounded(guess.accuracy)} [{guess.ci95[0]:.3f}, {guess.ci95[1]:.3f}]  {verdict}")
        if not guess.at_chance:
            for feature, auroc in guess.strongest:
                print(f"{'':22s}{feature}: AUROC {auroc:.2f}")
    return 0 if guesses["form"].at_chance else 1


if __name__ == "__main__":
    sys.exit(main())
