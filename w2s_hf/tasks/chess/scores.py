"""Computes rates of exact, legal and mating moves, accuracy by band, and baselines that need no model."""

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
    """
    Returns the additional scores of completions.

    Args:
        completions (`list[Completion]`): N completions.
        rows ([`~datasets.Dataset`]): N puzzles with `ground_truth`, `fen` and `band`.

    Returns:
        `dict` with rates in [0, 1], each with its 95 % interval (`*_ci95`):

        - `exact_match`: completions that equal the solution character by character.
        - `mate_accepted`: correct moves, plus mating moves in puzzles whose solution is another mate.
        - `legal_rate`: completions that begin with a legal move.
        - `n_cut`: the number of truncated completions.
        - `by_band`: `accuracy`, `ci95` and `n` of each band of ratings.
    """
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
    """Returns the `accuracy` of answers `(N,)` bool with its 95 % interval (`ci95`) and `n`."""
    return {
        "accuracy": float(correct.mean()),
        "ci95": list(metrics.accuracy_interval(correct)),
        "n": len(correct),
    }


def _sorted_bands(bands: np.ndarray) -> list[str]:
    """Returns bands of ratings from low to high. Other names are sorted alphabetically."""
    return sorted(set(bands.tolist()), key=lambda band: (band.split("-")[0].zfill(8), band))


def trivial_baselines(rows: Dataset) -> list[dict]:
    """
    Returns baselines that know only the rules of chess: a random legal move, and a random move that gives check. If no
    move gives check, the latter is any legal move. Their accuracy is the expected value. The 95 % interval covers the
    choice of the test puzzles.
    """
    move_chances, check_chances = [], []
    for fen, target in zip(rows["fen"], rows["ground_truth"], strict=True):
        board = chess.Board(fen)
        moves, solution = list(board.legal_moves), parse_move(target, board)
        checks = [move for move in moves if board.gives_check(move)] or moves
        move_chances.append(1 / len(moves))
        check_chances.append((solution in checks) / len(checks))
    return [
        {"name": name, "model": "", **_expected_accuracy(np.array(chances))}
        for name, chances in (("random legal move", move_chances), ("random check", check_chances))
    ]


def _expected_accuracy(chances: np.ndarray) -> dict:
    """Returns the mean of the chances `(N,)` to find the solution, as `accuracy`, with `ci95` and `n`."""
    mean, n = float(chances.mean()), len(chances)
    error = chances.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
    low, high = norm.interval(0.95, mean, error) if error else (mean, mean)
    return {"accuracy": mean, "ci95": [max(0.0, float(low)), min(1.0, float(high))], "n": n}
