"""The setting of reward modelling, in which models predict the better of two responses (paper, 4.1)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Value
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ...analysis import last_hidden_states
from ...cards.markdown import markdown_table, render
from ...config import RewardPairConfig
from ...demo.models import World
from ...demo.rows import demo_pairs
from ...demo.worlds import PAIR_SITUATIONS, DemoWorld
from ...labels import as_probabilities
from ...modeling.spec import ModelSpec
from ...results import ExperimentResult
from ...tasks import PAIR_COLUMNS, PreferenceTask, TaskSplits, load_pairs, tokenize_pairs
from ...tasks.halves import LINK_ROWS
from ...tasks.preferences import PairLoader
from ...tasks.splits import TransferRows
from ...trainers import RewardPairTrainer
from ..analysis_context import AnalysisContext
from ..config import RewardArguments
from ..finetuner import Finetuner
from ..generative_finetuning import generative_finetune
from ..seed import Models
from .base import add_supervisor_labels, add_weights, demo_sizes, split_options, tokenizers_of
from .classification import ProbabilitySetting

__all__ = ["REWARD", "RewardSetting"]


class RewardSetting(ProbabilitySetting):
    """
    The setting of pairs of responses. Class 1 of a pair means that the first response is better. The first response
    is always the trainer's `chosen`, even if the second response is better.
    """

    name = "reward"
    rows = "pairs"
    arguments, training = RewardArguments, RewardPairConfig
    tokenize = staticmethod(tokenize_pairs)
    task_type = "REWARD"
    columns = PAIR_COLUMNS
    trainer = RewardPairTrainer

    def add_labels(self, tokenized: Dataset, rows: Dataset) -> Dataset:
        """
        Adds the column `soft_label`, P(the first response is better), and `weight` and `supervisor_labels` if the rows
        have these columns.
        """
        first_is_better = as_probabilities(rows["labels"][:])[:, 1]
        labelled = tokenized.add_column("soft_label", first_is_better.tolist(), feature=Value("float32"))
        return add_supervisor_labels(add_weights(labelled, rows), rows)

    def load_rows(
        self,
        task: PreferenceTask,
        args: RewardArguments,
        training_args: RewardPairConfig,
        readers: Sequence[ModelSpec],
    ) -> TaskSplits:
        """Loads pairs; see [`load_pairs`]."""
        return load_pairs(
            task,
            dataset_path=args.dataset_path,
            tokenizers=tokenizers_of(readers),
            max_length=training_args.max_length,
            **split_options(args),
        )

    def load_test_rows(
        self,
        task: PreferenceTask,
        args: RewardArguments,
        training_args: RewardPairConfig,
        readers: Sequence[ModelSpec],
        world: DemoWorld | None,
        splits: TaskSplits,
    ) -> TransferRows:
        """
        Loads the test pairs of another task; see [`ProbabilitySetting.load_test_rows`]. Raises `ValueError` in the
        demo, whose pairs are the same for all tasks.
        """
        if world is not None:
            raise ValueError(
                "Got the demo, which generates the same pairs for every task, expected real pairs. Set --weak_model "
                "and --student_model, or leave out --transfer_tasks."
            )
        loader = PairLoader(task, tokenizers_of(readers), training_args.max_length)
        return loader.load_test(splits, n_test=args.n_test, seed=args.split_seed)

    def demo_world(self, args: RewardArguments, seed: int) -> World:
        """Returns the world of a seed."""
        return DemoWorld(seed=seed)

    def load_demo_rows(
        self, task: PreferenceTask, args: RewardArguments, training_args: TrainingArguments, world: DemoWorld
    ) -> TaskSplits:
        """Generates pairs."""

        def pairs(n: int, stream: str, **options):
            return demo_pairs(world, 5 * n // 4, stream, **options)  # more rows than n, since duplicates are removed

        n_train, n_test, n_links = demo_sizes(args)
        raw = {
            task.train_split[0]: pairs(n_train, "train pairs"),
            (task.test_split or ("test",))[0]: pairs(n_test, "test pairs", held_out=True),
        }
        if n_links:
            raw[LINK_ROWS] = pairs(2 * n_links, "link pairs")
        # All pairs have the same prompt, so prompts cannot group them.
        return load_pairs(replace(task, group_by_prompt=False), raw=DatasetDict(raw), **split_options(args))

    def prepare_models(
        self, models: Models, splits: TaskSplits, args: RewardArguments, seed: int, finetuner: Finetuner
    ) -> Models:
        """Finetunes the students on the responses as language models, if `--generative_finetuning` is set."""
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
                task=splits.task.name,
            )

        sizes = tuple(tune(model) for model in models.sizes)
        return replace(models, student=tune(models.student), plain_student=models.student, sizes=sizes)

    def hidden_states(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        tokenized: Dataset,
        batch_size: int,
    ) -> np.ndarray:
        """Returns the difference of the inputs of the head for the two responses, `(N, hidden size)`."""
        first, second = (
            last_hidden_states(
                model, tokenizer, [{"input_ids": ids} for ids in tokenized[name]], batch_size=batch_size
            )
            for name in ("chosen_ids", "rejected_ids")
        )
        return first - second

    def further_results(self, context: AnalysisContext) -> dict:
        """Returns the linear probe, and in the demo the accuracy by the situation of a pair."""
        further = super().further_results(context)
        return further | ({"by_situation": accuracy_by_situation(context)} if context.args.demo else {})

    def describe(
        self, results: ExperimentResult, contexts: list[AnalysisContext], output_dir: Path
    ) -> tuple[dict, str, list[str]]:
        """Describes the task, and explains the demo if it runs."""
        task, args = contexts[0].task, contexts[0].args
        facts: dict = {"generative_finetuning": args.generative_finetuning}
        notes = []
        if args.demo:
            notes.append(render("demo_reward.md", task=task.name, table=situation_table(results)))
            pair = contexts[0].test[0]
            facts["example_prompt"] = pair["prompt"] + pair["first"]
        return facts, task.description or f"{task.name}.", notes


REWARD = RewardSetting()


def accuracy_by_situation(context: AnalysisContext) -> dict[str, dict[str, float]]:
    """Returns, for each of `PAIR_SITUATIONS`, its share of the test pairs and the accuracy of each model."""
    test = context.test
    situations = np.array(
        [context.world.pair_situation(*sides) for sides in zip(test["first"], test["second"], strict=True)]
    )
    table = {}
    for name in PAIR_SITUATIONS:
        is_here = situations == name
        accuracies = {
            model: float(correct[is_here].mean()) for model, correct in context.scorer.correct.items() if is_here.any()
        }
        table[name] = {"share": float(is_here.mean()), **accuracies}
    return table


def situation_table(results: ExperimentResult) -> str:
    """Returns `by_situation` as a Markdown table, averaged over the seeds."""
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
