"""Chess puzzles: the best move of a position, as text that follows a transcript, a FEN, or any prompt.

Needs python-chess, the extra `chess`: `pip install w2s_hf[chess]`.
"""

import hashlib
import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import chess.pgn
import numpy as np
from datasets import Dataset, DatasetDict
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from .halves import MAX_ROWS, counted
from .move_scores import MOVE_NUMBER, parse_move, san_move, uci_move
from .splits import Loader, TaskSplits
from .task import Source
from .tokenizing import COMPLETION_COLUMNS, completion_lengths

__all__ = [
    "CHESS_PUZZLES",
    "ChessTask",
    "fen_prompt",
    "load_puzzles",
    "transcript",
]

logger = logging.getLogger(__name__)

# Columns that tell the schema of a row, and what they are called in messages.
_SCHEMAS = {
    "transcripts (EleutherAI/lichess-puzzles)": ("ctx", "target"),
    "the Lichess puzzle table (Lichess/chess-puzzles)": ("FEN", "Moves"),
}
_GAME = re.compile(r"(?:lichess\.org/|^)(\w{8})")
_BAND_WIDTH = 400  # rating points


@dataclass(frozen=True)
class ChessTask:
    """
    Puzzles in either of two public schemas.

    A row has `ctx` and `target`, the prompt and the move that should follow it (EleutherAI/lichess-puzzles): the
    prompt is a transcript, or anything where the position to move in is given in a column `fen`. Or it has `FEN`, the
    position before the opponent's last move, and `Moves`, that move and the solution in UCI (the Lichess puzzle
    table); the prompt is the FEN after that move, or a transcript where a column `movetext` has the game. Of either,
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

    name: str
    sources: tuple[Source, ...]
    train_split: tuple[str, ...] = ("train",)
    test_split: tuple[str, ...] | None = ("test",)
    description: str = ""

    columns = ()  # which it takes depends on the schema
    expected_columns = "; or ".join(f"{', '.join(columns)}: {name}" for name, columns in _SCHEMAS.items())

    def example(self, row: dict) -> dict:
        """
        A puzzle, every move of it checked.

        Args:
            row (`dict`): A row of the dataset.

        Returns:
            `dict` with `id` (hash of the content), `prompt`, `fen` (the position to move in), `rating` (-1 where there
            is none), `band` (of ratings, such as `1200-1599`), `ground_truth` (the move as it follows the prompt, with
            its leading space), `text` (a hash of the prompt, to find duplicates) and `keys` (rows that share one stay
            together).

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
        prompt, board, target = _read_transcript(row) if is_transcript else _read_table_row(row)
        # Of two puzzles of one position, one may come without its game.
        keys = [f"position: {_position(board)}", *_game_key(row)]
        # Pieces and moves differ by case, which comparisons of texts ignore: so a hash.
        content = hashlib.sha256(f"{prompt}\0{target}".encode()).hexdigest()
        rating = _rating(row.get("Rating"))
        return {
            "id": content[:16],
            "prompt": prompt,
            "fen": board.fen(),
            "rating": rating,
            "band": row.get("band") or _band(rating),
            "text": hashlib.sha256(prompt.encode()).hexdigest(),
            "keys": keys,
            "tells_game": len(keys) > 1 or (is_transcript and row.get("fen") is None),
            "ground_truth": target,
        }


class BrokenPuzzleError(ValueError):
    """Nothing can be made of a row; the message is the reason, for counting."""


def _rating(value) -> int:
    """-1 where there is none, or none that can be read."""
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):  # the last of infinity
        return -1


def _band(rating: int) -> str:
    if rating < 0:
        return "unrated"
    low = rating // _BAND_WIDTH * _BAND_WIDTH
    return f"{low}-{low + _BAND_WIDTH - 1}"


def _game_key(row: dict) -> list[str]:
    """The game of a row that names it: `https://lichess.org/787zsVup/black#48`, or only `787zsVup/black#48`."""
    named = row.get("GameUrl") or row.get("GameId")
    found = _GAME.search(named) if named else None
    return [f"game: {found[1]}"] if found else []


