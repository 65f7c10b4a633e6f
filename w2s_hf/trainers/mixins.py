"""The base class of the trainers' mixins."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase, Trainer

    from ..config import TrainerArguments

    class TrainerMixin(Trainer):
        """A [`~transformers.Trainer`] whose model is loaded and whose data are text."""

        args: TrainerArguments
        data_collator: Any
        model: nn.Module
        processing_class: PreTrainedTokenizerBase | None

else:
    # Only type checkers need the base class. At run time, the trainer provides the attributes.
    TrainerMixin = object

__all__ = ["TrainerMixin"]
