"""Reads positions, prompts and moves from the rows of both puzzle schemas, and checks every move."""

import io
import re

import chess.pgn

from ..generation import BrokenRowError
from .moves import MOVE_NUMBER, parse_move, san_move, uci_move

__all__ = [
    "BrokenPuzzleError",
    "band_of",
    "fen_prompt",
    "game_key",
    "position_key",
    "rating_of",
    "read_table_row",
    "read_transcript",
    "transcript",
]

_GAME = re.compile(r"(?:lichess\.org/|^)(\w{8})")
_BAND_WIDTH = 400  # rating points


class BrokenPuzzleError(BrokenRowError):
    """A puzzle that cannot be read or has an illegal move; the message is the reason."""


def rating_of(value) -> int:
    """Returns the rating of a puzzle, -1 where there is none or it cannot be read."""
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):  # the last of infinity
        return -1


def band_of(rating: int) -> str:
    """Returns the band of a rating, such as `1200-1599`."""
    if rating < 0:
        return "unrated"
    low = rating // _BAND_WIDTH * _BAND_WIDTH
    return f"{low}-{low + _BAND_WIDTH - 1}"


def game_key(row: dict) -> list[str]:
    """Returns the key of the game that a row names by an address of lichess.org or only `787zsVup/black#48`."""
    named = row.get("GameUrl") or row.get("GameId")
    found = _GAME.search(named) if named else None
    return [f"game: {found[1]}"] if found else []


def read_transcript(row: dict) -> tuple[str, chess.Board, str]:
    """Returns prompt, position and target of a row with `ctx` and `target`."""
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


def read_table_row(row: dict) -> tuple[str, chess.Board, str]:
    """Returns prompt, position and target of a row with `FEN` and `Moves`."""
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


def position_key(board: chess.Board) -> str:
    """Returns the FEN of a position without its clocks."""
    return " ".join(board.fen().split()[:4])


def _replay(text: str) -> chess.Board:
    """Returns the board after a transcript, which numbers each move (`1. d4 1... Nf6`) or only White's."""
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
    Returns the board, with its moves, where a game in PGN comes to a position, or `None` if it never does. If the
    position is repeated, it is the occurrence with the right move number, else the first.
    """
    game = chess.pgn.read_game(io.StringIO(movetext))
    board, found = chess.Board(), None
    for move in game.mainline_moves() if game is not None else ():
        board.push(move)
        if position_key(board) == position_key(wanted) and (found is None or board.ply() == wanted.ply()):
            found = board.copy()
    return found


def _number(board: chess.Board) -> str:
    """Returns `22.` where White is to move, `22...` where Black is."""
    return f"{board.fullmove_number}." + ("" if board.turn == chess.WHITE else "..")


def fen_prompt(board: chess.Board) -> str:
    """Returns the prompt of a position without a transcript."""
    return f"{board.fen()}\nBest move:"


def transcript(board: chess.Board) -> str:
    """
    Returns the moves that led to a position and the number of the move to play, as in the paper's figure 14:
    `1. d4 1... Nf6 2.` Moves are in SAN, each with its number.
    """
    replay = board.root()
    words = []
    for move in board.move_stack:
        words += [_number(replay), replay.san_and_push(move)]
    return " ".join([*words, _number(replay)])
