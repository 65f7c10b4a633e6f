"""The trainer of a strong student on a weak supervisor's labels."""

from collections import defaultdict
from collections.abc import Callable

import datasets
import numpy as np
import torch
import transformers
from packaging.version import Version
from peft import PeftConfig, PeftModel
from torch import nn
from torch.nn.functional import one_hot
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import PredictionOutput

from .. import losses
from ..collators import WeakToStrongCollator, prepare_rows
from ..config import WeakToStrongConfig
from ..modeling import align_padding, cast_trainable_to_float32, disable_dropout
from .resuming import ResumableTraining
from .student_card import WithStudentCard
from .whole_step import WholeStepLoss, load_model, refuse_data_parallel

__all__ = ["WeakToStrongTrainer"]

_Rows = datasets.Dataset | dict[str, datasets.Dataset]


class WeakToStrongTrainer(WholeStepLoss, WithStudentCard, ResumableTraining, Trainer):
    """
    [`~transformers.Trainer`] for a classifier that learns from soft labels.

    With `loss_type="xent"`, integer labels and `disable_dropout=False` it is a drop-in [`~transformers.Trainer`]: the
    same loss at every step and the same final weights. Every loss is a mean over the rows of the *whole* optimizer
    step, on all ranks, so 8x1, 2x4, 1x8 rows times accumulation steps and two ranks train the same model. An epoch
    trains on every row once also where rows do not divide by ranks; see [`w2s_hf.trainers.epochs.WholeEpochs`]. (There
    [`~transformers.Trainer`] itself differs: with accumulation it does not divide the loss of a sequence classifier,
    and 2x4 has 4 times the gradient of 8x1.)

    What it overrides, and why:

    - `compute_loss`: the losses of [`w2s_hf.losses`]; the model never sees the labels, because transformers reads
      float labels as a multi-label problem and trains a binary cross-entropy without a word.
    - `get_batch_samples`: the one place that sees a whole optimizer step. Counts its rows on all ranks, and finds the
      threshold of the confidence loss over all of them (a first pass without gradient, only where there is more than
      one micro-batch).
    - `train`: a resumed training ends as it would have without the stop, or raises an error before its first step;
      see [`w2s_hf.trainers.resuming.ResumableTraining`].
    - `training_step`: cuts a batch into micro-batches of bounded padded tokens (`max_tokens_per_micro_batch`).
    - `evaluate`, `predict`: take raw text too; `predict` runs rows sorted by length, returns them in their own order.
    - `call_model_init`, `_get_eval_sampler`: dropout off and float32 adapters for models of `model_init`, too; rows in
      order where training groups them by length.
    - `log`: adds the averages of what the loss reports.
    - `create_model_card`, `push_to_hub`: the card of a student, `trainer.card` (a [`StudentCard`]), and a push of what
      the student is made of and nothing else.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A sequence classifier, or its Hub id or local directory, loaded by [`load_student`].
        args ([`WeakToStrongConfig`], *optional*): Defaults to `WeakToStrongConfig()`.
        data_collator (`Callable`, *optional*): Defaults to [`w2s_hf.collators.WeakToStrongCollator`].
        train_dataset, eval_dataset ([`~datasets.Dataset`], *optional*):
            Rows with `input_ids`, or with a text column that is tokenized here, and `labels`: an integer class, a
            float P(class 1), or a list of C probabilities.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; loaded from `model` when that is a name.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Used when `model` is a name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapters to add to `model`; they and the head learn in float32.
        kwargs: As in [`~transformers.Trainer`]: `model_init`, `compute_metrics`, `callbacks`, `optimizers`,
            `optimizer_cls_and_kwargs`, `preprocess_logits_for_metrics`.

    Raises:
        ValueError: no rows, no labels to train on, labels that are not probabilities (rows named), a column `label`
            beside `labels`, adapters on top of adapters, nothing trainable, a head with one output, LoRA dropout where
            `disable_dropout` is set, or several GPUs in one process.

    Example:

    ```python
    trainer = WeakToStrongTrainer(
        model="Qwen/Qwen2.5-7B",
        args=WeakToStrongConfig(output_dir="out", loss_type="confidence"),
        train_dataset=weak_labels.join(student_half),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
        peft_config=LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"),
    )
    trainer.train()
    probabilities = trainer.predict_proba(test_rows)  # (N, C) float32, in row order
    ```
    """

    _tag_names = ["w2s_hf", "weak-to-strong"]

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel | None = None,
        args: WeakToStrongConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        args = WeakToStrongConfig() if args is None else args
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("Got a compute_loss_func, which args.loss_type replaces; override `_row_losses` instead.")
        model, processing_class = load_model(
            model,
            args,
            processing_class,
            task_type="SEQ_CLS",
            is_trainable=train_dataset is not None,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        # call_model_init needs both before Trainer sets them.
        self.args, self.processing_class = args, processing_class
        if model is not None:
            model = self._prepare_model(model)

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if Version(transformers.__version__) < Version("5.19"):
            self.model_accepts_loss_kwargs = True  # what loss_is_scaled_for_ga was called before
        n_classes = _n_classes(self.model)
        if data_collator is None:
            self.data_collator = WeakToStrongCollator(self.data_collator, n_classes)
        if train_dataset is not None:
            if not any(parameter.requires_grad for parameter in self.model.parameters()):
                raise ValueError(
                    "Got a train_dataset and a model whose parameters are all frozen. To train a finished student "
                    "further, load it with load_student(..., is_trainable=True)."
                )
            self.train_dataset = self._prepare_dataset(train_dataset, "train_dataset")
        if eval_dataset is not None:
            self.eval_dataset = self._prepare_dataset(eval_dataset, "eval_dataset")
        refuse_data_parallel(args)
        self._metrics: dict[str, list[float]] = defaultdict(list)

    # ---- Model and data ----

    def call_model_init(self, trial=None) -> nn.Module:
        return self._prepare_model(super().call_model_init(trial))

    def _prepare_model(self, model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
        """Precision, dropout and padding; for a model that was passed, and for each that `model_init` makes."""
        if isinstance(model, PeftModel):
            cast_trainable_to_float32(model)
            if self.args.gradient_checkpointing:
                model.enable_input_require_grads()  # a frozen embedding would cut the graph of a checkpointed block
        if self.args.disable_dropout:
            disable_dropout(model)
        if self.processing_class is not None and model.config.get_text_config().pad_token_id is None:
            align_padding(model, self.processing_class)
        return model

    def _prepare_dataset(self, dataset: _Rows, name: str, needs_labels: bool = True) -> _Rows:
        """[`w2s_hf.collators.prepare_rows`] of a dataset, or of each of a dictionary; anything else as it is."""
        if isinstance(dataset, dict):
            return {
                key: self._prepare_dataset(part, f"{name}[{key!r}]", needs_labels) for key, part in dataset.items()
            }
        if not isinstance(dataset, datasets.Dataset):
            return dataset
        return prepare_rows(
            dataset,
            name,
            n_classes=_n_classes(self.model),
            tokenizer=self.processing_class,
            text_field=self.args.dataset_text_field,
            max_length=self.args.max_length,
            needs_labels=needs_labels,
        )

    # ---- Training ----

    def _forward(self, model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        labels = inputs.pop("labels")
        logits = _logits(model(**inputs))
        return logits, self._soft_labels(labels, logits.shape[-1])

    def _n_rows(self, batch: dict) -> int:
        return len(batch["labels"])

    def _record(self, name: str, value: float) -> None:
        self._metrics[name].append(value)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict]:
        """
        The configured loss in training; in evaluation plain cross-entropy, since an auxiliary term has no meaning
        there.

        Args:
            inputs (`dict`): Model inputs and `labels`: `(B,)` integers, `(B,)` P(class 1) or `(B, C)` probabilities.
            num_items_in_batch (`int`, *optional*):
                Rows of the whole optimizer step on all ranks. Without it the loss is the mean over this batch.
        """
        inputs = dict(inputs)
        if "labels" not in inputs:
            raise ValueError(f"compute_loss: got inputs {sorted(inputs)}, expected `labels` among them.")
        labels = inputs.pop("labels")
        counts = inputs.pop("counts", None)
        outputs = model(**inputs)
        logits = _logits(outputs)
        soft_labels = self._soft_labels(labels, logits.shape[-1])
        if model.training:
            row_losses = self._row_losses(logits, soft_labels, counts)
            n_rows = len(row_losses) if counts is None else int(counts.sum())
            loss = self._share_of_step(row_losses.sum(), n_rows, num_items_in_batch)
        else:
            loss = self._mean_that_counts(losses.cross_entropy_loss(logits, soft_labels, reduction="none"))
        return (loss, outputs) if return_outputs else loss

    @staticmethod
    def _soft_labels(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
        """`(B, C)` float32 from integers `(B,)`, P(class 1) `(B,)` or probabilities `(B, C)`."""
        if not labels.is_floating_point():
            return one_hot(labels, n_classes).float()
        return torch.stack([1 - labels, labels], dim=1) if labels.ndim == 1 else labels

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **{name: sum(values) / len(values) for name, values in self._metrics.items() if values}}
            self._metrics.clear()
        super().log(logs, start_time)

    # ---- Evaluation and prediction ----

    def evaluate(
        self, eval_dataset: _Rows | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As [`~transformers.Trainer.evaluate`]; rows with a text column are tokenized, and labels checked."""
        return super().evaluate(self._prepare_dataset(eval_dataset, "eval_dataset"), ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: datasets.Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """
        As [`~transformers.Trainer.predict`], with rows of like length in one batch; the order of the output is that of
        `test_dataset`. Labels are optional.
        """
        if not isinstance(test_dataset, datasets.Dataset):
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        test_dataset = self._prepare_dataset(test_dataset, "test_dataset", needs_labels=False)
        return self._predict_by_length(test_dataset, ignore_keys, metric_key_prefix)

    def _lengths(self, dataset: datasets.Dataset) -> np.ndarray:
        return np.array([len(ids) for ids in dataset["input_ids"]])

    def predict_proba(self, dataset: datasets.Dataset) -> np.ndarray:
        """
        Class probabilities of rows, tokenized or not, with labels or without: these are soft labels for a student.

        Returns:
            `np.ndarray` of shape `(N, C)`, float32, in row order, on every rank.
        """
        if isinstance(dataset, datasets.Dataset):
            # Not read here, and the test splits of GLUE and others say -1.
            dataset = dataset.remove_columns([name for name in ("label", "labels") if name in dataset.column_names])
        logits = self.predict(dataset).predictions
        logits = logits[0] if isinstance(logits, tuple) else logits
        return torch.from_numpy(np.asarray(logits, dtype=np.float32)).softmax(dim=-1).numpy()


def _logits(outputs) -> torch.Tensor:
    return (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()


def _n_classes(model: nn.Module) -> int:
    n_classes = getattr(model.config, "num_labels", 0)
    if n_classes < 2:
        raise ValueError(
            f"Got a model with {n_classes} output{'s' if n_classes != 1 else ''}, expected a classifier of at least "
            "two classes; load it with num_labels=2."
        )
    return n_classes
