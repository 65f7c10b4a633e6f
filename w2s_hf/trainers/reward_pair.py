"""The trainer of reward models on pairs with soft labels."""

import copy
import logging
from collections.abc import Callable
from typing import TypeAlias

import datasets
import numpy as np
import torch
from peft import PeftConfig, PeftModel
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from .. import losses
from .._compat import add_signature_column, mark_loss_as_divided, next_log
from ..collators import RewardPairCollator, check_pairs
from ..config import RewardPairConfig
from ..modeling import disable_dropout
from ..modeling.adapters import keep_trainable
from .checks import (
    check_arguments,
    check_dataset,
    check_pair_columns,
    check_supervisor_labels,
    check_weights,
    named_parts,
    refuse_frozen,
    refuse_longer,
    without_training_columns,
)
from .evaluation import OrderedEvaluation
from .resuming import ResumableTraining
from .row_loss import check_row_loss
from .student_card import WithStudentCard
from .whole_step import WholeStepLoss, counted_weight, load_model, refuse_data_parallel

__all__ = ["RewardPairTrainer"]

logger = logging.getLogger(__name__)

_Pairs: TypeAlias = datasets.Dataset | datasets.IterableDataset
_KINDS = (datasets.Dataset, datasets.IterableDataset)


class RewardPairTrainer(WholeStepLoss, OrderedEvaluation, WithStudentCard, ResumableTraining, RewardTrainer):
    """
    A [`~trl.RewardTrainer`] for reward models that are trained on soft labels, P(chosen better).

    A pair is a row with two classes. Its logits are the two rewards, first the reward of the rejected response. Their
    softmax is P(chosen better) = sigmoid(r_chosen - r_rejected). All losses of [`w2s_hf.losses`] apply. `xent` with
    the soft label p is `-(p log sigmoid(d) + (1 - p) log sigmoid(-d))` of the difference d (paper, A.3, which states
    the label and not the loss). If chosen and rejected are exchanged together with p and 1 - p, loss and gradient stay
    the same.

    Without a column `soft_label`, the loss at every step is as in [`~trl.RewardTrainer`] (with `margin` and
    `center_rewards_coefficient`). A column with `soft_label=1.0` in all rows gives the same loss. If the accumulated
    batches of a step differ in size, TRL gives equal weight to each batch. This trainer gives equal weight to each
    pair. Every loss is a mean over the pairs of the whole step, on all ranks. The division of the step into
    batches therefore does not change the trained model.

    Overridden methods, and the reasons:

    - `compute_loss`: calls TRL's method for its metrics, and then computes the loss on soft labels.
    - `get_batch_samples`, `training_step`: count the pairs of the whole step and find the threshold over them. As in
      [`WeakToStrongTrainer`], they split batches into micro-batches of bounded tokens. The confidence loss hardens the
      class "the first response is better". A hash orders the two responses, independent of the preference, so that
      the prior is one half. (In the order of the dataset the prior would be one, and the threshold would reveal the
      preference.)
    - `train`: resumes, and refuses an unknown `metric_for_best_model`, like [`WeakToStrongTrainer`].
    - `prediction_step`, `predict`: return `(N, 2)` float32 rewards (rejected, chosen), one row per pair, in row order.
      TRL returns two rows per pair, block by block, and loses some of them in the last batch. Arguments may leave
      pairs out (`dataloader_drop_last`, `prediction_loss_only`). [`predict_proba`] always returns all pairs.
    - `evaluate`, `_prepare_dataset`: check pairs, and count the pairs over `max_length`. `predict` refuses such pairs.
    - `_set_signature_columns_if_needed`: keeps the columns `soft_label`, `weight` and `supervisor_labels`.
    - `_get_eval_sampler`: keeps evaluation rows in order.
    - `create_model_card`, `push_to_hub`: as in [`WeakToStrongTrainer`].
    - `evaluation_loop`: names TRL's metrics, such as `accuracy`, after the evaluation set (`eval_a_accuracy`). Metrics
      of the same name that `compute_metrics` returns are not replaced.

    `accuracy` in the logs is the share of pairs whose better response has the larger reward. The soft label determines
    the better response. Without a soft label, it is the chosen response.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A sequence classifier with one output, or a Hub id or local directory, which is loaded by [`load_student`].
        args ([`RewardPairConfig`], *optional*): Defaults to `RewardPairConfig()`.
        data_collator (`Callable`, *optional*): Defaults to [`w2s_hf.collators.RewardPairCollator`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Pairs in a preference format of TRL: `chosen`, `rejected`, with `prompt` or without, text or messages.
            Pairs can also be tokens in `chosen_ids` and `rejected_ids`. The optional column `soft_label` is P(chosen
            better), float. The optional column `weight` weights the whole loss of a pair, including the term of
            `center_rewards_coefficient`; see [`WeakToStrongTrainer`]. With `loss_type="learned_supervisors"`, training
            pairs have a column `supervisor_labels` in addition: P(rejected better) and P(chosen better) of each of K
            supervisors.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*): Evaluation pairs in the same format.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer. It is loaded if `model` is a name. TRL ends texts with its end-of-text token.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Used if `model` is a name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapters to add to `model`. They and the head are trained in
            float32.
        loss ([`~w2s_hf.losses.RowLoss`], *optional*): Your own loss instead of `args.loss_type`, as in
            [`WeakToStrongTrainer`]. Class 1 of a pair means that the first response is better.
        kwargs: Further arguments of [`~trl.RewardTrainer`], such as `compute_metrics`, `callbacks` and `optimizers`.
            `compute_metrics` gets `(N, 2)` rewards (rejected, chosen) and `(N,)` P(chosen better).

    Raises:
        ValueError: `args` has another class or `use_liger_kernel=True`. Rows are not a dataset, or are empty. A
            column is missing, or an unused column looks like soft labels or weights. Soft labels are outside [0, 1]
            (the message names the rows), or there is also a margin. Weights are invalid. A column `supervisor_labels`
            is missing, invalid or not read by the loss. The tokenizer has no
            end-of-text token. Pairs have more tokens than the model has positions. The model is frozen. Adapters are
            added to adapters, have another task type, or are prompt tuning of a decoder. There are several GPUs in one
            process.

    Example:

    ```python
    trainer = RewardPairTrainer(
        model="Qwen/Qwen2.5-7B",
        args=RewardPairConfig(output_dir="out", loss_type="confidence"),
        train_dataset=pairs,  # chosen, rejected, soft_label
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
        peft_config=LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"),
    )
    trainer.train()
    soft_labels = trainer.predict_proba(other_pairs)[:, 1]  # P(chosen better), in row order
    ```
    """

    args: RewardPairConfig
    processing_class: PreTrainedTokenizerBase
    _tag_names = ["w2s_hf", "weak-to-strong", *RewardTrainer._tag_names]
    _n_sequences = 2
    _known_metrics = ("loss", "accuracy")
    _card_setting, _card_task_type = "reward", "REWARD"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: RewardPairConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: _Pairs | None = None,
        eval_dataset: _Pairs | dict[str, _Pairs] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        loss: losses.RowLoss | None = None,
        **kwargs,
    ):
        args = RewardPairConfig() if args is None else args
        check_arguments(args, RewardPairConfig)
        check_row_loss(loss, args)
        self._loss = loss
        check_dataset(train_dataset, "train_dataset", _KINDS)
        check_pair_columns(train_dataset, "train_dataset", args)
        check_supervisor_labels(train_dataset, "train_dataset", args.loss_type)
        check_pair_columns(eval_dataset, "eval_dataset", args)
        model, processing_class = load_model(model, args, processing_class, "REWARD", quantization_config, peft_config)
        if train_dataset is not None:
            refuse_frozen(model)
        if args.disable_dropout:
            disable_dropout(model)
        # The arguments were already used to load the model. TRL would warn that it ignores them.
        init_kwargs, args.model_init_kwargs = args.model_init_kwargs, None
        try:
            with keep_trainable(model):
                super().__init__(
                    model=model,
                    args=args,
                    data_collator=data_collator,
                    train_dataset=train_dataset,
                    eval_dataset=eval_dataset,
                    processing_class=processing_class,
                    **kwargs,
                )
        finally:
            args.model_init_kwargs = init_kwargs
        mark_loss_as_divided(self)
        if data_collator is None:
            self.data_collator = RewardPairCollator(
                pad_token_id=self.data_collator.pad_token_id, pad_to_multiple_of=self.data_collator.pad_to_multiple_of
            )
        refuse_data_parallel(args)
        parts = {"train_dataset": self.train_dataset, **named_parts(self.eval_dataset, "eval_dataset")}
        for name, part in parts.items():
            self._refuse_longer(part, name)

    # ---- Data ----

    def _prepare_dataset(
        self, dataset: _Pairs, processing_class: PreTrainedTokenizerBase, args: RewardConfig, dataset_name: str
    ) -> _Pairs:
        name = f"{dataset_name}_dataset"
        dataset = without_training_columns(dataset, name)
        if not isinstance(dataset, datasets.Dataset):
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if dataset.format["type"] == "custom" and "chosen_ids" not in dataset.column_names:
            raise ValueError(
                f"{name}: Got texts with a transform, expected plain texts, since TRL would apply the transform "
                "several times. Apply it with Dataset.map, or pass tokens as `chosen_ids` and `rejected_ids`."
            )
        check_pairs(dataset, name)
        check_weights(dataset, name)
        is_text = "chosen_ids" not in dataset.column_names and isinstance(dataset[0]["chosen"], str)
        if is_text and processing_class.eos_token is None:
            raise ValueError(
                f"{name}: got texts and a tokenizer without an end-of-text token, expected a token to end texts. "
                "Set processing_class.eos_token, or pass tokens as `chosen_ids` and `rejected_ids`."
            )
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        n_lost = len(dataset) - len(prepared)
        if n_lost == len(dataset):
            raise ValueError(
                f"{name}: all {n_lost} pairs are longer than max_length={args.max_length} tokens. Raise max_length."
            )
        if n_lost:
            logger.warning(
                f"{name}: {n_lost} of {len(dataset)} pairs are longer than max_length={args.max_length} tokens and "
                "are left out"
            )
        return prepared

    def _refuse_longer(self, dataset: _Pairs | None, name: str) -> None:
        if isinstance(dataset, datasets.Dataset):
            refuse_longer(self.model, self._lengths(dataset), name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        add_signature_column(self, "soft_label")

    # ---- Training ----

    def _n_rows(self, batch: dict) -> int:
        return len(batch["input_ids"]) // 2

    @property
    def _ranks_cut_alike(self) -> bool:
        return self.accelerator.num_processes > 1  # TRL's metrics are collectives in every forward pass

    def _record(self, name: str, value: float) -> None:
        next_log(self, "train" if self.model.training else "eval")[name].append(value)

    def _forward(self, model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, soft_label, turned = _without_labels(inputs)
        inputs.pop("margin", None)
        logits = _pair_logits(model(**inputs, use_cache=False))
        return self._classes(logits, soft_label, turned)

    @staticmethod
    def _classes(
        logits: torch.Tensor, soft_label: torch.Tensor | None, turned: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns logits and soft labels `(B, 2)` of the class "the first response is better". `turned` determines which
        response is first.
        """
        soft_label = logits.new_ones(len(logits)) if soft_label is None else soft_label
        soft_labels = torch.stack([1 - soft_label, soft_label], dim=1)
        if turned is None:
            return logits, soft_labels
        turned = turned[:, None]
        return torch.where(turned, logits.flip(1), logits), torch.where(turned, soft_labels.flip(1), soft_labels)

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
            inputs (`dict`): `input_ids` and `attention_mask` `(2B, T)`, chosen responses first. Optional inputs are
                `soft_label` `(B,)`, `turned` `(B,)` and `margin` `(B,)`. `weight` `(B,)` and `supervisor_labels`
                `(B, K, 2)` are used in training only.
            num_items_in_batch (`int`, *optional*): The number of pairs of the whole optimizer step on all ranks, or
                the sum of their weights. Without it, the loss is the mean over this batch.
        """
        weight = inputs.get("weight") if model.training else None
        supervisor_labels = inputs.get("supervisor_labels") if model.training else None
        inputs, soft_label, turned = _without_labels(inputs)
        counts = inputs.pop("counts", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        logits = _pair_logits(outputs)
        n_pairs = len(logits)
        if not model.training:
            counts = self._rows_that_count(n_pairs)
        weight = counts if weight is None else counted_weight(weight, counts)
        if soft_label is not None or self.args.loss_type != "xent" or self._loss is not None:
            if "margin" in inputs:
                name = f"loss {self.args.loss_type!r}" if self._loss is None else "argument loss"
                raise ValueError(
                    f"Got a margin, expected no margin, since the {name} on soft labels does not use it. Remove the "
                    "column `margin`."
                )
            classes = self._classes(logits, soft_label, turned)
            if supervisor_labels is not None:
                if turned is not None:  # the classes of every supervisor, like those of the soft label
                    other = supervisor_labels.flip(2)
                    supervisor_labels = torch.where(turned[:, None, None], other, supervisor_labels)
                classes = classes[0], self._combine(classes[0], supervisor_labels, weight)
            row_losses = (
                self._row_losses(*classes, counts)
                if model.training
                else losses.cross_entropy_loss(*classes, reduction="none")
            )
            loss = self._mean_of_pairs(row_losses, logits, weight)
        elif weight is not None:
            row_losses = -logsigmoid(logits[:, 1] - logits[:, 0] - inputs.get("margin", 0))
            loss = self._mean_of_pairs(row_losses, logits, weight)
        better = logits[:, 1] > logits[:, 0]
        agrees = better if soft_label is None else better == (soft_label > 0.5)
        if counts is not None:
            self._replace_metrics(logits, agrees, counts, inputs["attention_mask"])
        elif soft_label is not None:
            # TRL's accuracy assumes that the chosen response is better.
            accuracy = self.accelerator.gather_for_metrics(agrees.float().mean()).mean().item()
            next_log(self, "train" if model.training else "eval")["accuracy"][-1] = accuracy
        if model.training:
            total = n_pairs if weight is None else weight.sum().item()
            loss = self._share_of_step(loss * total, total, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _mean_of_pairs(
        self, row_losses: torch.Tensor, logits: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Returns the weighted mean of the loss, plus TRL's term that centers rewards. The mean is 0 if all weights are
        0.
        """

        def mean(values: torch.Tensor) -> torch.Tensor:
            if weight is None:
                return values.mean()
            total = weight.sum()
            return (values * weight).sum() / total.where(total > 0, 1)

        loss = mean(row_losses)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * mean(logits.sum(dim=1).square())
        return loss

    def _replace_metrics(
        self, logits: torch.Tensor, agrees: torch.Tensor, counts: torch.Tensor, attention_mask: torch.Tensor
    ) -> None:
        """Recomputes TRL's metrics of a batch without repeated pairs, or removes the metrics if all are repeated."""
        metrics = next_log(self, "train" if self.model.training else "eval")
        values = torch.cat([agrees[:, None].float(), logits.detach()], dim=1)
        values = self.accelerator.gather(values)[self.accelerator.gather(counts)]
        if not len(values):
            for name in ("accuracy", "margin", "min_reward", "mean_reward", "max_reward"):
                metrics[name].pop()
        else:
            rewards = values[:, 1:]
            metrics["accuracy"][-1] = values[:, 0].mean().item()
            metrics["margin"][-1] = (rewards[:, 1] - rewards[:, 0]).mean().item()
            for name, value in (("min", rewards.min()), ("mean", rewards.mean()), ("max", rewards.max())):
                metrics[f"{name}_reward"][-1] = value.item()
        if self.model.training:
            self._forget_tokens(attention_mask[~counts.repeat(2)].sum())

    # ---- Evaluation and prediction ----

    def evaluate(
        self,
        eval_dataset: _Pairs | dict[str, _Pairs] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluates like [`~trl.RewardTrainer.evaluate`]. Pairs are checked, and tokenized if they are text."""
        if not isinstance(eval_dataset, str):  # a string is the name of one evaluation set
            check_pair_columns(eval_dataset, "eval_dataset", self.args)
        if isinstance(eval_dataset, datasets.Dataset | datasets.IterableDataset):
            eval_dataset = self._prepare_dataset(eval_dataset, self.processing_class, self.args, "eval")
            self._refuse_longer(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Returns the loss, `(B, 2)` rewards (rejected, chosen), and `(B,)` P(chosen better), which is 1 without soft
        labels.

        With `include_for_metrics=["inputs"]`, `compute_metrics` gets inputs `(N, T, 2)` in the same order.
        """
        batch, inputs = inputs, self._prepare_inputs(inputs)
        if "inputs" in self.args.include_for_metrics and not self.args.batch_eval_metrics:
            # evaluation_loop reads the inputs after this step. It would lose some of them in the last batch if chosen
            # and rejected responses were in separate blocks.
            chosen, rejected = inputs["input_ids"].chunk(2)
            batch["input_ids"] = torch.stack([rejected, chosen], dim=-1)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        logits = _pair_logits(outputs)
        return loss, logits, inputs.get("soft_label", logits.new_ones(len(logits)))

    def _prepare_test_rows(self, dataset: _Pairs) -> _Pairs:
        if not isinstance(dataset, _KINDS):
            return dataset
        unlimited = copy.copy(self.args)  # dataclasses.replace would reset accelerate's state
        unlimited.max_length = None
        dataset = self._prepare_dataset(dataset, self.processing_class, unlimited, "test")
        if isinstance(dataset, datasets.IterableDataset) or dataset.format["type"] == "custom":
            return dataset
        lengths, max_length = self._lengths(dataset), self.args.max_length
        too_long = np.flatnonzero(lengths > (np.inf if max_length is None else max_length))
        if len(too_long):
            raise ValueError(
                f"test_dataset: {len(too_long)} of {len(lengths)} pairs are longer than max_length={max_length} "
                f"tokens (row {too_long[0]} has {lengths[too_long[0]]}). Shorten these pairs, leave them out, or set "
                "args.max_length=None."
            )
        self._refuse_longer(dataset, "test_dataset")
        return dataset

    def _lengths(self, dataset: datasets.Dataset) -> np.ndarray:
        columns = dataset.with_format(None).select_columns(["chosen_ids", "rejected_ids"])[:].values()
        return np.max([[len(ids) for ids in column] for column in columns], axis=0)

    def predict_proba(self, dataset: datasets.Dataset) -> np.ndarray:
        """
        Predicts the probabilities of all pairs, with or without labels; see [`WeakToStrongTrainer.predict_proba`].

        Returns:
            `np.ndarray` of shape `(N, 2)`, float32, in row order, on every rank: P(rejected better) and P(chosen
            better). The second probability is a `soft_label` for a student.
        """
        return self._predict_probabilities(dataset, ("soft_label", "margin", "weight", "supervisor_labels"))


def _without_labels(inputs: dict) -> tuple[dict, torch.Tensor | None, torch.Tensor | None]:
    """
    Splits a batch into model inputs, P(chosen better), and whether pairs are turned. Weights and the labels of each
    supervisor are removed.
    """
    inputs = dict(inputs)
    inputs.pop("weight", None)
    inputs.pop("supervisor_labels", None)
    return inputs, inputs.pop("soft_label", None), inputs.pop("turned", None)


def _pair_logits(outputs) -> torch.Tensor:
    """Converts model outputs `(2B, 1)`, chosen responses first, to rewards `(B, 2)` float32 (rejected, chosen)."""
    chosen, rejected = outputs.logits.float().squeeze(-1).chunk(2)
    return torch.stack([rejected, chosen], dim=1)
