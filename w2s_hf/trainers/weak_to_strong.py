"""The trainer of classifiers on the labels of a weak supervisor."""

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import datasets
import numpy as np
import torch
from peft import PeftConfig, PeftModel
from torch import nn
from torch.nn.functional import one_hot
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from .. import losses
from .._compat import mark_loss_as_divided, signature_columns
from ..collators import TOKENIZE_STREAM, WeakToStrongCollator, prepare_rows
from ..config import WeakToStrongConfig
from ..modeling import align_padding, disable_dropout
from ..modeling.adapters import keep_4bit_gradients, prepare_adapters
from ..probabilities import as_probabilities
from ..tokenization import CONTEXT_COLUMNS
from .checks import (
    check_arguments,
    check_columns,
    check_dataset,
    check_loss,
    check_supervisor_labels,
    check_weights,
    named_parts,
    refuse_frozen,
    refuse_longer,
    refuse_problem_type,
    warn_of_unread_ends,
    without_training_columns,
)
from .evaluation import OrderedEvaluation
from .resuming import ResumableTraining
from .row_loss import check_row_loss
from .student_card import WithStudentCard
from .whole_step import WholeStepLoss, counted_weight, load_model, refuse_data_parallel

__all__ = ["WeakToStrongTrainer"]

_Rows: TypeAlias = datasets.Dataset | dict[str, datasets.Dataset]


