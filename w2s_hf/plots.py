"""Figures of an experiment."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, or looked for

import matplotlib.pyplot as plt
import numpy as np

__all__ = ["plot_accuracies"]

# Okabe and Ito's palette: told apart by every kind of colour vision, and in grey by its lightness.
_COLOURS = {
    "weak": "#999999",
    "zero-shot": "#E69F00",
    "control": "#CC79A7",
    "student": "#0072B2",
    "ceiling": "#009E73",
}


def plot_accuracies(results: dict, path: Path) -> None:
    """
    Test accuracy of supervisor, students, control and ceiling: the mean over seeds as a bar, each seed as a point, and
    the 95 % interval over test rows where there is one seed. PGR stands above each student.

    Args:
        results (`dict`): Content of `results.json`.
        path (`Path`): A `.png` file.
    """
    runs = results["runs"]
    baselines = runs[0].get("baselines", [])
    bars = [("weak", "weak\nsupervisor", [run["weak"] for run in runs], None)]
    for position, baseline in enumerate(baselines):
        if baseline["model"]:
            label = baseline["name"].replace(", ", ",\n")
            bars.append(("zero-shot", label, [run["baselines"][position] for run in runs], None))
    if all(run["controls"] for run in runs):
        bars.append(("control", "control: student\nnot pretrained", [run["controls"][0] for run in runs], None))
    for position, summary in enumerate(results["summary"]):
        entries = [run["students"][position] for run in runs]
        bars.append(("student", f"student\n{summary['method']}", entries, summary["pgr_median"]))
    if "ceiling_plain" in runs[0]:
        bars.append(("ceiling", "plain\nceiling", [run["ceiling_plain"] for run in runs], None))
    bars.append(("ceiling", "strong\nceiling", [run["ceiling"] for run in runs], None))

    figure, axes = plt.subplots(figsize=(1.6 + 1.35 * len(bars), 4.2), layout="constrained")
    top_of_bars = 0.0
    for x, (kind, _, entries, pgr) in enumerate(bars):
        accuracies = np.array([entry["accuracy"] for entry in entries])
        mean = accuracies.mean()
        axes.bar(x, mean, width=0.62, color=_COLOURS[kind], zorder=2)
        top = accuracies.max()
        if len(entries) == 1:
            low, high = entries[0]["ci95"]
            axes.errorbar(x, mean, [[mean - low], [high - mean]], color="black", capsize=5, lw=1.2, zorder=3)
            top = high
        else:
            offsets = np.linspace(-0.12, 0.12, len(entries))
            axes.scatter(x + offsets, accuracies, s=18, color="white", edgecolor="black", lw=0.8, zorder=3)
        top_of_bars = max(top_of_bars, top)
        text = f"{mean:.3f}" + (f"\n{'median ' if len(runs) > 1 else ''}PGR {pgr:.2f}" if pgr is not None else "")
        axes.annotate(text, (x, top), (0, 5), textcoords="offset points", ha="center", va="bottom", fontsize=9)
    guesses = {
        baseline["name"]: float(np.mean([run["baselines"][position]["accuracy"] for run in runs]))
        for position, baseline in enumerate(baselines)
        if not baseline["model"]
    } or {"chance": results["chance"]}
    for name, height in guesses.items():
        axes.axhline(height, color="black", lw=0.8, ls=":", zorder=4 if baselines else 1)
        axes.text(-0.88, height, name.replace("random ", "random\n"), fontsize=8, va="bottom", ha="left")
    axes.set_xticks(range(len(bars)), [label for _, label, _, _ in bars])
    axes.set_xlim(-0.9, len(bars) - 0.45)
    lowest = min(entry["accuracy"] for _, _, entries, _ in bars for entry in entries)
    highest = max([top_of_bars, *guesses.values()])
    if highest > 0.6:
        axes.set_ylim(0 if baselines else max(0, min(0.45, lowest - 0.05)), 1.12)
        axes.set_yticks([tick for tick in np.arange(0, 1.01, 0.1) if tick >= axes.get_ylim()[0]])
    else:
        axes.set_ylim(0, 1.3 * highest)
    axes.set_ylabel("test accuracy")
    n_seeds = len(runs)
    over = f"mean of {n_seeds} seeds (points)" if n_seeds > 1 else f"seed {runs[0]['seed']}, 95 % interval"
    axes.set_title(f"{results['task']}: weak-to-strong, {over}, n = {runs[0]['weak']['n']}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
