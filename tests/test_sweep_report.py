"""Figures and report of a sweep, on tables made up here."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from w2s_hf import plots, sweep_plots, sweep_report
from w2s_hf.plots import SizeAxis, draw_pages, lay_out, series_styles, short_names, size_label
from w2s_hf.sweep_plots import (
    PGR_AXIS,
    plot_accuracy_by_size,
    plot_agreement,
    plot_pgr_by_size,
    plot_pgr_distribution,
)
from w2s_hf.sweep_report import write_sweep_report

ALL_PLOTS = [plot_accuracy_by_size, plot_pgr_by_size, plot_agreement, plot_pgr_distribution]

SIZES = {
    "Qwen/Qwen2.5-0.5B": 494_000_000,
    "Qwen/Qwen2.5-1.5B": 1_540_000_000,
    "Qwen/Qwen2.5-7B": 7_620_000_000,
    "Qwen/Qwen2.5-14B": 14_800_000_000,
    "Qwen/Qwen2.5-72B": 72_700_000_000,
}
MODELS = list(SIZES)


def make_table(
    *, tasks=("boolq", "sciq"), weak=MODELS[:2], students=MODELS[2:], methods=("naive", "confidence", "bootstrap"),
    seeds=range(3), sizes=SIZES, setting="classification", n_test=3270,
):  # fmt: skip
    """A sweep in which larger students recover more, and confidence helps the largest; numbers repeat."""
    rng = np.random.default_rng(0)
    rows = []
    ceilings = {}
    for number, task in enumerate(tasks):
        for weak_model, student, method, seed in itertools.product(weak, students, methods, seeds):
            ease = 0.04 * (number % 5)
            weak_accuracy = 0.60 + 0.05 * np.log10(sizes[weak_model] / 5e8) + ease + 0.004 * seed
            gap = 0.10 + 0.05 * np.log10(sizes[student] / 5e8)
            key = (task, student, seed)
            ceilings.setdefault(key, min(0.985, 0.62 + ease + 2 * gap * 0.6 + rng.normal(0, 0.006)))
            ceiling = ceilings[key]
            share = {"naive": 0.35, "confidence": 0.3 + 0.15 * np.log10(sizes[student] / 1e9)}.get(method, 0.5)
            accuracy = weak_accuracy + share * (ceiling - weak_accuracy) + rng.normal(0, 0.012)
            half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / n_test)
            pgr = (accuracy - weak_accuracy) / (ceiling - weak_accuracy)
            right = min(0.99, 0.93 + rng.normal(0, 0.01))
            rows.append(
                {
                    "task": task, "setting": setting, "weak_model": weak_model, "student_model": student,
                    "method": method, "seed": seed, "status": "done", "weak_parameters": sizes[weak_model],
                    "student_parameters": sizes[student], "n_test": n_test,
                    "chance": np.nan if setting == "chess" else 0.5, "weak_accuracy": weak_accuracy,
                    "ceiling_accuracy": ceiling, "accuracy": accuracy, "accuracy_low": accuracy - half,
                    "accuracy_high": accuracy + 0.9 * half, "pgr": pgr, "pgr_low": pgr - 0.12, "pgr_high": pgr + 0.13,
                    "pgr_undefined": None, "agreement": 0.8, "agreement_supervisor_right": right,
                    "agreement_supervisor_wrong": 0.75 - share + rng.normal(0, 0.02),
                    "direct_accuracy": accuracy - 0.02 if method == "bootstrap" else np.nan, "error": None,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


NUMBERS = [
    "n_test", "chance", "weak_accuracy", "ceiling_accuracy", "accuracy", "accuracy_low", "accuracy_high", "pgr",
    "pgr_low", "pgr_high", "agreement", "agreement_supervisor_right", "agreement_supervisor_wrong", "direct_accuracy",
]  # fmt: skip


def fail(table, rows, error="CUDA out of memory"):
    """Lets some rows of a table fail."""
    table = table.astype({"n_test": float, "pgr_undefined": object, "error": object})
    table.loc[rows, "status"] = "failed"
    table.loc[rows, NUMBERS] = np.nan
    table.loc[rows, "error"] = error
    return table


def undefine(table, rows):
    """Takes the gap from some rows of a table."""
    table = table.astype({"pgr_undefined": object})
    table.loc[rows, "weak_accuracy"] = table.loc[rows, "ceiling_accuracy"]
    table.loc[rows, ["pgr", "pgr_low", "pgr_high"]] = np.nan
    table.loc[rows, "pgr_undefined"] = "the ceiling is not above the weak supervisor: there is no gap to recover"
    return table


def as_written(table):
    """A table with the types that a sweep gives its columns."""
    words = ["task", "setting", "weak_model", "student_model", "method", "status", "pgr_undefined", "error"]
    whole = ["weak_parameters", "student_parameters", "n_test"]
    return table.astype(dict.fromkeys(words, "string") | dict.fromkeys(whole, "Int64"))


ONE_OF_EACH = {"tasks": ["boolq"], "weak": MODELS[:1], "students": MODELS[4:], "methods": ["naive"], "seeds": [0]}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, none of which is laid out or saved."""
    drawn = []

    class Recorded(Figure):
        def savefig(self, path, **_):
            if path.suffix == ".png":
                drawn.append(self)

    monkeypatch.setattr(plots, "Figure", Recorded)
    return drawn


