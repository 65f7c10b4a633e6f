"""The setting of chess: a move is text that a model writes, and is scored on the board."""

import shutil
from pathlib import Path

import chess
import numpy as np
from accelerate import PartialState
from datasets import Dataset
from scipy.stats import norm

from .. import metrics
from ..generation import complete
from ..labels import Completion, WeakCompletions
from ..modeling import load_tokenizer
from ..tasks import COMPLETION_COLUMNS
from ..tasks.move_scores import MoveScore, parse_move, score_move
from ..trainers.completion import CompletionTrainer, autocast
from .cache import library_versions
from .finetuner import Model, Workbench
from .settings.base import Setting, Tokenize, on_weak_labels

__all__ = ["CHESS", "MoveSetting", "answer_untrained", "scores_of", "trivial_baselines"]


class MoveSetting(Setting):
    """The answers are `list[Completion]`."""

    name = "chess"
    rows = "puzzles"
    task_type = "CAUSAL_LM"
    columns = COMPLETION_COLUMNS
    labels = WeakCompletions
    label_column = "completion"
    # Without pretraining, a move is learned in more than one epoch.
    control = {"learning_rate": 2e-3, "num_train_epochs": 12}

    def arguments_of(self, method: str) -> dict:
        """None: there is one way to learn from text."""
        return {}

    def with_ground_truth(self, rows: Dataset) -> Dataset:
        """The true move as `completion`."""
        return rows.rename_column("ground_truth", "completion")

    def make_trainer(
        self, model, args, tokenizer, train, validation, tokenize: Tokenize, is_weak: bool = False
    ) -> CompletionTrainer:
        """See [`Setting.make_trainer`]; TRL tokenizes the rows itself."""
        train, validation = (rows.select_columns(["prompt", "completion"]) for rows in (train, validation))
        trainer = on_weak_labels(CompletionTrainer) if is_weak else CompletionTrainer
        return trainer(
            model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer
        )

    def answer(
        self, trainer: CompletionTrainer, rows: Dataset, tokenize: Tokenize, directory: Path
    ) -> list[Completion]:
        """Greedy completions; finished batches are kept in `directory` and found again."""
        return trainer.complete(rows["prompt"], keep=directory / "completions")

    def is_correct(self, answers: list[Completion], rows: Dataset) -> np.ndarray:
        """Is it the move asked for, whatever the text says of check and mate?"""
        return np.array([score.correct for score in scores_of(answers, rows)])

    def is_same(self, answers: list[Completion], others: list[Completion], rows: Dataset) -> np.ndarray:
        """Is it the same legal move, or the same text?"""
        pairs = zip(scores_of(answers, rows), scores_of(others, rows), answers, others, strict=True)
        return np.array([a.move == b.move if a.move or b.move else x.text == y.text for a, b, x, y in pairs])

    def extra_scores(self, answers: list[Completion], rows: Dataset) -> dict:
        """Rates in [0, 1] with their intervals, completions that were cut, and accuracy by band."""
        scores = scores_of(answers, rows)
        rates = {
            "exact_match": [score.exact for score in scores],
            "mate_accepted": [score.accepted for score in scores],
            "legal_rate": [score.move is not None for score in scores],
        }
        result: dict = {}
        for name, values in rates.items():
            result[name] = float(np.mean(values))
            result[f"{name}_ci95"] = list(metrics.accuracy_interval(np.array(values)))
        result["n_cut"] = sum(answer.is_cut for answer in answers)
        correct, bands = self.is_correct(answers, rows), np.array(rows["band"])
        result["by_band"] = {band: _rate(correct[bands == band]) for band in _sorted_bands(bands)}
        return result


CHESS = MoveSetting()


def _sorted_bands(bands: np.ndarray) -> list[str]:
    """Ratings from low to high, other names in their order."""
    return sorted(set(bands.tolist()), key=lambda band: (band.split("-")[0].zfill(8), band))


def _rate(correct: np.ndarray) -> dict:
    return {
        "accuracy": float(correct.mean()),
        "ci95": list(metrics.accuracy_interval(correct)),
        "n": len(correct),
    }


def scores_of(answers: list[Completion], rows: Dataset) -> list[MoveScore]:
    """What each completion is worth; rows with `ground_truth` and `fen`."""
    columns = zip(answers, rows["ground_truth"], rows["fen"], strict=True)
    return [score_move(answer.text, answer.is_cut, target, fen) for answer, target, fen in columns]


def rate_where(answers: list[Completion], rows: Dataset, chosen: np.ndarray) -> dict:
    """Accuracy with its interval on the rows `chosen`, `(N,)` bool."""
    return _rate(CHESS.is_correct(answers, rows)[chosen])


def trivial_baselines(rows: Dataset) -> list[dict]:
    """
    Who knows the rules and nothing else: a random legal move, and a random check (any move where there is none).
    Expected accuracy; the interval is about the choice of the test puzzles.
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


def answer_untrained(bench: Workbench, name: str, model: Model, rows: Dataset, source: dict) -> list[Completion]:
    """
    What a model writes that was not finetuned: the zero-shot baseline (paper, figure 15).

    Args:
        bench ([`Workbench`]): Of [`CHESS`].
        name (`str`): Of the stage.
        model ([`Model`]): Before any adapter.
        rows ([`~datasets.Dataset`]): With `id` and `prompt`.
        source (`dict`): Provenance of the rows.
    """
    args = bench.args
    settings = {
        "model": model.identity,
        "rows": bench.fingerprint(rows),
        "max_new_tokens": args.max_new_tokens,
        "mixed_precision": [args.bf16, args.fp16],
        "n_processes": PartialState().num_processes,
    }

    def build(directory: Path) -> None:
        tokenizer = load_tokenizer(model.path, revision=model.revision)
        # With new adapters, which change nothing: so the base that is loaded serves here, too.
        network = bench.in_place(bench.untrained(model, tokenizer, seed=0))
        with autocast(args):
            answers = complete(
                network,
                tokenizer,
                rows["prompt"],
                max_new_tokens=args.max_new_tokens,
                batch_size=args.per_device_eval_batch_size,
                keep=directory / "completions",
            )
        if PartialState().is_main_process:
            provenance = {**source, "model": model.name, "versions": library_versions()}
            WeakCompletions(list(rows["id"]), answers, provenance).save(directory / "predictions")
            shutil.rmtree(directory / "completions")

    path = bench.stages.run(name, settings, build)
    return WeakCompletions.load(path / "predictions").of(list(rows["id"]))
