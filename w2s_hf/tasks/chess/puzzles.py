"""The task of chess puzzles: how a row becomes a prompt and a move, how moves are scored, and how rows are loaded."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...labels import Completion
from ...results import ExperimentResult
from ..generation import CompletionLoader, GenerationTask
from ..halves import MAX_ROWS
from ..splits import SplitOptions, TaskSplits
from ..task import Source
from .boards import draw_boards
from .positions import (
    BrokenPuzzleError,
    band_of,
    game_key,
    position_key,
    rating_of,
    read_table_row,
    read_transcript,
)
from .scores import extra_scores, score_of, trivial_baselines
from .tables import table_sections

__all__ = [
    "CHESS_PUZZLES",
    "ChessTask",
    "load_puzzles",
]

logger = logging.getLogger(__name__)

# Columns that tell the schema of a row, and what they are called in messages.
_SCHEMAS = {
    "transcripts (EleutherAI/lichess-puzzles)": ("ctx", "target"),
    "the Lichess puzzle table (Lichess/chess-puzzles)": ("FEN", "Moves"),
}


@dataclass(frozen=True)
class ChessTask(GenerationTask):
    """
    Puzzles in either of two public schemas.

    A row has `ctx` and `target`, the prompt and the move that should follow it (EleutherAI/lichess-puzzles): the
    prompt is a transcript, or anything where the position to move in is given in a column `fen`. Or it has `FEN`, the
    position before the opponent's last move, and `Moves`, that move and the solution in UCI (the Lichess puzzle
    table); the prompt is the FEN after that move, or a transcript where a column `movetext` has the game. In both,
    `Rating` and `GameUrl` (or `GameId`) are used where they are there, and a column `band`, by which accuracy is
    reported, in place of bands of ratings.

    Args:
        name (`str`): Its name in results.
        sources (`tuple[Source]`): Where its rows are; the next one is tried when one does not load.
        train_split, test_split (`tuple[str]`):
            Names of the splits, the first that is there. Without a test split (`None`, or none is there), a fifth is
            held out.
        description (`str`, *optional*): One line for people.
    """

    setting = "chess"
    rows = "puzzles"
    extra_columns = ("fen", "rating", "band")
    has_several_schemas = True

    @property
    def expected_columns(self) -> str:
        """The columns of either schema in words, for messages."""
        return "; or ".join(f"{', '.join(columns)}: {name}" for name, columns in _SCHEMAS.items())

    def example(self, row: dict) -> dict:
        """
        Returns the example of a puzzle, and checks every move of it.

        Args:
            row (`dict`): A row of the dataset.

        Returns:
            `dict` with `id` (hash of the content), `prompt`, `fen` (the position to move in), `rating` (-1 where there
            is none), `band` (of ratings, such as `1200-1599`), `ground_truth` (the move as it follows the prompt, with
            its leading space), `keys` (rows that share one stay together) and `tells_game` (for a warning).

        Raises:
            BrokenPuzzleError: a move is illegal, or the row cannot be read.
        """
        row = {name: None if value == "" else value for name, value in row.items()}
        is_transcript = row.get("ctx") is not None
        names = ("ctx", "target") if is_transcript else ("FEN", "Moves")
        if any(row.get(name) is None for name in names):
            raise BrokenPuzzleError("an empty field")
        if not all(isinstance(row.get(name) or "", str) for name in (*names, "fen", "movetext", "GameUrl", "GameId")):
            raise BrokenPuzzleError("a field that is no text")
        prompt, board, target = read_transcript(row) if is_transcript else read_table_row(row)
        # Of two puzzles of one position, one may come without its game.
        keys = [f"position: {position_key(board)}", *game_key(row)]
        rating = rating_of(row.get("Rating"))
        return {
            "id": hashlib.sha256(f"{prompt}\0{target}".encode()).hexdigest()[:16],
            "prompt": prompt,
            "fen": board.fen(),
            "rating": rating,
            "band": row.get("band") or band_of(rating),
            "keys": keys,
            "tells_game": len(keys) > 1 or (is_transcript and row.get("fen") is None),
            "ground_truth": target,
        }

    def is_correct(self, completion: Completion, row: dict) -> bool:
        """Returns whether the completion begins with the right move, whatever it says of check and mate."""
        return score_of(completion, row).correct

    def is_same(self, completion: Completion, other: Completion, row: dict) -> bool:
        """Returns whether two completions begin with the same legal move, or are the same text."""
        move, other_move = score_of(completion, row).move, score_of(other, row).move
        return move == other_move if move or other_move else completion.text == other.text

    def extra_scores(self, completions: list[Completion], rows: Dataset) -> dict:
        """Returns the scores of [`w2s_hf.tasks.chess.scores.extra_scores`]."""
        return extra_scores(completions, rows)

    def baselines(self, rows: Dataset) -> list[dict]:
        """Returns the baselines of [`w2s_hf.tasks.chess.scores.trivial_baselines`]."""
        return trivial_baselines(rows)

    def report_sections(
        self, results: ExperimentResult, test: Dataset, completions: dict[str, list[Completion]], output_dir: Path
    ) -> list[str]:
        """Returns tables of the scores and the bands, then boards of puzzles that the student solved and failed."""
        method, seed = results.summary[-1].method, results.runs[0].seed
        student_name = f"student ({method}, seed {seed})"
        boards = draw_boards(completions[method], completions["weak"], test, output_dir, student_name)
        return [*table_sections(results), boards]

    def load(self, **options) -> TaskSplits:
        """Loads and splits the puzzles, see [`load_puzzles`] for the options."""
        return load_puzzles(self, **options)


class PuzzleLoader(CompletionLoader):
    """Loads puzzles. Those of one game stay in one part."""

    row, completion, held_out = "puzzle", "move", "games"

    def most_rows(self, n_wanted: int) -> int:
        """Returns the number of rows of a split that are read."""
        # Of millions of rows the same ones whatever is asked for, so that runs share their test puzzles; more than the
        # default only where it would not do.
        return max(MAX_ROWS, 2 * n_wanted)

    def group(self, rows: list[dict]) -> None:
        """Sets `group` by game and position."""
        _link_games(rows)
        super().group(rows)

    def check_groups(self, rows: list[dict]) -> None:
        """Warns of rows that do not name their game."""
        n_unknown = sum(not row["tells_game"] for row in rows)
        if n_unknown:
            logger.warning(
                f"{self.task.name}: {n_unknown} of {len(rows)} rows do not tell their game (`GameUrl`): of these only "
                "equal positions are kept in one part"
            )

    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        """
        Returns the examples of a split, sorted by id.

        Raises:
            ValueError: the columns are of neither schema; or as [`CompletionLoader.read`].
        """
        if not any(set(columns) <= set(rows.column_names) for columns in _SCHEMAS.values()):
            raise ValueError(
                f"{self.task.name}: the split {split!r} has the columns {', '.join(rows.column_names)}, expected "
                f"{self.task.expected_columns}."
            )
        return super().read(split, rows, numbers)


def load_puzzles(
    task: ChessTask,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase] = (),
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    **options: Unpack[SplitOptions],
) -> TaskSplits:
    """
    Loads puzzles, leaves out the broken ones, and splits the rest by game.

    Puzzles of one game stay in one part, and none of a test game is in training. The game is that of `GameUrl` or
    `GameId`; a transcript that continues another one is of the same game. If a row has neither, only puzzles of equal
    positions stay together, and a warning says how many rows this concerns. Equal prompts count once, and not at all
    where their moves differ.

    Args:
        task ([`ChessTask`]): The task.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*): Tokenizers of all models.
        max_length (`int`, *optional*): Tokens of prompt and completion. A prompt that leaves no room for
            `max_new_tokens` is left out: without its beginning a transcript is another game.
        max_new_tokens (`int`, *optional*): Tokens of a completion.
        options: [`w2s_hf.tasks.SplitOptions`]: `dataset_path`, `raw`, `n_train`, `n_weak`, `n_validation`, `n_test`,
            `n_links`, `seed`. A fifth of a dataset with one split is held out to test.

    Returns:
        [`TaskSplits`] whose parts have `COMPLETION_COLUMNS`, `fen`, `group`, `rating` (-1 where there is none), `band`
        and `ground_truth` (the move as text).

    Raises:
        FileNotFoundError, ConnectionError: see [`w2s_hf.tasks.loading.load_raw`].
        ValueError: the columns are of neither schema, there are too few rows, a prompt ends in the middle of a token,
            or `max_new_tokens` is too small for the moves.
    """
    return PuzzleLoader(task, tokenizers, max_length, max_new_tokens).load(**options)


def _link_games(rows: list[dict]) -> None:
    """Gives transcripts that begin with another whole one a key in common with it."""
    transcripts = [row for row in rows if row["prompt"].startswith("1. ")]
    opened: list[str] = []
    for row in sorted(transcripts, key=lambda row: row["prompt"]):
        # Sorted, what begins with a prompt follows it at once.
        while opened and not (row["prompt"] + " ").startswith(opened[-1] + " "):
            opened.pop()
        opened.append(row["prompt"])
        row["keys"].append(f"begin: {opened[0]}")


CHESS_PUZZLES = ChessTask(
    name="chess_puzzles",
    description="What is the best move?",
    sources=(Source("EleutherAI/lichess-puzzles"),),
)