@pytest.fixture
def without_figures(monkeypatch):
    """Pages without figures, where a test is of something else."""
    monkeypatch.setattr(sweep_report, "_FIGURES", dict.fromkeys(sweep_report._FIGURES, lambda *_: []))


def title_of(panel):
    return " ".join(panel.get_title(loc="left").split())


def panel_of(figure, *words):
    """The panel whose title has these words."""
    (panel,) = [axes for axes in figure.axes if all(word in title_of(axes) for word in words)]
    return panel


def heights(panel, **style):
    """Of each line of a panel with this style, the finite heights."""
    found = []
    for line in panel.lines:
        if all(getattr(line, f"get_{name}")() == value for name, value in style.items()):
            values = np.asarray(line.get_ydata(), dtype=float)
            found.append(values[np.isfinite(values)])
    return found


def has(lines, values):
    return any(len(line) == len(values) and np.allclose(line, values) for line in lines)


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_accuracy_is_drawn_against_size(figures, tmp_path):
    table = as_written(fail(make_table(), [3]))
    paths = plot_accuracy_by_size(table, tmp_path)
    assert [path.name for path in paths] == ["accuracy_by_size.png", "accuracy_by_size.svg"]
    (figure,) = figures
    assert len(figure.axes) == 6  # two tasks, three methods
    panel = panel_of(figure, "boolq", "confidence", "1 failed", "3,270")
    assert panel.get_xscale() == "log"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["7.6B", "15B", "73B"]
    assert np.allclose(panel.get_xticks(), [SIZES[model] for model in MODELS[2:]])

    cells = table[(table["task"] == "boolq") & (table["method"] == "confidence") & (table["status"] == "done")]
    bands = [np.concatenate([path.vertices[:, 1] for path in band.get_paths()]) for band in panel.collections]
    for weak, band in zip(MODELS[:2], bands, strict=True):
        mine = cells[cells["weak_model"] == weak]
        assert has(heights(panel), mine.groupby("student_model")["accuracy"].mean()[MODELS[2:]])
        assert has(heights(panel, marker="o", markersize=3.4), mine["accuracy"])  # every seed
        assert np.allclose([band.min(), band.max()], [mine["accuracy"].min(), mine["accuracy"].max()])
        assert has(heights(panel, linestyle=":"), np.repeat(mine.groupby("seed")["weak_accuracy"].first().mean(), 2))
    ceilings = cells.groupby(["student_model", "seed"])["ceiling_accuracy"].first().groupby("student_model").mean()
    assert has(heights(panel, marker="_"), ceilings[MODELS[2:]])
    assert has(heights(panel), [0.5, 0.5])
    low, high = panel.get_ylim()
    assert low < 0.5 and ceilings.max() < high
    direct = heights(panel_of(figure, "boolq", "bootstrap"), marker="x")
    assert len(direct) == 2 and all(len(line) == 3 for line in direct)
    assert legend_of(figure) == [
        "taught by Qwen2.5-0.5B", "taught by Qwen2.5-1.5B", "ceiling: taught by ground truth",
        "supervisor itself (marker at left)", "one seed", "lowest to highest seed", "same student, without the chain",
        "chance",
    ]  # fmt: skip


def test_supervisor_counts_once_a_seed(figures, tmp_path):
    # Of the first seed only one of two students is left: its supervisor weighs as much as that of the others.
    table = fail(make_table(tasks=["boolq"], weak=MODELS[:1], students=MODELS[3:], methods=["naive"]), [0])
    plot_accuracy_by_size(table, tmp_path)
    of_seeds = table.groupby("seed")["weak_accuracy"].mean()
    assert abs(of_seeds.mean() - table["weak_accuracy"].mean()) > 1e-4
    assert has(heights(figures[0].axes[0], linestyle=":"), np.repeat(of_seeds.mean(), 2))


