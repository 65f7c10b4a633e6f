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
    Compares a student's answers of any kind with its supervisor's.

    Args:
        same, student_right, supervisor_right (`np.ndarray` of shape `(N,)`, bool): Whether the two answers to a test
            row are the same, whether the student's is right, and whether the supervisor's is.

    Returns:
        `dict` with `accuracy`; `agreement`, see [`w2s_hf.metrics.agreement_shares`]; the shares of the supervisor's
        errors that are `inherited` (the same wrong answer) and `corrected`; and `new_errors`, the share of its right
        answers that the student has wrong. A share is `None` without such rows. With two classes `inherited` is the
        agreement where the supervisor is wrong; with more, or with text, a student may be wrong in its own way.

    Raises:
        ValueError: The answers to a row are the same, but only one of them is right.
    """
    same, student_right, supervisor_right = (
        np.asarray(values, dtype=bool) for values in (same, student_right, supervisor_right)
    )
    if not same.shape == student_right.shape == supervisor_right.shape or same.ndim != 1:
        raise ValueError(
            f"Got the shapes {same.shape}, {student_right.shape} and {supervisor_right.shape}, expected (N,) three "
            "times: one answer per test row."
        )
    if (same & (student_right != supervisor_right)).any():
        raise ValueError("same: got rows with the same answer of which one is right and one is not.")

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

    Inverse scaling (paper, 5.1.3) is a larger student that agrees less with its supervisor's errors; in cross-entropy
    it shows in `cross_entropy_supervisor_wrong`. *Misfit* is how far the student is from its supervisor. With squared
    error and a convex class of students it bounds the gain from below (Charikar et al. 2024, arXiv 2405.15116,
    theorem 1); ours are neither, so that the two are measured side by side.

    Args:
        student, supervisor (`np.ndarray` of shape `(N, C)`): Class probabilities.
        labels (`np.ndarray` of shape `(N,)`): True classes.

    Returns:
        `dict`: Keys of [`compare_answers`], and `ece`, `brier` of the student; `cross_entropy_supervisor_right` and
        `cross_entropy_supervisor_wrong`, the mean cross-entropy of the student's probabilities with the supervisor's
        hard answers, in nats; `misfit`, the mean squared distance between both; `gain`, by how much the student's
        Brier score is lower than the supervisor's.
    """
    student, supervisor, labels = np.asarray(student), np.asarray(supervisor), np.asarray(labels)
    supervisor_right = metrics.is_correct(supervisor, labels)
    answers = supervisor.argmax(axis=1)
    same = metrics.is_correct(student, answers)
    cross_entropy = -np.log(np.maximum(student[np.arange(len(student)), answers], 1e-12))

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


_KINDS = {"everywhere": "overall", "where it is right": "supervisor_right", "where it is wrong": "supervisor_wrong"}
_STYLES = {
    "everywhere": ("grey", "-"),
    "where it is right": ("green", "-"),
    "where it is wrong": ("vermilion", "-"),
    "accuracy": ("blue", "--"),
}
_MARKERS = "osD^vPX"


def plot_agreement(entries: Sequence[dict], path: Path) -> None:
    """
    Plots agreement over the sizes of the student, a panel per method; with probabilities, also gain over misfit.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed: `sizes` (models, small to large)
            and `students`, by method and model the dict of [`compare_answers`] or [`compare_probabilities`].
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
                ylabel="share of test rows", title=f"answered as by the supervisor; {method}",
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
    """Returns the results in Markdown: means over the seeds. Arguments as in [`plot_agreement`]."""
    has_probabilities = "misfit" in next(iter(next(iter(entries[0]["students"].values())).values()))

    header = ["student", "method", "accuracy", "agreement", "where right", "where wrong"]
    header += ["errors inherited", "errors corrected", "new errors"]
    columns: list[tuple[str, ...]] = [("agreement", key) for key in _KINDS.values()]
    columns += [("inherited",), ("corrected",), ("new_errors",)]
    more = {"cross-entropy where wrong": "cross_entropy_supervisor_wrong", "ECE": "ece", "Brier": "brier"}
    more |= {"misfit": "misfit", "gain": "gain"}
    tables: list[list] = [[], []]
    for method, of_sizes in entries[0]["students"].items():
        for model in of_sizes:
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
        answers=markdown_table(header, tables[0]),
        probabilities=markdown_table(["student", "method", *more], tables[1]) if has_probabilities else None,
    )
