"""Plots the figures of experiments, and parts of the figures of sweeps: series, an axis of model sizes, panels."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from .cards import ROWS, Score
from .cards.trained_with import subject
from .metrics import rounded
from .results import AnyScore, ExperimentResult, MethodSummary, SeedResult, TransferResult, TransferSummary

__all__ = [
    "PALETTE",
    "STYLE",
    "SizeAxis",
    "clipped",
    "draw_panels",
    "lay_out",
    "plot_accuracies",
    "plot_gap",
    "plot_transfer",
    "series_styles",
    "short_names",
    "size_label",
]

# The palette of Okabe and Ito is suitable for all types of colour vision. In grey print, the colours differ in
# lightness.
PALETTE = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "grey": "#999999",
}
_COLOURS = {
    "weak": PALETTE["grey"],
    "zero-shot": PALETTE["orange"],
    "control": PALETTE["purple"],
    "link": PALETTE["sky"],
    "student": PALETTE["blue"],
    "ceiling": PALETTE["green"],
}


def plot_accuracies(results: ExperimentResult | dict, path: Path) -> None:
    """
    Draws the test accuracies of supervisor, students, control and ceiling.

    A bar is the mean over seeds, and each seed is a point. With one seed, the 95 % interval over test rows is drawn
    instead. The PGR of each student is above its bar. The axis begins at 0 and contains all intervals.

    Args:
        results ([`ExperimentResult`]): The content of `results.json`.
        path (`Path`): A `.png` file.
    """
    results = results if isinstance(results, ExperimentResult) else ExperimentResult.from_dict(results)
    runs = results.runs
    bars: list[tuple[str, str, Sequence[AnyScore], str]] = [
        ("weak", "weak\nsupervisor", [run.weak for run in runs], "")
    ]
    for position, baseline in enumerate(runs[0].baselines):
        if baseline.model:
            label = baseline.name.replace(", ", ",\n")
            bars.append(("zero-shot", label, [run.baselines[position] for run in runs], ""))
    if all(run.controls for run in runs):
        bars.append(("control", "control: student\nnot pretrained", [run.controls[0] for run in runs], ""))
    for position, summary in enumerate(results.summary):
        students = [run.students[position] for run in runs]
        for number, link in enumerate(students[0].links[:-1]):
            label = f"{summary.method}\nlink {number + 1}\n{clipped(link.model.split('/')[-1], 17)}"
            bars.append(("link", label, [student.links[number] for student in students], ""))
        bars.append(("student", f"student\n{summary.method.replace('_', chr(10))}", students, _pgr_note(summary)))
    plain_ceilings = [run.ceiling_plain for run in runs if run.ceiling_plain is not None]
    if plain_ceilings:
        bars.append(("ceiling", "plain\nceiling", plain_ceilings, ""))
    bars.append(("ceiling", "strong\nceiling", [run.ceiling for run in runs], ""))

    # pyplot is not used, because it has global state, and its backend depends on the user's settings.
    figure = Figure(figsize=(1.6 + 1.35 * len(bars), 4.2), layout="constrained")
    axes = figure.subplots()
    top_of_bars = 0.0
    for x, (kind, _, scores, note) in enumerate(bars):
        accuracies = np.array([score.accuracy for score in scores])
        mean = accuracies.mean()
        axes.bar(x, mean, width=0.62, color=_COLOURS[kind], zorder=2)
        top = accuracies.max()
        if len(scores) == 1 and (interval := scores[0].ci95) is not None:
            axes.errorbar(x, mean, _error(mean, *interval), color="black", capsize=5, lw=1.2, zorder=3)
            top = max(mean, interval[1])
        else:
            offsets = np.linspace(-0.12, 0.12, len(scores))
            axes.scatter(x + offsets, accuracies, s=18, color="white", edgecolor="black", lw=0.8, zorder=3)
        top_of_bars = max(top_of_bars, top)
        text = rounded(mean) + (f"\n{note}" if note else "")
        # The background is white because the line of chance may be behind the text.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(text, (x, top), (0, 5), fontsize=9, bbox=box, zorder=5, **above)
    guesses = {
        baseline.name: float(np.mean([run.baselines[position].accuracy for run in runs]))
        for position, baseline in enumerate(runs[0].baselines)
        if not baseline.model
    }
    if not guesses and results.chance is not None:
        guesses = {"chance": results.chance}
    axes.set_xticks(range(len(bars)), [label for _, label, _, _ in bars])
    axes.set_xlim(-0.9, len(bars) - 0.45)
    highest = max([top_of_bars, *guesses.values(), 0.05])
    # The limit leaves room for the text above the bars, a share of the axis per line of text.
    n_lines = 1 + max(note.count("\n") + 1 if note else 0 for _, _, _, note in bars)
    axes.set_ylim(0, highest / (1 - 0.03 - 0.055 * n_lines))
    if highest > 0.6:
        axes.set_yticks(np.arange(0, 1.01, 0.1))
    place = 0.0
    for name, height in sorted(guesses.items(), key=lambda guess: guess[1]):
        axes.axhline(height, color="black", lw=0.8, ls=":", zorder=4 if runs[0].baselines else 1)
        name, place = name.replace("random ", "random\n"), max(height, place)
        axes.text(-0.88, place, name, fontsize=8, va="bottom", ha="left")
        place += 0.045 * axes.get_ylim()[1] * (1 + name.count("\n"))  # the next label may be close
    axes.set_ylabel("test accuracy")
    n_seeds = len(runs)
    spread = f"mean of {n_seeds} seeds (points)" if n_seeds > 1 else f"seed {runs[0].seed}, 95 % intervals"
    n_test = f"{runs[0].weak.n} test {ROWS[results.setting]}"
    title = subject(results.task, results.is_demo)
    axes.set_title(f"{title}\nweak-to-strong generalization, {spread}, {n_test}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _pgr_note(summary: MethodSummary | TransferSummary) -> str:
    """Returns the text above the bar of a method: PGR, or its median over seeds, and the number of undefined PGRs."""
    n_seeds, n_undefined = summary.n_seeds, summary.n_undefined
    if summary.pgr_median is None:
        return "PGR\nundefined"
    note = f"{'median ' if n_seeds > 1 else ''}PGR {summary.pgr_median:.2f}"
    return note + (f"\n({n_undefined} of {n_seeds} undefined)" if n_undefined else "")


def _error(value: float, low: float, high: float) -> list[list[float]]:
    """Returns the distances to the ends of an interval, at least 0, because `errorbar` rejects negative numbers."""
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def plot_gap(
    weak: Score, student: Score, ceiling: Score, pgr: float | None, path: Path, *, title: str | None = None
) -> None:
    """
    Draws the gap between supervisor and ceiling, and the share of it that the student has recovered.

    The gap is a bar that is filled up to the accuracy of the student. The accuracies are points with their 95 %
    intervals. The same scores give the same bytes.

    Args:
        weak, student, ceiling ([`Score`]): Scores on the same test rows.
        pgr (`float`, *optional*): PGR; `None` if it is undefined, which leaves out the bar.
        path (`Path`): A `.png` file.
        title (`str`, *optional*): Title of the figure, such as [`StudentCard.subject`].
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 2.5), layout="constrained")
        axes = figure.subplots()
        if pgr is not None:
            axes.barh(0, ceiling.accuracy - weak.accuracy, left=weak.accuracy, height=0.26, color="#E6E6E6", zorder=1)
            # A negative PGR is a bar to the left of the supervisor, in another colour.
            colour = PALETTE["sky"] if student.accuracy >= weak.accuracy else PALETTE["orange"]
            gain = student.accuracy - weak.accuracy
            axes.barh(0, gain, left=weak.accuracy, height=0.26, color=colour, zorder=2)
        labels = {0: "PGR undefined" if pgr is None else f"PGR {pgr:.2f}"}
        # Each score has its own height, so that equal accuracies do not overlap.
        for height, (role, score) in enumerate(
            {"weak supervisor": weak, "student": student, "strong ceiling": ceiling}.items(), start=1
        ):
            colour = _COLOURS[role.split()[-1] if role != "weak supervisor" else "weak"]
            axes.plot([score.accuracy] * 2, [-0.13, height], color=colour, lw=1, zorder=3)
            if score.ci95 is not None:
                error = _error(score.accuracy, *score.ci95)
                axes.errorbar(score.accuracy, height, xerr=error, color=colour, capsize=4, lw=1.4, zorder=3)
            axes.plot(score.accuracy, height, "o", color=colour, ms=7, zorder=4)
            labels[height] = f"{role}, {clipped(score.model)}, {rounded(score.accuracy)}"
        for height, text in labels.items():
            axes.annotate(
                text,
                (0, height),
                (-8, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9 if height else 10.5,
                weight="normal" if height else "bold",
            )
        axes.set_ylim(-0.5, 3.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.use_sticky_edges = False  # otherwise the axis may end with the bar, in the middle of a point
        axes.margins(x=0.06)
        axes.set_xlabel(f"test accuracy with 95 % intervals, n = {student.n}")
        if title is not None:
            axes.set_title(clipped(title, 60), loc="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


# Colours of students by method. Supervisor and ceiling have the other colours of the palette.
_STUDENTS = ("blue", "vermilion", "sky", "orange", "purple")


def plot_transfer(results: ExperimentResult, path: Path) -> None:
    """
    Draws the accuracies of supervisor, students and ceiling on the test rows of their task and of the other tasks.

    A bar is the mean over seeds, and each seed is a point. With one seed, the 95 % interval over test rows is drawn
    instead. The PGR of each student is below the bars of a task.

    Args:
        results ([`ExperimentResult`]): The results, with `transfer`.
        path (`Path`): A `.png` file.
    """
    runs, methods = results.runs, [summary.method for summary in results.summary]
    colours = {f"student, {method}": PALETTE[_STUDENTS[n % len(_STUDENTS)]] for n, method in enumerate(methods)}
    colours = {"weak supervisor": _COLOURS["weak"], **colours, "strong ceiling": _COLOURS["ceiling"]}
    groups: dict[str, tuple[Sequence[SeedResult | TransferResult], list[MethodSummary | TransferSummary]]] = {
        f"{results.task}\n(trained on)": (runs, [*results.summary]),
        **{
            task: ([run.transfer[task] for run in runs], [summary.transfer[task] for summary in results.summary])
            for task in runs[0].transfer
        },
    }
    n_bars = len(colours)
    width = 0.8 / n_bars
    with matplotlib.rc_context(STYLE):
        # A group is wide enough for the text below it.
        longest = max(len("median PGR -0.00") + max(map(len, methods)), *map(len, groups))
        figure = Figure(figsize=(1.0 + len(groups) * max(0.42 * n_bars + 0.3, 0.084 * longest), 4.4))
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        labels, top = [], 0.0
        for x, (name, (seeds, summaries)) in enumerate(groups.items()):
            scores = [[seed.weak, *seed.students, seed.ceiling] for seed in seeds]
            for position, colour in enumerate(colours.values()):
                place = x + (position - (n_bars - 1) / 2) * width
                of_role = [of_seed[position] for of_seed in scores]
                accuracies = np.array([score.accuracy for score in of_role])
                mean = accuracies.mean()
                axes.bar(place, mean, width=0.92 * width, color=colour, zorder=2)
                interval = of_role[0].ci95
                if len(of_role) == 1 and interval is not None:
                    error = _error(mean, *interval)
                    axes.errorbar(place, mean, error, color="black", capsize=3, lw=1, zorder=3)
                    top = max(top, mean, interval[1])
                else:
                    spread = place + np.linspace(-0.25, 0.25, len(of_role)) * width
                    axes.scatter(spread, accuracies, s=12, color="white", edgecolor="black", lw=0.7, zorder=3)
                    top = max(top, *accuracies)
            notes = [
                f"{method}: {_pgr_note(summary)}".replace("\n", " ")
                for method, summary in zip(methods, summaries, strict=True)
            ]
            labels.append("\n".join([name if "\n" in name else f"{name}\n", *notes]))
        axes.set_xticks(range(len(groups)), labels)
        axes.tick_params(axis="x", length=0)
        if results.chance is not None:
            axes.axhline(results.chance, color="black", lw=0.8, ls=":", zorder=4)
            axes.annotate("chance", (1, results.chance), (2, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", fontsize=8, va="center")  # fmt: skip
        axes.set_xlim(-0.55, len(groups) - 0.45)
        axes.set_ylim(0, top * 1.04)
        axes.set_ylabel("test accuracy")
        spread_of = f"mean of {len(runs)} seeds (points)" if len(runs) > 1 else f"seed {runs[0].seed}, 95 % intervals"
        title = f"trained on {subject(results.task, results.is_demo)}, scored on other tasks"
        axes.set_title(f"{title}\naccuracy on test {ROWS[results.setting]}, {spread_of}", loc="left")
        handles = [Patch(color=colour, label=role) for role, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(n_bars, 2 * len(groups)))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


# Series in a sweep have these styles, without the ceiling's green. 6 colours and 7 markers give 42 different pairs.
_SERIES = ("blue", "vermilion", "purple", "orange", "sky", "grey")
_MARKERS = "osD^vPX"
_LINES = ("-", (0, (4, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (5, 1, 1, 1, 1, 1)))

# Names are plain text, including "$". Letters are outlines, which look the same everywhere. With the salt, SVG files
# are reproducible.
STYLE: dict[Any, Any] = {  # not `str`, because newer stubs of matplotlib list the names of all settings
    "text.parse_math": False,
    "text.usetex": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "w2s_hf",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
}


def size_label(parameters: float) -> str:
    """Returns a number of parameters with two digits and a unit: 73B, 7.6B, 0.2M, 52K."""
    for unit, name, smallest in ((1e9, "B", 1e9), (1e6, "M", 1e5), (1e3, "K", 1e3)):
        if parameters >= smallest * 0.995:
            return f"{float(f'{parameters / unit:.2g}'):g}{name}"
    return f"{parameters:.0f}"


def clipped(name: str, longest: int = 28) -> str:
    """Returns a name on one line, truncated to `longest` characters."""
    name = " ".join(str(name).split())
    return name if len(name) <= longest else name[: longest - 1] + "…"


def short_names(models: Iterable[str], longest: int = 28) -> dict[str, str]:
    """Returns the last part of each model id, or more of it if several ids end alike."""
    models = list(models)
    ends = [model.rstrip("/").rsplit("/", 1)[-1] for model in models]
    return {
        model: clipped(end, longest) if ends.count(end) == 1 else clipped(model[::-1], longest)[::-1]
        for model, end in zip(models, ends, strict=True)
    }


def series_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns a colour, a marker and a line style for each name. In grey print, marker and line style differ."""
    return {
        name: {
            "color": PALETTE[_SERIES[index % len(_SERIES)]],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": _LINES[index % len(_LINES)],
        }
        for index, name in enumerate(names)
    }


class SizeAxis:
    """
    The positions of models on a logarithmic axis of model sizes.

    Args:
        models (`dict[str, float]`): Number of parameters of each model, smallest first.
    """

    def __init__(self, models: dict[str, float]) -> None:
        logs = [float(np.log10(parameters)) for parameters in models.values()]
        self.span = logs[-1] - logs[0] or 1.0
        self.places: dict[str, float] = {}
        for name, place in zip(models, logs, strict=True):
            # Models of the same size would overlap, so they are a twentieth of the axis apart.
            self.places[name] = max([place, *(before + self.span / 20 for before in self.places.values())])
        labels = [size_label(parameters) for parameters in models.values()]
        names = short_names(models, 14)
        self.labels = [
            names[model] if labels.count(label) > 1 else label for model, label in zip(models, labels, strict=True)
        ]

    def place(self, model: str, series: int = 0, n_series: int = 1) -> float:
        """Returns the position of a model. Series are slightly offset, so that their points do not overlap."""
        step = (2 * series / (n_series - 1) - 1) if n_series > 1 else 0.0
        return 10 ** (self.places[model] + step * (self.span / 45 if len(self.places) > 1 else 0.1))

    def dress(self, axes: Axes, width: float) -> None:
        """Sets scale, limits and ticks. Labels that would overlap go to a lower line. `width` is in inches."""
        margin = 0.13 * self.span if len(self.places) > 1 else 0.4
        low, high = min(self.places.values()) - margin, max(self.places.values()) + margin
        ends: list[float] = []  # positions in inches at which the last label of each line ends
        labels = []
        for place, label in zip(self.places.values(), self.labels, strict=True):
            middle, half = (place - low) / (high - low) * width, 0.04 * len(label) + 0.02
            line = next((line for line, end in enumerate(ends) if middle - half > end), len(ends))
            ends[line : line + 1] = [middle + half]
            labels.append("\n" * line + label)
        axes.set_xscale("log")
        axes.set_xticks([10**place for place in self.places.values()], labels)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(10**low, 10**high)


def lay_out(rows: list[str], columns: list[str]) -> list[list[tuple[str, str]]]:
    """
    Returns the layout of a figure, as lines of panels `(row, column)`.

    Each row is a line, or several lines if there are more than 4 columns. The panels of a single column fill lines of
    3 panels.

    Example:

    ```python
    lay_out(["boolq", "sciq"], ["naive", "confidence"])
    # [[("boolq", "naive"), ("boolq", "confidence")], [("sciq", "naive"), ("sciq", "confidence")]]
    ```
    """
    if len(columns) == 1:
        groups, longest = [[(row, columns[0]) for row in rows]], 3
    else:
        groups, n_lines = [[(row, column) for column in columns] for row in rows], -(-len(columns) // 4)
        longest = -(-len(columns) // n_lines)
    return [panels[start : start + longest] for panels in groups for start in range(0, len(panels), longest)]


@matplotlib.rc_context(STYLE)
def draw_panels(
    stem: Path,
    lines: list[list[tuple[str, str]]],
    panel: Callable[[Axes, float, str, str], None],
    *,
    handles: Sequence[Line2D | Patch],
    x_label: str,
    y_label: str,
) -> Path | None:
    """
    Draws a figure of panels and saves it as `.png` and `.svg`. The same panels give the same bytes.

    Args:
        stem (`Path`): Path of the files without their extensions. Files of an earlier sweep are removed.
        lines (`list[list[tuple[str, str]]]`): Panels as returned by [`lay_out`].
        panel (`Callable`): Draws a panel. Its arguments are the axes, their width in inches, the row and the column.
        handles (`Sequence[Line2D | Patch]`): Entries of the legend below the panels.
        x_label, y_label (`str`): Labels of the axes.

    Returns:
        `Path`: The `.svg` file, or `None` if there are no panels.
    """
    for old in stem.parent.glob("*"):
        # Earlier versions split figures with many panels, and named the second file `stem_2`.
        if re.fullmatch(re.escape(stem.name) + r"(_\d+)?\.(png|svg)", old.name):
            old.unlink()
    if not lines:
        return None
    n_columns = max(map(len, lines))
    panel_width = {1: 5.2, 2: 3.7, 3: 2.9}.get(n_columns, 2.5)
    width = panel_width * n_columns + 0.4
    n_legend = max(1, int(width / (0.75 + 0.077 * max(len(str(handle.get_label())) for handle in handles))))
    legend_height = 0.2 + 0.22 * -(-len(handles) // n_legend)
    height = 2.7 * len(lines) + 0.3 + legend_height
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(lines), n_columns, squeeze=False)
    for line, line_of_axes in zip(lines, grid, strict=True):
        for position, axes in enumerate(line_of_axes):
            if position < len(line):
                panel(axes, panel_width - 0.45, *line[position])
                if line is lines[-1] or (line is lines[-2] and position >= len(lines[-1])):
                    axes.set_xlabel(x_label, fontsize=10.5)
            else:
                axes.set_visible(False)
    figure.supylabel(y_label, fontsize=10.5).set_y(0.5 + legend_height / height / 2)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(n_legend, len(handles)), handlelength=2.6)
    stem.parent.mkdir(parents=True, exist_ok=True)
    # PNG files have fewer than 2**16 pixels per side.
    figure.savefig(stem.with_name(stem.name + ".png"), dpi=min(150, 65_000 / height))
    figure.set_layout_engine("none")  # the slow layout is done
    svg = stem.with_name(stem.name + ".svg")
    figure.savefig(svg, metadata={"Date": None})
    return svg
