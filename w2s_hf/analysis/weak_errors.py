"""Measures how the type of supervisor errors affects students, with simulated supervisors (paper, appendix E)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..cards.markdown import markdown_table, render
from .arguments import classes_of, probabilities_of
from .figures import accuracy_cell, bars, draw, intervals_of, lines, mean_cell, over_seeds, pgr_cell, pgr_note
from .probes import logistic_probe

__all__ = [
    "ERROR_KINDS",
    "feature_experiment",
    "plot_weak_errors",
    "simulate_labels",
    "weak_errors_section",
    "with_opinion",
]

# Simulated supervisors are wrong on these rows (paper, E.2).
ERROR_KINDS = {
    "random": "random rows",
    "longest": "the rows with the longest texts",
    "shortest": "the rows with the shortest texts",
    "unconfident": "the rows on which a strong model trained on ground truth is least confident",
    "confident": "the rows on which a strong model trained on ground truth is most confidently right",
}


def simulate_labels(
    kind: str,
    truth: np.ndarray,
    n_errors: int,
    *,
    texts: Sequence[str] | None = None,
    strong: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """
    Returns the hard labels of a simulated supervisor: ground truth with errors of one kind.

    Args:
        kind (`str`): One of [`ERROR_KINDS`].
        truth (`np.ndarray` of shape `(N,)`): Classes, 0 or 1.
        n_errors (`int`): Number of flipped labels. With the number of errors of a real supervisor, the simulated
            supervisor has the same accuracy.
        texts (sequence of `str`, *optional*): Texts for `longest` and `shortest` (length in characters).
        strong (`np.ndarray` of shape `(N, 2)`, *optional*): Probabilities for `unconfident` and `confident`, from a
            strong model that was finetuned on ground truth of *other* rows.
        seed (`int`, *optional*, defaults to 0): Seed of `random`, and of the order of rows in ties.

    Returns:
        `np.ndarray` of shape `(N,)`, int64.

    Raises:
        ValueError: The kind is unknown. A required input is missing. There are more errors than rows.
    """
    truth = classes_of(truth, "truth")
    if kind not in ERROR_KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(ERROR_KINDS)}.")
    if not 0 <= n_errors <= len(truth):
        raise ValueError(f"n_errors: got {n_errors}, expected 0 to {len(truth)}, the number of rows.")
    by_texts, by_strong = ("texts", texts), ("strong", strong)
    needed = {"longest": by_texts, "shortest": by_texts, "unconfident": by_strong, "confident": by_strong}
    name, ranked = needed.get(kind, ("", None))
    if name and ranked is None:
        raise ValueError(f"kind: got {kind!r}, which needs `{name}`. Pass `{name}`.")
    if ranked is not None and len(ranked) != len(truth):
        raise ValueError(f"{name}: got {len(ranked)} rows, expected {len(truth)}. Pass one value per row of `truth`.")
    if strong is not None:
        strong = probabilities_of(strong, "strong", len(truth))
    if kind == "random":
        rank = np.zeros(len(truth))
    elif kind in ("longest", "shortest") and texts is not None:
        lengths = np.array([len(text) for text in texts])
        rank = lengths if kind == "shortest" else -lengths
    elif kind == "unconfident" and strong is not None:
        rank = strong.max(axis=1)
    elif kind == "confident" and strong is not None:
        rank = -strong[np.arange(len(truth)), truth]
    else:
        raise NotImplementedError(
            f"Got the kind {kind!r} of ERROR_KINDS, expected a kind that simulate_labels implements. Add a branch to "
            "it that ranks the rows."
        )
    shuffled = np.random.default_rng(seed).permutation(len(truth))
    wrong = shuffled[np.argsort(rank[shuffled], kind="stable")[:n_errors]]
    labels = truth.copy()
    labels[wrong] = 1 - labels[wrong]
    return labels


def with_opinion(
    rows: Dataset,
    labels: Sequence[int],
    opinions: tuple[str, str] = (
        " I think this is incorrect. What do you think?",
        " I think this is correct. What do you think?",
    ),
) -> Dataset:
    """
    Appends the supervisor's hard label in words to each text, which makes imitation trivial (paper, E.3).

    Args:
        rows ([`~datasets.Dataset`]): Rows with a column `text`.
        labels (sequence of `int`): The supervisor's class of each row, 0 or 1.
        opinions (`tuple[str, str]`, *optional*): Texts to append for class 0 and class 1.
    """
    if "text" not in rows.column_names:
        raise ValueError(f"rows: got the columns {', '.join(rows.column_names)}, expected `text`. Rename a column.")
    classes = classes_of(labels, "labels")
    if len(classes) != len(rows):
        raise ValueError(f"labels: got {len(classes)}, expected {len(rows)}. Pass one label per row.")
    texts = [text + opinions[label] for text, label in zip(rows["text"], classes, strict=True)]
    return rows.remove_columns("text").add_column("text", texts)


def feature_experiment(
    weak: tuple[np.ndarray, np.ndarray],
    student: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    widths: Sequence[int],
    *,
    seed: int = 0,
) -> list[dict]:
    """
    Fits linear probes to compare supervisor errors that a student can learn with random errors (paper, E.1).

    The first supervisor is a probe on the first `k` features. A student that sees all features can learn its errors.
    The second supervisor has the same accuracy and makes random errors, which no student can learn. Labels are hard,
    and logistic regression has the default of scikit-learn (`C=1`). There are two differences from the paper. Features
    are standardized. The third supervisor of the paper, with a mixture of both kinds of errors, is left out.

    Args:
        weak (pair of features `(N, D)` and classes `(N,)`): Training rows of the weak probe.
        student (pair as `weak`): Training rows of the students, which are fitted to the labels of each supervisor.
        test (pair as `weak`): Rows to score all probes on.
        widths (sequence of `int`): Values of `k`.
        seed (`int`, *optional*, defaults to 0): Seed of the random errors.

    Returns:
        `list[dict]`: Accuracies per `k`: `weak`, `simulable` and `random` (students of both supervisors), `ceiling`.
    """

    def fit(features: np.ndarray, labels: np.ndarray):
        return logistic_probe(features, labels, l2=[1 / (2 * len(features))])

    sets = {"weak": weak, "student": student, "test": test}
    weak, student, test = (
        (np.asarray(features), classes_of(labels, name)) for name, (features, labels) in sets.items()
    )

    ceiling = float(fit(*student).score(*test))
    entries = []
    for k in widths:
        probe = fit(weak[0][:, :k], weak[1])
        labels = probe.predict(student[0][:, :k])
        n_errors = int((labels != student[1]).sum())
        random_labels = simulate_labels("random", student[1], n_errors, seed=seed)
        of_weak = float(probe.score(test[0][:, :k], test[1]))
        entry: dict[str, float | None] = {"k": int(k), "weak": of_weak, "ceiling": ceiling}
        for name, training_labels in (("simulable", labels), ("random", random_labels)):
            is_one_class = len(np.unique(training_labels)) == 1
            entry[name] = None if is_one_class else float(fit(student[0], training_labels).score(*test))
        entries.append(entry)
    return entries


def _shown(name: str) -> str:
    """Returns the displayed name of a supervisor in the results."""
    return name.replace("told, ", "label in the text, ")


_FEATURES = {
    "student, learnable errors": ("simulable", "vermilion", "-"),
    "student, random errors": ("random", "blue", "-"),
    "supervisor (first k features)": ("weak", "grey", "-"),
    "ceiling (all features, ground truth)": ("ceiling", "green", "--"),
}


def plot_weak_errors(entries: Sequence[dict], path: Path) -> None:
    """
    Plots students of simulated supervisors, the share of errors that they repeat, and probes on features.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed. `supervisors` has `accuracy`,
            `supervisor` (an accuracy), `pgr` and `agreement` by name. `features` is a result of
            [`feature_experiment`]. `ceiling` is an accuracy.
        path (`Path`): A `.png` file.
    """
    names = list(entries[0]["supervisors"])
    shown = {name: _shown(name).replace(", ", ",\n").replace("label in ", "label in\n") for name in names}

    def panel(*key: str, noted: bool = False, **options):
        values = {shown[name]: over_seeds(entries, "supervisors", name, *key) for name in names}
        colours = {
            shown[name]: "blue" if name.startswith("weak") else "purple" if name.startswith("told") else "sky"
            for name in names
        }
        if noted:
            options["notes"] = {shown[name]: pgr_note(entries, "supervisors", name) for name in names}
            options["intervals"] = {shown[name]: intervals_of(entries, "supervisors", name) for name in names}
        return lambda axes: bars(axes, values, colours=colours, **options)

    ceiling = float(over_seeds(entries, "ceiling").mean())
    supervisor = float(np.mean([over_seeds(entries, "supervisors", name, "supervisor").mean() for name in names]))
    width = 1.4 + 0.92 * len(names)
    heights = {"supervisors": supervisor, "strong\nceiling": ceiling}
    ylabel = f"test accuracy, n = {entries[0]['n_test']}"
    students = panel("accuracy", ylabel=ylabel, title="students", heights=heights, noted=True)
    title = "supervisor errors that the student repeats"
    repeated_errors = panel("agreement", "supervisor_wrong", ylabel="share of supervisor errors", title=title, top=1.0)

    def features(axes):
        widths = [entry["k"] for entry in entries[0]["features"]]
        series = {
            name: np.array(
                [[np.nan if row[key] is None else row[key] for row in entry["features"]] for entry in entries]
            )
            for name, (key, _, _) in _FEATURES.items()
        }
        styles = {name: (colour, style) for name, (_, colour, style) in _FEATURES.items()}
        lines(
            axes, range(len(widths)), series, styles=styles, ticks=[str(k) for k in widths],
            xlabel="k (number of features that the supervisor sees)", ylabel="test accuracy",
            title="linear probes on hidden states",
        )  # fmt: skip
        axes.legend(fontsize=8.5, loc="best")

    draw(path, [(width, students)], [(width, repeated_errors)], [(width, features)])


def weak_errors_section(entries: Sequence[dict]) -> str:
    """
    Returns the results in Markdown: means over the seeds, median PGR.

    The arguments are described in [`plot_weak_errors`].
    """
    rows = []
    for name in entries[0]["supervisors"]:
        of_kind = ("supervisors", name)
        scores = [mean_cell(entries, *of_kind, "supervisor"), accuracy_cell(entries, *of_kind)]
        repeated_errors = mean_cell(entries, *of_kind, "agreement", "supervisor_wrong", digits=2)
        rows.append([_shown(name), *scores, pgr_cell(entries, *of_kind), repeated_errors])
    header = ["supervisor", "accuracy of supervisor", "accuracy of student", "PGR", "repeated errors"]
    return render("analysis_weak_errors.md", kinds=ERROR_KINDS, supervisors=markdown_table(header, rows))
