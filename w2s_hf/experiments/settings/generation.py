"""The setting of generation: models complete prompts, and the task decides which completions are correct."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...config import CompletionConfig
from ...demo.models import World
from ...generation import complete
from ...labels import Completion, WeakCompletions
from ...methods import Method
from ...modeling import load_config, load_tokenizer
from ...modeling.spec import ModelSpec
from ...results import BaselineResult, ExperimentResult
from ...tasks import COMPLETION_COLUMNS, GenerationTask, TaskSplits
from ...trainers.completion import CompletionTrainer, autocast
from ..analysis_context import AnalysisContext
from ..cache import library_versions
from ..config import GenerationArguments, Own
from ..finetuner import Finetuner
from .base import Setting, Tokenize, on_weak_labels, split_options, tokenizers_of

__all__ = ["GenerationSetting", "check_length", "complete_untrained"]

_ZERO_SHOT_TITLE = "zero-shot baseline of the student"


class GenerationSetting(Setting):
    """
    The setting of prompts and completions. Predictions are `list[Completion]`. Only a subclass has a demo.

    Args:
        task ([`GenerationTask`]): Parses and scores the answers, and names the setting in results.
    """

    arguments, training = GenerationArguments, CompletionConfig
    task_type = "CAUSAL_LM"
    columns = COMPLETION_COLUMNS
    labels = WeakCompletions
    label_column = "completion"
    # A model without pretraining needs more than one epoch to learn the form of a completion.
    control = {"learning_rate": 2e-3, "num_train_epochs": 12}

    def __init__(self, task: GenerationTask):
        self.task, self.name, self.rows = task, task.setting, task.rows

    def arguments_of(self, method: Method) -> dict:
        """Returns the training arguments of a method. The loss on text is always cross-entropy."""
        return dict(method.training_args)

    def with_ground_truth(self, rows: Dataset) -> Dataset:
        """Returns rows with the true completion as `completion`."""
        return rows.rename_column("ground_truth", "completion")

    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
        """Returns the rows unchanged: the trainer tokenizes them."""
        return rows

    def add_labels(self, tokenized: Dataset, rows: Dataset) -> Dataset:
        """Returns the rows with their completions."""
        return rows

    def make_trainer(
        self, model, args, tokenizer, train, validation, tokenize: Tokenize, is_weak: bool = False, loss=None
    ) -> CompletionTrainer:
        """Returns the trainer, which tokenizes the rows itself; see [`Setting.make_trainer`]. `loss` is `None`."""
        columns = [name for name in ("prompt", "completion", "weight") if name in train.column_names]
        train, validation = train.select_columns(columns), validation.select_columns(columns[:2])
        trainer = on_weak_labels(CompletionTrainer) if is_weak else CompletionTrainer
        return trainer(
            model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer
        )

    def predict(
        self, trainer: CompletionTrainer, rows: Dataset, tokenize: Tokenize, directory: Path
    ) -> list[Completion]:
        """Returns greedy completions; finished batches are cached in `directory`."""
        return trainer.complete(rows["prompt"], keep=directory / "completions")

    def is_correct(self, predictions: list[Completion], rows: Dataset) -> np.ndarray:
        """Returns which completions have the correct answer, `(N,)` bool."""
        return np.array([self.task.is_correct(*columns) for columns in zip(predictions, rows, strict=True)])

    def agrees(self, predictions: list[Completion], reference: list[Completion], rows: Dataset) -> np.ndarray:
        """Returns which completions have the same answer, `(N,)` bool."""
        return np.array([self.task.is_same(*columns) for columns in zip(predictions, reference, rows, strict=True)])

    def extra_scores(self, predictions: list[Completion], rows: Dataset) -> dict:
        """Returns the scores that the task reports besides the accuracy."""
        return self.task.extra_scores(predictions, rows)

    def load_rows(
        self,
        task: Own,
        args: Own,
        training_args: CompletionConfig,
        readers: Sequence[ModelSpec],
    ) -> TaskSplits:
        """Loads prompts and completions that fit the context of all models."""
        for model in readers:
            config = load_config(model.path, model.revision).get_text_config()
            check_length(training_args.max_length, getattr(config, "max_position_embeddings", None), model.name)
        return task.load(
            tokenizers=tokenizers_of(readers),
            max_length=training_args.max_length,
            max_new_tokens=training_args.max_new_tokens,
            dataset_path=args.dataset_path,
            **split_options(args),
        )

    def demo_world(self, args: Own, seed: int) -> World:
        """Raises `ValueError`, since generation has no demo."""
        raise ValueError(
            f"--demo: got the task {self.task.name}, which has no demo. Set --weak_model and --student_model."
        )

    def load_demo_rows(self, task: Own, args: Own, training_args: CompletionConfig, world: Own) -> TaskSplits:
        """Raises `ValueError`, as [`demo_world`] does."""
        raise ValueError(
            f"--demo: got the task {self.task.name}, which has no demo. Set --weak_model and --student_model."
        )

    def further_results(self, context: AnalysisContext) -> dict:
        """Returns the baselines: the student before any finetuning, and the baselines of the task."""
        zero_shot = []
        if context.args.zero_shot:
            with context.finetuner.cache.progress.group(_ZERO_SHOT_TITLE):
                zero_shot = self._zero_shot(context)
        baselines = [*zero_shot, *self.task.baselines(context.test)]
        return {"baselines": [BaselineResult.from_dict(baseline) for baseline in baselines]}

    def further_steps(self, args: Own) -> list[str]:
        """Returns the title of the zero-shot baselines, if `--zero_shot` is set."""
        return [_ZERO_SHOT_TITLE] * args.zero_shot

    def _zero_shot(self, context: AnalysisContext) -> list[dict]:
        splits, student = context.splits, context.models.student
        source = {"task": splits.task.name, "dataset": splits.source}
        entries = []
        for name, rows in self.zero_shot_rows(context).items():
            completions = complete_untrained(context.finetuner, "zero-shot", student, rows, source)
            entries.append({"name": name, "model": student.name, **self.scores(completions, rows)})
        return entries

    def zero_shot_rows(self, context: AnalysisContext) -> dict[str, Dataset]:
        """Returns the test rows for each zero-shot baseline, with the prompts of the baseline."""
        return {"zero-shot": context.test}

    def describe(
        self, results: ExperimentResult, contexts: list[AnalysisContext], output_dir: Path
    ) -> tuple[dict, str, list[str]]:
        """Describes the task, and returns its sections of the report."""
        test, predictions = contexts[0].test, contexts[0].scorer.predictions
        sections = self.task.report_sections(results, test, predictions, output_dir)
        facts = {"example_prompt": test["prompt"][0]}
        return facts, self.task.description or f"{self.task.name}.", sections


def check_length(max_length: int | None, n_positions: int | None, name: str) -> None:
    """Raises `ValueError` if rows of `--max_length` tokens do not fit a model of `n_positions`."""
    if n_positions is not None and (max_length or n_positions + 1) > n_positions:
        raise ValueError(
            f"--max_length: got {max_length}, expected at most {n_positions}, the context length of {name}. "
            "Lower --max_length."
        )


def complete_untrained(
    finetuner: Finetuner, name: str, model: ModelSpec, rows: Dataset, source: dict
) -> list[Completion]:
    """
    Returns the completions of a model that was not finetuned: the zero-shot baseline (paper, figure 15).

    Args:
        finetuner ([`Finetuner`]): A finetuner of a [`GenerationSetting`].
        name (`str`): Name of the stage.
        model ([`ModelSpec`]): The model, before any adapter.
        rows ([`~datasets.Dataset`]): Rows with `id` and `prompt`.
        source (`dict`): Provenance of the rows.
    """
    args = finetuner.args
    settings = {
        **finetuner.settings_of_predictions(model),
        "rows": finetuner.fingerprint(rows),
        "max_new_tokens": args.max_new_tokens,
    }

    def build(directory: Path) -> None:
        tokenizer = load_tokenizer(model.path, revision=model.revision)
        # New adapters change no output. With them, the loaded base model can be used.
        network = finetuner.in_place(finetuner.untrained(model, tokenizer, seed=0))
        with autocast(args):
            completions = complete(
                network,
                tokenizer,
                rows["prompt"],
                max_new_tokens=args.max_new_tokens,
                batch_size=args.per_device_eval_batch_size,
                keep=directory / "completions",
            )
        if PartialState().is_main_process:
            provenance = {**source, "model": model.name, "versions": library_versions()}
            WeakCompletions(list(rows["id"]), completions, provenance).save(directory / "predictions")
            shutil.rmtree(directory / "completions")

    title = f"zero-shot completions of {len(rows)} prompts by {model.name}"
    path = finetuner.cache.run(name, settings, build, title=title)
    return WeakCompletions.load(path / "predictions").of(list(rows["id"]))