def test_far_away_chance_does_not_flatten_the_panel(figures, tmp_path):
    table = make_table(**ONE_OF_EACH)
    plot_accuracy_by_size(table.assign(chance=0.01), tmp_path)
    assert figures[0].axes[0].get_ylim()[0] > 0.5 and "chance" not in legend_of(figures[0])


def test_of_one_seed_the_interval_over_rows_is_drawn(figures, tmp_path):
    table = as_written(make_table(tasks=["chess"], setting="chess", seeds=[0], methods=["naive"], weak=MODELS[:1]))
    table.loc[0, ["pgr_low", "pgr_high"]] = np.nan
    table.loc[1, "accuracy_high"] = 0.99
    for plot in (plot_accuracy_by_size, plot_pgr_by_size):
        plot(table, tmp_path)
    for figure, name in zip(figures, ("accuracy", "pgr"), strict=True):
        bars = np.array([segment[:, 1] for segment in figure.axes[0].collections[0].get_segments() if len(segment)])
        bars = bars[np.isfinite(bars).all(axis=1)]
        assert np.allclose(bars, table[[f"{name}_low", f"{name}_high"]].dropna())
        assert "95 % interval over test rows" in legend_of(figure) and "one seed" not in legend_of(figure)
    assert "chance" not in legend_of(figures[0])  # it has none here
    assert figures[0].axes[0].get_ylim()[1] > 0.99
    (unbounded,) = figures[1].axes[0].collections[1].get_segments()
    assert np.allclose(unbounded[:, 1], figures[1].axes[0].get_ylim())
    assert "interval unbounded" in legend_of(figures[1])


def test_pgr_is_drawn_with_what_it_leaves_out(figures, tmp_path):
    table = undefine(make_table(), [0, 1, 2, 10])
    table.loc[12, "pgr"] = 4.2  # one seed of three
    beyond = (table["task"] == "sciq") & (table["weak_model"] == MODELS[1]) & (table["method"] == "naive")
    table.loc[beyond & (table["student_model"] == MODELS[4]), "pgr"] = [-3.0, -2.0, -1.0]
    table = as_written(fail(table, [3]))
    plot_pgr_by_size(table, tmp_path)
    (figure,) = figures
    panel = panel_of(figure, "boolq", "taught by Qwen2.5-0.5B", "1 failed, 4 undefined, 1 beyond the axis")
    assert all(axes.get_ylim() == PGR_AXIS for axes in figure.axes)
    assert has(heights(panel, marker="^"), [PGR_AXIS[1]]) and not heights(panel, marker="v")
    for level in (0, 1):
        assert has(heights(panel), [level, level])
    cells = table[(table["task"] == "boolq") & (table["weak_model"] == MODELS[0]) & (table["method"] == "naive")]
    medians = cells.groupby("student_model")["pgr"].median()[MODELS[2:]]
    assert has(heights(panel), medians.dropna()) and medians.isna().sum() == 1
    other = panel_of(figure, "sciq", "taught by Qwen2.5-1.5B", "3 beyond the axis")
    assert [text.get_text() for text in other.texts] == ["-2.0"]
    assert [len(line) for line in heights(other, marker="v")] == [3, 1]  # seeds, and their median
    assert {"0 = supervisor, 1 = ceiling", "beyond the axis (up or down)"} < set(legend_of(figure))


def test_pgr_axis_is_as_long_as_needed(figures, tmp_path):
    plot_pgr_by_size(make_table(tasks=["boolq"]), tmp_path)
    low, high = figures[0].axes[0].get_ylim()
    assert PGR_AXIS[0] < low < 0 and 1 < high < PGR_AXIS[1]
    assert "beyond the axis (up or down)" not in legend_of(figures[0])


def test_agreement_is_drawn_for_right_and_wrong(figures, tmp_path):
    table = as_written(make_table(tasks=["boolq"], weak=MODELS[:1]))
    plot_agreement(table, tmp_path)
    (panel,) = figures[0].axes
    for method, cells in table.groupby("method"):
        for side, style in (("right", {"linestyle": "-"}), ("wrong", {"markerfacecolor": "white"})):
            means = cells.groupby("student_model")[f"agreement_supervisor_{side}"].mean()[MODELS[2:]]
            assert has(heights(panel, **style), means), (method, side)
    bars = [segment for bars in panel.collections for segment in bars.get_segments()]
    assert len(bars) == 18  # over the seeds, for each of 3 students, 3 methods, 2 sides
    said = ["where the supervisor is right", "where it is wrong", "lowest to highest seed"]
    assert legend_of(figures[0])[-3:] == said


