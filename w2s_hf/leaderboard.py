"""PGR of many students in one table, from their model cards alone."""

import statistics
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from .cards import StudentCard, read_card

__all__ = ["COLUMNS", "find_cards", "leaderboard"]

COLUMNS = (
    "task", "weak", "student", "method", "n_seeds", "weak_accuracy", "student_accuracy", "ceiling_accuracy", "pgr",
    "pgr_low", "pgr_high", "n_undefined",
)  # fmt: skip


def find_cards(sources: Iterable[str]) -> list[StudentCard]:
    """
    The cards of students.

    Args:
        sources (`Iterable[str]`):
            Hub ids of students, their directories, or directories to look for students in, such as the output of a
            recipe. Of such a directory, students of a chain that have no ceiling are left out.

    Raises:
        FileNotFoundError: there is no such student, or none below a directory.
        ConnectionError: the Hub does not answer.
        ValueError: a card is of no student, or says two things.
    """
    cards = []
    for source in sources:
        directory = Path(source)
        if not directory.is_dir() or (directory / "README.md").is_file():
            cards.append(read_card(source))
            continue
        pages = [page for page in sorted(directory.rglob("README.md")) if "_stages" not in page.parts]
        below = [read_card(page) for page in pages if "\nweak_to_strong:\n" in page.read_text(encoding="utf-8")]
        below = [card for card in below if card.ceiling is not None]
        if not below:
            raise FileNotFoundError(f"{source}: there is no student's card in this directory or below it.")
        cards += below
    return cards


def leaderboard(cards: Iterable[StudentCard]) -> pd.DataFrame:
    """
    A row for each task, supervisor, student and method, the highest PGR first; the same student given twice counts
    once.

    Returns:
        `pd.DataFrame` with [`COLUMNS`]: of several seeds means of the accuracies, and the median of PGR with its range
        (`pgr_low`, `pgr_high`); of one its 95 % interval. `pgr` is missing where it is undefined in all seeds.
    """
    groups: dict[tuple, dict[tuple, StudentCard]] = {}
    for card in cards:
        key = (card.task, card.weak and card.weak.model, card.student and card.student.model, card.method)
        groups.setdefault(key, {})[card.seed, card.weak, card.student, card.ceiling] = card
    rows = []
    for key, students in groups.items():
        cards = list(students.values())
        defined = [card.pgr for card in cards if card.pgr is not None]
        low, high = (min(defined), max(defined)) if defined else (None, None)
        if len(cards) == 1:
            low, high = cards[0].pgr_ci95 or (None, None)
        row = [len(cards)]
        for name in ("weak", "student", "ceiling"):
            known = [getattr(card, name).accuracy for card in cards if getattr(card, name) is not None]
            row.append(statistics.fmean(known) if known else None)
        pgr = statistics.median(defined) if defined else None
        rows.append([*key, *row, pgr, low, high, len(cards) - len(defined)])
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["task", "pgr"], ascending=[True, False], ignore_index=True)
