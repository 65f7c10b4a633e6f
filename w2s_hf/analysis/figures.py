"""Draws the panels of bars and lines in the figures of analyses, and formats the cells of their tables."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics import rounded
from ..plots import PALETTE, STYLE

__all__ = ["accuracy_cell", "bars", "draw", "intervals_of", "lines", "mean_cell", "over_seeds", "pgr_cell", "pgr_note"]


def over_seeds(entries: Sequence[dict], *path: str) -> np.ndarray:
    """Returns the number at a path of keys in the entry of each seed, `(seeds,)` float64; NaN for `None`."""
    values = []
    for entry in entries:
        for key in path:
            entry = entry[key]
        values.append(np.nan if entry is None else entry)
    return np.array(values, dtype=np.float64)


def mean_cell(entries: Sequence[dict], *path: str, digits: int = 3) -> str:
    """Returns a table cell: the mean over the seeds that have a value, or a dash."""
    values = over_seeds(entries, *path)
    values = values[np.isfinite(values)]
    return rounded(values.mean(), digits) if len(values) else "-"


def accuracy_cell(entries: Sequence[dict], *path: str) -> str:
    """Returns a table cell: the mean accuracy over the seeds, with its 95 % interval for a single seed."""
    interval = intervals_of(entries, *path)
    shown = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return mean_cell(entries, *path, "accuracy") + shown


def pgr_cell(entries: Sequence[dict], *path: str) -> str:
    """Returns a table cell: the median PGR over the seeds that have a PGR, with its interval for a single seed."""
    values = over_seeds(entries, *path, "pgr")
    values = values[np.isfinite(values)]
    if not len(values):
        return "undefined"
    interval = intervals_of(entries, *path, key="pgr_ci95")
    shown = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    return f"{np.median(values):.2f}" + (shown or (" [unbounded]" if len(entries) == 1 else ""))


def pgr_note(entries: Sequence[dict], *path: str) -> str:
    """Returns the text above a bar: the median PGR over the seeds that have a PGR."""
    values = over_seeds(entries, *path, "pgr")
    values = values[np.isfinite(values)]
    return f"PGR {np.median(values):.2f}" if len(values) else "PGR\nundefined"


def intervals_of(entries: Sequence[dict], *path: str, key: str = "ci95") -> tuple[float, float] | None:
    """Returns the interval of an entry, or `None` for several seeds or an entry without an interval."""
    entry = entries[0]
    for name in path:
        entry = entry[name]
    return tuple(entry[key]) if len(entries) == 1 and entry.get(key) is not None else None


def draw(path: Path, *rows: Sequence[tuple[float, Callable[[Axes], None]]]) -> None:
    """
    Draws a figure of rows of panels.

    Args:
        path (`Path`): A `.png` file.
        rows (sequences of pairs): The panels of each row. Each panel is a pair of its width in inches and the
            function that draws it. Widths are exact in the widest row.
    """
    size = max(sum(width for width, _ in row) for row in rows), 4.0 * len(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        for part, row in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
            grid = part.subplots(1, len(row), width_ratios=[width for width, _ in row], squeeze=False)[0]
            for axes, (_, panel) in zip(grid, row, strict=True):
                panel(axes)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def bars(
    axes: Axes,
    values: Mapping[str, np.ndarray],
    *,
    ylabel: str,
    title: str = "",
    colours: Mapping[str, str] | None = None,
    heights: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
    intervals: Mapping[str, tuple[float, float] | None] | None = None,
    top: float | None = None,
) -> None:
    """
    Draws a bar per name, the mean over the seeds, and a point per seed if there are several.

    Args:
        axes ([`~matplotlib.axes.Axes`]): Axes to draw on.
        values (`dict[str, np.ndarray]`): Values of each bar, `(seeds,)`; NaN for a seed without a value.
        ylabel, title (`str`): Label of the y axis, and title of the panel.
        colours (`dict[str, str]`, *optional*): Colour of each bar in `PALETTE`; blue by default.
        heights (`dict[str, float]`, *optional*): Heights of reference lines by label.
        notes (`dict[str, str]`, *optional*): Text above each bar, below its value.
        intervals (`dict[str, tuple]`, *optional*): Intervals of bars of a single seed, see [`intervals_of`].
        top (`float`, *optional*): Upper limit of the y axis. Higher bars raise it.
    """
    colours, heights, notes, intervals = colours or {}, heights or {}, notes or {}, intervals or {}
    ends = [end for name in values for end in intervals.get(name) or ()]
    finite = [*ends, *(value for series in values.values() for value in series[np.isfinite(series)])]
    lowest, highest = min([0.0, *finite]), max([*finite, *heights.values()], default=1.0)
    for x, (name, series) in enumerate(values.items()):
        series = series[np.isfinite(series)]
        if not len(series):
            axes.annotate("none", (x, 0), (0, 3), textcoords="offset points", ha="center", fontsize=9)
            continue
        axes.bar(x, series.mean(), width=0.66, color=PALETTE[colours.get(name, "blue")], zorder=2)
        if len(series) > 1:
            offsets = np.linspace(-0.14, 0.14, len(series))
            axes.scatter(x + offsets, series, s=16, color="white", edgecolor="black", lw=0.8, zorder=3)
        text = f"{series.mean():.2f}" + (f"\n{notes[name]}" if name in notes else "")
        peak = max(series.max(), 0.0)
        interval = intervals.get(name)
        if interval is not None:
            low, high = interval
            error = [[max(series.mean() - low, 0.0)], [max(high - series.mean(), 0.0)]]
            axes.errorbar(x, series.mean(), error, color="black", capsize=4, lw=1.1, zorder=3)
            peak = max(peak, high)
        # The background is white because a reference line may be behind the text.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        axes.annotate(
            text, (x, peak), (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=8.5, bbox=box,
            zorder=5,
        )  # fmt: skip
    spread = highest - lowest or 1.0
    axes.set_xlim(-0.6, len(values) - 0.4 + (1.15 if heights else 0))
    places: list[float] = []
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        axes.axhline(height, color="black", lw=0.9, ls=":", zorder=4)
        # The label is on its line, or above the previous label if the two lines are close.
        place = max([height, *(other + 0.06 * spread * (1 + name.count("\n")) for other in places[-1:])])
        places.append(place)
        axes.text(
            len(values) + 0.7, place, name, fontsize=8.5, ha="right", va="bottom", zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.85},
        )  # fmt: skip
    axes.set_xticks(range(len(values)), list(values))
    n_lines = 1 + max((note.count("\n") + 1 for note in notes.values()), default=0)
    axes.set_ylim(1.08 * lowest, (highest if top is None else max(top, highest)) + (0.07 + 0.05 * n_lines) * spread)
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title, loc="left")


def lines(
    axes: Axes,
    x: Sequence[float],
    series: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    ylabel: str,
    styles: Mapping[str, tuple[str, str]],
    title: str = "",
    ticks: Sequence[str] | None = None,
) -> None:
    """
    Draws a line per name, the mean over the seeds, and a thin line per seed if there are several.

    Args:
        axes ([`~matplotlib.axes.Axes`]): Axes to draw on.
        x (sequence of `float`): The `n` positions on the x axis, the same for all lines.
        series (`dict[str, np.ndarray]`): Values of each line, `(seeds, n)`; NaN leaves a gap.
        xlabel, ylabel, title (`str`): Labels of the axes, and title of the panel.
        styles (`dict[str, tuple[str, str]]`): Colour in `PALETTE` and line style of each line.
        ticks (sequence of `str`, *optional*): Label of each `x`.
    """
    for name, values in series.items():
        colour, style = styles[name]
        counts = np.isfinite(values).sum(axis=0)
        mean = np.where(counts > 0, np.nansum(values, axis=0) / np.maximum(counts, 1), np.nan)
        axes.plot(x, mean, style, color=PALETTE[colour], marker="o", ms=4, lw=1.8, label=name, zorder=3)
        if len(values) > 1:
            for of_seed in values:
                axes.plot(x, of_seed, style, color=PALETTE[colour], lw=0.6, alpha=0.5, zorder=2)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if ticks is not None:
        axes.set_xticks(list(x), list(ticks))
    axes.grid(axis="y", color="#E6E6E6", lw=0.7, zorder=0)
    if title:
        axes.set_title(title, loc="left")
