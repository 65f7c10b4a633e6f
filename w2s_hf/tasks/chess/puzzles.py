"""Defines the chess puzzle task, which loads rows, converts them to prompts and moves, and scores moves."""

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

# These columns identify the schema of a dataset. The keys are the names of the schemas in messages.
_SCHEMAS = {
    "transcripts (EleutherAI/lichess-puzzles)": ("ctx", "target"),
    "the Lichess puzzle table (Lichess/chess-puzzles)": ("FEN", "Moves"),
}


@dataclass(frozen=True)
class ChessTask(GenerationTask):
    """
    A task of chess puzzles, in which a model finds the best move. The rows have either of two public schemas:

    - EleutherAI/lichess-puzzles: `ctx` is the prompt and `target` the move that completes it. The prompt is the
      transcript of a game. If a column `fen` gives the position to move in, the prompt can be any text.
    - Lichess/chess-puzzles: `FEN` is the position before the opponent's last move. `Moves` has that move and the
      solution, in UCI. The prompt is the FEN after that move, or a transcript if a column `movetext` has the game.

    Optional columns of both schemas are `Rating`, `GameUrl` (or `GameId`), and `band`. Accuracy is reported by `band`,
    which defaults to a band of ratings.

    Args:
        name (`str`): The name of the task in results.
        sources (`tuple[Source]`): The datasets of the task. If one does not load, the next one is tried.
        train_split, test_split (`tuple[str]`):
            Names of the splits. The first one that exists is used. If there is no test split, or `test_split` is
            `None`, a fifth of the training games is held out.
        description (`str`, *optional*): One line about the task, for reports and cards.
    """

    setting = "chess"
    rows = "puzzles"
    extra_columns = ("fen", "rating", "band")
    has_several_schemas = True

    @property
    def expected_columns(self) -> str:
        """The columns of both schemas, as text for messages."""
        return "; or ".join(f"{', '.join(columns)}: {name}" for name, columns in _SCHEMAS.items())

    def example(self, row: dict) -> dict:
        """
        Converts a row of the dataset to an example, and checks that all its moves are legal.

        Args:
            row (`dict`): A row of the dataset.

        Returns:
            `dict` with

            - `id` (`str`): A hash of prompt and move.
            - `prompt` (`str`)
            - `fen` (`str`): The position to move in.
            - `rating` (`int`): The rating of the puzzle, or -1 if it has none.
            - `band` (`str`): The column `band` or the band of the rating, such as `1200-1599`.
            - `ground_truth` (`str`): The move, with its leading space.
            - `keys` (`list[str]`): Rows that share a key stay in one split.
            - `tells_game` (`bool`): Whether the row identifies its game.

        Raises:
            BrokenPuzzleError: A move is illegal, or the row cannot be parsed.
        """
        row = {name: None if value == "" else value for name, value in row.items()}
        is_transcript = row.get("ctx") is not None
        names = ("ctx", "target") if is_transcript else ("FEN", "Moves")
        if any(row.get(name) is None for name in names):
            raise BrokenPuzzleError("an empty field")
        if not all(isinstance(row.get(name) or "", str) for name in (*names, "fen", "movetext", "GameUrl", "GameId")):
            raise BrokenPuzzleError("a field that is not text")
        prompt, board, target = read_transcript(row) if is_transcript else read_table_row(row)
        # Two puzzles with the same position belong together even if one of them does not name its game.
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
        """Returns whether the completion begins with the right move. Marks of check and mate are ignored."""
        return score_of(completion, row).correct

    def is_same(self, completion: Completion, other: Completion, row: dict) -> bool:
        """Returns whether two completions have the same legal move or, if neither has a legal move, are equal."""
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
        """Returns the tables of scores and bands, and boards of puzzles that the student solved and failed."""
        method, seed = results.summary[-1].method, results.runs[0].seed
        student_name = f"student ({method}, seed {seed})"
        boards = draw_boards(completions[method], completions["weak"], test, output_dir, student_name)
        return [*table_sections(results), boards]

    def load(self, **options) -> TaskSplits:
        """Loads and splits the puzzles. Accepts the options of [`load_puzzles`]."""
        return load_puzzles(self, **options)


