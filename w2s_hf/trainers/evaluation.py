"""
The common part of all trainers: evaluation and prediction in row order, and checks of the model and of
`metric_for_best_model` before training.
"""

import copy
import dataclasses
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from .._compat import (
    forget_eval_dataloader,
    has_length,
    memory_stage,
    next_log,
    remove_neftune_hook,
    restore_memory_stage,
)
from ..collators import RewardPairCollator, WeakToStrongCollator
from .checks import check_dataset, refuse_frozen
from .mixins import TrainerMixin

__all__ = ["OrderedEvaluation"]


class OrderedEvaluation(TrainerMixin):
    """
    A mixin for a [`~transformers.Trainer`], with the common part of all trainers of the package. `evaluate` and
    `predict` return the same results as in the base trainer. In addition:

    - Functions of the user see rows in the order of the dataset. Only `predict_proba`, which calls no such function,
      predicts rows in the order of their lengths.
    - The metrics of TRL's trainers are named after their evaluation set, such as `eval_a_accuracy`, and are in the
      result of `evaluate`. They do not replace metrics of the same name that `compute_metrics` returns.
    - `train` refuses a frozen model and a `metric_for_best_model` that the evaluation does not report before the
      first step.
    - After an error, no metrics, callbacks or hooks of the failed call remain.
    """

    # Every evaluation set has these metrics, in addition to the metrics of `compute_metrics`.
    _known_metrics: tuple[str, ...] = ("loss",)
    _rows_of_workers: Dataset | None = None  # the rows of the data loader that persistent workers keep

    def _lengths(self, dataset: Dataset) -> np.ndarray:
        """Returns the number of tokens of each row, `(N,)`."""
        return np.zeros(len(dataset), dtype=np.int64)

    @property
    def _evaluation_rows(self):
        """The evaluation set or sets, as an argument of `evaluate`."""
        return self.eval_dataset

    # ---- Order ----

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler | None:
        # Predictions are matched to rows by position, and `group_by_length` would shuffle the rows.
        if self.args.world_size > 1 or not has_length(eval_dataset):
            return None
        return SequentialSampler(eval_dataset)

    def _prepare_test_rows(self, dataset: Dataset) -> Dataset:
        """Returns the rows of `predict`, tokenized and checked."""
        return dataset

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """
        Predicts like [`~transformers.Trainer.predict`], in the order of the rows.

        Args:
            test_dataset ([`~datasets.Dataset`]): Rows as in `train_dataset`, text or tokens. Classes and preferences
                may be missing.
            ignore_keys (`list[str]`, *optional*): Outputs of the model to leave out.
            metric_key_prefix (`str`, *optional*, defaults to `"test"`): The prefix of metric names.

        Returns:
            [`~transformers.trainer_utils.PredictionOutput`]: `predictions` are the logits `(N, C)` of a classifier,
            or the rewards `(N, 2)` of pairs, float32 (rejected, chosen). For prompts and completions they are the
            logits `(N, T, V)`. Training arguments may leave rows out (`dataloader_drop_last`,
            `prediction_loss_only`).

        Raises:
            ValueError: The rows would be refused as `train_dataset`, or have more tokens than the model has positions.
                Pairs or completions have more than `max_length` tokens. The message names the rows.
        """
        with self._clean_up_on_error():
            check_dataset(test_dataset, "test_dataset")
            dataset, order = self._prepare_test_rows(test_dataset), None
            if self.preprocess_logits_for_metrics is _only_logits:
                order = self._order_by_length(dataset)
            dataset = dataset if order is None else dataset.select(order)
            output = super().predict(dataset, ignore_keys, metric_key_prefix)
        if order is None:
            return output
        return output._replace(predictions=output.predictions[np.argsort(order)], label_ids=None)

    def _order_by_length(self, dataset: Dataset) -> np.ndarray | None:
        """Returns the order of rows by length, or `None` for the order of the dataset."""
        # The lengths of transformed rows are not known.
        if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
            return None
        if not isinstance(self.data_collator, WeakToStrongCollator | RewardPairCollator):
            return None
        # The longest rows are first, so that a lack of memory causes an error in the first batch.
        return np.argsort(-self._lengths(dataset), kind="stable")

    def _predict_probabilities(self, dataset: Dataset, label_columns: tuple[str, ...]) -> np.ndarray:
        """
        Returns the softmax of the logits of every row, `(N, C)` float32, in row order. Labels are not read, since
        unlabelled rows have a label such as -1 in many datasets. Arguments that leave out rows or outputs have no
        effect.
        """
        has_transform = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
        columns = getattr(dataset, "column_names", None) or []
        if not has_transform and set(columns) & set(label_columns):
            dataset = dataset.remove_columns([name for name in label_columns if name in columns])
        before = self.args, self.compute_metrics, self.preprocess_logits_for_metrics, self.data_collator
        self.args = copy.copy(self.args)  # dataclasses.replace would reset accelerate's state
        self.args.dataloader_drop_last = self.args.prediction_loss_only = False
        self.args.eval_do_concat_batches, self.args.include_for_metrics = True, []
        self.compute_metrics, self.preprocess_logits_for_metrics = None, _only_logits
        if isinstance(self.data_collator, WeakToStrongCollator):
            self.data_collator = dataclasses.replace(self.data_collator, with_labels=False)
        try:
            logits = self.predict(dataset).predictions
        finally:
            self.args, self.compute_metrics, self.preprocess_logits_for_metrics, self.data_collator = before
        return torch.from_numpy(np.asarray(logits, dtype=np.float32)).softmax(dim=-1).numpy()

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Predicts like the base trainer. Weights are not used: in an evaluation, every row counts once. The labels of
        each supervisor are not used, either.
        """
        inputs.pop("weight", None)
        inputs.pop("supervisor_labels", None)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    # ---- Metrics ----

    def _next_log(self, mode: str) -> dict[str, list[float]]:
        """Returns the numbers whose means TRL puts into the next log of a `mode`, `"train"` or `"eval"`, by name."""
        return next_log(self, mode)

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        if isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        if eval_dataset is not None and eval_dataset is not self.eval_dataset:
            # With persistent workers, Trainer would keep this data loader and use it for other rows, too.
            return self.get_test_dataloader(eval_dataset)
        if self._rows_of_workers is not self.eval_dataset:
            forget_eval_dataloader(self)
            self._rows_of_workers = self.eval_dataset
        return super().get_eval_dataloader()

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        with self._clean_up_on_error():
            return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Adds the metrics of TRL's trainers under the name of the evaluation set, instead of `eval_...`."""
        prefix = metric_key_prefix
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, prefix)
        logs, metrics = self._next_log("eval"), output.metrics or {}
        for name, values in logs.items():
            metrics.setdefault(f"{prefix}_{name}", sum(values) / len(values))
        logs.clear()
        self._add_metrics(metrics, prefix)
        return output._replace(metrics=metrics)

    def _add_metrics(self, metrics: dict[str, float], prefix: str) -> None:
        """Adds the metrics of a subclass to the metrics of an evaluation, before callbacks look for them."""

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike | bool | None = None,
        trial: dict | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains like [`~transformers.Trainer.train`].

        Raises:
            ValueError: The model is frozen, or the evaluation does not report `metric_for_best_model`. If only
                `compute_metrics` can report the metric, this function is called once before the first step, on the
                first rows. If this call fails, the function is called on all rows.
        """
        if self.model is not None:  # in Ray's hyperparameter search, `model_init` loads the model later
            refuse_frozen(self.model)
        if isinstance(resume_from_checkpoint, os.PathLike):
            resume_from_checkpoint = str(resume_from_checkpoint)
        check = _CheckBestMetric(self, ignore_keys_for_eval)
        self.add_callback(check)
        try:
            with self._clean_up_on_error():
                return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except BaseException:
            self.is_in_train = False
            for mode in ("train", "eval"):
                self._next_log(mode).clear()
            remove_neftune_hook(self)
            raise
        finally:
            self.remove_callback(check)

    def _refuse_unknown_metric(self, ignore_keys: list[str] | None) -> None:
        """
        Raises `ValueError` if no evaluation reports `metric_for_best_model`. [`~transformers.Trainer`] raises an error
        only after the first evaluation.
        """
        metric = self.args.metric_for_best_model
        if metric is None or self.args.eval_strategy == "no":
            return
        metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        rows = self._evaluation_rows
        prefixes = [f"eval_{name}" for name in rows] if isinstance(rows, dict) else ["eval"]
        # If the last batch is dropped, evaluation rows that do not fill a batch give no metrics.
        known = () if self.args.dataloader_drop_last else self._known_metrics
        names = {f"{prefix}_{name}" for prefix in prefixes for name in known}
        if metric in names or any(metric in entry for entry in self.state.log_history):
            return
        names |= self._names_of_metrics(self._first_rows(rows), ignore_keys, may_fail=self.compute_metrics is not None)
        if metric not in names and self.compute_metrics is not None:
            names |= self._names_of_metrics(None, ignore_keys)
        if metric not in names and not self._may_be_added_by_callback():
            raise ValueError(
                f"metric_for_best_model: Got {self.args.metric_for_best_model!r}, expected a metric that the "
                f"evaluation reports: {', '.join(sorted(names))}. "
                "Name one of these metrics, or return the metric from compute_metrics."
            )

    def _first_rows(self, rows: Dataset | dict[str, Dataset]) -> Dataset | dict[str, Dataset]:
        """Returns a batch of each evaluation set. Sets that are not a [`~datasets.Dataset`] are returned whole."""
        if isinstance(rows, dict):
            return {name: self._first_rows(part) for name, part in rows.items()}
        n_rows = self.args.eval_batch_size * self.args.world_size
        return rows.select(range(min(n_rows, len(rows)))) if isinstance(rows, Dataset) else rows

    def _names_of_metrics(
        self, rows: Dataset | dict[str, Dataset] | None, ignore_keys: list[str] | None, may_fail: bool = False
    ) -> set[str]:
        """Returns the names that `evaluate` reports. Random state, logs and callbacks do not change."""
        handler, history, model = self.callback_handler, self.state.log_history, self.model
        callbacks, dataloader, device = handler.callbacks, handler.eval_dataloader, self.args.device
        n_logged, is_training = len(history), model.training
        states = random.getstate(), np.random.get_state()
        handler.callbacks = []
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                return {name for name in self.evaluate(rows, ignore_keys) if name.startswith("eval_")}
        except Exception:
            if not may_fail:  # compute_metrics may need all rows
                raise
            return set()
        finally:
            handler.callbacks, handler.eval_dataloader = callbacks, dataloader
            del history[n_logged:]
            model.train(is_training)
            random.setstate(states[0])
            np.random.set_state(states[1])

    def _may_be_added_by_callback(self) -> bool:
        """Returns whether a callback of the user could add a metric to the result of `evaluate`."""
        methods = [type(callback).on_evaluate for callback in self.callback_handler.callbacks]
        return any(not method.__module__.startswith("transformers.") for method in methods)

    # ---- After an error ----

    @contextmanager
    def _clean_up_on_error(self) -> Iterator[None]:
        """
        Removes the numbers of a call that raised an error, so that the next log and memory report do not contain them.
        """
        stage = memory_stage(self)
        try:
            yield
        except BaseException:
            self._next_log("eval").clear()
            restore_memory_stage(self, stage)
            raise


class _CheckBestMetric(TrainerCallback):
    """Checks the `metric_for_best_model` of a trainer once its model is prepared, before the first step."""

    def __init__(self, trainer: OrderedEvaluation, ignore_keys: list[str] | None):
        self.trainer, self.ignore_keys = trainer, ignore_keys

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.trainer._refuse_unknown_metric(self.ignore_keys)


def _only_logits(outputs: torch.Tensor | tuple, labels: torch.Tensor | None) -> torch.Tensor:
    """Removes hidden states and other outputs, which follow the logits."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