def _read_transcript(row: dict) -> tuple[str, chess.Board, str]:
    """Prompt, position and target of a row with `ctx` and `target`."""
    prompt, target = row["ctx"].strip(), f" {row['target'].strip()}"
    if row.get("fen") is not None:
        board = _board(row["fen"])
    else:
        board = _replay(prompt)
        if not prompt.endswith(_number(board)):
            raise BrokenPuzzleError("a transcript that does not end with the number of the move to play")
    if parse_move(target, board) is None:
        raise BrokenPuzzleError("an illegal move")
    if san_move(target.strip(), board) is None and uci_move("".join(target.split()), board) is None:
        raise BrokenPuzzleError("a target of more than one move")
    return prompt, board, target


def _read_table_row(row: dict) -> tuple[str, chess.Board, str]:
    """Prompt, position and target of a row with `FEN` and `Moves`."""
    board = _board(row["FEN"])
    moves = row["Moves"].split()
    if len(moves) < 2:
        raise BrokenPuzzleError("no solution")
    last = uci_move(moves[0], board)
    if last is None:
        raise BrokenPuzzleError("an illegal move")
    board.push(last)
    solution = uci_move(moves[1], board)
    if solution is None:
        raise BrokenPuzzleError("an illegal move")
    target = f" {board.san(solution)}"
    if row.get("movetext") is None:
        return fen_prompt(board), board, target
    played = _game_until(row["movetext"], board)
    if played is None:
        raise BrokenPuzzleError("a game that does not come to the position")
    return transcript(played), played, target


def _board(fen: str) -> chess.Board:
    try:
        board = chess.Board(fen)
    except ValueError:
        raise BrokenPuzzleError("an unreadable position") from None
    if not board.is_valid():
        raise BrokenPuzzleError("an impossible position")
    return board


def _position(board: chess.Board) -> str:
    """Pieces, whose move it is, castling and en passant; without the clocks."""
    return " ".join(board.fen().split()[:4])


def _replay(text: str) -> chess.Board:
    """The board after the moves of a transcript, each with its number (`1. d4 1... Nf6`), or White's only."""
    board = chess.Board()
    for word in text.split():
        if MOVE_NUMBER.fullmatch(word) is None:
            move = san_move(word, board)
            if move is None:
                raise BrokenPuzzleError("an illegal move")
            board.push(move)
        elif word != _number(board):
            raise BrokenPuzzleError("a wrong move number")
    return board


def _game_until(movetext: str, wanted: chess.Board) -> chess.Board | None:
    """
    The board, with the moves that led to it, where a game in PGN comes to a position; `None` if it never does. Of a
    position that was repeated, the occurrence with the right move number, else the first.
    """
    game = chess.pgn.read_game(io.StringIO(movetext))
    board, found = chess.Board(), None
    for move in game.mainline_moves() if game is not None else ():
        board.push(move)
        if _position(board) == _position(wanted) and (found is None or board.ply() == wanted.ply()):
            found = board.copy()
    return found


def _number(board: chess.Board) -> str:
    """`22.` where White is to move, `22...` where Black is."""
    return f"{board.fullmove_number}." + ("" if board.turn == chess.WHITE else "..")


def fen_prompt(board: chess.Board) -> str:
    """What asks for a move where there is no transcript."""
    return f"{board.fen()}\nBest move:"


def transcript(board: chess.Board) -> str:
    """
    The moves that led to a position, in SAN and each with its number, and the number of the move to play, as in the
    paper's figure 14: `1. d4 1... Nf6 2.`
    """
    replay = board.root()
    words = []
    for move in board.move_stack:
        words += [_number(replay), replay.san_and_push(move)]
    return " ".join([*words, _number(replay)])


