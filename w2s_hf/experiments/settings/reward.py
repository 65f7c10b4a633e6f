"""Reward modelling: which of two responses is better (paper, 4.1)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Value
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ...cards.markdown import markdown_table
from ...demo.models import World
from ...demo.rows import demo_pairs
from ...demo.worlds import PAIR_SITUATIONS, DemoWorld
from ...labels import as_probabilities
from ...modeling.spec import ModelSpec
from ...results import ExperimentResult
from ...tasks import PAIR_COLUMNS, PreferenceTask, TaskSplits, load_pairs, tokenize_pairs
from ...tasks.halves import LINK_ROWS
from ...trainers import RewardPairTrainer
from ..analysis_context import AnalysisContext
from ..config import RewardArguments
from ..finetuner import Finetuner
from ..generative import generative_finetune
from ..seed import Models
from .base import split_options, tokenizers_of
from .classification import ProbabilitySetting

__all__ = ["REWARD", "RewardSetting"]

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


class RewardSetting(ProbabilitySetting):
    """
    Pairs of responses. Class 1 of a pair: the first response is better. It is the trainer's `chosen`, whatever the
    truth is.
    """

    name = "reward"
    rows = "pairs"
    task_type = "REWARD"
    columns = PAIR_COLUMNS
    trainer = RewardPairTrainer

    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
        """Tokenizes pairs; see [`tokenize_pairs`]."""
        return tokenize_pairs(rows, tokenizer, max_length)

    def add_labels(self, tokenized: Dataset, rows: Dataset) -> Dataset:
        """Adds the column `soft_label`, P(the first response is better)."""
        first_is_better = as_probabilities(rows["labels"][:])[:, 1]
        return tokenized.add_column("soft_label", first_is_better.tolist(), feature=Value("float32"))

    def load_rows(
        self, task: PreferenceTask, args: RewardArguments, training_args: TrainingArguments, readers: list[ModelSpec]
    ) -> TaskSplits:
        """Loads pairs; see [`load_pairs`]."""
        return load_pairs(
            task,
            dataset_path=args.dataset_path,
            tokenizers=tokenizers_of(readers),
            max_length=training_args.max_length,
            **split_options(args),
        )

    def demo_world(self, args: RewardArguments, seed: int) -> World:
        """Returns the world of a seed."""
        return DemoWorld(seed=seed)

    def load_demo_rows(
        self, task: PreferenceTask, args: RewardArguments, training_args: TrainingArguments, world: DemoWorld
    ) -> TaskSplits:
        """Generates pairs."""

        def pairs(n: int, stream: str, **options):
            return demo_pairs(world, 5 * n // 4, stream, **options)  # equal pairs count once

        raw = {
            task.train_split[0]: pairs(args.n_train + args.n_weak + args.n_validation, "train pairs"),
            task.test_split[0]: pairs(args.n_test, "test pairs", held_out=True),
        }
        if args.n_links:
            raw[LINK_ROWS] = pairs(2 * args.n_links * (args.n_train + args.n_validation), "link pairs")
        # There is one prompt, so it groups nothing.
        return load_pairs(replace(task, group_by_prompt=False), raw=DatasetDict(raw), **split_options(args))

    def prepare_models(
        self, models: Models, splits: TaskSplits, args: RewardArguments, seed: int, finetuner: Finetuner
    ) -> Models:
        """Trains the students to write the responses first, if `--generative_finetuning` is given."""
        if not args.generative_finetuning:
            return models

        def tune(model: ModelSpec) -> ModelSpec:
            return generative_finetune(
                finetuner,
                model,
                splits.student_half,
                seed=seed,
                learning_rate=args.generative_learning_rate,
                num_train_epochs=args.generative_num_train_epochs,
            )

        sizes = tuple(tune(model) for model in models.sizes)
        return replace(models, student=tune(models.student), plain_student=models.student, sizes=sizes)

    def further_results(self, context: AnalysisContext) -> dict:
        """Returns the accuracy by the situation of a pair, in the demo."""
        return {"by_situation": accuracy_by_situation(context)} if context.args.demo else {}

    def describe(
        self, results: ExperimentResult, contexts: list[AnalysisContext], output_dir: Path
    ) -> tuple[dict, str, list[str]]:
        """Describes the task and, in the demo, what the demo shows."""
        task, args = contexts[0].splits.task, contexts[0].args
        facts: dict = {"generative_finetuning": args.generative_finetuning}
        notes = []
        if args.demo:
            table = situation_table(results)
            notes = [_DEMO_TEXT.strip().format(task=task.name), _SITUATION_TEXT.strip().format(table=table)]
            pair = contexts[0].test[0]
            facts["example_prompt"] = pair["prompt"] + pair["first"]
        return facts, task.description or f"{task.name}.", notes


REWARD = RewardSetting()


def accuracy_by_situation(context: AnalysisContext) -> dict[str, dict[str, float]]:
    """Returns the share of test pairs in each of `PAIR_SITUATIONS`, and each model's accuracy on them."""
    test = context.test
    situations = np.array(
        [context.world.pair_situation(*sides) for sides in zip(test["first"], test["second"], strict=True)]
    )
    table = {}
    for name in PAIR_SITUATIONS:
        here = situations == name
        accuracies = {
            model: float(correct[here].mean()) for model, correct in context.scorer.correct.items() if here.any()
        }
        table[name] = {"share": float(here.mean()), **accuracies}
    return table


def situation_table(results: ExperimentResult) -> str:
    """Returns `by_situation` as Markdown, a mean over the seeds."""
    runs = [run.by_situation for run in results.runs]
    roles = {"share": "share of test pairs", "weak": "weak supervisor", "control": "control, not pretrained"}
    roles |= {summary.method: f"student, {summary.method}" for summary in results.summary}
    roles |= {"ceiling_plain": "plain ceiling", "ceiling": "strong ceiling"}
    lines = []
    for name, role in roles.items():
        cells = [[run[situation][name] for run in runs if name in run[situation]] for situation in PAIR_SITUATIONS]
        if any(cells):
            lines.append([role, *(f"{np.mean(cell):.2f}" if cell else "-" for cell in cells)])
    return markdown_table(["", *PAIR_SITUATIONS], lines)
