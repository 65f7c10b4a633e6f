"""The report of a sweep: one HTML file with figures, tables and settings, which loads no other files."""

import base64
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..metrics import rounded
from ..plots import size_label
from .plots import (
    PGR_AXIS,
    finished,
    plot_accuracy_by_size,
    plot_agreement,
    plot_pgr_by_size,
    plot_pgr_distribution,
    several_seeds,
)

__all__ = ["write_sweep_report"]

_FIGURES = {
    "accuracy": plot_accuracy_by_size,
    "pgr": plot_pgr_by_size,
    "agreement": plot_agreement,
    "spread": plot_pgr_distribution,
}
_GROUP_COLUMNS = ["task", "weak_model", "student_model", "method"]


def write_sweep_report(table: pd.DataFrame, settings: Mapping[str, object], directory: str | Path) -> Path:
    """
    Writes `report.html`, and its figures to `figures/`, each as `.png` and `.svg`.

    The same table and settings give the same bytes.

    Args:
        table (`pandas.DataFrame`): The table of a sweep, see [`w2s_hf.sweep.plots.finished`].
        settings (`Mapping[str, object]`): Settings to show as text. All texts are escaped.
        directory (`str` or `Path`): Directory of the sweep.

    Returns:
        `Path` of `report.html`.

    Raises:
        ValueError: A column is missing, or a status is neither "done" nor "failed".
    """
    directory = Path(directory)
    done = finished(table)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # errors and model names are not trusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tasks = _unique(table, "task")
    subject = ", ".join(tasks) if 0 < len(tasks) < 4 else _count(len(tasks), "task")
    content = environment.get_template("report.html").render(
        title=f"Weak-to-strong generalization: {subject}",
        **_facts(table, done),
        count=_count,
        has_direct=bool(done["direct_accuracy"].notna().any()),
        pgr_axis=PGR_AXIS,
        figures=_figures(table, directory / "figures"),
        summary=_summary(table),
        cells=_cells(table),
        settings=[(str(name), str(value)) for name, value in settings.items()],
    )
    path = directory / "report.html"
    directory.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    aside.write_text(content + "\n", encoding="utf-8")
    os.replace(aside, path)
    return path


def _unique(table: pd.DataFrame, column: str) -> list[str]:
    return [str(value) for value in dict.fromkeys(table[column])]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def _facts(table: pd.DataFrame, done: pd.DataFrame) -> dict[str, object]:
    """Returns the names and counts in `introduction.html`."""
    return {
        "n_cells": len(table),
        "n_done": len(done),
        "n_weak_models": table["weak_model"].nunique(),
        "n_student_models": table["student_model"].nunique(),
        **{f"{column}s": _unique(table, column) for column in ("task", "method", "seed")},
        "several_seeds": several_seeds(done),
        "n_not_above_chance": int((done["weak_accuracy"] <= done["chance"]).sum()),
        "n_without_chance": int(done["chance"].isna().sum()),
        "n_undefined": int(done["pgr"].isna().sum()),
        "n_unbounded": int((done["pgr"].notna() & done["pgr_low"].isna()).sum()),
    }


def _figures(table: pd.DataFrame, directory: Path) -> dict[str, dict | None]:
    """Draws the figures. Returns the file and `<img>` content of each figure; `None` for figures without panels."""
    figures: dict[str, dict | None] = {}
    for name, draw in _FIGURES.items():
        svg = draw(table, directory)
        figures[name] = None
        if svg is not None:
            # Figures are images, not inline SVG, so that their ids cannot conflict and no code in them is run.
            data = base64.b64encode(svg.read_bytes()).decode()
            figures[name] = {"file": f"{directory.name}/{svg.stem}", "data": data}
    return figures


def _column(name: str, kind: str = "number") -> dict:
    return {"name": name, "is_number": kind == "number", "is_long": kind == "long"}


def _text(value: object) -> dict:
    return {"text": "" if pd.isna(value) else str(value), "value": ""}