class PuzzleLoader(Loader):
    """Puzzles, whole games apart."""

    rows_are = "puzzles"
    columns = COMPLETION_COLUMNS
    further_columns = ("fen", "rating", "band", "group")

    def __init__(
        self,
        task: ChessTask,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        max_length: int | None,
        max_new_tokens: int | None,
    ):
        super().__init__(task)
        self.tokenizers, self.max_length, self.max_new_tokens = tokenizers, max_length, max_new_tokens

    def most_rows(self, n_wanted: int) -> int:
        # Of millions of rows the same ones whatever is asked for, so that runs share their test puzzles; more than the
        # default only where it would not do.
        return max(MAX_ROWS, 2 * n_wanted)

    def has_test(self, raw: DatasetDict, dataset_path: str | None) -> bool:
        has_test = any(name in raw for name in self.task.test_split or ())
        if not has_test:
            logger.warning(f"{self.task.name}: there is no split to test on; a fifth of the games is held out")
        return has_test

    def group(self, rows: list[dict]) -> None:
        _link_games(rows)
        super().group(rows)

    def check_groups(self, rows: list[dict]) -> None:
        n_unknown = sum(not row["tells_game"] for row in rows)
        if n_unknown:
            logger.warning(
                f"{self.task.name}: {n_unknown} of {len(rows)} rows do not tell their game (`GameUrl`): of these only "
                "equal positions are kept in one part"
            )

    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        task, max_length, max_new_tokens = self.task, self.max_length, self.max_new_tokens
        if not any(set(columns) <= set(rows.column_names) for columns in _SCHEMAS.values()):
            raise ValueError(
                f"{task.name}: the split {split!r} has the columns {', '.join(rows.column_names)}, expected "
                f"{task.expected_columns}."
            )
        examples = []
        for row in tqdm(rows, desc=f"Reading {split}"):
            try:
                examples.append(task.example(row))
            except BrokenPuzzleError as error:
                self.n_dropped[str(error)] += 1
        for tokenizer in self.tokenizers:
            prompts, answers = completion_lengths(
                [example["prompt"] for example in examples],
                [example["ground_truth"] for example in examples],
                tokenizer,
            )
            if max_new_tokens is not None and len(answers) and answers.max() > max_new_tokens:
                longest = examples[int(answers.argmax())]["ground_truth"]
                raise ValueError(
                    f"{task.name}: the move {longest!r} is {answers.max()} tokens with its end-of-text token, and "
                    f"completions are cut after {max_new_tokens}: set --max_new_tokens {answers.max()}."
                )
            if max_length is not None:
                fits = prompts + (max_new_tokens or 0) <= max_length
                self.n_dropped[f"a prompt of more than {max_length - (max_new_tokens or 0)} tokens"] += int(
                    (~fits).sum()
                )
                examples = [example for example, is_short in zip(examples, fits, strict=True) if is_short]
        if not examples:
            raise ValueError(
                f"{task.name}: no puzzle of the split {split!r} is left; left out: {counted(self.n_dropped)}."
            )
        return sorted(examples, key=lambda example: example["id"])


def load_puzzles(
    task: ChessTask,
    *,
    dataset_path: str | None = None,
    raw: DatasetDict | None = None,
    tokenizers: Sequence[PreTrainedTokenizerBase] = (),
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    n_train: int | None = None,
    n_weak: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    n_links: int = 0,
    seed: int = 0,
) -> TaskSplits:
    """
    Loads puzzles, leaves out the broken ones, and halves them by game.

    Puzzles of one game stay in one part, and none of a test game is in training: the game is that of `GameUrl` or
    `GameId`; of transcripts, of which one goes on where another ends, all are taken for one game. Where neither tells,
    only equal positions stay together, and a warning says of how many rows. Equal prompts count once, and not at all
    where their moves differ.

    Args:
        task ([`ChessTask`]): The task.
        dataset_path, raw, n_train, n_weak, n_validation, n_test, n_links, seed: As in
            [`w2s_hf.tasks.splits.load_splits`]. Of one split a fifth is held out to test.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*): Of all models.
        max_length (`int`, *optional*): Tokens of prompt and completion. A prompt that leaves no room for
            `max_new_tokens` is left out: without its beginning a transcript is another game.
        max_new_tokens (`int`, *optional*): Tokens of a completion.

    Returns:
        [`TaskSplits`] whose parts have `COMPLETION_COLUMNS`, `fen`, `group`, `rating` (-1 where there is none), `band`
        and `ground_truth` (the move as text).

    Raises:
        FileNotFoundError, ConnectionError: see [`w2s_hf.tasks.loading.load_raw`].
        ValueError: the columns are of neither schema, there are too few rows, a prompt ends in the middle of a token,
            or `max_new_tokens` is too small for the moves.
    """
    loader = PuzzleLoader(task, tokenizers, max_length, max_new_tokens)
    splits = loader.load(dataset_path, raw, n_train, n_weak, n_validation, n_test, n_links, seed)
    if dataset_path is not None and raw is None:  # which of the schemas it has, the task does not know
        splits.source["id"] = Path(dataset_path).name
    return splits


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
