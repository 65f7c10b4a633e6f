"""The models of experiments: specification, loading, adapters, classification heads, and the first Qwen family."""

from .adapters import (
    cast_trainable_to_float32,
    fresh_adapter,
    keep_4bit_gradients,
    keep_trainable,
    load_adapter_weights,
)
from .spec import ModelSpec
from .students import align_padding, disable_dropout, load_config, load_student, load_tokenizer

__all__ = [
    "ModelSpec",
    "align_padding",
    "cast_trainable_to_float32",
    "disable_dropout",
    "fresh_adapter",
    "keep_4bit_gradients",
    "keep_trainable",
    "load_adapter_weights",
    "load_config",
    "load_student",
    "load_tokenizer",
]
