"""The trainer of language models on prompts and completions, with the accuracy of generated completions."""

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import TrainOutput
from trl import SFTTrainer

from .._compat import generate_random_fingerprint, is_deepspeed_zero3_enabled, restore_forward
from ..collators import CompletionCollator
from ..config import CompletionConfig
from ..generation import complete
from ..labels import Completion
from ..modeling import disable_dropout
from ..modeling.adapters import keep_trainable
from ..modeling.heads import base_of
from .checks import (
    check_arguments,
    check_columns,
    check_dataset,
    check_weights,
    named_parts,
    refuse_frozen,
    refuse_longer,
)
from .evaluation import OrderedEvaluation
from .sft import ResumableSFTTrainer
from .student_card import WithStudentCard
from .whole_step import load_model, refuse_data_parallel

__all__ = ["CompletionTrainer", "autocast"]

logger = logging.getLogger(__name__)


def autocast(args: TrainingArguments) -> AbstractContextManager:
    """Returns the context of the mixed precision of `args`, for models that no trainer has prepared."""
    dtype = torch.float16 if args.fp16 else torch.bfloat16
    return torch.autocast(args.device.type, dtype=dtype, enabled=args.bf16 or args.fp16)


class CompletionTrainer(OrderedEvaluation, WithStudentCard, ResumableSFTTrainer):
    """
    An [`~trl.SFTTrainer`] for rows with the texts `prompt` and `completion`. The loss is on completions only.

    Overridden methods, and the reasons:

    - `__init__`: tokenizes rows so that a completion never changes the last token of its prompt. Adapters are trained
      in float32 (TRL converts the adapters of a 4-bit model to bfloat16). The `forward` of a model that another
      trainer has used is restored, because every trainer of TRL patches it again. Dropout is 0 by default.
    - `evaluate`: adds `eval_accuracy`, the share of evaluation rows whose greedy completion equals the completion of
      the row, character by character. On rows labelled by a supervisor, the paper uses it for early stopping. Each of
      several evaluation sets has its own accuracy, such as `eval_a_accuracy`.
    - `predict`: returns logits `(N, T, V)` for rows with `prompt` and `completion`, or for tokens. Text rows longer
      than `max_length` are refused. [`complete`] generates completions.
    - `train`: resumes like [`WeakToStrongTrainer`]. Before the first step it refuses a frozen model and a
      `metric_for_best_model` that the evaluation does not report. It also refuses an evaluation if weights are split
      over processes.
    - `get_batch_samples`, `training_step`, `prediction_step`: give no loss to rows that accelerate repeats to fill the
      last batch; see [`w2s_hf.trainers.epochs.WholeEpochs`]. The first two weight the losses of tokens in the outputs
      of the model, with a forward hook.
    - `_set_signature_columns_if_needed`: keeps the column `weight`.
    - `create_model_card`, `push_to_hub`: as in [`WeakToStrongTrainer`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, or a Hub id or local directory, which is loaded by [`load_student`].
        args ([`CompletionConfig`], *optional*): Defaults to `CompletionConfig()`.
        train_dataset ([`~datasets.Dataset`]): Rows with `prompt` and `completion`. Rows of more than
            `args.max_length` tokens are left out and counted in a warning. An optional column `weight` has one float
            per row, at least 0. The loss of a step is then `sum(weight * loss) / sum(weight)` over all tokens of its
            completions, and each token has the weight of its row. Evaluation does not use weights.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Evaluation rows with the same columns.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer. It is loaded if `model` is a name. Completions end with its end-of-text token.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Used if `model` is a name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapters to add to `model`.
        kwargs: Further arguments of [`~trl.SFTTrainer`], such as `callbacks` and `optimizers`.

    Raises:
        ValueError: `args` has another class or `use_liger_kernel=True`. Rows are not a dataset, are empty, or lack the
            texts `prompt` and `completion`. Weights are negative, missing, infinite or all 0, or are combined with a
            loss other than the cross-entropy. All training rows, or an evaluation row, are longer than `max_length`
            tokens. Rows have more tokens than the model has positions. The tokenizer has no end-of-text token. The
            model is frozen. Adapters are added to adapters or have another task type. There are several GPUs in one
            process.

    Example:

    ```python
    trainer = CompletionTrainer(
        model="Qwen/Qwen2.5-7B",
        args=CompletionConfig(output_dir="out", max_new_tokens=12),
        train_dataset=weak_moves.join(puzzles),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    trainer.train()
    moves = [completion.text for completion in trainer.complete(other_puzzles["prompt"])]
    ```
    """

    args: CompletionConfig
    processing_class: PreTrainedTokenizerBase
    _known_metrics = ("loss", "accuracy")
    _rows_to_write: Dataset | None = None
    _tag_names = ["w2s_hf", "weak-to-strong", *SFTTrainer._tag_names]
    _card_setting, _card_task_type = "completion", "CAUSAL_LM"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: CompletionConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        args = CompletionConfig() if args is None else args
        check_arguments(args, CompletionConfig)
        check_dataset(train_dataset, "train_dataset", (Dataset,))
        for name, part in named_parts(eval_dataset, "eval_dataset").items():
            check_dataset(part, name, (Dataset,))
        if processing_class is None and not isinstance(model, str):
            raise ValueError(
                "processing_class: got None and a loaded model, expected a tokenizer. Pass the tokenizer of the model."
            )
        model, processing_class = load_model(
            model, args, processing_class, "CAUSAL_LM", quantization_config, peft_config
        )
        tokenizer = cast(PreTrainedTokenizerBase, processing_class)
        if train_dataset is not None:
            refuse_frozen(model)
        restore_forward(base_of(model))
        if args.disable_dropout:
            disable_dropout(model)
        self._eval_rows = eval_dataset
        if train_dataset is not None:
            train_dataset = _prepare(train_dataset, "train_dataset", model, tokenizer, args)
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: _prepare(rows, f"eval_dataset[{name!r}]", model, tokenizer, args)
                for name, rows in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = _prepare(eval_dataset, "eval_dataset", model, tokenizer, args)
        init_kwargs, args.model_init_kwargs = args.model_init_kwargs, None  # already used to load the model
        try:
            with keep_trainable(model):
                super().__init__(
                    model=model,
                    args=args,
                    train_dataset=train_dataset,
                    eval_dataset=eval_dataset,
                    processing_class=processing_class,
                    **kwargs,
                )
        finally:
            args.model_init_kwargs = init_kwargs
        if kwargs.get("data_collator") is None:
            collator = self.data_collator
            fields = {field.name: getattr(collator, field.name) for field in dataclasses.fields(collator)}
            self.data_collator = CompletionCollator(**fields)
        refuse_data_parallel(args)

    # ---- Training ----

    def train(self, *args, **kwargs) -> TrainOutput:
        """
        Trains like [`~trl.SFTTrainer`].

        Raises:
            ValueError: There are evaluations, and the weights are split over processes (see [`complete`]).
        """
        if self.args.eval_strategy != "no" or self.args.eval_on_start:
            self._refuse_split_weights("Evaluations generate completions. Set eval_strategy='no'.")
        return super().train(*args, **kwargs)

    def _refuse_split_weights(self, advice: str) -> None:
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "Got a model whose weights are split over processes (FSDP, DeepSpeed ZeRO-3), expected a whole model "
                f"on each process. {advice}"
            )

    # ---- Evaluation and prediction ----

    def complete(self, prompts: Sequence[str], keep: Path | None = None) -> list[Completion]:
        """
        Generates a greedy completion of each prompt, in the mixed precision of the training; see
        [`w2s_hf.generation.complete`].

        Raises:
            ValueError: The weights are split over processes (FSDP, DeepSpeed ZeRO-3), which have different batches.
        """
        self._refuse_split_weights("Save the model, load it with load_student, and call w2s_hf.generation.complete.")
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        try:
            with autocast(self.args):
                return complete(
                    model,
                    self.processing_class,
                    prompts,
                    max_new_tokens=self.args.max_new_tokens,
                    batch_size=self.args.per_device_eval_batch_size,
                    keep=keep,
                )
        finally:
            model.train(was_training)

    @property
    def _evaluation_rows(self) -> Dataset | dict[str, Dataset] | None:
        return self._eval_rows

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Computes loss and accuracy on rows with `prompt` and `completion`, by default the `eval_dataset` of the
        constructor. The metrics of several sets have the names of the sets as prefixes.
        """
        if not isinstance(eval_dataset, str):  # a string is the name of one evaluation set
            for name, part in named_parts(eval_dataset, "eval_dataset").items():
                check_dataset(part, name, (Dataset,))
        rows = self._eval_rows if eval_dataset is None else eval_dataset
        if isinstance(rows, dict):
            metrics: dict[str, float] = {}
            for name, part in rows.items():
                part = name if eval_dataset is None else part
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if isinstance(eval_dataset, str) and isinstance(self._eval_rows, dict):
            rows = self._eval_rows[eval_dataset]
        elif eval_dataset is not None:
            eval_dataset = _prepare(eval_dataset, "eval_dataset", self.model, self.processing_class, self.args)
        self._rows_to_write = rows
        try:
            return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
        finally:
            self._rows_to_write = None

    def _add_metrics(self, metrics: dict[str, float], prefix: str) -> None:
        rows, name = self._rows_to_write, f"{prefix}_accuracy"
        if rows is None or name in metrics:  # called by `predict`, or there is an accuracy of compute_metrics
            return
        if self.args.dataloader_drop_last:
            # The loss, too, is computed only over whole batches on every rank.
            n_step = self.args.eval_batch_size * self.args.world_size
            rows = rows.select(range(len(rows) // n_step * n_step))
        if len(rows) > 0:
            completions = self.complete(rows["prompt"])
            matches = [ours.text == text for ours, text in zip(completions, rows["completion"], strict=True)]
            metrics[name] = sum(matches) / len(matches)

    def _prepare_test_rows(self, rows: Dataset) -> Dataset:
        if not isinstance(rows, Dataset) or "input_ids" in rows.column_names:
            return rows
        rows = _prepare(rows, "test_dataset", self.model, self.processing_class, self.args)
        return self._prepare_dataset(rows, self.processing_class, self.args, False, None, "test")


def _prepare(
    rows: Dataset, name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: CompletionConfig
) -> Dataset:
    """Tokenizes rows, see [`_tokenize`], and refuses rows that are longer than the positions of the model."""
    tokens = _tokenize(rows, name, tokenizer, args.max_length)
    refuse_longer(model, [len(ids) for ids in tokens["input_ids"]], name)
    if name.startswith("eval_dataset"):
        lengths = [sum(mask) - 1 for mask in tokens["completion_mask"]]  # without the end-of-text token
        n_cut = sum(length > args.max_new_tokens for length in lengths)
        if n_cut:
            logger.warning(
                f"{name}: {n_cut} of {len(lengths)} completions have more than max_new_tokens={args.max_new_tokens} "
                f"tokens. The accuracy counts them as wrong. Set args.max_new_tokens to {max(lengths) + 1}."
            )
    return tokens


def _tokenize(rows: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """
    Returns rows with `input_ids` and `completion_mask`, and training rows also with `weight`. The tokens of the prompt
    come first, as in generation. The tokens of the completion follow. The completion is tokenized together with the
    prompt if this leaves the tokens of the prompt unchanged. Otherwise it is tokenized alone.

    Nothing is truncated. Training rows of more than `max_length` tokens are left out, and a warning counts them.
    Longer evaluation rows raise an error, because the accuracy counts every row.
    """
    check_dataset(rows, name, (Dataset,))
    if rows.format["type"] == "custom":
        raise ValueError(
            f"{name}: Got rows with a transform, which may change them from epoch to epoch, expected fixed rows. "
            "Apply the transform with Dataset.map."
        )
    missing = [column for column in ("prompt", "completion") if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{name}: got the columns {', '.join(rows.column_names)}, expected `prompt` and `completion`. Rename the "
            "columns."
        )
    check_columns(rows, name, labels="completion", reads=("prompt", "completion", "weight"), optional=("weight",))
    check_weights(rows, name)
    if len(rows) == 0:
        raise ValueError(f"{name}: got no rows, expected at least one. Pass a dataset with rows.")
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "Got a tokenizer that has no end-of-text token, which ends every completion. Set tokenizer.eos_token."
        )
    wrong = next((row for row in rows if not all(isinstance(row[c], str) for c in ("prompt", "completion"))), None)
    if wrong is not None:
        raise ValueError(
            f"{name}: got {wrong['prompt']!r} and {wrong['completion']!r}, expected text in `prompt` and "
            "`completion`. Convert both columns to text."
        )

    def encode(batch: dict) -> dict:
        columns: dict[str, list] = {"input_ids": [], "completion_mask": []}
        both = [prompt + completion for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True)]
        begin, whole = tokenizer(batch["prompt"])["input_ids"], tokenizer(both)["input_ids"]
        for prompt_ids, ids, completion in zip(begin, whole, batch["completion"], strict=True):
            after = ids[len(prompt_ids) :]
            if ids[: len(prompt_ids)] != prompt_ids:
                after = tokenizer(completion, add_special_tokens=False)["input_ids"]
            after = [*after, tokenizer.eos_token_id]
            columns["input_ids"].append(prompt_ids + after)
            columns["completion_mask"].append([0] * len(prompt_ids) + [1] * len(after))
        return columns

    unread = [column for column in rows.column_names if column != "weight" or name != "train_dataset"]
    options = {"batched": True, "remove_columns": unread, "desc": f"Tokenizing {name}"}
    # As in w2s_hf.tokenization, rows in memory have no cache file, so that Ctrl-C is not ignored.
    tokens = rows.map(encode, **options, new_fingerprint=generate_random_fingerprint())
    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    limit = np.inf if max_length is None else max_length
    too_long = np.flatnonzero(lengths > limit)
    if not len(too_long):
        return tokens
    description = (
        f"{name}: {len(too_long)} of {len(rows)} rows are longer than max_length={max_length} tokens, prompt, "
        f"completion and end-of-text token included (row {too_long[0]} has {lengths[too_long[0]]})"
    )
    if name != "train_dataset" or len(too_long) == len(rows):
        raise ValueError(f"{description}. Set args.max_length to {lengths.max()} or to None, or leave these rows out.")
    logger.warning(f"{description}; they are left out")
    return tokens.select(np.flatnonzero(lengths <= limit))
