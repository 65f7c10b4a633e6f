"""
Loads the first Qwen family (`Qwen/Qwen-1_8B`, `-7B`, `-14B`, `-72B`; type `qwen`) as Qwen2 models, without the code of
its repositories.

The checkpoints have the architecture of Qwen2, with other names of weights. The weight conversion of transformers
renames the weights while loading, shard by shard and also with quantization. The result is a Qwen2 model and is saved
as a Qwen2 model.
"""

import base64
import binascii
import logging
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

from tokenizers import AddedToken
from torch import nn
from transformers import (
    Chunk,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Tokenizer,
    WeightConverter,
)

from .._compat import (
    WeightRenaming,
    bytes_to_unicode,
    cached_file,
    forget_weight_conversions,
    register_checkpoint_conversion_mapping,
)
from ..hub import FILE_OPTIONS

__all__ = [
    "is_original_qwen",
    "load_original_qwen",
    "longer_text",
    "original_qwen_tokenizer",
    "qwen2_config",
    "refuse_longer_texts",
]

logger = logging.getLogger(__name__)

# <|endoftext|> ends and pads texts. The next two tokens mark turns of a chat. The other tokens are reserved for
# finetuning.
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))

_N_TOKENS = 151_643  # number of tokens in every model of the family, without special tokens

# Qwen2 does not have these settings of the first family. Only the value that corresponds to Qwen2 is supported.
_FIXED = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True}

_NEEDED = (
    "hidden_size", "intermediate_size", "layer_norm_epsilon", "num_attention_heads", "num_hidden_layers", "vocab_size",
)  # fmt: skip

# These features only have an effect on texts longer than in pretraining.
_PAST_TRAINED_LENGTH = {"use_dynamic_ntk": "dynamic NTK", "use_logn_attn": "logn attention"}


class _OriginalQwenForCausalLM(Qwen2ForCausalLM):
    """Loads a checkpoint as a language model. transformers finds the weight conversion by the name of this class."""


class _OriginalQwenForSequenceClassification(Qwen2ForSequenceClassification):
    """Loads a checkpoint as a classifier."""


for _model_class in (_OriginalQwenForCausalLM, _OriginalQwenForSequenceClassification):
    register_checkpoint_conversion_mapping(
        _model_class.__name__,
        [
            WeightRenaming("transformer.wte", "model.embed_tokens"),
            WeightRenaming("transformer.ln_f", "model.norm"),
            WeightRenaming("transformer.h.", "model.layers."),
            WeightRenaming("ln_1", "input_layernorm"),
            WeightRenaming("ln_2", "post_attention_layernorm"),
            WeightRenaming("attn.c_proj", "self_attn.o_proj"),
            WeightRenaming("mlp.w1", "mlp.up_proj"),
            WeightRenaming("mlp.w2", "mlp.gate_proj"),
            WeightRenaming("mlp.c_proj", "mlp.down_proj"),
            *(
                WeightConverter(
                    f".attn.c_attn.{kind}",
                    [f".self_attn.{name}_proj.{kind}" for name in "qkv"],
                    operations=[Chunk(dim=0)],
                )
                for kind in ("weight", "bias")
            ),
        ],
        overwrite=True,
    )


def is_original_qwen(config: dict) -> bool:
    """Returns whether `config`, the content of a config.json, is of the first Qwen family."""
    return config.get("model_type") == "qwen"


