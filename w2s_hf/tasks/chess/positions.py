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
    """The error for a puzzle that cannot be parsed or has an illegal move. The message is the reason."""


def rating_of(value) -> int:
    """Returns the rating of a puzzle, or -1 if it has none or the value is not a number."""
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):  # OverflowError: infinity
        return -1


def band_of(rating: int) -> str:
    """Returns the band of a rating, such as `1200-1599`. Each band covers 400 rating points."""
    if rating < 0:
        return "unrated"
    low = rating // _BAND_WIDTH * _BAND_WIDTH
    return f"{low}-{low + _BAND_WIDTH - 1}"


def game_key(row: dict) -> list[str]:
    """
    Returns the key of the game of a row, in a list that is empty if the row does not name its game.

    `GameUrl` or `GameId` is an address of lichess.org, or an id such as `787zsVup/black#48`.
    """
    address = row.get("GameUrl") or row.get("GameId")
    match = _GAME.search(address) if address else None
    return [f"game: {match[1]}"] if match else []


def read_transcript(row: dict) -> tuple[str, chess.Board, str]:
    """Returns prompt, position and target of a row with `ctx` and `target`, or raises `BrokenPuzzleError`."""
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
    """Returns prompt, position and target of a row with `FEN` and `Moves`, or raises `BrokenPuzzleError`."""
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
    replay = _game_until(row["movetext"], board)
    if replay is None:
        raise BrokenPuzzleError("a game that does not reach the position")
    return transcript(replay), replay, target


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
    """Returns the board after a transcript, which numbers all moves (`1. d4 1... Nf6`) or only White's moves."""
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
    Replays a game in PGN up to a position. Returns the board with its moves, or `None` if the game does not reach the
    position. If the position occurs repeatedly, the occurrence with the right move number is used, else the first
    occurrence.
    """
    game = chess.pgn.read_game(io.StringIO(movetext))
    board, match = chess.Board(), None
    for move in game.mainline_moves() if game is not None else ():
        board.push(move)
        if position_key(board) == position_key(wanted) and (match is None or board.ply() == wanted.ply()):
            match = board.copy()
    return match


def _number(board: chess.Board) -> str:
    """Returns the number of the next move: `22.` if White is to move, `22...` if Black is to move."""
    return f"{board.fullmove_number}." + ("" if board.turn == chess.WHITE else "..")


def fen_prompt(board: chess.Board) -> str:
    """Returns the prompt for a position without a transcript: its FEN and `Best move:`."""
    return f"{board.fen()}\nBest move:"


def transcript(board: chess.Board) -> str:
    """
    Returns the moves that led to a position, followed by the number of the move to play: `1. d4 1... Nf6 2.` Moves are
    in SAN, each with its number, as in figure 14 of the paper.
    """
    replay = board.root()
    words = []
    for move in board.move_stack:
        words += [_number(replay), replay.san_and_push(move)]
    return " ".join([*words, _number(replay)])
