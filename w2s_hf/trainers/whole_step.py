"""The loss on soft labels: a mean over the rows of a whole optimizer step. The trainers share it."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import TrainOutput
from transformers.utils.logging import get_logger

from .. import losses
from .._compat import add_signature_column, has_length
from ..collators import move_padding, sorted_lengths, split_by_tokens
from ..config import AnyConfig, LossArguments, computes_in_bfloat16
from ..hub import FILE_OPTIONS
from ..modeling import load_config, load_student, load_tokenizer
from ..modeling.adapters import fresh_adapter, keep_4bit_gradients
from ..modeling.heads import base_of
from ..probabilities import as_supervisor_labels
from .agreement import MIN_ROWS, agreement_beyond_chance, latest_half
from .checks import THRESHOLD_LOSSES, refuse_prompt_tuning, refuse_supervisor_labels
from .epochs import WholeEpochs, refuse_weights_of_some
from .resuming import record_of
from .row_loss import row_losses_of

__all__ = ["MIN_WARMUP_STEPS", "WholeStepLoss", "counted_weight", "load_model", "refuse_data_parallel"]

logger = get_logger(__name__)

# This number is a rule of thumb. With a warm-up over 16 of 80 steps, students were worse than `naive` if weak labels
# had low confidence. They were not worse with confident labels (docs/results.md).
MIN_WARMUP_STEPS = 50

_MIN_SUPERVISOR_WEIGHT = 1e-6  # arXiv 2510.21332


class WholeStepLoss(WholeEpochs, ABC):
    """
    A mixin for a [`~transformers.Trainer`] whose `args` are [`LossArguments`].

    The trainer defines `_forward`, `_n_rows` and `_record` for its batches, and its `compute_loss` combines
    `_row_losses` and `_share_of_step`. Then 8x1, 2x4 and 1x8 (rows x accumulation steps) train the same model, on one
    rank or two.

    If the rows have weights, the loss of a step is `sum(weight * loss) / sum(weight)` over all its rows. It is 0 if
    all weights of the step are 0. The threshold and the prior of the confidence loss, and the agreement of
    `aux_start="agreement"`, are computed over all rows without weights.

    The loss `learned_supervisors` reads the part `supervisor_labels` `(B, K, C)` of a batch. The weights of the K
    supervisors are saved with every checkpoint, and are updated once per optimizer step by the gradient of its loss.
    """

    args: LossArguments
    _loss: losses.RowLoss | None = None  # replaces args.loss_type
    # compute_loss divides by the rows of the whole accumulated step. In TRL, the declared type of this attribute is
    # `None`.
    loss_is_scaled_for_ga: Any = True
    _threshold: torch.Tensor | None = None
    # This tensor counts the rows of this process in the current step by classes of student and weak label, `(C, C)`.
    _agreement: torch.Tensor | None = None
    # This tensor has sums over the rows of this process in the current step, `(K + 1,)`. They are the gradients of the
    # weights of the supervisors, and the weights of the rows.
    _supervisor_sums: torch.Tensor | None = None
    _n_sequences = 1  # number of sequences per row

    @abstractmethod
    def _forward(self, model: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits `(B, C)` float32 and soft labels `(B, C)` float32 of a batch."""

    @abstractmethod
    def _n_rows(self, batch: dict) -> int:
        """Returns the number of rows of a batch, B, including repeated rows."""

    @abstractmethod
    def _record(self, name: str, value: float) -> None:
        """Records a number of this forward pass for the next log."""

    # ---- Training ----

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | int]:
        """
        Fetches the batches of an optimizer step on this rank, and counts the rows of the step on all ranks. If the
        rows have weights, the sum of the weights is returned instead of the number of rows.

        A loss divided by this number is the same for every division of the step into batches and ranks. The base class
        would count the elements of the labels, and a soft label has C elements.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        config: Any = self.model.config
        for batch in batches:
            refuse_supervisor_labels(batch, "train_dataset", self.args.loss_type)
            if "supervisor_labels" in batch:  # a collator of the user may return other labels than those of the rows
                n_classes = max(2, config.num_labels)  # a reward model has one output for two classes
                as_supervisor_labels(batch["supervisor_labels"].float().cpu().numpy(), n_classes)
        micro_batches = [micro_batch for batch in batches for micro_batch in self._micro_batches(batch)]
        n_rows = sum(
            int(batch["counts"].sum()) if "counts" in batch else self._n_rows(batch) for batch in micro_batches
        )
        n_micro_batches, has_weights = len(micro_batches), any("weight" in batch for batch in batches)
        if self.accelerator.num_processes > 1:
            # All ranks take the same branch below only if all or none have weights.
            counts = torch.tensor([[n_rows, n_micro_batches, has_weights]], device=device)
            counts = self.accelerator.gather(counts)
            refuse_weights_of_some(counts[:, 2])
            n_rows, n_micro_batches = counts[:, 0].sum().item(), counts[:, 1].max().item()
        self._threshold = self._agreement = self._supervisor_sums = None
        if self.state.global_step == 0:
            self._warn_of_auxiliary_term(n_rows)
        # If each rank has a single forward pass, compute_loss finds the threshold itself. All ranks must take the same
        # branch, so that their collectives match.
        if self.args.loss_type in THRESHOLD_LOSSES and n_micro_batches > 1:
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = [self._outputs_that_count(batch) for batch in micro_batches]
            self._threshold = self._global_threshold(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))
        if has_weights:
            sums = [counted_weight(batch["weight"].to(device), batch.get("counts")).sum() for batch in batches]
            total = self.accelerator.gather(torch.stack(sums).sum()[None]).sum()
            return batches, total.where(total > 0, 1)  # if all weights are 0, the sum of the weighted losses is 0
        return batches, n_rows

    def _mark(self, batch: dict, counts: torch.Tensor) -> dict:
        return {**batch, "counts": counts}

    def _outputs_that_count(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the result of `_forward` without the repeated rows of a batch."""
        batch = dict(self._prepare_inputs(batch))
        counts = batch.pop("counts", ...)
        batch.pop("weight", None)
        logits, soft_labels = self._forward(self.model, batch)
        return logits[counts], soft_labels[counts]

    def _micro_batches(self, batch: dict) -> list[dict]:
        # DeepSpeed counts backward passes itself, and expects one per call.
        max_tokens = None if self.is_deepspeed_enabled else self.args.max_tokens_per_micro_batch
        lengths = None
        if max_tokens is not None and self._ranks_cut_alike:
            lengths = sorted_lengths(self._prepare_inputs(batch), self._n_sequences)[0]
            lengths = self.accelerator.gather(lengths[None]).amax(dim=0)
        return split_by_tokens(batch, max_tokens, n_sequences=self._n_sequences, lengths=lengths)

    @property
    def _ranks_cut_alike(self) -> bool:
        """
        Returns whether forward passes communicate, as with FSDP. All ranks must then run the same number of passes.
        """
        return self.is_fsdp_enabled and self.accelerator.num_processes > 1

    def training_step(
        self, model: nn.Module, inputs: dict, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Trains on a batch, micro-batch by micro-batch. Ranks exchange gradients with the last micro-batch."""
        *first, last = self._micro_batches(inputs)
        loss = torch.zeros((), device=self.args.device)
        for micro_batch in first:
            with self.accelerator.no_sync(model):
                loss += super().training_step(model, micro_batch, num_items_in_batch)
        loss += super().training_step(model, last, num_items_in_batch)
        if self._agreement is not None and self.accelerator.sync_gradients:  # the last batch of the step
            self._decide_start(self.accelerator.reduce(self._agreement, "sum"))
            self._agreement = None
        if self._supervisor_sums is not None and self.accelerator.sync_gradients:
            self._update_supervisor_weights(self.accelerator.reduce(self._supervisor_sums, "sum"))
        return loss

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        add_signature_column(self, "supervisor_labels")

    def _warn_of_auxiliary_term(self, n_rows: int) -> None:
        """Warns if the auxiliary weight rises over few steps, or never. The first step has `n_rows` rows."""
        args = self.args
        if not args.has_auxiliary_term or args.aux_coef == 0:
            return
        if args.aux_start == "agreement":
            n_seen = n_rows * self.state.max_steps
            n_different = n_seen if self._epoch_size is None else min(n_seen, self._epoch_size)
            if n_different < MIN_ROWS:
                logger.warning(
                    f"aux_start='agreement': got {n_different} training rows, expected at least {MIN_ROWS} for the "
                    f"decision. {args.loss_type!r} is trained as 'xent' (method naive). Train on more rows."
                )
            return
        n_steps = round(args.resolved_aux_warmup_ratio * self.state.max_steps)
        if n_steps < MIN_WARMUP_STEPS:
            logger.warning(
                f"loss_type={args.loss_type!r}: its auxiliary weight rises over {n_steps} of {self.state.max_steps} "
                f"optimizer steps, fewer than {MIN_WARMUP_STEPS}. A student that has not learned its task by then is "
                "trained on its own errors. Set aux_start='agreement' (--aux_start agreement), increase "
                "aux_warmup_ratio, or train for more steps."
            )

    def _decide_start(self, table: torch.Tensor) -> None:
        """Decides from the rows of the steps so far whether the auxiliary weight rises from the next step on."""
        record = self._auxiliary_record
        record["tables"].append(table.tolist())
        latest = latest_half(record["tables"], self._epoch_size)
        if latest is not None and agreement_beyond_chance(latest):
            record["start"], record["tables"] = self.state.global_step + 1, []
            logger.info(
                f"The student agrees with {latest.trace() / latest.sum():.3f} of the latest {latest.sum()} weak "
                f"labels, beyond chance: the auxiliary weight rises after step {record['start']}"
            )

    @property
    def _epoch_size(self) -> int | None:
        """The number of training rows, or `None` for a stream."""
        return len(self.train_dataset) if has_length(self.train_dataset) else None

    @property
    def _auxiliary_record(self) -> dict[str, Any]:
        """The state of `aux_start="agreement"`, which every checkpoint contains."""
        return record_of(self.state).setdefault("auxiliary", {"tables": [], "start": None})

    def _count_agreement(self, logits: torch.Tensor, soft_labels: torch.Tensor) -> None:
        """Counts the rows of the current step, with predictions from before its update."""
        n_classes = logits.shape[-1]
        pairs = logits.detach().argmax(dim=-1) * n_classes + soft_labels.argmax(dim=-1)
        table = torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes)
        self._agreement = table if self._agreement is None else self._agreement + table

    def _combine(
        self, logits: torch.Tensor, supervisor_labels: torch.Tensor, row_weights: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Returns the combined labels of the supervisors, `(B, C)`, and counts the rows for the update of their weights.

        Args:
            logits (`torch.Tensor` of shape `(B, C)`): Logits of the student.
            supervisor_labels (`torch.Tensor` of shape `(B, K, C)`): Labels of each supervisor.
            row_weights (`torch.Tensor` of shape `(B,)`, *optional*): The weights of the rows, 0 for repeated rows.
        """
        weights = self._supervisor_weights(supervisor_labels.shape[1])
        for number, weight in enumerate(weights, 1):
            self._record(f"supervisor_weight_{number}", weight)
        on_device = logits.new_tensor(weights)
        if self.state.global_step >= self._supervisor_warmup_steps:
            gradients = losses.supervisor_gradients(logits, supervisor_labels, on_device)
            row_weights = gradients.new_ones(len(gradients)) if row_weights is None else row_weights.float()
            sums = torch.cat([row_weights @ gradients, row_weights.sum()[None]])
            self._supervisor_sums = sums if self._supervisor_sums is None else self._supervisor_sums + sums
        return losses.combined_labels(supervisor_labels, on_device)

    def _supervisor_weights(self, n_supervisors: int) -> list[float]:
        """Returns the weights of the supervisors, which are equal at the beginning."""
        weights = record_of(self.state).setdefault("supervisor_weights", [1 / n_supervisors] * n_supervisors)
        if len(weights) != n_supervisors:
            raise ValueError(
                f"supervisor_labels: got labels of {n_supervisors} supervisors, expected {len(weights)} as in earlier "
                "batches. Pass labels of the same supervisors for all rows."
            )
        return weights

    def _update_supervisor_weights(self, sums: torch.Tensor) -> None:
        """Makes a step of gradient descent on the weights of the supervisors. `sums` are the sums of all processes."""
        *gradient, total = sums.tolist()
        if total > 0:  # the weights of the rows may all be 0
            step = self.args.supervisor_learning_rate * np.array(gradient) / total
            weights = np.maximum(record_of(self.state)["supervisor_weights"] - step, _MIN_SUPERVISOR_WEIGHT)
            record_of(self.state)["supervisor_weights"] = (weights / weights.sum()).tolist()

    @property
    def _supervisor_warmup_steps(self) -> int:
        """The number of optimizer steps that begin before the end of `supervisor_warmup_epochs`."""
        steps = self.state.max_steps
        if self._epoch_size is not None:
            steps = math.ceil(self._epoch_size / self.get_total_train_batch_size(self.args))
        return math.ceil(self.args.supervisor_warmup_epochs * steps - 1e-9)

    def _auxiliary_weight(self) -> float:
        """Returns the weight of the auxiliary term in this optimizer step."""
        args, start = self.args, 0
        if args.aux_start == "agreement":
            start = self._auxiliary_record["start"]
            if start is None:
                return 0.0
            self._record("aux_start_step", start)
        warmup = losses.openai_warmup if args.loss_type == "openai" else losses.linear_warmup
        step_ratio = (self.state.global_step - start) / max(self.state.max_steps, 1)
        return warmup(step_ratio, args.aux_coef, args.resolved_aux_warmup_ratio)

    def train(self, *args, **kwargs) -> TrainOutput:
        """
        Trains like [`~transformers.Trainer.train`]. With `aux_start="agreement"`, the last entry of the log history
        has the step after which the auxiliary weight rose. If the weight stayed 0, a warning is logged. With the loss
        `learned_supervisors`, the last entry has the final weights, `supervisor_weight_1` and so on.
        """
        output = super().train(*args, **kwargs)
        if self.args.loss_type == "learned_supervisors":
            weights = record_of(self.state).get("supervisor_weights", [])
            entry = {f"supervisor_weight_{number}": weight for number, weight in enumerate(weights, 1)}
            self.state.log_history.append({"step": self.state.global_step, **entry})
        if self.args.has_auxiliary_term and self.args.aux_start == "agreement":
            start, tables = self._auxiliary_record["start"], self._auxiliary_record["tables"]
            self.state.log_history.append({"step": self.state.global_step, "aux_start_step": start})
            if start is None:
                reason = "has not agreed with its weak labels beyond chance"
                if latest_half(tables, self._epoch_size) is None:
                    reason = f"has seen fewer than {MIN_ROWS} different rows"
                logger.warning(
                    f"aux_start='agreement': in {self.state.global_step} optimizer steps the student {reason}, and "
                    f"{self.args.loss_type!r} was trained as 'xent'. Train on more rows, for more steps, or with a "
                    "higher learning_rate."
                )
        return output

    def _prepare_inputs(self, inputs: dict) -> dict:
        """
        Moves padding to the side that the architecture needs, independent of the tokenizer's `padding_side` and the
        collator.

        With learned positions (GPT-2, BERT), padding on the left would shift the positions of the tokens. The side
        does not affect decoders with rotary positions. Only a model that reads the last position (XLNet) needs
        padding on the left.
        """
        config = getattr(self.model, "config", None)
        side = "left" if getattr(config, "summary_type", None) == "last" else "right"
        return move_padding(super()._prepare_inputs(inputs), side)

    def _share_of_step(
        self, loss_sum: torch.Tensor, n_rows: float, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """
        Returns the share of a loss sum in the mean of the step. If the number of rows of the step is unknown, the mean
        over `n_rows` is returned. For rows with weights, both numbers are sums of weights.
        """
        if num_items_in_batch is None:
            return loss_sum / (n_rows or 1)
        # DDP averages gradients over ranks, and the loss of the step is a sum over ranks.
        return loss_sum * self.accelerator.num_processes / num_items_in_batch

    def _mean_that_counts(self, row_losses: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the rows of an evaluation batch, without rows that accelerate repeats."""
        counts = self._rows_that_count(len(row_losses))
        # If all rows are repeated, transformers drops the mean together with the rows.
        return row_losses.mean() if counts is None or not counts.any() else row_losses[counts].mean()

    def _row_losses(
        self, logits: torch.Tensor, soft_labels: torch.Tensor, counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Returns the configured loss of each row, `(B,)`. The loss is 0 where `counts`, `(B,)` bool, is false.
        """
        row_losses = self._losses(logits, soft_labels, ... if counts is None else counts)
        return row_losses if counts is None else row_losses * counts

    def _losses(self, logits: torch.Tensor, soft_labels: torch.Tensor, counts) -> torch.Tensor:
        args = self.args
        if self._loss is not None:
            step = losses.Step(self.state.global_step, self.state.max_steps)
            return row_losses_of(self._loss, logits, soft_labels, step)
        if args.loss_type in ("xent", "learned_supervisors"):  # the labels of the supervisors are already combined
            return losses.cross_entropy_loss(logits, soft_labels, reduction="none")
        if args.loss_type == "product":
            return losses.product_loss(
                logits, soft_labels, alpha=args.product_alpha, beta=args.product_beta, reduction="none"
            )
        if args.loss_type == "window":
            row_losses = losses.window_loss(logits, soft_labels, radius=args.window_radius, reduction="none")
            in_window = (row_losses[counts] > 0).float()
            if len(in_window):
                self._record("window_kept_ratio", in_window.mean().item())
            return row_losses
        if args.loss_type == "adaptive_confidence":
            return losses.adaptive_confidence_loss(
                logits, soft_labels, temperature=args.adaptive_temperature, reduction="none"
            )
        if args.loss_type == "reverse_kl":
            return losses.reverse_kl_loss(logits, soft_labels, smoothing=args.reverse_smoothing, reduction="none")
        if args.loss_type == "reverse_xent":
            return losses.reverse_cross_entropy_loss(
                logits, soft_labels, smoothing=args.reverse_smoothing, reduction="none"
            )
        if args.loss_type == "symmetric":
            return losses.symmetric_loss(
                logits, soft_labels, alpha=args.symmetric_alpha, beta=args.symmetric_beta,
                smoothing=args.reverse_smoothing, reduction="none",
            )  # fmt: skip
        if args.loss_type == "cace":
            return losses.cace_loss(
                logits, soft_labels, threshold=args.cace_threshold, smoothing=args.reverse_smoothing, reduction="none"
            )
        aux_weight = self._auxiliary_weight()
        if args.aux_start == "agreement" and self._auxiliary_record["start"] is None:
            self._count_agreement(logits[counts], soft_labels[counts])
        self._record("aux_weight", aux_weight)
        if args.loss_type == "entropy":
            return losses.entropy_loss(logits, soft_labels, aux_weight=aux_weight, reduction="none")
        if args.loss_type in THRESHOLD_LOSSES:
            threshold = self._threshold
            if threshold is None:
                threshold = self._global_threshold(logits.detach()[counts], soft_labels[counts])
            return losses.confidence_loss(
                logits, soft_labels, aux_weight=aux_weight, threshold=threshold, reduction="none"
            )
        raise NotImplementedError(
            f"loss_type: got {args.loss_type!r} of LOSS_TYPES, expected a loss that WholeStepLoss computes. Add a "
            "branch for it to WholeStepLoss._losses."
        )

    def _global_threshold(self, logits: torch.Tensor, soft_labels: torch.Tensor) -> torch.Tensor | None:
        """Returns the threshold on P(class 1) over the rows of all ranks, or `None` if there are not two classes."""
        if logits.shape[-1] != 2:
            return None  # confidence_loss raises an error that names an alternative
        pairs = torch.stack([logits.float().softmax(dim=-1)[:, 1], soft_labels[:, 1].float()], dim=1)
        if self.accelerator.num_processes > 1:
            # Ranks may have different numbers of rows. They are padded with NaN, which is dropped after the gather.
            pairs = self.accelerator.pad_across_processes(pairs, dim=0, pad_index=float("nan"))
            pairs = self.accelerator.gather(pairs)
            pairs = pairs[~pairs[:, 0].isnan()]
        prior = pairs[:, 1].mean().item() if self.args.aux_prior is None else self.args.aux_prior
        return losses.confidence_threshold(pairs[:, 0], prior)


def counted_weight(weight: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Returns weights `(B,)` that are 0 for repeated rows."""
    return weight if counts is None else weight * counts


def load_model(
    model: str | PreTrainedModel | PeftModel,
    args: AnyConfig,
    processing_class: PreTrainedTokenizerBase | None,
    task_type: str,
    quantization_config: BitsAndBytesConfig | None,
    peft_config: PeftConfig | None,
    is_trainable: bool = True,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase | None]:
    """
    Loads the `model` argument of a trainer, with its tokenizer, and adds adapters if there is a `peft_config`.

    Raises:
        ValueError: LoRA dropout is set although all dropout is disabled. A `quantization_config` is set for a loaded
            model. The model already has adapters. The adapters are for another kind of model. The model of a TRL
            trainer returns outputs without names.
    """
    lora_dropout = getattr(peft_config, "lora_dropout", None)
    if lora_dropout and args.disable_dropout:
        raise ValueError(
            f"Got lora_dropout={lora_dropout} and disable_dropout=True, which sets dropout to 0, expected only one of "
            f"these settings. Set lora_dropout=0, or {type(args).__name__}(disable_dropout=False)."
        )
    expected = "CAUSAL_LM" if task_type == "CAUSAL_LM" else "SEQ_CLS"
    if peft_config is not None and peft_config.task_type is None:
        # Without a task type, the head is neither trained nor saved.
        peft_config = copy.copy(peft_config)
        peft_config.task_type = expected
    if peft_config is not None and peft_config.task_type != expected:
        raise ValueError(
            f"Got a peft_config with the task_type {getattr(peft_config.task_type, 'value', peft_config.task_type)}, "
            f"expected {expected}"
            + (", whose head is trained and saved with the adapters" if task_type != "CAUSAL_LM" else "")
            + f". Set task_type={expected!r}."
        )
    options = cast("dict[str, Any]", args.model_init_kwargs or {}) if isinstance(model, str) else {}
    files = {key: options[key] for key in FILE_OPTIONS if key in options}  # for model and tokenizer
    if task_type != "CAUSAL_LM":
        if isinstance(model, PeftModel):
            refuse_prompt_tuning(base_of(model).config, model.active_peft_config)
        elif peft_config is not None and peft_config.is_prompt_learning:
            config = load_config(model, **files) if isinstance(model, str) else model.config
            refuse_prompt_tuning(config, peft_config)
    if isinstance(model, str):
        if processing_class is None:
            processing_class = load_tokenizer(model, **files)
        # A frozen base model may be bfloat16 or 4-bit. Trained weights must be float32.
        frozen = peft_config is not None or quantization_config is not None
        in_bfloat16 = frozen and (args.bf16 or computes_in_bfloat16(args.use_cpu))
        init_kwargs = {"dtype": "bfloat16" if in_bfloat16 else "float32", "is_trainable": is_trainable, **options}
        torch.manual_seed(args.seed)  # a new head is initialized at random during loading
        model = load_student(model, task_type=task_type, quantization_config=quantization_config, **init_kwargs)
    elif quantization_config is not None:
        raise ValueError(
            "Got a quantization_config and a loaded model, expected the name of a model. Pass the name, or load the "
            "model quantized."
        )
    keep_4bit_gradients(model)
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ValueError(
                "Got a peft_config and a model that already has adapters, expected a base model. For new adapters on "
                "the base model of another student, call w2s_hf.fresh_adapter."
            )
        model = fresh_adapter(model, peft_config)
    if task_type != "SEQ_CLS" and not model.config.return_dict:
        raise ValueError(
            "model: got config.return_dict=False, expected True, since TRL's trainers read outputs by name. Set "
            "model.config.return_dict=True."
        )
    return model, processing_class


def refuse_data_parallel(args: TrainingArguments) -> None:
    """
    Raises `ValueError` for several GPUs in one process. The constructor of [`~transformers.Trainer`] must run first,
    because it counts the GPUs.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"Got {args.n_gpu} GPUs in one process, over which nn.DataParallel would split batches, expected one GPU. "
            "Launch with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
