"""Is what is asked for salient in the student's representations, and more so after finetuning? (Paper, 5.2.3.)"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..markdown import markdown_table
from .figures import bars, draw, over_seeds

__all__ = ["SALIENCY", "plot_saliency", "saliency_section"]

# lp is a linear probe on the last hidden states, ft is finetuning; in the paper's order.
SALIENCY = ("lp(weak)", "lp(gt)", "ft(weak)", "ft(weak)+lp(gt)", "ft(gt)")


def plot_saliency(entries: Sequence[dict], path: Path) -> None:
    """
    Test accuracy of probes and finetuned models.

    Args:
        entries (sequence of `dict`): What the analysis found, a seed each: `weak`, and of each of [`SALIENCY`] an
            entry with `accuracy`.
        path (`Path`): A `.png` file.
    """
    values = {name.replace("+", "\n+ "): over_seeds(entries, "accuracies", name, "accuracy") for name in SALIENCY}
    colours = {name: "sky" if name.startswith("lp") else "green" if name == "ft(gt)" else "blue" for name in values}
    colours["ft(weak)\n+ lp(gt)"] = "purple"
    heights = {"weak\nsupervisor": float(over_seeds(entries, "weak").mean())}

    def panel(axes):
        bars(axes, values, ylabel="test accuracy", colours=colours, heights=heights, title="probed and finetuned")

    draw(path, [(7.4, panel)])


def saliency_section(entries: Sequence[dict]) -> str:
    """What was found, in Markdown: means over the seeds; arguments as of [`plot_saliency`]."""
    what = {
        "lp(weak)": "linear probe of the base, fitted to weak labels",
        "lp(gt)": "linear probe of the base, fitted to ground truth",
        "ft(weak)": "finetuned on weak labels: the student, naive",
        "ft(weak)+lp(gt)": "linear probe of that student, fitted to ground truth",
        "ft(gt)": "finetuned on ground truth: the ceiling",
    }
    accuracy = {name: over_seeds(entries, "accuracies", name, "accuracy") for name in SALIENCY}
    gap = accuracy["ft(gt)"] - accuracy["lp(gt)"]
    closed = (accuracy["ft(weak)+lp(gt)"] - accuracy["lp(gt)"])[gap > 0] / gap[gap > 0]
    text = [
        "Probes are logistic regressions on the last hidden states (what the head reads), learned from the student "
        "half and scored on the test rows.",
        markdown_table(
            ["", "what", "accuracy"], [[name, what[name], f"{values.mean():.3f}"] for name, values in accuracy.items()]
        ),
    ]
    if len(closed):
        text.append(
            f"Finetuning on weak labels closes {100 * np.mean(closed):.0f} % of the gap between lp(gt) and ft(gt), as "
            "a probe sees it (the paper has 60 %). The more, the more linear what is asked for has become, errors of "
            "the labels and all."
        )
    return "\n\n".join(text)
