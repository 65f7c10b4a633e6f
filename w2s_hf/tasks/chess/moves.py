"""Parses and scores the moves that a model writes, with python-chess (the extra `chess`)."""

import re
from dataclasses import dataclass
from functools import lru_cache

import chess

MOVE_NUMBER = re.compile(r"\d+\.(\.\.)?")

__all__ = ["MOVE_NUMBER", "MoveScore", "parse_move", "san_move", "score_move", "uci_move"]


def uci_move(text: str, board: chess.Board) -> chess.Move | None:
    """Parses a move in UCI notation (`c6c1`). Returns `None` if the text is not a legal move."""
    try:
        move = chess.Move.from_uci(text)
    except ValueError:
        return None
    return move if move in board.legal_moves else None


def san_move(word: str, board: chess.Board) -> chess.Move | None:
    """Parses a move in SAN notation (`Qxc1+`). Returns `None` if the word is not a legal move."""
    try:
        return board.parse_san(word) or None  # a null move is falsy
    except ValueError:
        return None


def _answer(text: str) -> list[str]:
    """Returns the words of a text without a leading move number."""
    words = text.split()
    return words[1:] if words and MOVE_NUMBER.fullmatch(words[0]) else words


def parse_move(text: str, board: chess.Board) -> chess.Move | None:
    """
    Returns the legal move that a text begins with, or `None`.

    The beginning of the text is parsed as SAN or as UCI. Check and mate marks in SAN may be wrong. The two squares in
    UCI may be separate words (`c2 a1`). A move number before the move, punctuation after it and later words are
    ignored.
    """
    words = [word.rstrip(".,;:!?") for word in _answer(text)[:2]]
    if not words:
        return None
    return san_move(words[0], board) or uci_move(words[0], board) or uci_move("".join(words), board)


@dataclass(frozen=True)
class MoveScore:
    """
    The score of a completion.

    Args:
        move (`str`, *optional*): The legal move that the completion begins with, in UCI. `None` if there is none.
        correct (`bool`): Whether the move equals the move of the target.
        exact (`bool`): Whether the text equals the target, including check marks and leading space, and was not
            truncated.
        accepted (`bool`): Whether the move is correct, or both the move and the target are mate.
    """

    move: str | None
    correct: bool
    exact: bool
    accepted: bool


@lru_cache(maxsize=50_000)
def score_move(text: str, is_cut: bool, target: str, fen: str) -> MoveScore:
    """
    Scores a completion.

    Args:
        text (`str`): The completion.
        is_cut (`bool`): Whether the completion was truncated at the limit of tokens. A move that may be incomplete
            then does not count.
        target (`str`): The solution, in SAN or UCI.
        fen (`str`): The position before the move.
    """
    board = chess.Board(fen)
    solution = parse_move(target, board)
    # The last word of a truncated text may be incomplete.
    is_whole = not is_cut or len(_answer(f"{text}.")) > len(target.split())
    move = parse_move(text, board) if is_whole else None
    both_mate = all(candidate is not None and _mates(candidate, board) for candidate in (move, solution))
    correct, exact = move == solution, text == target and not is_cut
    return MoveScore(None if move is None else move.uci(), correct, exact, accepted=correct or both_mate)


def _mates(move: chess.Move, board: chess.Board) -> bool:
    board.push(move)
    try:
        return board.is_checkmate()
    finally:
        board.pop()
