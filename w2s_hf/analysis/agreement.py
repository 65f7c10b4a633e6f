"""Measures imitation of the supervisor: agreement, inherited errors, calibration, misfit (paper, 5.1.2, 5.1.3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import metrics
from ..cards.markdown import markdown_table, render
from ..plots import PALETTE, short_names
from .figures import accuracy_cell, draw, lines, mean_cell, over_seeds

__all__ = ["agreement_section", "compare_answers", "compare_probabilities", "plot_agreement"]


def compare_answers(same: np.ndarray, student_right: np.ndarray, supervisor_right: np.ndarray) -> dict:
    """
    Compares the predictions of a student and its supervisor, of any kind.

    Args:
        same (`np.ndarray` of shape `(N,)`, bool): Whether both predictions of a test row are the same.
        student_right, supervisor_right (`np.ndarray` of shape `(N,)`, bool): Whether each prediction is right.

    Returns:
        `dict` with

        - `accuracy` of the student;
        - `agreement`, see [`w2s_hf.metrics.agreement_shares`];
        - `inherited` and `corrected`: the shares of the supervisor's errors that the student repeats or corrects;
        - `new_errors`: the share of the supervisor's correct predictions on which the student is wrong.

        A share of no rows is `None`. For two classes, `inherited` is the agreement where the supervisor is wrong. For
        more classes or text, the two shares differ, because a student may make another error.

    Raises:
        ValueError: Two predictions are the same, but only one of them is right.
    """
    same, student_right, supervisor_right = (
        np.asarray(values, dtype=bool) for values in (same, student_right, supervisor_right)
    )
    if not same.shape == student_right.shape == supervisor_right.shape or same.ndim != 1:
        raise ValueError(
            f"Got the shapes {same.shape}, {student_right.shape} and {supervisor_right.shape}, expected (N,) for all "
            "three: one prediction per test row."
        )
    if (same & (student_right != supervisor_right)).any():
        raise ValueError(
            "same: got rows with equal predictions of which only one is right, expected both predictions right or "
            "both wrong. Compare both predictions with the same ground truth."
        )

    def share(values: np.ndarray, rows: np.ndarray) -> float | None:
        return float(values[rows].mean()) if rows.any() else None

    return {
        "accuracy": float(student_right.mean()),
        "agreement": metrics.agreement_shares(same, supervisor_right),
        "inherited": share(same, ~supervisor_right),
        "corrected": share(student_right, ~supervisor_right),
        "new_errors": share(~student_right, supervisor_right),
    }


def compare_probabilities(student: np.ndarray, supervisor: np.ndarray, labels: np.ndarray) -> dict:
    """
    Extends [`compare_answers`] to class probabilities, with calibration and misfit.

    Inverse scaling (paper, 5.1.3) means that larger students agree less with the errors of their supervisor. In terms
    of cross-entropy, `cross_entropy_supervisor_wrong` measures it. *Misfit* is the distance between student and
    supervisor. For squared error and a convex class of students, it is a lower bound of the gain. This is theorem 1 of
    Charikar et al. 2024 (arXiv 2405.15116). Students of this package meet neither condition, so misfit and gain are
    both measured.

    Args:
        student, supervisor (`np.ndarray` of shape `(N, C)`): Class probabilities.
        labels (`np.ndarray` of shape `(N,)`): True classes.

    Returns:
        `dict` with the keys of [`compare_answers`] and

        - `ece` and `brier` of the student;
        - `cross_entropy_supervisor_right` and `cross_entropy_supervisor_wrong`: the mean cross-entropy of the
          student's probabilities with the supervisor's hard predictions, in nats;
        - `misfit`: the mean squared distance between the probabilities of student and supervisor;
        - `gain`: the supervisor's Brier score minus the student's.
    """
    student, supervisor, labels = np.asarray(student), np.asarray(supervisor), np.asarray(labels)
    supervisor_right = metrics.is_correct(supervisor, labels)
    classes = supervisor.argmax(axis=1)
    same = metrics.is_correct(student, classes)
    cross_entropy = -np.log(np.maximum(student[np.arange(len(student)), classes], 1e-12))

    def mean(rows: np.ndarray) -> float | None:
        return float(cross_entropy[rows].mean()) if rows.any() else None

    brier = metrics.brier_score(student, labels)
    return {
        **compare_answers(same, metrics.is_correct(student, labels), supervisor_right),
        "ece": metrics.expected_calibration_error(student, labels),
        "brier": brier,
        "cross_entropy_supervisor_right": mean(supervisor_right),
        "cross_entropy_supervisor_wrong": mean(~supervisor_right),
        "misfit": metrics.squared_distance(student, supervisor),
        "gain": metrics.brier_score(supervisor, labels) - brier,
    }


_KINDS = {
    "agreement, all rows": "overall",
    "agreement, supervisor right": "supervisor_right",
    "agreement, supervisor wrong": "supervisor_wrong",
}
_STYLES = {
    "agreement, all rows": ("grey", "-"),
    "agreement, supervisor right": ("green", "-"),
    "agreement, supervisor wrong": ("vermilion", "-"),
    "accuracy": ("blue", "--"),
}
_MARKERS = "osD^vPX"


def plot_agreement(entries: Sequence[dict], path: Path) -> None:
    """
    Plots agreement against student size, with a panel per method. If there are probabilities, also plots gain against
    misfit.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed. `sizes` are the models, small
            to large. `students` has the dict of [`compare_answers`] or [`compare_probabilities`] by method and model.
        path (`Path`): A `.png` file.
    """
    models, methods = entries[0]["sizes"], list(entries[0]["students"])
    names = short_names(models, longest=18)
    panels, last = [], []
    for method in methods:

        def panel(axes, method=method):
            def of_sizes(*key: str) -> np.ndarray:
                return np.stack([over_seeds(entries, "students", method, model, *key) for model in models], axis=1)

            shares = {name: of_sizes("agreement", key) for name, key in _KINDS.items()}
            shares["accuracy"] = of_sizes("accuracy")
            lines(
                axes, range(len(models)), shares, styles=_STYLES, ticks=[names[model] for model in models],
                xlabel="student, small to large" if len(models) > 1 else "student",
                ylabel="share of test rows", title=f"agreement with the supervisor, {method}",
            )  # fmt: skip
            axes.set_ylim(-0.02, 1.05)
            axes.set_xlim(-0.4, len(models) - 0.6)
            axes.legend(fontsize=8.5, loc="best")

        panels.append((max(3.6, 1.7 + 1.15 * len(models)), panel))

    def scatter(axes):
        points = []
        for number, method in enumerate(methods):
            for position, model in enumerate(models):
                misfit = over_seeds(entries, "students", method, model, "misfit")
                gain = over_seeds(entries, "students", method, model, "gain")
                points += [*misfit, *gain]
                colour = list(PALETTE.values())[number % len(PALETTE)]
                size, marker = 45 + 25 * position, _MARKERS[position % len(_MARKERS)]
                label = f"{names[model]}, {method}"
                axes.scatter(misfit, gain, s=size, marker=marker, color=colour, alpha=0.85, label=label, zorder=3)
        low, high = min(0.0, *points), max(points) * 1.1
        axes.plot([low, high], [low, high], ":", color="black", lw=0.9, label="gain = misfit")
        axes.set_xlabel("misfit: mean squared distance to the supervisor")
        axes.set_ylabel("gain: supervisor's Brier score - student's")
        axes.set_title("misfit and gain", loc="left")
        axes.legend(fontsize=8, loc="best")

    if "misfit" in entries[0]["students"][methods[0]][models[0]]:
        last.append((4.6, scatter))
    draw(path, *([panels, last] if len(panels) > 2 and last else [panels + last]))


def agreement_section(entries: Sequence[dict]) -> str:
    """
    Returns the results in Markdown, as means over the seeds.

    The arguments are described in [`plot_agreement`].
    """
    has_probabilities = "misfit" in next(iter(next(iter(entries[0]["students"].values())).values()))

    header = ["student", "method", "accuracy", "agreement", "agreement, supervisor right"]
    header += ["agreement, supervisor wrong", "inherited errors", "corrected errors", "new errors"]
    columns: list[tuple[str, ...]] = [("agreement", key) for key in _KINDS.values()]
    columns += [("inherited",), ("corrected",), ("new_errors",)]
    more = {"cross-entropy, supervisor wrong": "cross_entropy_supervisor_wrong", "ECE": "ece", "Brier": "brier"}
    more |= {"misfit": "misfit", "gain": "gain"}
    tables: list[list] = [[], []]
    for method, by_model in entries[0]["students"].items():
        for model in by_model:
            of_model = ("students", method, model)
            accuracy = accuracy_cell(entries, *of_model)
            tables[0].append(
                [model, method, accuracy, *(mean_cell(entries, *of_model, *column) for column in columns)]
            )
            if has_probabilities:
                tables[1].append([model, method, *(mean_cell(entries, *of_model, column) for column in more.values())])
    if has_probabilities:
        for role, name in (("weak", "weak supervisor"), ("ceiling", "strong ceiling")):
            numbers = [mean_cell(entries, role, key) if key in ("ece", "brier") else "-" for key in more.values()]
            tables[1].append([name, "ground truth", *numbers])
    return render(
        "analysis_agreement.md",
        predictions=markdown_table(header, tables[0]),
        probabilities=markdown_table(["student", "method", *more], tables[1]) if has_probabilities else None,
    )
