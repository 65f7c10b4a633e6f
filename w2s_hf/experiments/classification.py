"""Weak-to-strong generalization on a binary task, from rows to PGR."""

from dataclasses import replace

from datasets import DatasetDict

from ..config import StudentConfig, WeakToStrongConfig
from ..demo.rows import demo_rows
from ..demo.worlds import DEMO_WORLDS, DemoWorld
from ..tasks import Task, TaskSplits, find_task, load_task
from ..tasks.halves import LINK_ROWS
from .config import ClassificationArguments
from .experiment import Experiment
from .seed import SeedRun
from .settings.base import CLASSIFICATION

__all__ = ["ClassificationExperiment", "run_classification"]

_DEMO_TEXT = """
## What this demo shows, and what it does not

The rows are generated, in the columns of {task}: short facts about made-up entities, and the question whether one of
them is alive. No label is ever stated in the text that the student was pretrained on; whether an entity is alive can
be told only from the kind of things that are said about it. The weak supervisor was never pretrained, and learns from
few labelled rows.

- Where the supervisor is better than chance, it shows the effect itself, measured live: the student was taught by
  labels of the accuracy in the first row, and is better than its teacher because of what it had learned before. The
  control, the same architecture taught by the same labels without pretraining, has nothing to add to them.
- It does not show that size helps: pretraining drives the gain here, and the supervisor has none.
- It does not show that one method beats another: which one is ahead changes from seed to seed. Use `--seeds`.
- It does not show a hard task: the same entities occur in training and in test rows, and the ceiling is near 1, so
  that a few hundred true labels would have taught this student everything.
- Each seed is another world with other models, so numbers differ from seed to seed by more than their intervals.
"""

_LADDER_TEXT = """
## What this demo shows, and what it does not

The rows are generated, in the columns of {task}: short facts about made-up entities, and the question whether one of
them is alive. No label is ever stated in the text that students were pretrained on; whether an entity is alive can be
told from its kind, and there are many kinds, which a narrow model does not keep apart. Half of the questions have a
hint among their facts that a supervisor which has read nothing can learn, too. All test questions are about entities
that no training row asks about: what a student knows of them it has from pretraining.

- Students of three widths have read the same text, so that they differ in size alone. The widest, and its ceiling, is
  the best in the mean over seeds and not in each one; the two others differ less than seeds do. One seed shows no law
  of size.
- Where the supervisor is better than chance, a student that is better than its teacher shows the effect itself. The
  control, the same architecture taught by the same labels without pretraining, has only the hints to go by.
- Bootstrapping is here to be measured and not to win. The first link is a narrow model that knows little more than the
  supervisor, and what it gets wrong the next ones learn: in most seeds the chain is worse than direct training. The
  paper, too, found it of little use on its text tasks.
- Each seed is another world with other models, so numbers differ from seed to seed by more than their intervals.
"""


class ClassificationExperiment(Experiment):
    """On a task of yes and no."""

    setting = CLASSIFICATION

    def __init__(self, task: Task, args: ClassificationArguments, *others, **shared):
        super().__init__(replace(task, drop_empty=True) if args.drop_empty else task, args, *others, **shared)

    def world(self, seed: int) -> DemoWorld:
        return DemoWorld(DEMO_WORLDS[self.args.demo_world], seed=seed)

    def load_real(self) -> TaskSplits:
        args = self.args
        return load_task(self.task, dataset_path=args.dataset_path, conversion=args.conversion, **self.split_options())

    def load_demo(self, world: DemoWorld) -> TaskSplits:
        args, task = self.args, self.task
        # Texts of a question, and half as many again as asked for: balancing drops rows of the more frequent answer,
        # and groups are dealt whole.
        n_texts = 2 if args.conversion == "coin_flip" else 1

        def pool(n: int) -> int:
            return n_texts * (3 * n // 2 + 100)

        raw = {
            task.train_split[0]: demo_rows(task, world, pool(args.n_train + args.n_weak + args.n_validation), "train"),
            task.test_split[0]: demo_rows(task, world, pool(args.n_test), "test", held_out=True),
        }
        if args.n_links:
            n = args.n_links * (args.n_train + args.n_validation)
            raw[LINK_ROWS] = demo_rows(task, world, pool(n), LINK_ROWS)
        return load_task(task, raw=DatasetDict(raw), conversion=args.conversion, **self.split_options())

    def describe(self, results: dict, runs: list[SeedRun]) -> tuple[str, list[str]]:
        results["text_form"], results["class_names"] = self.task.template, list(self.task.class_names)
        notes = []
        if self.args.demo:
            text = _DEMO_TEXT if self.args.demo_world == "plain" else _LADDER_TEXT
            notes.append(text.strip().format(task=self.task.name))
        return f"{self.task.description or self.task.name}. Half of the rows are {self.task.class_names[1]!r}.", notes


def run_classification(
    task: str | Task, args: ClassificationArguments, training_args: WeakToStrongConfig, student_config: StudentConfig
) -> dict:
    """[`Experiment.run`]; a task that is a `str` is named as in [`w2s_hf.tasks.find_task`]."""
    task = find_task(task) if isinstance(task, str) else task
    return ClassificationExperiment(task, args, training_args, student_config).run()
