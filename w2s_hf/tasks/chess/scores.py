"""The scores of moves: rates of exact, legal and mating moves, accuracy by band, and baselines without a model."""

import chess
import numpy as np
from datasets import Dataset
from scipy.stats import norm

from ... import metrics
from ...labels import Completion
from .moves import MoveScore, parse_move, score_move

__all__ = ["extra_scores", "rate", "score_of", "scores_of", "trivial_baselines"]


def score_of(completion: Completion, row: dict) -> MoveScore:
    """Returns the score of a completion of a row with `ground_truth` and `fen`."""
    return score_move(completion.text, completion.is_cut, row["ground_truth"], row["fen"])


def scores_of(completions: list[Completion], rows: Dataset) -> list[MoveScore]:
    """Returns the score of each completion of rows with `ground_truth` and `fen`."""
    columns = zip(completions, rows["ground_truth"], rows["fen"], strict=True)
    return [score_move(completion.text, completion.is_cut, target, fen) for completion, target, fen in columns]


def extra_scores(completions: list[Completion], rows: Dataset) -> dict:
    """Returns rates in [0, 1] with intervals, the number of completions that were cut, and the accuracy by band."""
    scores = scores_of(completions, rows)
    rates = {
        "exact_match": [score.exact for score in scores],
        "mate_accepted": [score.accepted for score in scores],
        "legal_rate": [score.move is not None for score in scores],
    }
    result: dict = {}
    for name, values in rates.items():
        result[name] = float(np.mean(values))
        result[f"{name}_ci95"] = list(metrics.accuracy_interval(np.array(values)))
    result["n_cut"] = sum(completion.is_cut for completion in completions)
    correct, bands = np.array([score.correct for score in scores]), np.array(rows["band"])
    result["by_band"] = {band: rate(correct[bands == band]) for band in _sorted_bands(bands)}
    return result


def rate(correct: np.ndarray) -> dict:
    """Returns the accuracy of answers `(N,)` bool, with its interval."""
    return {
        "accuracy": float(correct.mean()),
        "ci95": list(metrics.accuracy_interval(correct)),
        "n": len(correct),
    }


def _sorted_bands(bands: np.ndarray) -> list[str]:
    """Returns bands of ratings from low to high, other names in alphabetical order."""
    return sorted(set(bands.tolist()), key=lambda band: (band.split("-")[0].zfill(8), band))


def trivial_baselines(rows: Dataset) -> list[dict]:
    """
    Returns baselines that know only the rules: a random legal move, and a random check (any move where there is none).
    Their accuracy is the expected one; the interval is about the choice of the test puzzles.
    """
    any_move, any_check = [], []
    for fen, target in zip(rows["fen"], rows["ground_truth"], strict=True):
        board = chess.Board(fen)
        moves, wanted = list(board.legal_moves), parse_move(target, board)
        checks = [move for move in moves if board.gives_check(move)] or moves
        any_move.append(1 / len(moves))
        any_check.append((wanted in checks) / len(checks))
    return [
        {"name": name, "model": "", **_expected(np.array(values))}
        for name, values in (("random legal move", any_move), ("random check", any_check))
    ]


def _expected(values: np.ndarray) -> dict:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    low, high = norm.interval(0.95, values.mean(), error) if error else (values.mean(), values.mean())
    return {"accuracy": float(values.mean()), "ci95": [max(0.0, float(low)), min(1.0, float(high))], "n": len(values)}
