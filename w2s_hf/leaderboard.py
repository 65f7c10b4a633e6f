"""Cards read back as data, and PGR of many students in one table from their cards alone."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from yaml import YAMLError

from .cards import BLOCK, SCHEMA, Score, StudentCard

__all__ = ["COLUMNS", "find_cards", "leaderboard", "read_card"]

COLUMNS = (
    "task", "weak", "student", "method", "n_students", "weak_accuracy", "student_accuracy", "ceiling_accuracy", "pgr",
    "pgr_low", "pgr_high", "n_undefined",
)  # fmt: skip


def read_card(source: str | Path, revision: str | None = None) -> StudentCard:
    """
    The card of a student as data: task, method, seed, models, scores, agreement.

    Args:
        source (`str` or `Path`): Hub id of a student, its directory, or the card itself.
        revision (`str`, *optional*): On the Hub.

    Raises:
        FileNotFoundError: there is no such student, or it has no card.
        ConnectionError: the Hub does not answer.
        ValueError: the card is of no student, or its PGR is not that of its scores.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "README.md"
    if not path.is_file():
        path = Path(_download_card(str(source), revision))
    try:
        return _card_of(path)
    except (ValueError, KeyError, TypeError, AttributeError, YAMLError) as error:  # of a stranger's card
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{source}: the card cannot be read as that of a student: {said}") from error


def _card_of(path: Path) -> StudentCard:
    data = ModelCard.load(path).data
    block = data.get(BLOCK)
    if not isinstance(block, dict) or block.get("schema") != SCHEMA:
        raise ValueError(f"it has no `{BLOCK}` of schema {SCHEMA} in its front matter.")
    scores = {name: None if block[name] is None else Score.of(block[name]) for name in ("weak", "student", "ceiling")}
    same = ("task", "setting", "method", "seed", "taught_by", "agreement")
    pgr_ci95 = None if block["pgr_ci95"] is None else tuple(block["pgr_ci95"])
    card = StudentCard(
        **{name: block[name] for name in same}, **scores, pgr_ci95=pgr_ci95, no_pgr=block["pgr_undefined"]
    )
    stated = next((entry.metric_value for entry in data.eval_results or [] if entry.metric_type == "pgr"), None)
    if (stated is None) != (card.pgr is None) or (stated is not None and not math.isclose(stated, card.pgr)):
        raise ValueError(f"`model-index` has the PGR {stated}, and its scores give {card.pgr}.")
    return card


def _download_card(repo_id: str, revision: str | None) -> str:
    try:
        if not constants.HF_HUB_OFFLINE:
            # A Hub that is not there is known at once; a download would try again for half a minute.
            revision = HfApi().model_info(repo_id, revision=revision, timeout=10).sha
        return hf_hub_download(repo_id, "README.md", revision=revision)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"got {repo_id!r}, expected a student's directory or its id on the Hub; there is no such directory."
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"{repo_id}: the Hub has no card of it that you may read: {error}") from error
    except (HTTPError, OSError) as error:
        raise ConnectionError(f"{repo_id}: the Hub does not answer ({type(error).__name__}).") from error


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
        below = [read_card(page) for page in pages if f"\n{BLOCK}:\n" in page.read_text(encoding="utf-8")]
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
        `pd.DataFrame` with [`COLUMNS`]: of several students (seeds, or other rows and settings) means of the
        accuracies, and the median of PGR with its range (`pgr_low`, `pgr_high`); of one its 95 % interval. `pgr` is
        missing where it is undefined for all.
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
