"""Tests the report of a sweep on artificial tables."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from helpers.sweep_tables import ALL_PLOTS, MODELS, ONE_OF_EACH, as_written, fail, make_table, undefine
from matplotlib.figure import Figure

from w2s_hf import plots
from w2s_hf.sweep import report as sweep_report
from w2s_hf.sweep.plots import (
    plot_agreement,
)
from w2s_hf.sweep.report import write_sweep_report


@pytest.fixture
def without_figures(monkeypatch):
    """Leaves out the figures, for tests of other parts of the report."""
    monkeypatch.setattr(sweep_report, "_FIGURES", dict.fromkeys(sweep_report._FIGURES, lambda *_: None))


class Page(HTMLParser):
    """The content of a page: its tags, and its tables as `id -> rows -> (tag, attributes, text)`."""

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
    """The report of a sweep with failed cells, undefined and unbounded PGRs, and names with markup."""
    table = make_table(
        tasks=["boolq", "<i>sci</i>q"], weak=MODELS[:1], students=MODELS[3:], methods=["naive", "bootstrap"]
    )
    table = undefine(table, [0, 1, 2])
    table.loc[3, ["pgr_low", "pgr_high"]] = np.nan
    table.loc[6, ["weak_accuracy", "pgr"]] = [0.4, 3.0]
    table = fail(table, [4, 9, 10, 11], "RuntimeError: <script>alert('x')</script> & more")
    table = as_written(table.replace({"student_model": {MODELS[4]: "<b>bold</b>"}}))
    settings = {"<u>name</u>": "--flag </table> 'x'", "n": 3}

    class Drawing(Figure):  # skips the layout, which is slow
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
    assert "the band goes from the lowest to the highest" in page.text and "bootstrapping chain" in page.text
    assert "1 cell: the supervisor is not better than chance" in page.text
    assert "3 cells: PGR is undefined" in page.text and "1 cell: the interval of PGR is unbounded" in page.text
    assert "one seed per cell" not in page.text
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
    assert "RuntimeError: <script>alert('x')</script> & more" in page.column(
        "cells", "error or reason for undefined PGR"
    )
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
    assert "There is one seed per cell" in page.text


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
    # Headers are usable with a keyboard, and tables have names for screen readers.
    assert len(page.all("button")) == sum(len(page.tables[name][0]) for name in ("cells", "summary"))
    assert all(cell[1]["scope"] == "col" for cell in head)


def test_where_all_cells_failed_there_is_no_figure(tmp_path):
    other, *earlier = [tmp_path / "figures" / f"{name}.png" for name in ("mine", "accuracy_by_size", "agreement")]
    other.parent.mkdir()
    for path in (other, *earlier):
        path.touch()
    failed = as_written(fail(make_table(**ONE_OF_EACH), [0]))
    for plot in ALL_PLOTS:
        assert plot(failed, tmp_path / "elsewhere") is None
    assert not (tmp_path / "elsewhere").exists()
    page = Page(write_sweep_report(failed, {}, tmp_path))
    assert list((tmp_path / "figures").iterdir()) == [other]  # older figures would be misleading
    assert "No cell is done, so there is no figure." in page.text and not page.all("img")
    assert page.column("cells", "error or reason for undefined PGR") == ["CUDA out of memory"]


def test_cells_without_a_known_chance_are_counted(without_figures, tmp_path):
    table = make_table(**(ONE_OF_EACH | {"seeds": [0, 1]}))
    table.loc[0, "weak_accuracy"] = 0.3
    page = Page(write_sweep_report(as_written(table), {}, tmp_path))
    assert "1 cell: the supervisor is not better than chance" in page.text and "is unknown" not in page.text
    table.loc[0, "chance"] = np.nan
    page = Page(write_sweep_report(as_written(table), {}, tmp_path))
    assert "1 cell: the accuracy of guessing is unknown" in page.text and "not better than chance" not in page.text
    assert page.column("cells", "chance") == ["", "0.500"]


def test_where_pgr_is_undefined_the_other_figures_are_there(tmp_path):
    table = undefine(make_table(**ONE_OF_EACH), [0]).assign(
        agreement_supervisor_right=np.nan, agreement_supervisor_wrong=np.nan
    )
    page = Page(write_sweep_report(as_written(table), {}, tmp_path))
    assert len(page.all("img")) == 1 and "Bars are the 95 % interval over test rows" in page.text
    assert page.text.count("PGR is undefined in every cell that is done") == 2
    assert "Agreement was not measured" in page.text


def test_a_sweep_without_cells_is_said(tmp_path):
    page = Page(write_sweep_report(as_written(make_table(**ONE_OF_EACH).iloc[:0]), {}, tmp_path / "new"))
    assert "A sweep without cells." in page.text and "The sweep has no settings." in page.text


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda table, path: write_sweep_report(table.drop(columns="pgr_low"), {}, path),
         "without the columns pgr_low, expected task"),
        (lambda table, path: plot_agreement(table.assign(status="running"), path),
         "status running, expected done or failed"),
    ],
    ids=["column", "status"],
)  # fmt: skip
def test_tables_that_are_none_of_a_sweep_are_refused(write, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(make_table(**ONE_OF_EACH), tmp_path)
    assert not list(tmp_path.iterdir())
