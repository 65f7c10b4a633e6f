"""The model cards of students as data, and a table of their PGR.

    w2s leaderboard ME/boolq-Qwen2.5-7B-from-Qwen2.5-0.5B-naive-seed0 ME/boolq-...-seed1
    w2s leaderboard outputs/boolq outputs/chess_puzzles --output leaderboard.md

A directory contains one student, or several students or a sweep in its subdirectories. Students with the same settings
and rows, such as several seeds, share one line. The line has the means of the accuracies, and the median of PGR with
its range in brackets. A line with one student has the 95 % interval of its PGR. Settings that differ between lines of
the same task are columns.
"""

import argparse
import json
import math
import statistics
import sys
import textwrap
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from yaml import YAMLError

from .cards import BLOCK, SCHEMA, Score, StudentCard
from .cards.markdown import as_text, markdown_table
from .cards.trained_with import DEMO_DATASET
from .command_line import CommandLine
from .losses import LOSS_ARGUMENTS
from .metrics import rounded
from .results.table import find_results

__all__ = ["COLUMNS", "find_cards", "leaderboard", "read_card", "readable"]

COLUMNS = (
    "task", "weak", "student", "method", "n_students", "weak_accuracy", "student_accuracy", "ceiling_accuracy", "pgr",
    "pgr_low", "pgr_high", "n_undefined", "run_name", "fingerprint",
)  # fmt: skip


