"""Chess puzzles in an experiment: the embedded demo of knight forks, and training on easy puzzles alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from ...cards.markdown import render
from ...config import CompletionConfig
from ...demo.forks import FORK_MODELS, FORK_WORDS, ForkWorld
from ...modeling.spec import ModelSpec
from ...results import ExperimentResult
from ...tasks import Half, TaskSplits
from ...tasks.chess import ChessTask
from ...tasks.chess.scores import rate
from ...tasks.halves import LINK_ROWS
from ..analysis_context import AnalysisContext
from ..config import ChessArguments
from .base import demo_sizes, split_options
from .generation import GenerationSetting, check_length

__all__ = ["ChessSetting"]

_EASY_TO_HARD = "students on easy puzzles"


class ChessSetting(GenerationSetting):
    """The setting of chess puzzles: generation, with the demo of knight forks and training on easy puzzles alone."""

    arguments = ChessArguments
    demo_models = FORK_MODELS

    def load_rows(
        self,
        task: ChessTask,
        args: ChessArguments,
        training_args: CompletionConfig,
        readers: Sequence[ModelSpec],
    ) -> TaskSplits:
        """Loads puzzles."""
        splits = super().load_rows(task, args, training_args, readers)
        if args.max_train_rating is not None:
            check_ratings(splits, args)
        return splits

    def demo_world(self, args: ChessArguments, seed: int) -> ForkWorld:
        """Returns the world of a seed."""
        return ForkWorld(seed=seed)

    def load_demo_rows(
        self, task: ChessTask, args: ChessArguments, training_args: CompletionConfig, world: ForkWorld
    ) -> TaskSplits:
        """Generates puzzles in which a fork wins."""
        check_length(training_args.max_length, world.tokenizer().model_max_length, "the demo's models")
        n_train, n_test, n_links = demo_sizes(args)
        puzzles = world.puzzles(n_test + n_train + n_links)
        raw = {"test": puzzles[:n_test], "train": puzzles[n_test : n_test + n_train]}
        if n_links:
            raw[LINK_ROWS] = puzzles[n_test + n_train :]
        return task.load(
            tokenizers=[world.tokenizer()],
            max_length=training_args.max_length,
            max_new_tokens=training_args.max_new_tokens,
            raw=DatasetDict({name: Dataset.from_list(rows) for name, rows in raw.items()}),
            **split_options(args),
        )

    def zero_shot_rows(self, context: AnalysisContext) -> dict[str, Dataset]:
        """Returns the test puzzles. The demo adds the same puzzles with prompts that request a check."""
        if not context.args.demo:
            return super().zero_shot_rows(context)
        fork, check = FORK_WORDS[:2]
        check_rows = context.test.map(lambda row: {"prompt": row["prompt"].replace(fork, check)}, desc="Prompts")
        return {"zero-shot": context.test, f"zero-shot, asked for a {check}": check_rows}

    def further_results(self, context: AnalysisContext) -> dict:
        """Returns the baselines and, with `--max_train_rating`, the scores of training on easy puzzles."""
        further = super().further_results(context)
        if context.args.max_train_rating is None:
            return further
        with context.finetuner.cache.progress.group(_EASY_TO_HARD):
            return {**further, "easy_to_hard": easy_to_hard(context)}

    def further_steps(self, args: ChessArguments) -> list[str]:
        """Returns the titles of the baselines and, with `--max_train_rating`, of training on easy puzzles."""
        return super().further_steps(args) + [_EASY_TO_HARD] * (args.max_train_rating is not None)

    def describe(
        self, results: ExperimentResult, contexts: list[AnalysisContext], output_dir: Path
    ) -> tuple[dict, str, list[str]]:
        """Describes the puzzles, and explains the demo if it runs."""
        args = contexts[0].args
        facts, _, sections = super().describe(results, contexts, output_dir)
        if args.demo:
            n_documents = args.demo_documents or FORK_MODELS[args.student_model].n_documents
            sections.insert(0, render("demo_chess.md", n_documents=n_documents, zero_shot=args.zero_shot))
        return facts, self.task.description, sections


def check_ratings(splits: TaskSplits, args: ChessArguments) -> None:
    """Raises `ValueError` if there are no easy puzzles to train on, or no hard puzzles to test on."""
    for name in ("student_half", "student_validation"):
        if not _is_easy(getattr(splits, name), args).any():
            raise ValueError(
                f"--max_train_rating: got {args.max_train_rating}, and no puzzle of `{name}` has a rating up to "
                "this number. Set a larger number, and check that the dataset has ratings in the column `Rating`."
            )
    if not _is_hard(splits.test, args).any():
        raise ValueError(
            f"--min_hard_rating: got {args.min_hard_rating}, and no test puzzle has this rating or more. "
            "Set a lower rating."
        )


def _is_easy(rows: Dataset, args: ChessArguments) -> np.ndarray:
    ratings = np.array(rows["rating"])
    return (ratings >= 0) & (ratings <= args.max_train_rating)


def _is_hard(rows: Dataset, args: ChessArguments) -> np.ndarray:
    return np.array(rows["rating"]) >= args.min_hard_rating


def easy_to_hard(context: AnalysisContext) -> dict:
    """
    Trains students on easy puzzles and tests them on all and on hard puzzles (paper, appendix C). One student is
    trained on the true moves of the easy puzzles of the student half. Another student is trained on the same
    number of puzzles of any rating, so that only the difficulty differs.
    """
    args, splits, test, finetuner = context.args, context.splits, context.test, context.finetuner
    easy = splits.student.map(lambda rows: rows.select(np.flatnonzero(_is_easy(rows, args))))
    # The student half is in random order, so its first rows are a random sample.
    any_rating = Half(*(rows.select(range(len(few))) for rows, few in zip(splits.student, easy, strict=True)))
    hard = _is_hard(test, args)
    correct = {"all": context.scorer.correct["ceiling"]}
    for name, rows in {"easy": easy, "any rating": any_rating}.items():
        finetuned = finetuner.finetune(
            f"easy-to-hard-{name.replace(' ', '-')}",
            context.models.student,
            rows.map(finetuner.setting.with_ground_truth),
            [test],
            splits=splits,
            seed=context.seed,
            title=f"student on puzzles of {'any' if name == 'any rating' else 'low'} rating",
        )
        correct[name] = finetuner.setting.is_correct(finetuned.predictions.of(list(test["id"])), test)
    trained_on = {"easy": len(easy.train), "any rating": len(easy.train), "all": len(splits.student.train)}
    return {
        "max_train_rating": args.max_train_rating,
        "min_hard_rating": args.min_hard_rating,
        "trained_on": {
            name: {
                "n_train": n,
                "on_all": rate(correct[name]),
                "on_hard": rate(correct[name][hard]),
            }
            for name, n in trained_on.items()
        },
    }