def qwen2_config(config: dict, name: str, **changes) -> Qwen2Config:
    """
    Converts a configuration of the first Qwen family to a Qwen2 configuration.

    Args:
        config (`dict`): Content of the model's config.json.
        name (`str`): The name of the model in error messages.
        changes: Fields of the Qwen2 configuration to override, such as `num_labels`.

    Returns:
        [`~transformers.Qwen2Config`]. If the model uses features for texts longer than in its pretraining
        (`use_logn_attn`, `use_dynamic_ntk`), which Qwen2 does not have, `past_trained_length` names them.

    Raises:
        ValueError: The model has features that Qwen2 does not have. The message names the feature. Examples are GPTQ
            checkpoints (`-Int4`, `-Int8`), and Qwen-VL and Qwen-Audio, which have the same model type.
    """
    unsupported = [f"{key}={config[key]!r}" for key, value in _FIXED.items() if config.get(key, value) != value]
    unsupported += [f"a {key!r} part" for key in ("visual", "audio") if key in config]
    if "quantization_config" in config:
        unsupported.append(f"quantization by {config['quantization_config'].get('quant_method', 'another library')}")
    if unsupported:
        raise ValueError(
            f"{name}: got {', '.join(unsupported)}, which Qwen2 does not have, expected Qwen/Qwen-1_8B, -7B, -14B, "
            "-72B or a finetuned version. (Models of the first Qwen family are loaded as Qwen2.) Use one of these "
            "models, with --load_in_4bit for 4-bit weights."
        )
    missing = [key for key in _NEEDED if key not in config]
    if missing or not {"seq_length", "max_position_embeddings"} & set(config):
        raise ValueError(
            f"{name}: got a config.json of model type 'qwen' without {', '.join(missing) or 'seq_length'}, expected "
            "the keys of Qwen/Qwen-7B. Add these keys."
        )
    values = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        # In the first family, `intermediate_size` is the width of gate and up projection together.
        "intermediate_size": config["intermediate_size"] // 2,
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "head_dim": config.get("kv_channels", config["hidden_size"] // config["num_attention_heads"]),
        "max_position_embeddings": _trained_length(config),
        "initializer_range": config.get("initializer_range", 0.02),
        "rms_norm_eps": config["layer_norm_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base", 10000))},
        "attention_dropout": config.get("attn_dropout_prob", 0.0),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "use_cache": config.get("use_cache", True),
        "dtype": config.get("torch_dtype", config.get("dtype")),
    }
    features = " and ".join(name for key, name in _PAST_TRAINED_LENGTH.items() if config.get(key))
    if features:
        values["past_trained_length"] = features
    return Qwen2Config(**{**values, **changes})


def _trained_length(config: dict) -> int:
    return config.get("seq_length") or config["max_position_embeddings"]


def load_original_qwen(
    name_or_path: str, config: dict, task_type: str, **kwargs
) -> PreTrainedModel | tuple[PreTrainedModel, dict]:
    """
    Calls `from_pretrained` of the Qwen2 class for a task type of [`load_student`].

    Args:
        name_or_path (`str`): Hub id or local directory.
        config (`dict`): Content of the model's config.json.
        task_type (`str`): `"SEQ_CLS"`, `"REWARD"` or `"CAUSAL_LM"`.
        kwargs: Fields of the configuration, such as `num_labels`, and arguments of `from_pretrained`.

    Returns:
        The return value of `from_pretrained`.

    Raises:
        ValueError: See [`qwen2_config`].
    """
    fields = {*qwen2_config(config, name_or_path).to_dict(), "num_labels"} - {"dtype"}
    changes = {key: kwargs.pop(key) for key in list(kwargs) if key in fields}
    converted = qwen2_config(config, name_or_path, **changes)
    is_language_model = task_type == "CAUSAL_LM"
    model_class = _OriginalQwenForCausalLM if is_language_model else _OriginalQwenForSequenceClassification
    loaded = model_class.from_pretrained(name_or_path, config=converted, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    # The model becomes a plain Qwen2 model. Its saved weights need no conversion, and load without this package.
    model.__class__ = model_class.__base__
    forget_weight_conversions(model)
    return loaded


def refuse_longer_texts(model: PreTrainedModel, name: str) -> None:
    """
    Makes a model raise an error for texts longer than in its pretraining. This applies to models with features
    for longer texts that Qwen2 does not have (`past_trained_length` of the configuration). Other models are not
    changed.
    """
    features = getattr(model.config, "past_trained_length", "")
    if features:
        length = model.config.max_position_embeddings
        logger.info(
            f"{name} uses {features} above {length} tokens, which Qwen2 does not have. Longer texts raise an error."
        )
        refuse = partial(_refuse_longer, name=name, features=features, length=length)
        model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)