def read_card(source: str | Path, revision: str | None = None) -> StudentCard:
    """
    Reads the card of a student as data: task, method, seed, models, scores and agreement.

    Args:
        source (`str` or `Path`): Hub id of a student, its directory, or the file of its card.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: The student does not exist or has no card.
        ConnectionError: The Hub does not answer.
        ValueError: The card is not the card of a student, or its PGR does not follow from its scores.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "README.md"
    if not path.is_file():
        path = Path(_download_card(str(source), revision))
    try:
        return _card_of(path)
    except (ValueError, KeyError, TypeError, AttributeError, YAMLError) as error:  # anyone can write a card
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{source}: got a card that is not a valid student card: {reason.removesuffix('.')}. Write the card "
            "again with w2s_hf, or leave it out."
        ) from error


def _card_of(path: Path) -> StudentCard:
    data = ModelCard.load(path).data
    block = data.get(BLOCK)
    if not isinstance(block, dict) or block.get("schema") != SCHEMA:
        raise ValueError(f"its front matter has no `{BLOCK}` of schema {SCHEMA}.")
    values: dict[str, Any] = {
        name: None if block[name] is None else Score.of(block[name]) for name in ("weak", "student", "ceiling")
    }
    values |= {name: block[name] for name in ("task", "setting", "method", "seed", "taught_by", "agreement")}
    # Older cards have none of these fields, and name the demo in `model-index` only.
    values |= {name: block.get(name) or {} for name in ("settings", "versions")}
    values |= {"run_name": block.get("run_name"), "n_rows": dict(block.get("n_rows") or {})}
    is_demo = any(entry.dataset_type == "-".join(DEMO_DATASET.split()) for entry in data.eval_results or [])
    dataset = block.get("dataset") or {}
    card = StudentCard(
        **values,
        pgr_ci95=None if block["pgr_ci95"] is None else tuple(block["pgr_ci95"]),
        no_pgr=block["pgr_undefined"],
        is_demo=is_demo or block.get("preset") == "demo",
        dataset=dataset.get("id"),
        dataset_revision=dataset.get("revision"),
        rows_fingerprint=dataset.get("rows"),
    )
    card.n_train = card.n_rows.pop("train", None)
    _ = card.fingerprint  # raises an error if a setting is not a JSON value
    stated = next((entry.metric_value for entry in data.eval_results or [] if entry.metric_type == "pgr"), None)
    if stated != card.pgr and (stated is None or card.pgr is None or not math.isclose(stated, card.pgr)):
        raise ValueError(f"`model-index` has PGR {stated}, and its scores give {card.pgr}.")
    return card


def _download_card(repo_id: str, revision: str | None) -> str:
    try:
        if not constants.HF_HUB_OFFLINE:
            # This request fails immediately if the Hub is not reachable. A download retries for half a minute.
            revision = HfApi().model_info(repo_id, revision=revision, timeout=10).sha
        return hf_hub_download(repo_id, "README.md", revision=revision)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"Got {repo_id!r}, expected the directory of a student or its id on the Hub. Check the path."
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(
            f"{repo_id}: the Hub has no model card that you may read ({error}). Check the id, or set HF_TOKEN for a "
            "private repository."
        ) from error
    except (HTTPError, OSError) as error:
        raise ConnectionError(
            f"{repo_id}: the Hub does not answer ({type(error).__name__}). Try again later."
        ) from error


def find_cards(sources: Iterable[str]) -> list[StudentCard]:
    """
    Returns the cards of students.

    Args:
        sources (`Iterable[str]`):
            Hub ids of students, their directories, or directories that contain students, such as the output of a run
            or of a sweep. From such a directory, students of a chain without a ceiling are left out.

    Raises:
        FileNotFoundError: A student does not exist, or a directory contains no student.
        ConnectionError: The Hub does not answer.
        ValueError: A card is not the card of a student, or its PGR does not follow from its scores.
    """
    cards = []
    for source in sources:
        directory = Path(source)
        if not directory.is_dir() or (directory / "README.md").is_file():
            cards.append(read_card(source))
            continue
        pages = [page for page in sorted(directory.rglob("README.md")) if "_stages" not in page.parts]
        below = [read_card(page) for page in pages if f"\n{BLOCK}:\n" in page.read_text(encoding="utf-8")]
        # A sweep copies no student and writes no card. The records of its cells have the same facts.
        for results in find_results(directory, only_sweeps=True).values():
            (run,) = results.runs
            below += [StudentCard.from_results(results, run, student) for student in run.students]
        below = [card for card in below if card.ceiling is not None]
        if not below:
            raise FileNotFoundError(
                f"{source}: got a directory without the card of a student, expected a card in it or in its "
                "subdirectories. Name the directory of a student, or the --output_dir of a finished run or sweep."
            )
        cards += below
    return cards


def leaderboard(cards: Iterable[StudentCard]) -> pd.DataFrame:
    """
    Returns a table with one row for each group of students, the highest PGR of a task first.

    Students are in one group if their cards have the same [`StudentCard.fingerprint`]: task, rows, models, method and
    settings. For example, the seeds of an experiment are one group. A student that is listed twice counts once.

    Cards of older versions of this package have no settings. They are in one group if task, models and method are the
    same and no seed occurs twice.

    Returns:
        `pd.DataFrame` with [`COLUMNS`], and a column for each setting that differs between rows of the same task. A
        setting is `None` if a card does not have it. A row of several students has means of the accuracies, and the
        median of PGR with its range (`pgr_low`, `pgr_high`). A row of one student has the 95 % interval of its PGR.
        `pgr` is missing if it is undefined for all students of the row. For the demo, `task` has a note that rows are
        generated.
    """
    kinds: dict[tuple, dict[tuple, StudentCard]] = {}
    for card in cards:
        names = (card.subject, card.weak and card.weak.model, card.student and card.student.model, card.method)
        student = (card.seed, card.weak, card.student, card.ceiling)
        kinds.setdefault((*names, card.fingerprint), {})[student] = card
    groups = []
    for (*kind, fingerprint), students in kinds.items():
        cards = list(students.values())
        is_one_kind = fingerprint is not None or len({card.seed for card in cards}) == len(cards)
        groups += [(kind, cards)] if is_one_kind else [(kind, [card]) for card in cards]
    rows = []
    for kind, cards in groups:
        defined = [card.pgr for card in cards if card.pgr is not None]
        low, high = (min(defined), max(defined)) if defined else (None, None)
        if len(cards) == 1:
            low, high = cards[0].pgr_ci95 or (None, None)
        row: list[Any] = [len(cards)]
        for name in ("weak", "student", "ceiling"):
            known = [getattr(card, name).accuracy for card in cards if getattr(card, name) is not None]
            row.append(statistics.fmean(known) if known else None)
        pgr = statistics.median(defined) if defined else None
        runs = ", ".join(dict.fromkeys(card.run_name for card in cards if card.run_name is not None))
        row += [pgr, low, high, len(cards) - len(defined), runs or None, cards[0].fingerprint]
        rows.append([*kind, *row])
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for name, values in _differing_settings([cards[0] for _, cards in groups]).items():
        table[f"setting {name}" if name in COLUMNS else name] = pd.Series(values, dtype=object)
    return table.sort_values(["task", "pgr"], ascending=[True, False], ignore_index=True)


def _differing_settings(cards: list[StudentCard]) -> dict[str, list]:
    """Returns the values on every card of each setting that differs between cards of the same task."""
    known = [card.trained_with if card.settings else {} for card in cards]
    differing = {}
    for name in dict.fromkeys(name for settings in known for name in settings if name not in _KIND):
        values: dict[tuple, set[str]] = {}
        for settings in filter(None, known):
            compared = (settings.get("task"), settings.get("demo"), settings.get(_BELONGS_TO.get(name, "task")))
            values.setdefault(compared, set()).add(json.dumps(settings.get(name), sort_keys=True))
        if any(len(different) > 1 for different in values.values()):
            differing[name] = [settings.get(name) for settings in known]
    return differing


# The settings in `_KIND` have separate columns. Only students of the same method share the settings in `_OF_A_METHOD`.
_KIND = {"task", "demo", "setting", "method", "weak_model", "student_model"}
_OPTIONS = chain.from_iterable(LOSS_ARGUMENTS.values())
_OF_A_METHOD = ("loss_type", *_OPTIONS, "chain", "chain rows", "labels_of", "n_train")
_BELONGS_TO = dict.fromkeys(_OF_A_METHOD, "method")
_BELONGS_TO |= {"weak_model_version": "weak_model", "student_model_version": "student_model"}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a [`leaderboard`] as text for display, without unprintable characters."""
    pgr = [
        "undefined" if pd.isna(row.pgr) else f"{row.pgr:.2f}"
        + ("" if pd.isna(row.pgr_low) else f" [{row.pgr_low:.2f}, {row.pgr_high:.2f}]")
        for row in table.itertuples()
    ]  # fmt: skip
    settings = [name for name in table if name not in COLUMNS]
    runs = ["run_name"] if table["run_name"].notna().any() else []
    text = table[["task", "weak", "student", "method", *settings, *runs]].map(_printable)
    text = text.rename(columns={"run_name": "run"}).assign(students=table["n_students"].astype(str))
    for name in ("weak", "student", "ceiling"):
        text[f"{name} acc."] = ["-" if pd.isna(value) else rounded(value) for value in table[f"{name}_accuracy"]]
    return text.assign(PGR=pgr, undefined=table["n_undefined"].astype(str))


