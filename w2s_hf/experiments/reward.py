"""Weak-to-strong generalization of reward models on pairs of responses, from pairs to PGR."""

from dataclasses import replace

import numpy as np
from datasets import DatasetDict

from ..cards.markdown import markdown_table
from ..config import RewardPairConfig, StudentConfig
from ..demo.rows import demo_pairs
from ..demo.worlds import PAIR_SITUATIONS, DemoWorld
from ..tasks import PreferenceTask, TaskSplits, load_pairs
from ..tasks.halves import LINK_ROWS
from .config import RewardArguments
from .experiment import Experiment
from .finetuner import Model
from .generative import generative_finetune
from .seed import Materials, SeedRun
from .settings.base import REWARD

__all__ = ["RewardExperiment", "run_reward"]

_DEMO_TEXT = """
## What this demo shows, and what it does not

The pairs are generated, as transcripts in the columns of {task}: a reply is a word of style, `yes` or
`no`, and a fact about a made-up entity. The better reply is the one about something alive; where both or neither are,
the one that begins with `yes`. One preference in twenty is reported the wrong way, so that about 0.95 is the best
there is. Which entities are alive can be told from the text that the student was pretrained on, and never stands in
it. All test pairs are about entities that no training pair is about: what a student knows of them it has from
pretraining.

- Where a student is better than the supervisor that taught it, it shows the effect itself, measured live. The control,
  the same architecture taught by the same labels without pretraining, has only the style to go by.
- It does not show that size helps: pretraining drives the gain here, and the supervisor has none.
- It does not show that the generative stage helps: the student has read about all entities before.
- Each seed is another world with other models, so numbers differ from seed to seed by more than their intervals.
"""

_SITUATION_TEXT = """
## Why PGR is low here

Accuracy by what tells the better reply: the style alone, the entities alone, both, or both in contradiction, where the
entities count; a mean over the seeds.

{table}

A supervisor that goes by the style is right where the style decides, and has to guess where only the entities differ,
since it has never met them. There the student's own knowledge shows. Where both are in conflict, such a supervisor is
wrong not at random but nearly always. To a student these are labels like any others; as far as it learns this error
with them, it does not recover that part of the gap. That it could, the ceiling tells: the same student, taught the
truth about the same pairs.
"""


class RewardExperiment(Experiment):
    """On pairs of responses."""

    setting = REWARD

    def world(self, seed: int) -> DemoWorld:
        return DemoWorld(seed=seed)

    def load_real(self) -> TaskSplits:
        return load_pairs(
            self.task,
            dataset_path=self.args.dataset_path,
            tokenizers=self.tokenizers(),
            max_length=self.training_args.max_length,
            **self.split_options(),
        )

    def load_demo(self, world: DemoWorld) -> TaskSplits:
        args, task = self.args, self.task

        def pairs(n: int, stream: str, **options):
            return demo_pairs(world, 5 * n // 4, stream, **options)  # equal pairs count once

        raw = {
            task.train_split[0]: pairs(args.n_train + args.n_weak + args.n_validation, "train pairs"),
            task.test_split[0]: pairs(args.n_test, "test pairs", held_out=True),
        }
        if args.n_links:
            raw[LINK_ROWS] = pairs(2 * args.n_links * (args.n_train + args.n_validation), "link pairs")
        # There is one prompt, so it groups nothing.
        return load_pairs(replace(task, group_by_prompt=False), raw=DatasetDict(raw), **self.split_options())

    def prepare(self, materials: Materials, seed: int) -> Materials:
        if not self.args.generative_finetuning:
            return materials

        def tune(model: Model) -> Model:
            return generative_finetune(
                self.bench,
                model,
                materials.splits.student_half,
                seed=seed,
                learning_rate=self.args.generative_learning_rate,
                num_train_epochs=self.args.generative_num_train_epochs,
            )

        sizes = tuple(tune(model) for model in materials.sizes)
        return replace(materials, student=tune(materials.student), plain_student=materials.student, sizes=sizes)

    def more_of(self, run: SeedRun, materials: Materials, seed: int) -> dict:
        if not self.args.demo:
            return {}
        return {"by_situation": accuracy_by_situation(run, materials.splits, self.world(seed))}

    def describe(self, results: dict, runs: list[SeedRun]) -> tuple[str, list[str]]:
        results["generative_finetuning"] = self.args.generative_finetuning
        notes = []
        if self.args.demo:
            table = situation_table(results)
            notes = [_DEMO_TEXT.strip().format(task=self.task.name), _SITUATION_TEXT.strip().format(table=table)]
            pair = self.materials(self.args.seeds[0]).splits.test[0]
            results["example_prompt"] = pair["prompt"] + pair["first"]
        return self.task.description or f"{self.task.name}.", notes


def run_reward(
    task: PreferenceTask, args: RewardArguments, training_args: RewardPairConfig, student_config: StudentConfig
) -> dict:
    """[`Experiment.run`] on pairs."""
    return RewardExperiment(task, args, training_args, student_config).run()


def accuracy_by_situation(run: SeedRun, splits: TaskSplits, world: DemoWorld) -> dict[str, dict[str, float]]:
    """The share of test pairs in each of `PAIR_SITUATIONS`, and each model's accuracy on them."""
    test = splits.test
    situations = np.array([world.pair_situation(*sides) for sides in zip(test["first"], test["second"], strict=True)])
    table = {}
    for name in PAIR_SITUATIONS:
        here = situations == name
        accuracies = {model: float(correct[here].mean()) for model, correct in run.correct.items() if here.any()}
        table[name] = {"share": float(here.mean()), **accuracies}
    return table


def situation_table(results: dict) -> str:
    """`by_situation`, a mean over the seeds, for the report."""
    runs = [run["by_situation"] for run in results["runs"]]
    roles = {"share": "share of test pairs", "weak": "weak supervisor", "control": "control, not pretrained"}
    roles |= {entry["method"]: f"student, {entry['method']}" for entry in results["summary"]}
    roles |= {"ceiling_plain": "plain ceiling", "ceiling": "strong ceiling"}
    lines = []
    for name, role in roles.items():
        cells = [[run[situation][name] for run in runs if name in run[situation]] for situation in PAIR_SITUATIONS]
        if any(cells):
            lines.append([role, *(f"{np.mean(cell):.2f}" if cell else "-" for cell in cells)])
    return markdown_table(["", *PAIR_SITUATIONS], lines)
