"""Plots the figures of a sweep: accuracy, PGR and agreement against student size, and the distribution of PGR."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..plots import PALETTE, SizeAxis, clipped, draw_panels, lay_out, series_styles, short_names

__all__ = [
    "PGR_AXIS",
    "SWEEP_COLUMNS",
    "finished",
    "models_by_size",
    "plot_accuracy_by_size",
    "plot_agreement",
    "plot_pgr_by_size",
    "plot_pgr_distribution",
    "several_seeds",
]

SWEEP_COLUMNS = (
    "task", "setting", "weak_model", "student_model", "method", "seed", "status", "weak_parameters",
    "student_parameters", "n_test", "chance", "weak_accuracy", "ceiling_accuracy", "accuracy", "accuracy_low",
    "accuracy_high", "pgr", "pgr_low", "pgr_high", "pgr_undefined", "agreement", "agreement_supervisor_right",
    "agreement_supervisor_wrong", "direct_accuracy", "error",
)  # fmt: skip

# PGR can be any number if the gap is small. Values beyond these limits are triangles at the edge, so that they do not
# compress the axis.
PGR_AXIS = (-0.5, 1.5)

Style = dict[str, Any]  # keyword arguments of matplotlib functions
Handle = Line2D | Patch

_STUDENT_SIZE = "student size (parameters)"
_CEILING: Style = {
    "color": PALETTE["green"],
    "linestyle": (0, (4, 1.5)),
    "lw": 1.8,
    "marker": "_",
    "ms": 11,
    "mew": 1.8,
}
_CHANCE: Style = {"color": "black", "linestyle": "-", "lw": 0.7}
_SEED: Style = {"marker": "o", "linestyle": "none", "markerfacecolor": "white", "markersize": 3.4, "mew": 0.8}
_LINE: Style = {"lw": 1.4, "markersize": 5.5}
_BAR: Style = {"linestyle": "none", "marker": "|", "color": "black", "markersize": 9}
_EDGE: Style = {"linestyle": "none", "mec": "black", "mew": 0.6, "clip_on": False, "zorder": 6}
_DIRECT: Style = {"linestyle": "none", "marker": "x", "markersize": 7, "mew": 1.6}
_PGR = "performance gap recovered (PGR)"


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """
    Returns the finished cells of a sweep.

    Args:
        table (`pandas.DataFrame`): One row per cell of the sweep, with the columns [`SWEEP_COLUMNS`]. Missing numbers,
            and all numbers of failed cells, are NaN.

    Raises:
        ValueError: A column is missing, or a status is neither "done" nor "failed".
    """
    missing = [column for column in SWEEP_COLUMNS if column not in table.columns]
    if missing:
        raise ValueError(
            f"Got a table without the columns {', '.join(missing)}, expected {', '.join(SWEEP_COLUMNS)}. Pass the "
            "table of a sweep."
        )
    unknown = sorted({str(status) for status in table["status"]} - {"done", "failed"})
    if unknown:
        raise ValueError(f"Got the status {', '.join(unknown)}, expected done or failed in all rows.")
    return table[table["status"] == "done"]


def models_by_size(cells: pd.DataFrame, role: str) -> dict[str, float]:
    """Returns the models of a role (`weak` or `student`) with their numbers of parameters, smallest first."""
    models = cells.groupby(f"{role}_model")[f"{role}_parameters"].max()
    return dict(sorted(models.items(), key=lambda model: (model[1], model[0])))


def several_seeds(done: pd.DataFrame) -> bool:
    """Returns whether any task, method and pair of models has several seeds."""
    seeds = done.groupby(["task", "method", "weak_model", "student_model"])["seed"].nunique()
    return bool((seeds > 1).any())


def _unique(values: pd.Series) -> list:
    return list(dict.fromkeys(values))


def _select(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def _dress_sizes(axes: Axes, width: float, done: pd.DataFrame, task: str) -> SizeAxis:
    """Sets the axis of student sizes, which is the same for all panels of a task."""
    size_axis = SizeAxis(models_by_size(_select(done, task=task), "student"))
    size_axis.dress(axes, width)
    return size_axis


def _title(
    axes: Axes, width: float, table: pd.DataFrame, selection: dict[str, str], *lines: str, beyond: int | None = None
) -> None:
    """Sets the title of a panel, with the number of left out cells. `beyond` is set for panels of PGR."""
    cells = _select(table, **selection)
    done = cells[cells["status"] == "done"]
    left_out = {"failed": len(cells) - len(done)}
    if beyond is not None:
        left_out |= {"undefined": int(done["pgr"].isna().sum()), "beyond the axis": beyond}
    if done.empty:
        axes.text(0.5, 0.5, "no finished cell", transform=axes.transAxes, ha="center")
    sizes = sorted({int(n) for n in done["n_test"]})
    over = f" (n\u00a0=\u00a0{sizes[0]:,}" + (f" to {sizes[-1]:,})" if len(sizes) > 1 else ")") if sizes else ""
    letters = int(12 * width)  # at a font size of 10
    note = ", ".join(f"{number} {why}" for why, number in left_out.items() if number)
    lines = (clipped(selection["task"], letters) + over, *lines, note)
    wrapped = [part for line in lines for part in textwrap.wrap(line, letters)]
    axes.set_title("\n".join(wrapped), loc="left")


def _spread_handle(several: bool, is_cut: bool = False) -> Line2D:
    if several:
        return Line2D([], [], color="black", label="one seed", **_SEED)
    return Line2D([], [], label="95 % interval over test rows" + (" (cut at the axis)" if is_cut else ""), **_BAR)


def _series_handles(styles: dict[str, dict], **changes: str) -> list[Handle]:
    return [Line2D([], [], label=clipped(name), **(style | changes), **_LINE) for name, style in styles.items()]


def _accuracy_limits(cells: pd.DataFrame, several: bool) -> tuple[float, float]:
    columns = ["weak_accuracy", "ceiling_accuracy", "accuracy", "direct_accuracy"]
    columns += [] if several else ["accuracy_low", "accuracy_high"]
    low, high = float(cells[columns].min().min()), float(cells[columns].max().max())
    height = max(high - low, 0.02)
    chance = cells["chance"].min()
    if low - height / 2 <= chance < low:  # chance is shown if it adds at most half to the height
        low = float(chance)
    return low - 0.07 * height, high + 0.07 * height


def plot_accuracy_by_size(table: pd.DataFrame, directory: Path) -> Path | None:
    """
    Draws test accuracy against student size, with a panel per task and method.

    Each panel has a line per supervisor, the ceiling, and the supervisors' own accuracies. A line is the mean over
    seeds, each seed is a point, and a band goes from the lowest to the highest seed. If the sweep has one seed, bars
    are the 95 % interval over test rows instead.

    Args:
        table (`pandas.DataFrame`): The table of a sweep, see [`finished`].
        directory (`Path`): Directory of the figure.

    Returns:
        `Path`: The `.svg` file, beside a `.png` file; `None` if no cell is done.
    """
    done = finished(table)
    several = several_seeds(done)
    styles = series_styles(models_by_size(done, "weak"))
    limits = {task: _accuracy_limits(_select(done, task=task), several) for task in _unique(done["task"])}

    def panel(axes: Axes, width: float, task: str, method: str) -> None:
        selection = {"task": task, "method": method}
        cells = _select(done, **selection)
        size_axis = _dress_sizes(axes, width, done, task)
        axes.set_ylim(*limits[task])
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        for series, (weak, style) in enumerate(styles.items()):
            mine = cells[cells["weak_model"] == weak]
            if mine.empty:
                continue
            x = {student: size_axis.place(student, series, len(styles)) for student in size_axis.places}
            places = list(x.values())
            by_student = mine.groupby("student_model")
            mean, low, high = (by_student["accuracy"].agg(how).reindex(list(x)) for how in ("mean", "min", "max"))
            color = style["color"]
            if several:
                axes.fill_between(places, low, high, color=color, alpha=0.2, lw=0, zorder=1)
                axes.plot(mine["student_model"].map(x), mine["accuracy"], color=color, zorder=2, **_SEED)
            else:
                ends = by_student[["accuracy_low", "accuracy_high"]].mean().reindex(list(x))
                bars = [mean - ends["accuracy_low"], ends["accuracy_high"] - mean]
                axes.errorbar(places, mean, bars, fmt="none", ecolor=color, capsize=3, lw=1.1, zorder=2)
            axes.plot(places, mean, zorder=3, **style, **_LINE)
            axes.plot(places, by_student["direct_accuracy"].mean().reindex(list(x)), color=color, **_DIRECT)
            own = mine.groupby("seed")["weak_accuracy"].mean().mean()
            axes.axhline(own, color=color, linestyle=":", lw=1.3, zorder=1)
            axes.plot(axes.get_xlim()[0], own, style["marker"], color=color, ms=5, clip_on=False, zorder=5)
        # Each student and seed has one ceiling, which does not depend on the supervisor.
        ceilings = cells.groupby(["student_model", "seed"])["ceiling_accuracy"].mean()
        ceiling = ceilings.groupby("student_model").mean().reindex(list(size_axis.places))
        axes.plot([size_axis.place(student) for student in ceiling.index], ceiling, **_CEILING)
        axes.axhline(cells["chance"].mean(), zorder=0, **_CHANCE)
        _title(axes, width, table, selection, f"method {clipped(method)}")

    names = short_names(styles)
    handles: list[Handle] = [
        *(
            Line2D([], [], label=f"student, labels of {names[weak]}", **style, **_LINE)
            for weak, style in styles.items()
        ),
        Line2D([], [], label="ceiling, trained on ground truth", **(_CEILING | {"marker": "none"})),
        Line2D([], [], color="black", linestyle=":", lw=1.3, label="supervisor (marker at left)"),
        _spread_handle(several),
    ]
    if several:
        handles.append(Patch(color="black", alpha=0.2, lw=0, label="lowest to highest seed"))
    if done["direct_accuracy"].notna().any():
        handles.append(Line2D([], [], color="black", label="same student without the chain", **_DIRECT))
    if any(chance >= limits[task][0] for task, chance in zip(done["task"], done["chance"], strict=True)):
        handles.append(Line2D([], [], label="chance", **_CHANCE))
    lines = lay_out(list(limits), _unique(done["method"])) if len(done) else []
    stem = Path(directory) / "accuracy_by_size"
    return draw_panels(stem, lines, panel, handles=handles, x_label=_STUDENT_SIZE, y_label="test accuracy")


def _pgr_limits(done: pd.DataFrame) -> tuple[float, float]:
    """Returns the limits of PGR for all panels, which include 0 and 1 and are inside [`PGR_AXIS`]."""
    shown = done[["pgr"]] if several_seeds(done) else done[["pgr", "pgr_low", "pgr_high"]]
    low, high = shown.min(axis=None), shown.max(axis=None)
    return max(PGR_AXIS[0], min(-0.12, low - 0.06)), min(PGR_AXIS[1], max(1.12, high + 0.06))


def _dress_pgr(axes: Axes, limits: tuple[float, float]) -> None:
    for reference in (0, 1):
        axes.axhline(reference, color="black", lw=0.8, zorder=0)
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))


def _pgr_points(axes: Axes, x: pd.Series, pgr: pd.Series, *, edge_size: float, **style) -> int:
    """Draws points inside the limits, and triangles at the edge for other values. Returns the number of triangles."""
    low, high = axes.get_ylim()
    axes.plot(x, pgr.where(pgr.between(low, high)), **style)
    for beyond, edge, marker in ((pgr < low, low, "v"), (pgr > high, high, "^")):
        if beyond.any():
            axes.plot(x[beyond], [edge] * int(beyond.sum()), marker, color=style["color"], ms=edge_size, **_EDGE)
    return int((~pgr.dropna().between(low, high)).sum())


def _pgr_handles(done: pd.DataFrame) -> list[Handle]:
    handles: list[Handle] = [Line2D([], [], label="0 = supervisor, 1 = ceiling", color="black", lw=0.8)]
    if not done["pgr"].dropna().between(*PGR_AXIS).all():
        handles.append(Line2D([], [], label="beyond the axis (up or down)", marker="^", color="white", ms=7, **_EDGE))
    return handles


def plot_pgr_by_size(table: pd.DataFrame, directory: Path) -> Path | None:
    """
    Draws PGR against student size, with a panel per task and supervisor, and a line per method.

    A line is the median over seeds, and each seed is a point. If the sweep has one seed, bars are the 95 % interval
    over test rows. Unbounded intervals are dotted over the full height. Undefined PGRs are left out and counted
    above the panel. Values beyond [`PGR_AXIS`] are triangles at its edge, and medians have their value beside them.

    The arguments and the result are as in [`plot_accuracy_by_size`]. There is no figure if no PGR is defined.
    """
    done = finished(table)
    several = several_seeds(done)
    styles = series_styles(_unique(done["method"]))
    weak_models = short_names(models_by_size(done, "weak"))
    limits = _pgr_limits(done)

    def panel(axes: Axes, width: float, task: str, weak: str) -> None:
        selection = {"task": task, "weak_model": weak}
        cells = _select(done, **selection)
        size_axis = _dress_sizes(axes, width, done, task)
        _dress_pgr(axes, limits)
        n_beyond = 0
        labelled: list[tuple[str, bool]] = []
        for series, (method, style) in enumerate(styles.items()):
            mine = cells[cells["method"] == method]
            x = pd.Series({student: size_axis.place(student, series, len(styles)) for student in size_axis.places})
            color = style["color"]
            median = mine.groupby("student_model")["pgr"].median().reindex(x.index)
            places = mine["student_model"].map(x)
            if several:
                n_beyond += _pgr_points(axes, places, mine["pgr"], edge_size=4.5, color=color, zorder=2, **_SEED)
            else:
                n_beyond += int((~mine["pgr"].dropna().between(*limits)).sum())
                bars = [mine["pgr"] - mine["pgr_low"], mine["pgr_high"] - mine["pgr"]]
                axes.errorbar(places, mine["pgr"], bars, fmt="none", ecolor=color, capsize=3, lw=1.1, zorder=2)
                unbounded = places[mine["pgr"].notna() & mine["pgr_low"].isna()]
                axes.vlines(unbounded, *limits, color=color, linestyle=":", lw=1.1, zorder=2)
            # The line to a median beyond the axis ends at the edge.
            axes.plot(x, median, zorder=3, **(style | {"marker": "none"}), **_LINE)
            _pgr_points(axes, x, median, edge_size=8, zorder=4, **(style | {"linestyle": "none"}), **_LINE)
            for student, value in median[~median.between(*limits)].dropna().items():
                above = bool(value > limits[1])
                labelled.append((student, above))
                step = (-11 if above else 11) * labelled.count((student, above))  # labels at one place are stacked
                place = (size_axis.place(student), limits[above])
                text: Style = {"textcoords": "offset points", "fontsize": 8, "ha": "center", "va": "center"}
                axes.annotate(f"{value:.1f}", place, (0, step), **text)
        _title(axes, width, table, selection, f"supervisor {weak_models[weak]}", beyond=n_beyond)

    is_cut = not done[["pgr_low", "pgr_high"]].stack().dropna().between(*limits).all()
    handles: list[Handle] = [*_series_handles(styles), _spread_handle(several, is_cut), *_pgr_handles(done)]
    if not several and (done["pgr"].notna() & done["pgr_low"].isna()).any():
        handles.append(Line2D([], [], color="black", linestyle=":", lw=1.1, label="interval unbounded"))
    lines = lay_out(_unique(done["task"]), list(weak_models)) if done["pgr"].notna().any() else []
    stem = Path(directory) / "pgr_by_size"
    return draw_panels(stem, lines, panel, handles=handles, x_label=_STUDENT_SIZE, y_label=_PGR)


def plot_agreement(table: pd.DataFrame, directory: Path) -> Path | None:
    """
    Draws the agreement of student and supervisor against student size, with a panel per task and supervisor.

    Each method has two lines: agreement where the supervisor is right (solid, filled markers) and where it is wrong
    (dashed, hollow markers). A line is the mean over seeds; bars go from the lowest to the highest seed.

    The arguments and the result are as in [`plot_accuracy_by_size`]. There is no figure if no agreement was measured.
    """
    done = finished(table)
    several = several_seeds(done)
    styles = series_styles(_unique(done["method"]))
    weak_models = short_names(models_by_size(done, "weak"))
    sides: dict[str, Style] = {
        "agreement_supervisor_right": {"linestyle": "-"},
        "agreement_supervisor_wrong": {"linestyle": (0, (4, 2)), "markerfacecolor": "white"},
    }

    def panel(axes: Axes, width: float, task: str, weak: str) -> None:
        selection = {"task": task, "weak_model": weak}
        cells = _select(done, **selection)
        size_axis = _dress_sizes(axes, width, done, task)
        for series, (method, style) in enumerate(styles.items()):
            by_student = cells[cells["method"] == method].groupby("student_model")
            students = list(size_axis.places)
            x = [size_axis.place(student, series, len(styles)) for student in students]
            for column, side in sides.items():
                mean, low, high = (by_student[column].agg(how).reindex(students) for how in ("mean", "min", "max"))
                axes.plot(x, mean, zorder=3, **(style | side), **_LINE)
                if several:
                    bars = [mean - low, high - mean]
                    axes.errorbar(x, mean, bars, fmt="none", ecolor=style["color"], lw=1, zorder=2)
        axes.set_ylim(-0.04, 1.04)
        _title(axes, width, table, selection, f"supervisor {weak_models[weak]}")

    handles = _series_handles(styles, linestyle="none")
    for label, side in zip(("supervisor right", "supervisor wrong"), sides.values(), strict=True):
        handles.append(Line2D([], [], color="black", marker="o", label=label, **side, **_LINE))
    if several:
        handles.append(Line2D([], [], label="lowest to highest seed", **_BAR))
    measured = done[list(sides)].notna().any(axis=None)
    lines = lay_out(_unique(done["task"]), list(weak_models)) if measured else []
    label = "agreement with the supervisor"
    stem = Path(directory) / "agreement"
    return draw_panels(stem, lines, panel, handles=handles, x_label=_STUDENT_SIZE, y_label=label)


def plot_pgr_distribution(table: pd.DataFrame, directory: Path) -> Path | None:
    """
    Draws the distribution of PGR, with a panel per task, a group per method, and a point per cell.

    In a group, students are ordered from the smallest at the left to the largest at the right. The bar is the median
    of the group. With at least 5 points, the box is the interquartile range. Undefined PGRs are left out and counted.
    Values beyond [`PGR_AXIS`] are triangles at its edge.

    The arguments and the result are as in [`plot_accuracy_by_size`]. There is no figure if no PGR is defined.
    """
    done = finished(table)
    styles = series_styles(_unique(done["method"]))
    limits = _pgr_limits(done)
    order = ["student_parameters", "student_model", "weak_parameters", "weak_model", "seed"]

    def panel(axes: Axes, width: float, task: str, _: str) -> None:
        cells = _select(done, task=task)
        _dress_pgr(axes, limits)
        n_beyond = 0
        for group, (method, style) in enumerate(styles.items()):
            mine = cells[(cells["method"] == method) & cells["pgr"].notna()].sort_values(order)
            if mine.empty:
                continue
            color = style["color"]
            ends = (group - 0.4, group + 0.4)
            if len(mine) >= 5:
                low, high = np.clip(mine["pgr"].quantile([0.25, 0.75]), *limits)
                axes.fill_between(ends, low, high, color=color, alpha=0.25, lw=0, zorder=1)
            axes.hlines(np.clip(mine["pgr"].median(), *limits), *ends, color="black", lw=2, zorder=2)
            x = pd.Series(group + 0.7 * ((np.arange(len(mine)) + 0.5) / len(mine) - 0.5), index=mine.index)
            point: Style = {"marker": style["marker"], "ms": 4, "mec": "black", "mew": 0.4, "ls": "none"}
            n_beyond += _pgr_points(axes, x, mine["pgr"], edge_size=5, color=color, zorder=3, **point)
        names = [clipped(method, 16) for method in styles]
        slant: Style = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        touching = sum(0.085 * len(name) + 0.1 for name in names) > width
        axes.set_xticks(range(len(names)), names, **(slant if touching else {}))
        axes.set_xlim(-0.6, len(names) - 0.4)
        _title(axes, width, table, {"task": task}, beyond=n_beyond)

    handles: list[Handle] = [
        Line2D([], [], label="one cell (left to right: small to large students)", color="black", **_SEED),
        Line2D([], [], label="median of the method", color="black", lw=2),
        Patch(label="interquartile range (at least 5 cells)", color="black", alpha=0.25, lw=0),
        *_pgr_handles(done),
    ]
    lines = lay_out(_unique(done["task"]), [""]) if done["pgr"].notna().any() else []
    stem = Path(directory) / "pgr_distribution"
    return draw_panels(stem, lines, panel, handles=handles, x_label="", y_label=_PGR)