def _number(value: float, form: str = ".3f", ends: tuple[float, float] | None = None, missing: str = "") -> dict:
    """Returns a number with its interval in brackets, and the exact value for sorting."""
    if pd.isna(value):
        return {"text": missing, "value": ""}
    text = rounded(value) if form == ".3f" else f"{value:{form}}"
    if ends is not None:
        text += " [unbounded]" if pd.isna(ends[0]) else f" [{ends[0]:{form}}, {ends[1]:{form}}]"
    return {"text": text, "value": repr(float(value))}


def _size(parameters: float) -> dict:
    return _number(parameters) | {"text": "" if pd.isna(parameters) else size_label(parameters)}


def _summary(table: pd.DataFrame) -> dict:
    """Returns one row per task, pair of models and method."""
    columns = [_column(name, "text") for name in ("task", "supervisor", "student", "method")]
    columns += [_column(name) for name in ("mean accuracy [range]", "supervisor accuracy", "ceiling accuracy")]
    columns += [_column(name) for name in ("median PGR [range]", "seeds", "PGR undefined", "failed", "test rows")]
    rows = []
    for names, cells in table.groupby(_GROUP_COLUMNS, sort=False):
        done = cells[cells["status"] == "done"]
        is_single = len(done) == 1
        spread = [
            (done[f"{name}_low"].min(), done[f"{name}_high"].max())
            if is_single
            else (done[name].min(), done[name].max())
            for name in ("accuracy", "pgr")
        ]
        rows.append(
            {
                "failed": done.empty,
                "cells": [
                    *map(_text, names),
                    _number(done["accuracy"].mean(), ends=spread[0]),
                    _number(done["weak_accuracy"].mean()),
                    _number(done["ceiling_accuracy"].mean()),
                    _number(done["pgr"].median(), ".2f", spread[1], missing="" if done.empty else "undefined"),
                    _number(len(done), "d"),
                    _number(int(done["pgr"].isna().sum()), "d"),
                    _number(len(cells) - len(done), "d"),
                    _number(done["n_test"].max(), ",.0f"),
                ],
            }
        )
    return {"columns": columns, "rows": rows if (table["status"] == "done").any() else []}


def _cells(table: pd.DataFrame) -> dict:
    """Returns one row per cell, with the most important columns first."""
    columns = [_column(name, "text") for name in ("task", "supervisor", "student", "method")]
    columns += [_column("seed"), _column("status", "text")]
    columns += [_column(name) for name in ("accuracy [95 %]", "supervisor accuracy", "ceiling accuracy", "PGR [95 %]")]
    columns += [_column(name) for name in ("agreement", "agreement, supervisor right", "agreement, supervisor wrong")]
    columns += [_column("accuracy without the chain")]
    columns += [_column(name) for name in ("test rows", "chance", "supervisor size", "student size")]
    columns += [_column("setting", "text"), _column("error or reason for undefined PGR", "long")]
    rows = []
    for cell in table.itertuples():
        failed = cell.status == "failed"
        cells = [_text(name) for name in (cell.task, cell.weak_model, cell.student_model, cell.method)]
        cells += [_number(cell.seed, "d"), _text(cell.status)]
        cells += [
            _number(cell.accuracy, ends=(cell.accuracy_low, cell.accuracy_high)),
            _number(cell.weak_accuracy),
            _number(cell.ceiling_accuracy),
            _number(cell.pgr, ".2f", (cell.pgr_low, cell.pgr_high), missing="" if failed else "undefined"),
        ]
        shares = (cell.agreement, cell.agreement_supervisor_right, cell.agreement_supervisor_wrong)
        cells += [*(_number(share, ".2f") for share in shares), _number(cell.direct_accuracy)]
        cells += [_number(cell.n_test, ",.0f"), _number(cell.chance)]
        cells += [_size(cell.weak_parameters), _size(cell.student_parameters), _text(cell.setting)]
        cells.append(_text(cell.error if failed else cell.pgr_undefined))
        rows.append({"failed": failed, "cells": cells})
    return {"columns": columns, "rows": rows}
