"""The progress of a sweep: a progress bar and a table on a terminal, otherwise one line per cell."""

import sys
from collections import defaultdict

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..metrics import rounded
from .grid import Cell

__all__ = ["SweepView"]


class SweepView:
    """
    A context manager that shows the progress of a sweep. [`update`] is called with the record of each cell.

    Args:
        cells (`list` of [`Cell`]): All cells of the sweep.
        console (`rich.console.Console`, *optional*): Defaults to the current stdout, since the output of training
            runs is redirected to files later.
        is_shown (`bool`, *optional*, defaults to `True`): Whether to show anything. It is `True` on only one rank.
    """

    def __init__(self, cells: list[Cell], console: Console | None = None, *, is_shown: bool = True):
        self.console = Console(file=sys.stdout, quiet=not is_shown) if console is None else console
        self.is_live = is_shown and self.console.is_terminal
        self.cells = cells
        self.rows: dict[Cell, dict] = {}
        self.progress = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.bar = self.progress.add_task("cells", total=len(cells))
        self.live = Live(
            console=self.console, redirect_stdout=False, redirect_stderr=False, get_renderable=self._shown
        )

    def __enter__(self) -> "SweepView":
        if self.is_live:
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.is_live:
            self.live.stop()

    def update(self, cell: Cell, record: dict) -> None:
        """Shows the record of a cell."""
        row = self.rows[cell] = record["row"]
        self.progress.update(self.bar, completed=len(self.rows))
        if self.is_live:
            return
        outcome = (
            row["error"] if row["status"] == "failed" else f"accuracy {rounded(row['accuracy'])}, PGR {_pgr([row])}"
        )
        name = f"{cell.task}, {cell.weak_model} > {cell.student_model}, {cell.method}, seed {cell.seed}"
        self.console.print(
            f"[{len(self.rows)}/{len(self.cells)}] {name}: {outcome}", markup=False, highlight=False, soft_wrap=True
        )

    def _shown(self) -> Group:
        table = Table(box=None)
        for name in ("task", "supervisor", "student", "method", "seeds", "accuracy", "PGR", "failed"):
            table.add_column(name, justify="left" if name in ("task", "supervisor", "student", "method") else "right")
        groups = defaultdict(list)
        for cell in self.cells:
            groups[(cell.task, cell.weak_model, cell.student_model, cell.method)].append(cell)
        for names, cells in groups.items():
            rows = [self.rows[cell] for cell in cells if cell in self.rows]
            done = [row for row in rows if row["status"] == "done"]
            accuracy = rounded(np.mean([row["accuracy"] for row in done])) if done else ""
            failed = str(len(rows) - len(done)) if len(rows) > len(done) else ""
            table.add_row(*names, f"{len(done)}/{len(cells)}", accuracy, _pgr(done) if done else "", failed)
        return Group(self.progress, table)  # a table that does not fit is truncated


def _pgr(rows: list[dict]) -> str:
    """Returns the median of the PGRs that are defined."""
    values = [row["pgr"] for row in rows if row["pgr"] is not None]
    return f"{np.median(values):.2f}" if values else "undefined"
