"""Measures whether finetuning makes the task salient in the student's representations (paper, 5.2.3)."""

from collections.abc import Sequence
from pathlib import Path

from ..cards.markdown import render
from .figures import accuracy_cell, bars, draw, intervals_of, over_seeds

__all__ = ["SALIENCY", "plot_saliency", "saliency_section"]

# `lp` is a linear probe on the last hidden states, and `ft` is finetuning. The order is the order of the paper.
SALIENCY = ("lp(weak)", "lp(gt)", "ft(weak)", "ft(weak)+lp(gt)", "ft(gt)")


def plot_saliency(entries: Sequence[dict], path: Path) -> None:
    """
    Plots the test accuracies of probes and finetuned models.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed: `weak`, and `accuracies`, a dict
            with `accuracy` per name of [`SALIENCY`].
        path (`Path`): A `.png` file.
    """
    names = {name: name.replace("+", "\n+ ") for name in SALIENCY}
    values = {shown: over_seeds(entries, "accuracies", name, "accuracy") for name, shown in names.items()}
    intervals = {shown: intervals_of(entries, "accuracies", name) for name, shown in names.items()}
    colours = {name: "sky" if name.startswith("lp") else "green" if name == "ft(gt)" else "blue" for name in values}
    colours["ft(weak)\n+ lp(gt)"] = "purple"
    heights = {"weak\nsupervisor": float(over_seeds(entries, "weak").mean())}

    def panel(axes):
        bars(
            axes, values, ylabel=f"test accuracy, n = {entries[0]['n_test']}", colours=colours, heights=heights,
            intervals=intervals, title="linear probes (lp) and finetuned models (ft)",
        )  # fmt: skip

    draw(path, [(7.4, panel)])


def saliency_section(entries: Sequence[dict]) -> str:
    """
    Returns the results in Markdown, as means over the seeds.

    The arguments are described in [`plot_saliency`].
    """
    accuracy = {name: accuracy_cell(entries, "accuracies", name) for name in SALIENCY}
    # The share of the gap is meaningful only if the intervals of weak supervisor and ceiling do not overlap in any
    # seed.
    ends = [[entry["accuracies"][name]["ci95"] for name in ("lp(gt)", "ft(gt)")] for entry in entries]
    share_closed = None
    if all(low[1] < high[0] for low, high in ends):
        means = {name: over_seeds(entries, "accuracies", name, "accuracy").mean() for name in SALIENCY}
        share_closed = (means["ft(weak)+lp(gt)"] - means["lp(gt)"]) / (means["ft(gt)"] - means["lp(gt)"])
    return render("analysis_saliency.md", accuracy=accuracy, share_closed=share_closed)