def test_spread_of_pgr_shows_every_cell(figures, tmp_path):
    table = make_table(tasks=["boolq"], students=MODELS[:1:-1])  # the largest student first
    table.loc[20, "pgr"] = 9.0
    table = undefine(table, [1])
    plot_pgr_distribution(as_written(table), tmp_path)
    (panel,) = figures[0].axes
    assert "1 undefined, 1 beyond the axis" in title_of(panel)
    naive = table[table["method"] == "naive"].sort_values(["student_parameters", "weak_parameters", "seed"])
    pgr = naive["pgr"].dropna()
    (points,) = [line for line in panel.lines if line.get_marker() == "o"]
    assert np.allclose(points.get_ydata(), pgr.where(pgr < 9), equal_nan=True)
    assert (np.diff(points.get_xdata()) > 0).all()
    assert has(heights(panel, marker="^"), [PGR_AXIS[1]])
    shade, median = panel.collections[:2]
    assert np.allclose(median.get_segments()[0][:, 1], pgr.median())
    edges = shade.get_paths()[0].vertices[:, 1]
    assert np.allclose([edges.min(), edges.max()], pgr.quantile([0.25, 0.75]))


def test_a_sweep_of_one_cell_is_drawn(figures, tmp_path):
    for plot in ALL_PLOTS:
        plot(as_written(make_table(**ONE_OF_EACH)), tmp_path)
    assert [len(figure.axes) for figure in figures] == [1, 1, 1, 1]


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_a_sweep_with_holes_is_drawn(figures, tmp_path, n_seeds):
    weak = {"runs/" + "x" * 30 + "/one": 100_000_000, "runs/" + "x" * 30 + "/two": 200_000_000}
    table = make_table(weak=list(weak), sizes=SIZES | weak, seeds=range(n_seeds))
    missing = (table["task"] == "sciq") & ((table["method"] == "bootstrap") | table["weak_model"].str.endswith("two"))
    for plot in ALL_PLOTS:
        plot(as_written(table[~missing]), tmp_path)
    empty = ["no finished cell" in [text.get_text() for text in axes.texts] for axes in figures[0].axes]
    assert empty == [False] * 5 + [True]
    assert sum("no finished cell" in [text.get_text() for text in axes.texts] for axes in figures[1].axes) == 1
    assert len([label for label in legend_of(figures[0]) if label.startswith("taught by")]) == 2


