"""Chess puzzles in an experiment: the embedded demo of knight forks, and training on easy puzzles alone."""

import numpy as np
from datasets import Dataset, DatasetDict

from ..config import CompletionConfig, StudentConfig
from ..demo.forks import FORK_MODELS, FORK_WORDS, ForkWorld
from ..tasks import TaskSplits
from ..tasks.chess import ChessTask
from ..tasks.chess.scores import rate
from ..tasks.dealing import LINK_ROWS
from .config import ChessArguments
from .finetuner import Workbench
from .generation import GenerationExperiment
from .seed import Materials, SeedRun

__all__ = ["ChessExperiment", "run_chess"]

_DEMO_TEXT = """
## What this demo shows, and what it does not

White has king and knight, Black king and a queen or rook, and exactly one knight move gives check and attacks the
other piece at once: a fork. Every puzzle is proved with python-chess, and no two are mirror images of each other. The
pretrained models have read {documents}single moves with a word for what they do, `check`, `hits`, `takes` or `quiet`;
no position in which there is a fork is among them, nor is the word `fork`. Models called `scratch` have read nothing.

- Where a student is better than the supervisor that taught it, it shows the effect itself, measured live: it knew the
  parts, and the labels told it which of them is meant.
- It does not show chess skill. Whoever plays a random check is right in two of three puzzles; a student below that
  baseline has understood less than that rule.
- It does not show that size helps: pretraining drives the gain here, and a supervisor from scratch has none.
- Decoys are other knight moves that give check, and others that attack; they are where a student can be misled.
- More than one epoch on a supervisor's moves teaches a student its errors, too; how many there were is below.
- A chain (`--methods bootstrap`) is better than direct training in some seeds and worse in others; where there is one,
  both are in the tables. Take several seeds.
- Each seed has puzzles, corpus and models of its own, so numbers differ from seed to seed by more than their
  intervals.
"""

_ZERO_SHOT_TEXT = """
Look at zero-shot, too, which is the student before any finetuning. Asked for a `check` in place of a `fork`, it may
find forks: then the knowledge is there and has to be asked for by its name. Asked for a `fork`, a word it has never
read, it may play what fits every word it knows, which again is the fork (with the full stop of its corpus behind it,
so never exactly the target). Where that is better than the student, learning from this supervisor did harm, as the
paper's figure 15 has it for students of very weak supervisors.
"""


class ChessExperiment(GenerationExperiment):
    """An experiment on puzzles."""

    demo_models = FORK_MODELS

    def world(self, seed: int) -> ForkWorld:
        return ForkWorld(seed=seed)

    def load_real(self) -> TaskSplits:
        splits = super().load_real()
        if self.args.max_train_rating is not None:
            check_ratings(splits, self.args)
        return splits

    def load_demo(self, world: ForkWorld) -> TaskSplits:
        args = self.args
        self.check_length("the demo's models", world.tokenizer().model_max_length)
        n_train, n_test = args.n_weak + args.n_train + args.n_validation, args.n_test
        n_of_links = args.n_links * (args.n_train + args.n_validation)
        puzzles = world.puzzles(n_test + n_train + n_of_links)
        raw = {"test": puzzles[:n_test], "train": puzzles[n_test : n_test + n_train]}
        if n_of_links:
            raw[LINK_ROWS] = puzzles[n_test + n_train :]
        raw = DatasetDict({name: Dataset.from_list(rows) for name, rows in raw.items()})
        return self.load_rows(world, raw=raw)

    def zero_shot_rows(self, test: Dataset) -> dict[str, Dataset]:
        if not self.args.demo:
            return super().zero_shot_rows(test)
        fork, check = FORK_WORDS[:2]
        asked = test.map(lambda row: {"prompt": row["prompt"].replace(fork, check)}, desc="Asking")
        return {"zero-shot": test, f"zero-shot, asked for a {check}": asked}

    def more_of(self, run: SeedRun, materials: Materials, seed: int) -> dict:
        entry = super().more_of(run, materials, seed)
        if self.args.max_train_rating is not None:
            entry["easy_to_hard"] = easy_to_hard(self.bench, materials, self.args, seed, run)
        return entry

    def describe(self, results: dict, runs: list[SeedRun]) -> tuple[str, list[str]]:
        args = self.args
        _, sections = super().describe(results, runs)
        if args.demo:
            n_documents = args.demo_documents or FORK_MODELS[args.student_model].n_documents
            text = _DEMO_TEXT.strip().format(documents=f"{n_documents:,} " if n_documents else "")
            sections.insert(0, text + ("\n\n" + _ZERO_SHOT_TEXT.strip() if args.zero_shot else ""))
        return self.task.description, sections


def run_chess(
    task: ChessTask, args: ChessArguments, training_args: CompletionConfig, student_config: StudentConfig
) -> dict:
    """[`Experiment.run`] on puzzles."""
    return ChessExperiment(task, args, training_args, student_config).run()


def check_ratings(splits: TaskSplits, args: ChessArguments) -> None:
    """Raises `ValueError` where there is nothing easy to train on, or nothing hard to test on."""
    for name in ("student_half", "student_validation"):
        if not _is_easy(getattr(splits, name), args).any():
            raise ValueError(
                f"--max_train_rating {args.max_train_rating}: no puzzle of `{name}` is rated at most that; ratings "
                "come from a column `Rating`."
            )
    if not _is_hard(splits.test, args).any():
        raise ValueError(f"--min_hard_rating {args.min_hard_rating}: no test puzzle is rated at least that.")


def _is_easy(rows: Dataset, args: ChessArguments) -> np.ndarray:
    ratings = np.array(rows["rating"])
    return (ratings >= 0) & (ratings <= args.max_train_rating)


def _is_hard(rows: Dataset, args: ChessArguments) -> np.ndarray:
    return np.array(rows["rating"]) >= args.min_hard_rating


def easy_to_hard(bench: Workbench, materials: Materials, args: ChessArguments, seed: int, run: SeedRun) -> dict:
    """
    Trained on easy puzzles, tested on all and on hard ones (paper, appendix C): true moves of the easy puzzles of the
    student half, and of as many puzzles of any rating, so that only the difficulty differs.
    """
    splits, test = materials.splits, materials.splits.test
    source = {"task": splits.task.name, "dataset": splits.source, "split_fingerprint": splits.fingerprint}
    easy, easy_validation = (
        rows.select(np.flatnonzero(_is_easy(rows, args))) for rows in (splits.student_half, splits.student_validation)
    )
    parts = {
        "easy": (easy, easy_validation),
        # The student half is in random order.
        "any rating": tuple(
            rows.select(range(len(few)))
            for rows, few in ((splits.student_half, easy), (splits.student_validation, easy_validation))
        ),
    }
    hard = _is_hard(test, args)
    correct = {"all": run.correct["ceiling"]}
    for name, (train, validation) in parts.items():
        stage = bench.finetune(
            f"easy-to-hard-{name.replace(' ', '-')}",
            materials.student,
            bench.setting.with_ground_truth(train),
            bench.setting.with_ground_truth(validation),
            [test],
            seed=seed,
            provenance=source,
        )
        answers = bench.setting.labels.load(stage / "predictions").of(list(test["id"]))
        correct[name] = bench.setting.is_correct(answers, test)
    trained_on = {"easy": len(easy), "any rating": len(easy), "all": len(splits.student_half)}
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
