"""The head of a classifier: its modules, its float32 precision and its initialization."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .._compat import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    cached_file,
    commit_hash,
    dequantize_module_weight,
    is_from_checkpoint,
    module_in_use,
    optional_file,
)

__all__ = [
    "HEAD_NAMES",
    "base_of",
    "classification_head",
    "dequantize_head",
    "full_precision_head",
    "head_linears",
    "head_modules",
    "initialise_head",
    "is_decoder",
    "new_weights",
    "output_layer",
    "set_new_weights",
    "unembedding_file",
]

# PEFT trains and saves these heads with every adapter of a sequence classifier.
HEAD_NAMES = ("score", "classifier")

_NEW_WEIGHTS = "_new_weights"  # models store the names of their new weights in this attribute
_UNEMBEDDING = "lm_head.weight"


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the model without its adapters. A model without adapters is returned unchanged."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def is_decoder(model_type: str) -> bool:
    """Returns whether a model type is a decoder, which can generate text."""
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def new_weights(model: PreTrainedModel) -> frozenset[str]:
    """
    Returns the names of the weights that a model's checkpoint lacks. They are random until they are trained.

    [`load_student`] records them. For other models, they are the weights that `from_pretrained` has not marked as
    loaded, outside the backbone or in its poolers. A model built from a configuration has no checkpoint, and the
    result is empty.
    """
    if _NEW_WEIGHTS in vars(model):
        return vars(model)[_NEW_WEIGHTS]
    adapters = getattr(model, "peft_config", {})  # set by PEFT on a base model with adapters
    n_loaded, unmarked = 0, set()
    for name, parameter in model.named_parameters():
        parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
        if is_from_checkpoint(parameter):
            n_loaded += 1
        elif parameter.is_floating_point() and not set(parts) & set(adapters):
            in_backbone = parts[0] == model.base_model_prefix
            if not in_backbone or "pooler" in parts:
                unmarked.add(".".join(parts))
    return frozenset(unmarked if n_loaded else ())


def set_new_weights(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Records the result of [`new_weights`] before parameters lose the flags that transformers sets."""
    vars(model)[_NEW_WEIGHTS] = frozenset(names)


def head_modules(model: PreTrainedModel | PeftModel) -> dict[str, nn.Module]:
    """
    Returns the modules between the backbone of a classifier and its logits, by name.

    Examples are `score` of decoders, `pooler` and `classifier` of DeBERTa, `head` and `classifier` of ModernBERT. A
    pooler in the backbone is included if the checkpoint lacks it. With adapters, the modules are the active copies. A
    language model has no such modules.
    """
    base = base_of(model)
    if not isinstance(base, PreTrainedModel) or base.get_output_embeddings() is not None:
        return {}
    parts = [name.split(".") for name in new_weights(base)]
    in_backbone = {".".join(part[: part.index("pooler") + 1]) for part in parts if "pooler" in part[1:]}
    outside = [name for name, child in base.named_children() if any(True for _ in child.parameters())]
    if base.base_model is not base:
        outside = [name for name in outside if getattr(base, name) is not base.base_model]
    else:
        outside = [name for name in outside if name in HEAD_NAMES]
    # If a head has its own pooler, the module of the head already contains it.
    poolers = sorted(name for name in in_backbone if name.split(".")[0] not in outside)
    return {name: module_in_use(base.get_submodule(name)) for name in [*poolers, *outside]}


def head_linears(model: PreTrainedModel | PeftModel) -> dict[str, nn.Linear]:
    """Returns the linear layers of the head by full name. The last layer computes the logits."""
    return {
        f"{name}.{path}".rstrip("."): layer
        for name, module in head_modules(model).items()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }


def classification_head(model: PreTrainedModel | PeftModel) -> nn.Module:
    """Returns the active module of the head that computes the logits. Raises `ValueError` if there is none."""
    modules = head_modules(model)
    if not modules:
        raise ValueError(
            f"{type(model).__name__}: got no classification head, expected a module outside the backbone that "
            "computes the logits. Use a model of another architecture."
        )
    return list(modules.values())[-1]


def output_layer(head: nn.Module) -> nn.Linear:
    """Returns the linear layer that computes the logits: the head itself, or its last linear layer."""
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"{type(head).__name__}: got a classification head without a linear layer, expected a linear layer. Use "
            "a model of another architecture."
        )
    return layers[-1]


def _float32_forward(head: nn.Module, hidden: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return type(head).forward(head, hidden.to(next(head.parameters()).dtype), *args, **kwargs)


def full_precision_head(model: PreTrainedModel | PeftModel) -> None:
    """
    Converts the head to float32 weights and arithmetic, also for bfloat16 hidden states and under autocast. Otherwise
    rewards would be rounded to 8 bits of precision before their difference is computed.
    """
    for head in head_modules(model).values():
        head.to(torch.float32)
        head.forward = MethodType(_float32_forward, head)


def dequantize_head(model: PreTrainedModel) -> None:
    """Replaces quantized layers of the head by float32 layers with the same weights, in a model without adapters."""
    for name, layer in head_linears(model).items():
        if type(layer).__module__.startswith("bitsandbytes."):
            # Without a GPU, new layers are not quantized yet.
            weight = layer.weight if layer.weight.is_floating_point() else dequantize_module_weight(layer)
            dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device=weight.device)
            dense.weight = nn.Parameter(weight.detach().to(torch.float32))
            if layer.bias is not None:
                dense.bias = nn.Parameter(layer.bias.detach().to(torch.float32))
            model.set_submodule(name, dense)