def test_a_sweep_of_20_tasks_goes_to_pages(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(sweep_plots, "draw_pages", lambda stem, pages, panel, **_: seen.append((stem.name, pages)))
    table = as_written(make_table(tasks=[f"task_{n}" for n in range(20)], students=MODELS[4:], seeds=[0]))
    for plot in ALL_PLOTS:
        plot(table, tmp_path)
    n_panels = {name: [sum(map(len, page)) for page in pages] for name, pages in seen}
    assert n_panels == {
        "accuracy_by_size": [12] * 5, "pgr_by_size": [8] * 5, "agreement": [8] * 5, "pgr_distribution": [10, 10],
    }  # fmt: skip


def test_pages_are_numbered_and_those_of_before_go(figures, tmp_path):
    for name in ("sizes_2.svg", "sizes_3.png", "sizes_of_all.png", "sizes.txt"):
        (tmp_path / name).touch()
    handles = [Line2D([], [], label="a line")]
    seen = []
    paths = draw_pages(
        tmp_path / "sizes", lay_out(list("abcde"), list("xy")), lambda *panel: seen.append(panel[1:]),
        handles=handles, x_label="x", y_label="y",
    )  # fmt: skip
    assert [path.name for path in paths] == ["sizes.png", "sizes.svg", "sizes_2.png", "sizes_2.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sizes.txt", "sizes_of_all.png"]
    assert [panel[1:] for panel in seen] == list(itertools.product("abcde", "xy"))
    assert [[axes.get_xlabel() for axes in figure.axes] for figure in figures] == [
        ["", "", "x", "x"], ["", "", "", "", "x", "x"],
    ]  # fmt: skip
    draw_pages(
        tmp_path / "one", lay_out(list("abcd"), ["x"]), lambda *panel: None, handles=handles, x_label="x", y_label="y"
    )
    shown = [axes.get_xlabel() for axes in figures[-1].axes if axes.get_visible()]
    assert shown == ["", "x", "x", "x"]  # below the second there is no panel


def test_panels_fill_pages():
    tasks = [f"task {n}" for n in range(9)]
    pages = lay_out(tasks, ["a", "b", "c", "d", "e"])
    assert [(len(page), len(page[0])) for page in pages] == [(3, 2), (3, 3)] * 3
    assert sorted(panel for page in pages for line in page for panel in line) == sorted(
        itertools.product(tasks, "abcde")
    )
    assert [[len(line) for line in page] for page in lay_out(tasks, ["a"])] == [[3, 3, 3]]  # no page of one column


@pytest.mark.parametrize(
    ("parameters", "label"),
    [(72_700_000_000, "73B"), (7_620_000_000, "7.6B"), (494_000_000, "490M"), (999_000_000, "1B"), (200_000, "0.2M"),
     (52_000, "52K"), (900, "900")],
)  # fmt: skip
def test_sizes_are_short(parameters, label):
    assert size_label(parameters) == label


def test_models_of_one_size_are_told_apart():
    models = {"a/seven": 7e9, "b/seven": 7e9, "c/other": 7.01e9, "d/large": 70e9}
    axis = SizeAxis(models)
    places = [np.log10(axis.place(model)) for model in models]
    assert np.diff(places).min() > 0.04  # of one decade
    assert places[0] == pytest.approx(np.log10(7e9)) and places[3] == pytest.approx(np.log10(70e9))
    assert axis.labels == ["a/seven", "b/seven", "other", "70B"]
    panel = Figure().subplots()
    axis.dress(panel, width=2.0)
    labels = [tick.get_text() for tick in panel.get_xticklabels()]
    assert labels == ["a/seven", "\nb/seven", "\n\nother", "70B"]  # below each other where they would touch
    steps = [np.log10(axis.place("a/seven", series, 3)) - places[0] for series in range(3)]
    assert steps[0] < steps[1] == pytest.approx(0) and steps[2] == pytest.approx(-steps[0])
    assert 2 * steps[2] < np.diff(places).min()  # series of neighbours do not mix


def test_names_are_as_short_as_they_can_be():
    names = short_names(["runs/one/final", "runs/two/final", "Qwen/Qwen2.5-7B", "x/" + "long-" * 10])
    assert list(names.values())[:3] == ["runs/one/final", "runs/two/final", "Qwen2.5-7B"]
    assert len(names["x/" + "long-" * 10]) == 28
    assert short_names(["a" * 40 + "/final", "b/final"], 14)["a" * 40 + "/final"] == "…aaaaaaa/final"


def test_series_differ_in_grey_print_too():
    styles = [tuple(map(str, style.values())) for style in series_styles(map(str, range(42))).values()]
    assert len(set(styles)) == 42
    first = styles[:5]
    for position in range(3):  # colour, marker and line each
        assert len({style[position] for style in first}) == 5


HARD = {
    "meta-llama/Meta-Llama-3.1-8B-Instruct-with-a-long-name": 8_030_000_000, "runs/one/final": 1_000_000_000,
    "runs/two/final": 1_000_000_000, "a/no$\\formula{$7B": 7_620_000_000,
}  # fmt: skip


@pytest.mark.parametrize("plot", ALL_PLOTS)
def test_nothing_overlaps_or_is_cut(monkeypatch, tmp_path, plot):
    models = list(HARD)
    methods = [f"{name}_with_quite_a_long_name" for name in ("naive", "confidence", "bootstrap", "generative")]
    table = make_table(
        tasks=["a_task_with_quite_a_long_name_and_more"], weak=models[1:], students=models, sizes=HARD,
        methods=methods, seeds=range(2),
    )  # fmt: skip
    table.loc[table["student_model"] == models[3], "pgr"] = 12.0
    drawn = []

    class LaidOut(Figure):
        def savefig(self, path, **_):
            if path.suffix == ".png":
                self.draw_without_rendering()
                drawn.append(self)

    monkeypatch.setattr(plots, "Figure", LaidOut)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "axes sizes collapsed", or a name that is taken for a formula
        plot(fail(undefine(table, [0, 1]), [4]), tmp_path)
    (figure,) = drawn
    page = figure.get_tightbbox()
    assert page.x0 >= 0 and page.y0 >= 0 and page.x1 <= figure.get_figwidth() and page.y1 <= figure.get_figheight()
    boxes = [artist.get_tightbbox().padded(-1) for artist in (*figure.axes, figure.legends[0])]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    panels = Bbox.union([axes.get_window_extent() for axes in figure.axes])
    label = figure._supylabel.get_window_extent()
    assert (label.y0 + label.y1) / 2 == pytest.approx((panels.y0 + panels.y1) / 2, abs=40)  # pixels: half an inch
    for axes in figure.axes:
        labels = []
        for tick in axes.get_xticklabels():
            box = tick.get_window_extent()
            height = box.height / (1 + tick.get_text().count("\n"))  # the lines above are empty
            labels.append(Bbox.from_extents(box.x0, box.y0, box.x1, box.y0 + height))
        assert tick.get_rotation() or not any(one.overlaps(two) for one, two in itertools.combinations(labels, 2))


def test_the_same_table_gives_the_same_bytes(tmp_path):
    table = as_written(make_table(**ONE_OF_EACH))
    one, two = (plot_pgr_by_size(table, tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


class Page(HTMLParser):
    """What a page has: its tags, and its tables as `id -> rows -> (tag, attributes, text)`."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.tables, self.text, self.open = [], {}, "", []
        self.feed(path.read_text())
        assert not self.open, "a tag that is not closed"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables[attributes["id"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append([tag, attributes, ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1][2] += data
        elif not {"script", "style"} & set(self.open):
            self.text += " " + " ".join(data.split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def column(self, table, name):
        head, *rows = self.tables[table]
        position = [cell[2].strip() for cell in head].index(name)
        return [row[position][2] for row in rows]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with cells that failed, PGRs that are undefined or unbounded, and names that are no plain text."""
    table = make_table(
        tasks=["boolq", "<i>sci</i>q"], weak=MODELS[:1], students=MODELS[3:], methods=["naive", "bootstrap"]
    )
    table = undefine(table, [0, 1, 2])
    table.loc[3, ["pgr_low", "pgr_high"]] = np.nan
    table.loc[6, ["weak_accuracy", "pgr"]] = [0.4, 3.0]
    table = fail(table, [4, 9, 10, 11], "RuntimeError: <script>alert('x')</script> & more")
    table = as_written(table.replace({"student_model": {MODELS[4]: "<b>bold</b>"}}))
    settings = {"<u>name</u>": "--flag </table> 'x'", "n": 3}

    class Drawing(Figure):  # not laid out, which takes its time
        def savefig(self, path, **options):
            path.touch() if path.suffix == ".png" else super().savefig(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "Figure", Drawing)
        path = write_sweep_report(table, settings, tmp_path_factory.mktemp("sweep"))
    return table, path


def test_the_page_loads_nothing(report):
    page = Page(report[1])
    text = report[1].read_text()
    assert report[1].name == "report.html" and sorted(path.name for path in report[1].parent.iterdir()) == [
        "figures", "report.html",
    ]  # fmt: skip
    assert not {"link", "iframe", "base", "object", "embed"} & {tag for tag, _ in page.tags}
    loaded = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "action", "data", "background")
    ]
    assert len(loaded) == 4 and all(value.startswith("data:image/svg+xml;base64,") for value in loaded)
    assert not re.search(r"https?://|//\w+\.|url\(|@import|import\(|fetch\(", re.sub(r"base64,[\w+/=]+", "", text))
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for value in loaded:
        drawing = base64.b64decode(value.partition(",")[2]).decode()
        assert drawing.startswith("<?xml") and "<script" not in drawing
        assert not re.search(r'href="(?!#)', drawing)


def test_the_page_says_what_it_shows(report):
    table, path = report
    page = Page(path)
    assert len(page.all("h1")) == len(page.all("main")) == 1 and page.all("html") == [{"lang": "en"}]
    assert "A sweep of 24 cells: 20 done, 4 failed." in page.text
    assert "2 tasks (boolq, <i>sci</i>q), 1 supervisor, 2 students, 2 methods (naive, bootstrap)" in page.text
    assert "PGR = (student − weak) / (ceiling − weak)" in page.text
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(page.all("img")) == 4
    assert all(len(image["alt"]) > 60 for image in page.all("img"))
    assert "the band goes from the lowest to the highest" in page.text and "bootstrapped chain" in page.text
    assert "1 cell: the supervisor is not better than chance" in page.text
    assert "3 cells: PGR is undefined" in page.text and "1 cell: the interval of PGR is unbounded" in page.text
    assert "one seed: how much" not in page.text
    for name in ("accuracy_by_size", "pgr_by_size", "agreement", "pgr_distribution"):
        assert f"figures/{name}" in page.text
        assert all((path.parent / "figures" / (name + ending)).is_file() for ending in (".png", ".svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    named = {name for _, attributes in page.tags for key in ("aria-labelledby", "aria-describedby")
             for name in attributes.get(key, "").split()}  # fmt: skip
    assert named and named <= set(ids)


def test_names_errors_and_settings_are_text(report):
    page, text = Page(report[1]), report[1].read_text()
    assert not {"b", "i", "u"} & {tag for tag, _ in page.tags} and len(page.all("script")) == 1
    assert "alert('x')" not in text.replace("&lt;script&gt;alert(&#39;x&#39;)", "")
    assert "RuntimeError: <script>alert('x')</script> & more" in page.column("cells", "error, or why PGR is undefined")
    assert [[cell[2] for cell in row] for row in page.tables["settings"][1:]] == [
        ["<u>name</u>", "--flag </table> 'x'"], ["n", "3"],
    ]  # fmt: skip


def test_tables_of_the_page(report):
    table, path = report
    page = Page(path)
    cells = page.tables["cells"][1:]
    assert len(cells) == 24 and {len(row) for row in cells} == {len(page.tables["cells"][0])}
    failed = [attributes.get("class") == "failed" for tag, attributes in page.tags if tag == "tr"][-24 - 3 : -3]
    assert failed == (table["status"] == "failed").tolist() and sum(failed) == 4
    assert page.column("cells", "status")[3:5] == ["done", "failed"]
    assert page.column("cells", "PGR [95 %]")[:5] == ["undefined"] * 3 + [f"{table['pgr'][3]:.2f} [unbounded]", ""]
    cell = table.loc[5]
    ends = f"[{cell['accuracy_low']:.3f}, {cell['accuracy_high']:.3f}]"
    assert page.column("cells", "accuracy [95 %]")[5] == f"{cell['accuracy']:.3f} {ends}"
    assert page.column("cells", "student size")[:1] == ["15B"] and page.column("cells", "test rows")[:1] == ["3,270"]

    done = table[table["status"] == "done"]
    groups = list(table.groupby(["task", "weak_model", "student_model", "method"], sort=False).groups)
    assert [tuple(cell[2] for cell in row[:4]) for row in page.tables["summary"][1:]] == groups
    first = done[(done["task"] == "boolq") & (done["student_model"] == MODELS[3]) & (done["method"] == "naive")]
    accuracy = first["accuracy"]
    said = f"{accuracy.mean():.3f} [{accuracy.min():.3f}, {accuracy.max():.3f}]"
    assert page.column("summary", "mean accuracy [range]")[0] == said
    second = done.loc[[3, 5], "pgr"]
    said = f"{second.median():.2f} [{second.min():.2f}, {second.max():.2f}]"
    assert page.column("summary", "median PGR [range]")[:2] == ["undefined", said]
    third = table.loc[[6, 7, 8], "pgr"]
    assert page.column("summary", "median PGR [range]")[2].startswith(f"{third.median():.2f} [")
    assert third.mean() > third.median() + 0.5
    assert page.column("summary", "seeds")[:4] == ["3", "2", "3", "0"]
    assert page.column("summary", "failed")[:4] == ["0", "1", "0", "3"]
    assert page.column("summary", "PGR undefined")[:2] == ["3", "0"]
    assert page.column("summary", "mean accuracy [range]")[3] == ""


def test_of_one_seed_the_summary_has_the_interval_over_rows(without_figures, tmp_path):
    table = make_table(**ONE_OF_EACH)
    page = Page(write_sweep_report(table, {}, tmp_path))
    cell = table.loc[0]
    said = [f"{cell['pgr']:.2f} [{cell['pgr_low']:.2f}, {cell['pgr_high']:.2f}]"]
    assert page.column("summary", "median PGR [range]") == said
    assert "Each cell has one seed" in page.text


SORTING = """
const { columns, rows, click } = JSON.parse(require("fs").readFileSync(0));
const body = { rows: rows.map((cells) => ({ cells })), append(...sorted) { this.rows = sorted; } };
const head = { cells: [] };
const buttons = columns.map((type, cellIndex) => {
  const attributes = {};
  const parentElement = {
    cellIndex, attributes, dataset: { type }, parentElement: head, closest: () => ({ tBodies: [body] }),
    getAttribute: (name) => attributes[name] ?? null, setAttribute: (name, value) => { attributes[name] = value; },
    removeAttribute: (name) => { delete attributes[name]; },
  };
  head.cells.push(parentElement);
  return { parentElement, addEventListener(event, action) { this[event] = action; } };
});
global.document = { querySelectorAll: () => buttons };
SCRIPT
const seen = click.map((position) => {
  buttons[position].click();
  const sorts = head.cells.map((header) => header.attributes["aria-sort"] ?? "");
  return [body.rows.map((row) => row.cells[position].textContent), sorts];
});
console.log(JSON.stringify(seen));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_click_on_a_header_sorts(without_figures, tmp_path):
    table = make_table(tasks=["b", "a10", "a9"], weak=MODELS[:1], students=MODELS[3:4], methods=["naive"], seeds=[0])
    table[["pgr", "pgr_low", "pgr_high"]] = [[-0.5, -1.0, 0.0], [10.0, 9.0, 11.0], [2.0, 1.0, 3.0]]
    table = pd.concat([table, undefine(table.assign(task="c"), [0, 1, 2]).iloc[:1]], ignore_index=True)
    page = Page(write_sweep_report(table, {}, tmp_path))
    head, *rows = page.tables["cells"]
    names = [cell[2] for cell in head]
    pgr, task = names.index("PGR [95 %]"), names.index("task")
    content = {
        "columns": [attributes.get("data-type") for _, attributes, _ in head],
        "rows": [
            [{"textContent": text, "dataset": {"value": attributes.get("data-value")}} for _, attributes, text in row]
            for row in rows
        ],
        "click": [pgr, pgr, pgr, task, task],
    }
    (script,) = re.findall(r"<script>(.*?)</script>", (tmp_path / "report.html").read_text(), re.DOTALL)
    program = SORTING.replace("SCRIPT", script)
    run = subprocess.run(
        ["node", "-e", program], input=json.dumps(content), capture_output=True, text=True, check=True
    )
    up = ["-0.50 [-1.00, 0.00]", "2.00 [1.00, 3.00]", "10.00 [9.00, 11.00]"]
    seen = json.loads(run.stdout)
    assert [rows for rows, _ in seen] == [
        [*up, "undefined"], [*up[::-1], "undefined"], [*up, "undefined"],
        ["a9", "a10", "b", "c"], ["c", "b", "a10", "a9"],
    ]  # fmt: skip
    assert [sorts[pgr] for _, sorts in seen] == ["ascending", "descending", "ascending", "", ""]
    assert [sorts[task] for _, sorts in seen] == ["", "", "", "ascending", "descending"]
    # Reached and pressed with a keyboard, and named to one who listens.
    assert len(page.all("button")) == sum(len(page.tables[name][0]) for name in ("cells", "summary"))
    assert all(cell[1]["scope"] == "col" for cell in head)


def test_where_all_cells_failed_there_is_no_figure(tmp_path):
    other, *earlier = [tmp_path / "figures" / f"{name}.png" for name in ("mine", "accuracy_by_size", "agreement_2")]
    other.parent.mkdir()
    for path in (other, *earlier):
        path.touch()
    failed = as_written(fail(make_table(**ONE_OF_EACH), [0]))
    for plot in ALL_PLOTS:
        assert plot(failed, tmp_path / "elsewhere") == []
    assert not (tmp_path / "elsewhere").exists()
    page = Page(write_sweep_report(failed, {}, tmp_path))
    assert list((tmp_path / "figures").iterdir()) == [other]  # those of before would mislead
    assert "No cell is done, so there is no figure." in page.text and not page.all("img")
    assert page.column("cells", "error, or why PGR is undefined") == ["CUDA out of memory"]


def test_where_pgr_is_undefined_the_other_figures_are_there(tmp_path):
    table = undefine(make_table(**ONE_OF_EACH), [0]).assign(
        agreement_supervisor_right=np.nan, agreement_supervisor_wrong=np.nan
    )
    page = Page(write_sweep_report(as_written(table), {}, tmp_path))
    assert len(page.all("img")) == 1 and "bars are the 95 % interval over test rows" in page.text
    assert page.text.count("PGR is undefined in every cell that is done") == 2
    assert "Agreement was not measured" in page.text


def test_a_sweep_without_cells_is_said(tmp_path):
    page = Page(write_sweep_report(as_written(make_table(**ONE_OF_EACH).iloc[:0]), {}, tmp_path / "new"))
    assert "A sweep without cells." in page.text and "None were given." in page.text


def test_tables_that_are_none_of_a_sweep_are_refused(tmp_path):
    table = make_table(**ONE_OF_EACH)
    with pytest.raises(ValueError, match="without pgr_low; a sweep has task"):
        write_sweep_report(table.drop(columns="pgr_low"), {}, tmp_path)
    with pytest.raises(ValueError, match="status running, expected done or failed"):
        plot_agreement(table.assign(status="running"), tmp_path)
    assert not list(tmp_path.iterdir())