class WeakToStrongTrainer(WholeStepLoss, OrderedEvaluation, WithStudentCard, ResumableTraining, Trainer):
    """
    A [`~transformers.Trainer`] for classifiers that are trained on soft labels.

    With `loss_type="xent"`, integer labels and `disable_dropout=False` it is a drop-in [`~transformers.Trainer`], with
    the same loss at every step and the same final weights. Every loss is a mean over the rows of the *whole* optimizer
    step, on all ranks. Therefore 8x1, 2x4 and 1x8 (rows x accumulation steps) train the same model, on one rank or
    two. With accumulation, [`~transformers.Trainer`] does not divide the loss of a sequence classifier, so that 2x4
    has 4 times the gradient of 8x1. An epoch trains on every row once, even if the number of rows is not a multiple of
    the number of ranks; see [`w2s_hf.trainers.epochs.WholeEpochs`].

    Overridden methods, and the reasons:

    - `compute_loss`: computes the losses of [`w2s_hf.losses`]. The model does not get the labels, because transformers
      interprets float labels as a multi-label problem and trains a binary cross-entropy without a warning.
    - `get_batch_samples`: counts the rows of a step on all ranks, because no other method gets a whole optimizer
      step. For rows with weights, it sums the weights. It computes the threshold of the confidence loss over these
      rows. With more than one micro-batch, this takes a first forward pass without gradient.
    - `train`: refuses a frozen model, and a `metric_for_best_model` that the evaluation does not report, before the
      first step. A resumed run ends as it would have without the interruption, or raises an error before its
      first step; see [`w2s_hf.trainers.resuming.ResumableTraining`].
    - `training_step`: splits a batch into micro-batches of bounded padded tokens (`max_tokens_per_micro_batch`).
    - `_prepare_inputs`: moves padding to the side that the architecture needs, independent of `padding_side`.
    - `_set_signature_columns_if_needed`: keeps the columns `weight` and `supervisor_labels`.
    - `prediction_step`: removes both from a batch, because evaluation does not use them.
    - `evaluate`, `predict`: accept raw text, and `predict` accepts rows without labels.
    - `call_model_init`: disables dropout and casts adapters to float32 in models of `model_init`, too.
    - `_get_eval_sampler`: keeps evaluation rows in order if training groups rows by length.
    - `log`: adds the averages of the numbers that the loss reports.
    - `create_model_card`, `push_to_hub`: write the card of the student, `trainer.card` (a [`StudentCard`]), and upload
      only the files of the student.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A sequence classifier, or a Hub id or local directory, which is loaded by [`load_student`].
        args ([`WeakToStrongConfig`], *optional*): Defaults to `WeakToStrongConfig()`.
        data_collator (`Callable`, *optional*): Defaults to [`w2s_hf.collators.WeakToStrongCollator`].
        train_dataset, eval_dataset ([`~datasets.Dataset`], *optional*):
            Rows with `labels`: an integer class, a float P(class 1), or a list of C probabilities. They also have
            `input_ids`, or a text column, which is tokenized. Texts of [`load_task`] that are too long
            are truncated in their context, and other texts at the end. Streamed datasets must be tokenized. The
            columns `id` and `ground_truth` are allowed. A warning names other columns, which are not used. An optional
            column `weight` has one float per row, at least 0. The loss of a step is then
            `sum(weight * loss) / sum(weight)`. Evaluation does not use weights: every row counts once. The threshold
            and the prior of the confidence loss, and the agreement of `aux_start="agreement"`, do not use them.
            With `loss_type="learned_supervisors"`, training rows have a column `supervisor_labels` in addition: a list
            of C probabilities for each of K supervisors. Evaluation uses `labels`, such as their mean.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer. It is loaded if `model` is a name.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Used if `model` is a name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapters to add to `model`. They and the head are trained in
            float32.
        loss ([`~w2s_hf.losses.RowLoss`], *optional*): Your own loss instead of `args.loss_type`: a function of
            `logits` `(B, C)` float32, `soft_labels` `(B, C)` float32 and the [`~w2s_hf.losses.Step`]. It returns the
            loss of each row, `(B,)`. Other rows may be in other micro-batches. The loss must not depend on them.
        kwargs: The arguments `model_init`, `compute_metrics`, `callbacks`, `optimizers`, `optimizer_cls_and_kwargs`
            and `preprocess_logits_for_metrics` of [`~transformers.Trainer`].

    Raises:
        ValueError: `args` has another class or `use_liger_kernel=True`. Rows are not a dataset, or are empty,
            unlabelled or a stream of texts. Labels are not probabilities (the message names the rows). There are both
            `label` and `labels`, or an unused column that looks like labels or weights. Weights are negative, missing,
            infinite or all 0, or the data collator drops them. A column `supervisor_labels` is missing, invalid or not
            read by the loss. Rows have more tokens than the model has positions.
            Adapters are added to adapters, or are prompt tuning of a decoder. The model is frozen, has one output, or
            has the `problem_type` of several labels. The loss is for two classes and the model has more. There is LoRA
            dropout with `disable_dropout=True`. There are several GPUs in one process.

    Example:

    ```python
    trainer = WeakToStrongTrainer(
        model="Qwen/Qwen2.5-7B",
        args=WeakToStrongConfig(output_dir="out", loss_type="confidence"),
        train_dataset=weak_labels.join(student_half),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
        peft_config=LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"),
    )
    trainer.train()
    probabilities = trainer.predict_proba(test_rows)  # (N, C) float32, in row order
    ```
    """

    args: WeakToStrongConfig
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
        loss: losses.RowLoss | None = None,
        **kwargs,
    ):
        args = WeakToStrongConfig() if args is None else args
        check_arguments(args, WeakToStrongConfig)
        check_row_loss(loss, args)
        self._loss = loss
        check_dataset(train_dataset, "train_dataset")
        for name, part in named_parts(eval_dataset, "eval_dataset").items():
            check_dataset(part, name)
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "compute_loss_func: got a function, expected None, since it cannot weigh the rows of a whole step. "
                "Pass a function of logits, soft labels and step as `loss`."
            )
        if model is not None:
            has_rows = train_dataset is not None
            model, processing_class = load_model(
                model, args, processing_class, "SEQ_CLS", quantization_config, peft_config, is_trainable=has_rows
            )
        elif quantization_config is not None or peft_config is not None:
            name = "quantization_config" if peft_config is None else "peft_config"
            raise ValueError(
                f"Got a {name} and no model, expected a base model or its name. Apply the {name} in model_init."
            )
        # call_model_init needs both attributes before Trainer sets them.
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
        mark_loss_as_divided(self)
        n_classes = _n_classes(self.model)
        if data_collator is None:
            self.data_collator = WeakToStrongCollator(self.data_collator, n_classes)
        if train_dataset is not None:
            refuse_frozen(self.model)
            check_loss(args.loss_type, n_classes)
            self.train_dataset = self._prepare_dataset(train_dataset, "train_dataset")
        if eval_dataset is not None:
            self.eval_dataset = self._prepare_dataset(eval_dataset, "eval_dataset")
        refuse_data_parallel(args)
        self._next_log("train").clear()  # numbers of the previous link of a chain

    # ---- Model and data ----

    def call_model_init(self, trial=None) -> nn.Module:
        model: Any = super().call_model_init(trial)
        keep_4bit_gradients(model)
        model = self._prepare_model(model)
        if getattr(self, "train_dataset", None) is not None:  # called by `train`
            refuse_frozen(model)
        return model

    def _prepare_model(self, model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
        """Sets precision, dropout and padding of a model that was passed or that `model_init` returned."""
        if isinstance(model, PeftModel):
            prepare_adapters(model)
            if self.args.gradient_checkpointing:
                model.enable_input_require_grads()  # a frozen embedding stops the gradient of checkpointed blocks
        if self.args.disable_dropout:
            disable_dropout(model)
        refuse_problem_type(model.config)
        if self.processing_class is not None:
            # config.json may have another padding token than the tokenizer
            align_padding(model, self.processing_class)
        return model

    def _prepare_dataset(self, dataset: _Rows, name: str, needs_labels: bool = True) -> _Rows:
        """Calls [`w2s_hf.collators.prepare_rows`] for a dataset, or for each dataset of a dictionary."""
        parts = named_parts(dataset, name)
        if name not in parts:
            prepared = [self._prepare_dataset(part, which, needs_labels) for which, part in parts.items()]
            return dict(zip(dataset, prepared, strict=True))
        check_dataset(dataset, name)
        if needs_labels and self.args.remove_unused_columns:
            self._check_columns(dataset, name)
        if needs_labels:
            check_weights(dataset, name)
            check_supervisor_labels(dataset, name, self.args.loss_type, _n_classes(self.model))
        dataset = without_training_columns(dataset, name)
        if isinstance(dataset, datasets.IterableDataset):
            self._refuse_texts(dataset, name)
        if not isinstance(dataset, datasets.Dataset):
            return dataset
        dataset = prepare_rows(
            dataset,
            name,
            n_classes=_n_classes(self.model),
            tokenizer=self.processing_class,
            text_field=self.args.dataset_text_field,
            max_length=self.args.max_length,
            needs_labels=needs_labels,
        )
        if "input_ids" in dataset.column_names:
            rows = dataset.with_format(None)["input_ids"]
            refuse_longer(self.model, [len(ids) for ids in rows], name)
            warn_of_unread_ends(self.model, rows, self.processing_class, name)
        return dataset

    def _refuse_texts(self, dataset: datasets.IterableDataset, name: str) -> None:
        """Raises `ValueError` for a stream of texts, unless a collator of the user may tokenize them."""
        columns = dataset.column_names  # `None` if the columns are unknown; then the collator refuses the first batch
        has_tokens = columns is None or {"input_ids", "inputs_embeds"} & set(columns)
        if not has_tokens and isinstance(self.data_collator, WeakToStrongCollator):
            raise ValueError(
                f"{name}: got a streamed dataset with the columns {', '.join(columns)}, expected `input_ids`. "
                f"{TOKENIZE_STREAM}"
            )

    def _check_columns(self, dataset: _Rows, name: str) -> None:
        signature = signature_columns(self)
        # These columns are optional. Their absence raises no error.
        optional = {"attention_mask", "token_type_ids", "weight", "supervisor_labels"} & {*signature} | {"labels"}
        if {"label", "labels", "label_ids"} & set(getattr(dataset, "column_names", None) or ()):
            optional.discard("labels")
        lengths = {getattr(self.args, "length_column_name", "length")}
        reads = {"label", "labels", self.args.dataset_text_field, *signature, *lengths}
        if set(CONTEXT_COLUMNS) <= set(getattr(dataset, "column_names", None) or ()):
            reads |= {*CONTEXT_COLUMNS, "group", "question"}  # rows of load_task
        check_columns(dataset, name, labels="labels", reads=reads, optional=optional)

    # ---- Training ----

    def _forward(self, model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        labels = inputs.pop("labels")
        logits = _logits(model(**inputs))
        return logits, self._soft_labels(labels, logits.shape[-1])

    def _n_rows(self, batch: dict) -> int:
        if "labels" not in batch:
            raise ValueError(
                f"train_dataset: got batches with {', '.join(map(repr, batch))}, expected 'labels' among them. Add a "
                "column `labels`, or return `labels` from the data collator."
            )
        return len(batch["labels"])

    @cached_property
    def _numbers(self) -> dict[str, dict[str, list[float]]]:
        return {"train": defaultdict(list), "eval": defaultdict(list)}

    def _next_log(self, mode: str) -> dict[str, list[float]]:
        return self._numbers[mode]

    def _record(self, name: str, value: float) -> None:
        self._next_log("train")[name].append(value)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict]:
        """
        Computes the configured loss in training, and plain cross-entropy in evaluation, where an auxiliary term has no
        meaning.

        Args:
            inputs (`dict`): Model inputs and `labels`: `(B,)` integers, `(B,)` P(class 1) or `(B, C)` probabilities.
                An optional input is `weight` `(B,)`, which is used in training only. The loss `learned_supervisors`
                also needs `supervisor_labels` `(B, K, C)` in training.
            num_items_in_batch (`int`, *optional*): The number of rows of the whole optimizer step on all ranks, or the
                sum of their weights. Without it, the loss is the mean over this batch.
        """
        inputs = dict(inputs)
        if "labels" not in inputs:
            raise ValueError(f"compute_loss: got inputs {sorted(inputs)}, expected `labels` among them. Add `labels`.")
        labels = inputs.pop("labels")
        counts, weight = inputs.pop("counts", None), inputs.pop("weight", None)
        supervisor_labels = inputs.pop("supervisor_labels", None)
        outputs = model(**inputs)
        logits = _logits(outputs)
        soft_labels = self._soft_labels(labels, logits.shape[-1])
        if model.training:
            if supervisor_labels is not None:
                row_weights = counts if weight is None else counted_weight(weight, counts)
                soft_labels = self._combine(logits, supervisor_labels, row_weights)
            row_losses = self._row_losses(logits, soft_labels, counts)
            n_rows: float = len(row_losses) if counts is None else int(counts.sum())
            if weight is not None:
                row_losses, n_rows = row_losses * weight, counted_weight(weight, counts).sum().item()
            loss = self._share_of_step(row_losses.sum(), n_rows, num_items_in_batch)
        else:
            loss = self._mean_that_counts(losses.cross_entropy_loss(logits, soft_labels, reduction="none"))
        if not isinstance(outputs, dict):
            outputs = (loss, *outputs)  # transformers expects the tuple of a model that gets labels
        return (loss, outputs) if return_outputs else loss

    def _soft_labels(self, labels: torch.Tensor | list, n_classes: int) -> torch.Tensor:
        """Returns `(B, C)` float32 for integers `(B,)`, P(class 1) `(B,)` or probabilities `(B, C)`."""
        labels = torch.as_tensor(labels)
        if not isinstance(self.data_collator, WeakToStrongCollator):
            # The labels of the user's collator may have another form, and are not checked yet.
            labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
            labels = labels.float() if labels.is_floating_point() else labels  # NumPy has no bfloat16
            return torch.from_numpy(as_probabilities(labels.cpu().numpy(), n_classes)).to(self.args.device)
        if not labels.is_floating_point():
            return one_hot(labels, n_classes).float()
        return torch.stack([1 - labels, labels], dim=1) if labels.ndim == 1 else labels

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            numbers = self._next_log("train")
            logs = {**logs, **{name: sum(values) / len(values) for name, values in numbers.items() if values}}
            numbers.clear()
        super().log(logs, start_time)

    # ---- Evaluation and prediction ----

    def evaluate(
        self, eval_dataset: _Rows | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates like [`~transformers.Trainer.evaluate`]. Texts are tokenized, and labels are checked."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):  # a string names one of several sets
            eval_dataset = self._prepare_dataset(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _prepare_test_rows(self, dataset: datasets.Dataset) -> datasets.Dataset:
        return self._prepare_dataset(dataset, "test_dataset", needs_labels=False)

    def _lengths(self, dataset: datasets.Dataset) -> np.ndarray:
        if "input_ids" not in dataset.column_names:
            return super()._lengths(dataset)
        return np.array([len(ids) for ids in dataset.with_format(None)["input_ids"]])

    def predict_proba(self, dataset: datasets.Dataset) -> np.ndarray:
        """
        Predicts the class probabilities of rows, which are soft labels for a student. Rows may be text or tokens, with
        or without labels. Rows of similar length are predicted together, which is faster than [`predict`].

        The result contains every row. `dataloader_drop_last`, `prediction_loss_only`, `eval_do_concat_batches`,
        `compute_metrics` and `preprocess_logits_for_metrics` have no effect.

        Returns:
            `np.ndarray` of shape `(N, C)`, float32, in row order, on every rank.
        """
        return self._predict_probabilities(dataset, ("label", "labels", "weight", "supervisor_labels"))


def _logits(outputs) -> torch.Tensor:
    return (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()


def _n_classes(model: nn.Module) -> int:
    n_classes = getattr(model.config, "num_labels", 0)
    if n_classes < 2:
        raise ValueError(
            f"Got a model with {n_classes} output{'s' if n_classes != 1 else ''}, expected a classifier of at least "
            "two classes. Load it with num_labels=2."
        )
    return n_classes