def initialise_head(
    model: PreTrainedModel | PeftModel,
    method: str = "normal",
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    answers: Sequence[int] | None = None,
) -> None:
    """
    Initializes the classification head, in place. `method` determines the weights of the layer that computes the
    logits. Earlier layers of the head that the checkpoint lacks always get normal weights.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A classifier.
        method (`str`, *optional*, defaults to `"normal"`):
            - `"normal"`: normal with the model's `initializer_range`, as in transformers. Only `seed` determines the
              values.
            - `"zeros"`: zeros, as in the published code (openai/weak-to-strong, model.py).
            - `"unembedding"`: the unembedding rows of the tokens "0", "1", ... (paper, A.1). Needs `tokenizer`.
            - `"answers"`: the unembedding rows of the tokens `answers`. The untrained classifier then predicts the
              answer of the language model to the same prompt. Exceptions are architectures that change the logits
              after the unembedding, by a bias, softcapping (Gemma 2) or scaling (Granite, Cohere).
        seed (`int`, *optional*, defaults to `0`): Seed of all normal weights.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Tokenizer of the model, for `"unembedding"`.
        answers (`Sequence[int]`, *optional*): One token id per class, for `"answers"`. See
            [`w2s_hf.tasks.prompt.head_tokens`].

    Raises:
        ValueError: The method is unknown. A class number is not a single token. `answers` does not have one token per
            class. The model has no unembedding.
    """
    layer = output_layer(classification_head(model))
    generator = torch.Generator().manual_seed(seed)
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    with torch.no_grad(), _whole(layer):
        if layer.bias is not None:
            layer.bias.zero_()
        if method == "zeros":
            layer.weight.zero_()
        elif method == "normal":
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
        elif method == "unembedding":
            layer.weight.copy_(_unembedding_rows(model, _number_tokens(tokenizer, layer.out_features)))
        elif method == "answers":
            if answers is None or len(answers) != layer.out_features:
                raise ValueError(
                    f"head initialization 'answers': got the tokens {answers} for {layer.out_features} outputs, "
                    "expected one token per output. Pass `answers`, or use --head_init normal."
                )
            layer.weight.copy_(_unembedding_rows(model, list(answers)))
        else:
            raise ValueError(
                f"head initialization: got {method!r}, expected normal, zeros, unembedding or answers. "
                "Set --head_init normal for random weights."
            )
    new = new_weights(base_of(model))
    for name, other in head_linears(model).items():
        if other is not layer and f"{name}.weight" in new:
            with torch.no_grad(), _whole(other):
                other.weight.copy_(torch.randn(other.weight.shape, generator=generator) * std)
                if other.bias is not None:
                    other.bias.zero_()


@contextmanager
def _whole(layer: nn.Module) -> Iterator[None]:
    """Gathers the weights of a layer on every rank if ZeRO-3 has partitioned them while loading."""
    if not any(hasattr(parameter, "ds_id") for parameter in layer.parameters()):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(layer.parameters()), modifier_rank=0):
        yield


def _number_tokens(tokenizer: PreTrainedTokenizerBase | None, n: int) -> list[int]:
    if tokenizer is None:
        raise ValueError(
            "head initialization 'unembedding': got no tokenizer, expected the tokenizer of the model. "
            "Pass `tokenizer`."
        )
    token_ids = []
    for number in range(n):
        encoded = tokenizer(str(number), add_special_tokens=False)["input_ids"]
        if len(encoded) != 1 or encoded[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"head initialization 'unembedding': got the class number {number}, which is not a single "
                "known token of this tokenizer, expected one token per class. Use --head_init normal."
            )
        token_ids.append(encoded[0])
    return token_ids


def _unembedding_rows(model: PreTrainedModel | PeftModel, token_ids: list[int]) -> torch.Tensor:
    file = unembedding_file(str(model.config.name_or_path), model.config, commit_hash(model.config))
    if file is None:
        embedding: Any = model.get_input_embeddings()
        with _whole(embedding):
            return embedding.weight[token_ids].float()
    # A classifier drops the unembedding of an untied model, so the rows are read from the checkpoint.
    with safe_open(file, framework="pt") as checkpoint:
        rows = checkpoint.get_slice(_UNEMBEDDING)
        return torch.stack([rows[token_id] for token_id in token_ids]).float()


def unembedding_file(name_or_path: str, config: PreTrainedConfig, revision: str | None = None) -> str | None:
    """
    Returns the file of a model's checkpoint that contains its unembedding, or `None` if the unembedding is tied to the
    input embeddings.

    Args:
        name_or_path (`str`): Hub id or local directory.
        config ([`~transformers.PreTrainedConfig`]): The configuration of the model.
        revision (`str`, *optional*): Commit on the Hub.

    Raises:
        ValueError: The model is not a decoder, or its checkpoint has no `lm_head.weight`.
    """
    if not is_decoder(config.model_type):
        raise ValueError(
            f"head initialization: got {name_or_path} of type {config.model_type!r}, which has no unembedding, "
            "expected a decoder. Use --head_init normal."
        )
    if config.get_text_config().tie_word_embeddings:
        return None
    index = optional_file(name_or_path, "model.safetensors.index.json", revision=revision)
    files = {} if index is None else json.loads(Path(index).read_text())["weight_map"]
    if index is None or _UNEMBEDDING in files:
        file = cached_file(name_or_path, files.get(_UNEMBEDDING, "model.safetensors"), revision=revision)
        with safe_open(file, framework="pt") as checkpoint:
            if _UNEMBEDDING in checkpoint.keys():  # noqa: SIM118 (safe_open is not a dict)
                return file
    raise ValueError(f"{name_or_path}: the checkpoint has no `{_UNEMBEDDING}`. Use --head_init normal.")
