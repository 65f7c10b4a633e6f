"""Parses and scores moves that a model wrote, with python-chess (the extra `chess`)."""

import re
from dataclasses import dataclass
from functools import lru_cache

import chess

MOVE_NUMBER = re.compile(r"\d+\.(\.\.)?")

__all__ = ["MOVE_NUMBER", "MoveScore", "parse_move", "san_move", "score_move", "uci_move"]


def uci_move(text: str, board: chess.Board) -> chess.Move | None:
    """Returns the move that a text is in UCI, or `None` if it is not legal."""
    try:
        move = chess.Move.from_uci(text)
    except ValueError:
        return None
    return move if move in board.legal_moves else None


def san_move(word: str, board: chess.Board) -> chess.Move | None:
    """Returns the move that a word is in SAN, or `None` if it is not legal."""
    try:
        return board.parse_san(word) or None  # a null move is none
    except ValueError:
        return None


def _answer(text: str) -> list[str]:
    """Returns the words of a text, without the number of the move that it may begin with."""
    words = text.split()
    return words[1:] if words and MOVE_NUMBER.fullmatch(words[0]) else words


def parse_move(text: str, board: chess.Board) -> chess.Move | None:
    """
    Returns the legal move that a text begins with, or `None`.

    The first word is read as SAN, where check and mate marks may be wrong, or as UCI, whose squares may be two words
    (`c2 a1`). A move number before the move and punctuation behind it are ignored.
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
        move (`str`, *optional*): UCI of the legal move that it begins with, `None` if there is none.
        correct (`bool`): Whether it is the target.
        exact (`bool`): Whether the text is the target character by character, check marks and leading space included,
            and was not cut.
        accepted (`bool`): Whether it is correct, or both it and the target are mate.
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
        is_cut (`bool`): Whether it was cut by the limit of tokens. Then a move that may be incomplete does not count.
        target (`str`): The solution.
        fen (`str`): The position to move in.
    """
    board = chess.Board(fen)
    wanted = parse_move(target, board)
    # The last word of a cut text may go on.
    is_whole = not is_cut or len(_answer(f"{text}.")) > len(target.split())
    move = parse_move(text, board) if is_whole else None
    accepted = move == wanted or all(any_move is not None and _mates(any_move, board) for any_move in (move, wanted))
    return MoveScore(None if move is None else move.uci(), move == wanted, text == target and not is_cut, accepted)


def _mates(move: chess.Move, board: chess.Board) -> bool:
    board.push(move)
    try:
        return board.is_checkmate()
    finally:
        board.pop()
