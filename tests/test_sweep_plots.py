"""Tests figures of sweeps: their content, and that nothing in them overlaps or is cut."""

import itertools
import warnings

import numpy as np
import pytest
from helpers.sweep_tables import ALL_PLOTS, MODELS, ONE_OF_EACH, SIZES, as_written, fail, make_table, undefine
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from w2s_hf import plots
from w2s_hf.plots import SizeAxis, draw_panels, lay_out, series_styles, short_names, size_label
from w2s_hf.sweep import plots as sweep_plots
from w2s_hf.sweep.plots import (
    PGR_AXIS,
    plot_accuracy_by_size,
    plot_agreement,
    plot_pgr_by_size,
    plot_pgr_distribution,
)


def title_of(panel):
    return " ".join(panel.get_title(loc="left").split())


def panel_of(figure, *words):
    """Returns the panel whose title has these words."""
    (panel,) = [axes for axes in figure.axes if all(word in title_of(axes) for word in words)]
    return panel


def heights(panel, **style):
    """Returns the finite heights of each line of a panel with this style."""
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
    assert plot_accuracy_by_size(table, tmp_path) == tmp_path / "accuracy_by_size.svg"
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
        "student, labels of Qwen2.5-0.5B", "student, labels of Qwen2.5-1.5B", "ceiling, trained on ground truth",
        "supervisor (marker at left)", "one seed", "lowest to highest seed", "same student without the chain",
        "chance",
    ]  # fmt: skip


def test_supervisor_counts_once_a_seed(figures, tmp_path):
    # The first seed has only one of two students left, and its supervisor has the same weight as those of other seeds.
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
    assert "chance" not in legend_of(figures[0])  # the line of chance is hidden
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
    panel = panel_of(figure, "boolq", "supervisor Qwen2.5-0.5B", "1 failed, 4 undefined, 1 beyond the axis")
    assert all(axes.get_ylim() == PGR_AXIS for axes in figure.axes)
    assert has(heights(panel, marker="^"), [PGR_AXIS[1]]) and not heights(panel, marker="v")
    for level in (0, 1):
        assert has(heights(panel), [level, level])
    cells = table[(table["task"] == "boolq") & (table["weak_model"] == MODELS[0]) & (table["method"] == "naive")]
    medians = cells.groupby("student_model")["pgr"].median()[MODELS[2:]]
    assert has(heights(panel), medians.dropna()) and medians.isna().sum() == 1
    other = panel_of(figure, "sciq", "supervisor Qwen2.5-1.5B", "3 beyond the axis")
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
    labels = ["supervisor right", "supervisor wrong", "lowest to highest seed"]
    assert legend_of(figures[0])[-3:] == labels


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
    assert len([label for label in legend_of(figures[0]) if label.startswith("student, labels of")]) == 2


def test_figures_of_20_tasks_are_tall(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(sweep_plots, "draw_panels", lambda stem, lines, panel, **_: seen.update({stem.name: lines}))
    table = as_written(make_table(tasks=[f"task_{n}" for n in range(20)], students=MODELS[4:], seeds=[0]))
    for plot in ALL_PLOTS:
        plot(table, tmp_path)
    assert {name: [len(line) for line in lines] for name, lines in seen.items()} == {
        "accuracy_by_size": [3] * 20, "pgr_by_size": [2] * 20, "agreement": [2] * 20,
        "pgr_distribution": [3] * 6 + [2],
    }  # fmt: skip


def test_the_lowest_panels_have_the_label_of_the_axis(figures, tmp_path):
    words = {"handles": [Line2D([], [], label="a line")], "x_label": "x", "y_label": "y"}
    seen = []
    lines = lay_out(list("abcde"), list("xy"))
    assert draw_panels(tmp_path / "sizes", lines, lambda *panel: seen.append(panel[2:]), **words) == (
        tmp_path / "sizes.svg"
    )
    assert seen == list(itertools.product("abcde", "xy"))
    assert [axes.get_xlabel() for axes in figures[0].axes] == [""] * 8 + ["x", "x"]
    draw_panels(tmp_path / "one", lay_out(list("abcd"), ["x"]), lambda *panel: None, **words)
    shown = [axes.get_xlabel() for axes in figures[1].axes if axes.get_visible()]
    assert shown == ["", "x", "x", "x"]  # below the second there is no panel


def test_files_of_an_earlier_sweep_are_removed(figures, tmp_path):
    others = {"sizes_of_mine.png", "sizes_2nd.png", "sizes_2.pdf", "my_sizes_2.png"}
    for name in {"sizes.png", "sizes_2.png", "sizes_2.svg", "sizes_13.svg", *others}:
        (tmp_path / name).touch()
    words = {"handles": [Line2D([], [], label="a line")], "x_label": "x", "y_label": "y"}
    draw_panels(tmp_path / "sizes", [[("a", "b")]], lambda *panel: None, **words)
    assert len(figures) == 1 and {path.name for path in tmp_path.iterdir()} == others  # nothing is saved here


def test_a_figure_of_any_height_is_saved(monkeypatch, tmp_path):
    sizes = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi=72, **_: sizes.append(self.get_figheight() * dpi))
    lines = lay_out([f"task {n}" for n in range(200)], ["a", "b"])
    words = {"handles": [Line2D([], [], label="a line")], "x_label": "x", "y_label": "y"}
    draw_panels(tmp_path / "tall", lines, lambda *panel: None, **words)
    assert 60_000 < sizes[0] < 2**16


def test_lines_have_nearly_the_same_number_of_panels():
    tasks = [f"task {n}" for n in range(9)]
    lines = lay_out(tasks, list("abcde"))
    assert [len(line) for line in lines] == [3, 2] * 9
    assert [panel for line in lines for panel in line] == list(itertools.product(tasks, "abcde"))
    assert [len(line) for line in lay_out(tasks, list("abcdefghi"))] == [3] * 27
    assert [len(line) for line in lay_out(tasks, ["a"])] == [3, 3, 3]


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
    for ending in (".png", ".svg"):
        assert one.with_suffix(ending).read_bytes() == two.with_suffix(ending).read_bytes()
