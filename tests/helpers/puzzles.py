"""Synthetic rows of the table of chess puzzles."""

import chess
import numpy as np


def random_rows(n: int, seed: int = 0) -> list[dict]:
    """Returns `n` rows of the table. Each is from another game, with random moves from the start."""
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < n:
        board = chess.Board()
        for _ in range(12):
            moves = list(board.legal_moves)
            board.push(moves[rng.integers(len(moves))])
        last = board.pop()
        before = board.fen()
        board.push(last)
        answers = list(board.legal_moves)
        if answers:
            number = len(rows)
            rows.append(
                {
                    "FEN": before,
                    "Moves": f"{last.uci()} {answers[0].uci()}",
                    "Rating": 600 + 100 * (number % 16),
                    "GameUrl": f"https://lichess.org/game{number // 2:04}{'/black' * (number % 2)}#{number}",
                }
            )
    return rows
