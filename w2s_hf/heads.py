"""The head of a classifier: which module it is, in full precision, and its first weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

__all__ = ["HEAD_NAMES", "classification_head", "find_head", "full_precision_head", "initialise_head", "output_layer"]

# What transformers calls the head of a sequence classifier: decoders `score`, encoders `classifier`.
HEAD_NAMES = ("score", "classifier")


def find_head(model: nn.Module) -> nn.Module | None:
    """The head that is in use: under adapters, the trainable copy. A language model has none."""
    for name in HEAD_NAMES:
        head = getattr(model, name, None)
        if isinstance(head, ModulesToSaveWrapper):
            return head.modules_to_save[head.active_adapters[0]]
        if isinstance(head, nn.Module):
            return head
    return None


def classification_head(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The head that is in use, `score` or `classifier`. Raises `ValueError` where there is none."""
    head = find_head(model)
    if head is not None:
        return head
    raise ValueError(f"{type(model).__name__}: no classification head; looked for {' and '.join(HEAD_NAMES)}.")


def output_layer(head: nn.Module) -> nn.Linear:
    """The linear layer that makes the logits: the head itself, or the last linear layer of a head of several."""
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(head).__name__}: the classification head has no linear layer.")
    return layers[-1]


def _float32_forward(head: nn.Module, hidden: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return type(head).forward(head, hidden.to(next(head.parameters()).dtype), *args, **kwargs)


def full_precision_head(head: nn.Module) -> None:
    """
    float32 weights and arithmetic, on the bfloat16 hidden states of the base and under autocast too: there a reward
    would be rounded to 8 bits before a difference is taken.
    """
    head.to(torch.float32)
    head.forward = MethodType(_float32_forward, head)


def initialise_head(
    model: PreTrainedModel | PeftModel,
    method: str = "normal",
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """
    Sets the first weights of the classification head, in place.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A classifier.
        method (`str`, *optional*, defaults to `"normal"`):
            `"normal"`: normal with the model's `initializer_range` (transformers' own rule), from `seed` alone.
            `"zeros"`: as the published code (openai/weak-to-strong, model.py).
            `"unembedding"`: the unembedding rows of the tokens "0", "1", ... (paper, A.1); needs `tokenizer`.
        seed (`int`, *optional*, defaults to `0`): Of `"normal"`.
        tokenizer: For `"unembedding"`.

    Raises:
        ValueError: an unknown method, or a class number that is not a single token.
    """
    layer = output_layer(classification_head(model))
    with torch.no_grad(), _whole(layer):
        if layer.bias is not None:
            layer.bias.zero_()
        if method == "zeros":
            layer.weight.zero_()
        elif method == "normal":
            generator = torch.Generator().manual_seed(seed)
            std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
        elif method == "unembedding":
            layer.weight.copy_(_unembedding_rows(model, tokenizer, layer.out_features))
        else:
            raise ValueError(f"head initialisation: got {method!r}, expected normal, zeros or unembedding.")


@contextmanager
def _whole(layer: nn.Module) -> Iterator[None]:
    """The weights of a layer whole, on every rank, where ZeRO-3 has cut them while they were loaded."""
    if not any(hasattr(parameter, "ds_id") for parameter in layer.parameters()):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(layer.parameters()), modifier_rank=0):
        yield


def _unembedding_rows(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None, n: int
) -> torch.Tensor:
    if tokenizer is None:
        raise ValueError("head initialisation 'unembedding' needs the tokenizer.")
    token_ids = []
    for number in range(n):
        encoded = tokenizer(str(number), add_special_tokens=False)["input_ids"]
        if len(encoded) != 1 or encoded[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"head initialisation 'unembedding': the class {number} is {len(encoded)} tokens or unknown in this "
                "vocabulary, expected one token; use --head_init normal."
            )
        token_ids.append(encoded[0])
    if model.config.get_text_config().tie_word_embeddings:
        embedding = model.get_input_embeddings()
        with _whole(embedding):
            return embedding.weight[token_ids].float()
    # A classifier drops the unembedding of an untied model, so the rows are read from the checkpoint.
    name, commit = model.config.name_or_path, getattr(model.config, "_commit_hash", None)
    options = {"revision": commit, "_raise_exceptions_for_missing_entries": False}
    index = cached_file(name, "model.safetensors.index.json", **options)
    file = "model.safetensors"
    if index is not None:
        file = json.loads(Path(index).read_text())["weight_map"]["lm_head.weight"]
    with safe_open(cached_file(name, file, revision=commit), framework="pt") as checkpoint:
        if "lm_head.weight" not in checkpoint.keys():  # noqa: SIM118 (safe_open is not a dict)
            raise ValueError(f"{name}: the checkpoint has no `lm_head.weight`; use --head_init normal.")
        rows = checkpoint.get_slice("lm_head.weight")
        return torch.stack([rows[token_id] for token_id in token_ids]).float()
