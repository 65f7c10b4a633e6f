"""`CompletionTrainer`: TRL's SFT for answers that are text, scored by what the model writes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from peft import PeftConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from ..config import CompletionConfig
from ..generation import complete
from ..labels import Completion
from ..modeling import disable_dropout, keep_trainable
from .sft import ResumableSFTTrainer
from .student_card import WithStudentCard
from .whole_step import load_model, refuse_data_parallel

__all__ = ["CompletionTrainer", "autocast"]


def autocast(args: TrainingArguments) -> AbstractContextManager:
    """The mixed precision of the arguments, also for a model that no trainer has prepared."""
    dtype = torch.float16 if args.fp16 else torch.bfloat16
    return torch.autocast(args.device.type, dtype=dtype, enabled=args.bf16 or args.fp16)


class CompletionTrainer(WithStudentCard, ResumableSFTTrainer):
    """
    [`~trl.SFTTrainer`] on rows with `prompt` and `completion`, both text; the loss is on completions only.

    Overridden:

    - `__init__`: rows are tokenized here, so that a completion never changes the last token of its prompt; adapters
      learn in float32 (of a 4-bit model TRL makes them bfloat16); a base that has served another trainer gets its own
      `forward` back (TRL patches it, once more each time); dropout is 0 unless the arguments say otherwise.
    - `evaluate`, `evaluation_loop`: besides the loss, `eval_accuracy`: the share of the evaluation rows whose greedy
      completion is the completion of the row, character by character. On rows labelled by a supervisor it is what the
      paper stops early by.
    - `train`: resumes as [`WeakToStrongTrainer`] does.
    - `get_batch_samples`, `training_step`, `prediction_step`: rows that accelerate repeats where rows do not divide
      by ranks have no loss; see [`w2s_hf.trainers.epochs.WholeEpochs`].
    - `create_model_card`, `push_to_hub`: as in [`WeakToStrongTrainer`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, or a Hub id or local directory, loaded by [`load_student`].
        args ([`CompletionConfig`], *optional*): Defaults to `CompletionConfig()`.
        train_dataset ([`~datasets.Dataset`]): Rows with `prompt` and `completion`.
        eval_dataset ([`~datasets.Dataset`], *optional*): The same.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer; loaded from `model` when that is a name. Completions end with its end-of-text token.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Used when `model` is a name.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapters to add to `model`.
        kwargs: As in [`~trl.SFTTrainer`]: `callbacks`, `optimizers`, ...

    Raises:
        ValueError: no rows, rows without `prompt` or `completion` or where they are no text, a tokenizer without an
            end-of-text token, adapters on top of adapters or of another task type, or several GPUs in one process.

    Example:

    ```python
    trainer = CompletionTrainer(
        model="Qwen/Qwen2.5-7B",
        args=CompletionConfig(output_dir="out", max_new_tokens=12),
        train_dataset=weak_moves.join(puzzles),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    trainer.train()
    moves = [made.text for made in trainer.complete(other_puzzles["prompt"])]
    ```
    """

    _rows_to_write: Dataset | None = None
    _tag_names = ["w2s_hf", "weak-to-strong", *SFTTrainer._tag_names]
    _card_setting, _card_task_type = "completion", "CAUSAL_LM"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: CompletionConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        args = CompletionConfig() if args is None else args
        if not isinstance(args, CompletionConfig):
            raise ValueError(f"args: got a {type(args).__name__}, expected a CompletionConfig, which has its fields.")
        if processing_class is None and not isinstance(model, str):
            raise ValueError("Got a loaded model and no processing_class; give the tokenizer of the model.")
        model, processing_class = load_model(
            model,
            args,
            processing_class,
            task_type="CAUSAL_LM",
            is_trainable=True,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if "_untrained_forward" in base.__dict__:
            base.forward = base._untrained_forward
        else:
            base._untrained_forward = base.forward
        if args.disable_dropout:
            disable_dropout(model)
        self._eval_rows = eval_dataset
        train_dataset, eval_dataset = (
            None if rows is None else _tokenize(rows, f"{name}_dataset", processing_class)
            for name, rows in (("train", train_dataset), ("eval", eval_dataset))
        )
        init_kwargs, args.model_init_kwargs = args.model_init_kwargs, None  # used up
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
        refuse_data_parallel(args)

    # ---- Evaluation and prediction ----

    def complete(self, prompts: Sequence[str], keep: Path | None = None) -> list[Completion]:
        """
        Greedy completions, one a prompt, in their order, in the mixed precision of the training; see
        [`w2s_hf.generation.complete`].

        Raises:
            ValueError: the weights are split over processes (FSDP, DeepSpeed ZeRO-3), whose batches differ.
        """
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "Got a model whose weights are split over processes (FSDP, DeepSpeed ZeRO-3), expected a whole one on "
                "each. Save it, load it with load_student, and call w2s_hf.generation.complete."
            )
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        with autocast(self.args):
            completions = complete(
                model,
                self.processing_class,
                prompts,
                max_new_tokens=self.args.max_new_tokens,
                batch_size=self.args.per_device_eval_batch_size,
                keep=keep,
            )
        model.train(was_training)
        return completions

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and accuracy on rows with `prompt` and `completion`, by default those given at the start."""
        self._rows_to_write = self._eval_rows if eval_dataset is None else eval_dataset
        if eval_dataset is not None:
            eval_dataset = _tokenize(eval_dataset, "eval_dataset", self.processing_class)
        try:
            return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
        finally:
            self._rows_to_write = None

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """Adds the accuracy before callbacks look for it."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        rows = self._rows_to_write
        if rows is None:  # `predict`
            return output
        made = [completion.text for completion in self.complete(rows["prompt"])]
        right = [text == wanted for text, wanted in zip(made, rows["completion"], strict=True)]
        output.metrics[f"{metric_key_prefix}_accuracy"] = sum(right) / len(right)
        return output


def _tokenize(rows: Dataset, name: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """
    Rows with `input_ids` and `completion_mask`: the tokens of the prompt, as in generation, and behind them those of
    the completion, as they are behind the prompt where that leaves the prompt alone, else as they are by themselves.
    """
    if not isinstance(rows, Dataset):
        raise ValueError(f"{name}: got a {type(rows).__name__}, expected one datasets.Dataset.")
    missing = [column for column in ("prompt", "completion") if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{name}: got the columns {', '.join(rows.column_names)}, expected `prompt` and `completion`."
        )
    if len(rows) == 0:
        raise ValueError(f"{name}: got no rows.")
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no end-of-text token, so that no completion would ever end; set one.")
    wrong = next((row for row in rows if not all(isinstance(row[c], str) for c in ("prompt", "completion"))), None)
    if wrong is not None:
        raise ValueError(f"{name}: got {wrong['prompt']!r} and {wrong['completion']!r}, expected text in both.")

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

    options = {"batched": True, "remove_columns": rows.column_names, "desc": f"Tokenizing {name}"}
    # As in w2s_hf.tasks.tokenizing: no cache file to name, and a Ctrl-C is not lost.
    return rows.map(encode, **options, new_fingerprint=generate_random_fingerprint())