def _refuse_longer(module: nn.Module, args: tuple, kwargs: dict, *, name: str, features: str, length: int) -> None:
    inputs = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args]
    cache = kwargs.get("past_key_values")
    texts = next((tensor for tensor in inputs if tensor is not None), None)
    if texts is None:
        return  # the model itself raises an error
    n_tokens = texts.shape[1] + (0 if cache is None else cache.get_seq_length())
    if n_tokens > length:
        raise ValueError(longer_text(name, n_tokens, features, length))


def longer_text(name: str, n_tokens: int, features: str, length: int) -> str:
    """Returns the error for a text that is too long."""
    return (
        f"{name}: got a text of {n_tokens} tokens, expected at most {length}. For longer texts this model uses "
        f"{features}, which Qwen2 does not have. (The model is loaded as Qwen2.) Set max_length to {length} or less."
    )


def original_qwen_tokenizer(name_or_path: str, config: dict, **kwargs) -> Qwen2Tokenizer:
    """
    Builds the fast tokenizer of a model of the first Qwen family from its `qwen.tiktoken`. The tokenizer is a
    byte-pair encoding with the pattern and normalization of Qwen2 and the special tokens of the first family.

    Args:
        name_or_path (`str`): Hub id or local directory.
        config (`dict`): Content of the model's config.json, with the maximum length of texts.
        kwargs: Options of the file (`w2s_hf.hub.FILE_OPTIONS`, such as `revision`), and of the tokenizer.

    Raises:
        OSError: There is no `qwen.tiktoken`.
        ValueError: The lines of the file are not a token in base64 and its rank, or the vocabulary is incomplete.
    """
    file_options = {key: kwargs.pop(key) for key in FILE_OPTIONS if key in kwargs}
    file = Path(cast(str, cached_file(name_or_path, "qwen.tiktoken", **file_options)))  # raises an error if missing
    stat = file.stat()
    vocabulary, merges = _read_ranks(file, (stat.st_size, stat.st_mtime_ns))
    n, n_most = len(vocabulary), config["vocab_size"] - len(_SPECIAL_TOKENS)
    # A truncated file has no gap in its ranks, but the special tokens would get wrong ids.
    if n > n_most or (n_most >= _N_TOKENS and n != _N_TOKENS):
        expected = _N_TOKENS if n_most >= _N_TOKENS else n_most
        raise ValueError(
            f"{name_or_path}: got {n} tokens in qwen.tiktoken, expected {expected}. Download the file of this model "
            "again."
        )
    kwargs = {"model_max_length": _trained_length(config), "merges": list(merges), **kwargs}
    tokenizer = Qwen2Tokenizer(vocab=dict(vocabulary), **kwargs)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS], True)
    tokenizer.name_or_path = name_or_path
    return tokenizer


@lru_cache(maxsize=2)
def _read_ranks(file: Path, state: tuple[int, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """
    Returns vocabulary and merges, in the characters that represent bytes in byte-level tokenizers. Reading takes
    seconds, so the result is cached as long as the `state` of the file (size and time) is the same.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"{file}, line {number}: got {line[:40]!r}, expected a token in base64 and its rank. Download the "
                "file again."
            ) from error
    n_bytes = sum(len(token) == 1 for token in ranks)
    if sorted(ranks.values()) != list(range(len(ranks))) or n_bytes != 256:
        raise ValueError(
            f"{file}: got {len(ranks)} tokens ({n_bytes} single bytes) with ranks up to "
            f"{max(ranks.values(), default=-1)}, expected all 256 bytes and ranks from 0 without a gap. "
            "Download the file again."
        )
    letters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [_last_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    return vocabulary, [(spell(first), spell(second)) for first, second in merges]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Returns the two tokens that merge into a token, by merging its bytes in the order of their ranks."""
    parts = [token[position : position + 1] for position in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(first + second, len(ranks)) for first, second in zip(parts, parts[1:], strict=False)]
        position = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[position] >= ranks[token]:
            raise ValueError(
                f"Got the token {token!r} of rank {ranks[token]}, expected a token that consists of two tokens of "
                "lower ranks. Download qwen.tiktoken again."
            )
        parts[position : position + 2] = [parts[position] + parts[position + 1]]
    return parts[0], parts[1]