def _printable(value: object) -> str:
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "-" if is_missing else "".join(character for character in str(value) if character.isprintable())


def main(argv: list[str] | None = None) -> None:
    """Runs the command `w2s leaderboard`."""
    _, examples, details = __doc__.split("\n\n", 2)
    parser = CommandLine(
        "w2s leaderboard",
        usage="w2s leaderboard STUDENT ... [--output FILE]",
        description="Prints a table of PGR by task, supervisor, student and method. It reads the model cards of\n"
        f"students, on the Hub or on this disk.\n\n{examples}",
        epilog=textwrap.fill(details, 98),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("students", nargs="+", metavar="STUDENT", help="Hub ids or local directories of students")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the table to a .md, .csv or .json file"
    )
    args = parser.parse_args(argv)
    if args.output is not None and args.output.suffix not in (".md", ".csv", ".json"):
        parser.error(f"--output: got {args.output}, expected a .md, .csv or .json file.")
    try:
        table = leaderboard(find_cards(args.students))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    text = readable(table)
    print(text.to_string(index=False))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        markdown = markdown_table([as_text(name) for name in text], text.map(as_text).to_numpy().tolist()) + "\n"
        data = {".md": markdown, ".csv": table.to_csv(index=False), ".json": table.to_json(orient="records", indent=2)}
        args.output.write_text(data[args.output.suffix], encoding="utf-8")


if __name__ == "__main__":
    main()