class PuzzleLoader(CompletionLoader):
    """Loads puzzles. All puzzles of a game stay in one split."""

    row, completion, held_out = "puzzle", "move", "games"

    def most_rows(self, n_wanted: int) -> int:
        """Returns the maximum number of rows to read from a split."""
        # The dataset has millions of rows. Runs of different sizes read the same sample, so that they share their
        # test puzzles. Only a run that needs more rows reads a larger sample.
        return max(MAX_ROWS, 2 * n_wanted)

    def group(self, rows: list[dict]) -> None:
        """Sets the `group` of all rows by game and position."""
        _link_games(rows)
        super().group(rows)

    def check_groups(self, rows: list[dict]) -> None:
        """Warns if rows do not name their game."""
        n_unknown = sum(not row["tells_game"] for row in rows)
        if n_unknown:
            logger.warning(
                f"{self.task.name}: {n_unknown} of {len(rows)} rows do not name their game (`GameUrl`). Such "
                "rows stay in one split only if their positions are equal"
            )

    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        """
        Returns the examples of a split, sorted by id.

        Raises:
            ValueError: The columns match neither schema, or an example is invalid (see [`CompletionLoader.read`]).
        """
        if not any(set(columns) <= set(rows.column_names) for columns in _SCHEMAS.values()):
            raise ValueError(
                f"{self.task.name}: the split {split!r} has the columns {', '.join(rows.column_names)}, expected "
                f"{self.task.expected_columns}. Rename the columns."
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
    Loads puzzles, drops broken puzzles, and splits the rest by game.

    All puzzles of a game stay in one split, so that no test game is used for training. `GameUrl` or `GameId` names
    the game, and a transcript that continues another transcript belongs to the same game. If a row has neither column,
    only puzzles with equal positions stay together, and a warning gives the number of such rows. If several rows have
    equal prompts, one of them is used. If their moves differ, all of them are dropped.

    Args:
        task ([`ChessTask`]): The task.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*): Tokenizers of all models. Without tokenizers, no
            length is checked.
        max_length (`int`, *optional*): Maximum length of prompt and completion together, in tokens. Prompts that leave
            no room for `max_new_tokens` are dropped, because a truncated transcript is another game.
        max_new_tokens (`int`, *optional*): Maximum length of a completion, in tokens.
        options: The options of [`w2s_hf.tasks.SplitOptions`]: `dataset_path`, `raw`, `n_train`, `n_weak`,
            `n_validation`, `n_test`, `n_links`, `seed`. If the dataset has only one split, a fifth of its games is
            held out for testing.

    Returns:
        [`TaskSplits`] whose parts have the columns `COMPLETION_COLUMNS`, `fen`, `group`, `rating` (-1 if there is
        none), `band` and `ground_truth` (the move as text).

    Raises:
        FileNotFoundError, ConnectionError: See [`w2s_hf.tasks.loading.load_raw`].
        ValueError: The columns match neither schema. There are too few rows. A prompt ends in the middle of a token.
            `max_new_tokens` is too small for the moves.
    """
    return PuzzleLoader(task, tokenizers, max_length, max_new_tokens).load(**options)


def _link_games(rows: list[dict]) -> None:
    """Adds a common key to transcripts that begin with the same earlier transcript."""
    transcripts = [row for row in rows if row["prompt"].startswith("1. ")]
    prefixes: list[str] = []
    for row in sorted(transcripts, key=lambda row: row["prompt"]):
        # In sorted order, the continuations of a prompt directly follow it.
        while prefixes and not (row["prompt"] + " ").startswith(prefixes[-1] + " "):
            prefixes.pop()
        prefixes.append(row["prompt"])
        row["keys"].append(f"begin: {prefixes[0]}")


CHESS_PUZZLES = ChessTask(
    name="chess_puzzles",
    description="What is the best move in this chess position?",
    sources=(Source("EleutherAI/lichess-puzzles"),),
)
