"""`CompletionTrainer`: TRL's SFT for answers that are text, scored by what the model writes."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTTrainer
from trl.trainer.utils import disable_dropout_in_model

from ..config import CompletionConfig
from ..generation import complete
from ..labels import Completion
from ..modeling import cast_trainable_to_float32

__all__ = ["CompletionTrainer"]


class CompletionTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] on rows with `prompt` and `completion`, both text; the loss is on completions only.

    Overridden:

    - `__init__`: of a 4-bit model TRL makes the adapters bfloat16, which are kept in float32; a base that has served
      another trainer gets its own `forward` back (TRL patches it, once more each time); dropout is 0.
    - `evaluate`: besides the loss, `eval_accuracy`: the share of the evaluation rows whose greedy completion is the
      completion of the row, character by character. On rows labelled by a supervisor it is what the paper stops early
      by.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A causal language model.
        args ([`CompletionConfig`]): Training arguments.
        eval_dataset ([`~datasets.Dataset`], *optional*): Rows with `prompt` and `completion`.
        kwargs: As in [`~trl.SFTTrainer`].
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: CompletionConfig,
        *,
        eval_dataset: Dataset | None = None,
        **kwargs,
    ):
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if "_untrained_forward" in base.__dict__:
            base.forward = base._untrained_forward
        else:
            base._untrained_forward = base.forward
        if args.disable_dropout:
            disable_dropout_in_model(model)
        self._eval_rows = eval_dataset
        super().__init__(model=model, args=args, eval_dataset=eval_dataset, **kwargs)
        if isinstance(model, PeftModel):
            cast_trainable_to_float32(self.model)

    def complete(self, prompts: Sequence[str], keep: Path | None = None) -> list[Completion]:
        """Greedy completions, one a prompt, in their order; see [`w2s_hf.generation.complete`]."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
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
        metrics = super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
        rows = self._eval_rows if eval_dataset is None else eval_dataset
        completions = self.complete(rows["prompt"])
        right = [made.text == wanted for made, wanted in zip(completions, rows["completion"], strict=True)]
        metrics[f"{metric_key_prefix}_accuracy"] = sum(right) / len(right)
        self.log({f"{metric_key_prefix}_accuracy": metrics[f"{metric_key_prefix}_accuracy"]})
        return metrics
