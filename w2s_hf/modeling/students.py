"""Loads students: a base model in any precision, or a trained student with its adapters."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from .._compat import (
    disable_dropout_in_model,
    find_adapter_config_file,
    is_deepspeed_zero3_enabled,
    optional_file,
    set_commit_hash,
)
from ..config import computes_in_bfloat16, warn_of_slow_bfloat16
from ..hub import FILE_OPTIONS, cached_commit, has_only_pickles, refuse_missing_directory
from .adapters import (
    fresh_adapter,
    keep_4bit_gradients,
    refuse_unsaved_layers,
    remember_base,
    stored_shapes,
)
from .heads import (
    HEAD_NAMES,
    classification_head,
    dequantize_head,
    full_precision_head,
    head_linears,
    head_modules,
    output_layer,
    set_new_weights,
)
from .original_qwen import (
    is_original_qwen,
    load_original_qwen,
    original_qwen_tokenizer,
    qwen2_config,
    refuse_longer_texts,
)

__all__ = ["align_padding", "disable_dropout", "load_config", "load_student", "load_tokenizer"]

logger = logging.getLogger(__name__)


def load_tokenizer(name_or_path: str, **kwargs) -> PreTrainedTokenizerBase:
    """
    Loads the tokenizer of a model. If it has no padding token (GPT-2), its end-of-text token is used for padding.

    Raises:
        ValueError: The tokenizer has neither a padding nor an end-of-text token.
    """
    config = _config_dict(name_or_path, **kwargs)
    if is_original_qwen(config):
        return original_qwen_tokenizer(name_or_path, config, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    if tokenizer.pad_token is None:
        # A classifier reads the last token that is not padding. Texts are encoded without an end-of-text token, and
        # their last token is read. Pairs end with an end-of-text token, and the token before it is read.
        if tokenizer.eos_token is None:
            raise ValueError(
                f"{name_or_path}: got a tokenizer with neither a padding nor an end-of-text token, expected a "
                "padding token. Set `pad_token` in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name_or_path: str, revision: str | None = None, **kwargs) -> PretrainedConfig:
    """
    Loads the configuration of a model, without its weights. A model of the first Qwen family gets a Qwen2
    configuration.

    Raises:
        ValueError: A model of the first Qwen family uses features that Qwen2 does not have, see
            [`w2s_hf.modeling.original_qwen.qwen2_config`].
        OSError: There is no configuration, or the Hub does not respond.
    """
    refuse_missing_directory(name_or_path)
    config = _config_dict(name_or_path, revision=revision, **kwargs)
    if is_original_qwen(config):
        return qwen2_config(config, name_or_path)
    return AutoConfig.from_pretrained(name_or_path, revision=revision, **kwargs)


def _config_dict(name_or_path: str, **kwargs) -> dict:
    """Returns the content of a model's config.json, or `{}` if there is none, as in a directory of adapters."""
    options = {key: kwargs[key] for key in FILE_OPTIONS if key in kwargs}
    file = optional_file(name_or_path, "config.json", **options)
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def load_student(
    name_or_path: str,
    *,
    task_type: str = "SEQ_CLS",
    num_labels: int | None = None,
    load_in_4bit: bool = False,
    dtype: str | torch.dtype | None = None,
    peft_config: LoraConfig | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    is_trainable: bool = False,
    revision: str | None = None,
    base_model: str | None = None,
    **kwargs,
) -> PreTrainedModel | PeftModel:
    """
    Loads a student: a base model in the given precision, with new adapters if `peft_config` is set.

    If the directory or repository contains trained adapters (an `adapter_config.json`), their base model is loaded.
    The adapters and the trained head are added to it. The head is always in float32, independent of `dtype`.

    Args:
        name_or_path (`str`): Hub id or local directory of a base model or of a trained student.
        task_type (`str`, *optional*, defaults to `"SEQ_CLS"`):
            `"SEQ_CLS"`, `"REWARD"` (one output), or `"CAUSAL_LM"`.
        num_labels (`int`, *optional*):
            Number of outputs of the head for `"SEQ_CLS"`. Defaults to the number of the checkpoint or student, and to
            2 for a base model.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to quantize weights to nf4 with double quantization and computation in `dtype`. The head stays in
            float32.
        dtype (`str` or `torch.dtype`, *optional*):
            The data type of weights that are not quantized. `"auto"` is the data type of the checkpoint. Defaults to
            `"bfloat16"` on a machine with a GPU that supports it, and to `"float32"` otherwise. On CPUs without
            instructions for bfloat16, float32 is about forty times faster, and bfloat16 causes a warning.
        peft_config ([`~peft.LoraConfig`], *optional*): The configuration of untrained adapters to add, see
            [`fresh_adapter`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            The quantization, instead of `load_in_4bit`. A checkpoint that is stored in 4 or 8 bit keeps its own
            quantization.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether the adapters of a trained student are
            trainable.
        revision (`str`, *optional*): The revision of `name_or_path` on the Hub.
        base_model (`str`, *optional*):
            Hub id or directory of the base model of a trained student. Defaults to the model and the commit that the
            adapters name.
        kwargs: Passed to `from_pretrained`.

    Returns:
        A [`~transformers.PreTrainedModel`] in eval mode. If it has adapters, it is a [`~peft.PeftModel`], whose base
        model is frozen.

    Raises:
        ValueError: The task type or dtype is unknown. Both `load_in_4bit` and `quantization_config` are set.
            `base_model` is set for a model without adapters, or `peft_config` for a model that has adapters. Adapters
            are in subdirectories, or do not save layers that the base checkpoint lacks. Weights are not safetensors. A
            model of the first Qwen family has features that Qwen2 does not have, see
            [`w2s_hf.modeling.original_qwen`].
        OSError: The model does not exist, or the base model that the adapters name cannot be loaded. In the second
            case, set `base_model`.
    """
    if task_type not in ("SEQ_CLS", "REWARD", "CAUSAL_LM"):
        raise ValueError(
            f"task_type: got {task_type!r}, expected SEQ_CLS, REWARD or CAUSAL_LM. Set SEQ_CLS for classification, "
            "REWARD for pairs of responses, or CAUSAL_LM for completions."
        )
    if load_in_4bit and quantization_config is not None:
        raise ValueError("Got load_in_4bit=True and a quantization_config, expected one of them. Remove load_in_4bit.")
    automatic = "bfloat16" if computes_in_bfloat16() else "float32"
    dtype = automatic if dtype is None else dtype
    if isinstance(dtype, str) and dtype != "auto":
        if dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(
                f"dtype: got {dtype!r}, expected bfloat16, float16, float32 or auto. Set auto for the data type of "
                "the checkpoint, or leave dtype out for the data type that suits the machine."
            )
        dtype = getattr(torch, dtype)
    refuse_missing_directory(name_or_path)
    if find_adapter_config_file(name_or_path, revision=revision) is not None:
        options = {"num_labels": num_labels, "load_in_4bit": load_in_4bit, "dtype": dtype, **kwargs}
        options |= {"task_type": task_type, "quantization_config": quantization_config}
        if peft_config is not None:
            raise ValueError(
                f"Got a peft_config, but {name_or_path} already has adapters. Load its base model instead, or remove "
                "the peft_config."
            )
        base = _load_base(name_or_path, revision, base_model, options)
        align_padding(base, load_tokenizer(name_or_path, revision=revision))
        student = PeftModel.from_pretrained(base, name_or_path, revision=revision, is_trainable=is_trainable)
        refuse_unsaved_layers(student)
        return student.eval()

    nested = sorted(file.parent for file in Path(name_or_path).glob("*/adapter_config.json"))
    if nested and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(
            f"{name_or_path}: got a directory with adapters in subdirectories, where PEFT saves adapters that are not "
            f"called 'default'. Load one of {', '.join(map(str, nested))}."
        )
    if base_model is not None:
        raise ValueError(
            f"Got base_model={base_model!r}, but {name_or_path} has no adapters. Remove base_model, or load a student "
            "with adapters."
        )
    if load_in_4bit:
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=automatic if dtype == "auto" else dtype,
        )
    if revision is not None:
        kwargs["revision"] = revision
    if task_type != "CAUSAL_LM" and (task_type == "REWARD" or num_labels is not None):
        kwargs["num_labels"] = 1 if task_type == "REWARD" else num_labels
    if quantization_config is not None:
        # By default, transformers does not quantize the last parameter of a model. If the head has a bias, the bias is
        # the last parameter, and the weight of the head would be quantized. An explicit list replaces this default.
        quantization_config = copy.deepcopy(quantization_config)
        skip = [*(quantization_config.llm_int8_skip_modules or []), *HEAD_NAMES, "lm_head"]
        quantization_config.llm_int8_skip_modules = list(dict.fromkeys(skip))
        kwargs["quantization_config"] = quantization_config
    if task_type == "CAUSAL_LM":
        model, info = _from_pretrained(name_or_path, task_type, dtype=dtype, output_loading_info=True, **kwargs)
        set_new_weights(model, info["missing_keys"])
    else:
        model = _load_classifier(name_or_path, task_type, dtype=dtype, **kwargs)
        full_precision_head(model)
    model.eval()
    keep_4bit_gradients(model)
    refuse_longer_texts(model, name_or_path)
    compute_dtype = getattr(getattr(model.config, "quantization_config", None), "bnb_4bit_compute_dtype", None)
    if torch.bfloat16 in (model.dtype, compute_dtype) and not torch.accelerator.is_available():
        warn_of_slow_bfloat16()
    # transformers loses the commit and does not write it to config.json.
    set_commit_hash(model.config, cached_commit(name_or_path, revision, kwargs.get("cache_dir")))
    return model if peft_config is None else fresh_adapter(model, peft_config)


def _load_base(
    student: str, revision: str | None, base_model: str | None, options: dict
) -> PreTrainedModel | PeftModel:
    """Loads the base model of a student, and resizes its token embeddings to the number of the saved student."""
    adapter = PeftConfig.from_pretrained(student, revision=revision)
    name = base_model or adapter.base_model_name_or_path
    if not name:
        raise ValueError(
            f"{student}: got adapters without the name of a base model. Pass its Hub id or directory as base_model=."
        )
    try:
        base = load_student(name, revision=None if base_model else adapter.revision, **options)
    except (OSError, HFValidationError) as error:
        if base_model:
            raise
        raise OSError(
            f"{student}: cannot load its base model {name!r}"
            + (f" at the revision {adapter.revision}" if adapter.revision else "")
            + f". If the base was moved, pass its directory or Hub id as base_model=. ({error})"
        ) from error
    file = optional_file(student, "adapter_model.safetensors", revision=revision)
    stored = {} if file is None else stored_shapes(file)
    if options["task_type"] == "SEQ_CLS" and not options["num_labels"]:
        head, layer = list(head_linears(base).items())[-1]
        n_outputs, *_ = stored.get(f"base_model.model.{head}.weight", (layer.out_features,))
        if n_outputs != layer.out_features:
            return _load_base(student, revision, base_model, {**options, "num_labels": n_outputs})
    n_tokens = _n_resized_tokens(stored, base)
    if n_tokens is None:
        remember_base(base)
    else:
        base.resize_token_embeddings(n_tokens, mean_resizing=False)  # the adapters contain all embeddings
    return base


def _n_resized_tokens(stored: dict[str, tuple[int, ...]], base: PreTrainedModel | PeftModel) -> int | None:
    """
    Returns the number of token embeddings that adapters contain, or `None` if the base model has this number. PEFT
    saves resized embeddings with the adapters.
    """
    for name, module in base.named_modules():
        # The last two names belong to an embedding that has adapters.
        for part in ("", "base_layer.", "token_adapter.base_layer."):
            n_rows = (stored.get(f"base_model.model.{name}.{part}weight") or (0,))[0]
            if isinstance(module, nn.Embedding) and n_rows not in (0, module.num_embeddings):
                if module is base.get_input_embeddings():
                    return n_rows
    return None


def _from_pretrained(name_or_path: str, task_type: str, **kwargs):
    """Calls `from_pretrained` of the model class for a task type. Loads only safetensors."""
    kwargs["use_safetensors"] = True
    config = _config_dict(name_or_path, **kwargs)
    if kwargs.get("revision") is None:
        # For a branch without safetensors, but not for a commit, transformers calls a conversion service.
        commit = cached_commit(name_or_path, None, kwargs.get("cache_dir"))
        kwargs |= {} if commit is None else {"revision": commit}
    try:
        if is_original_qwen(config):
            return load_original_qwen(name_or_path, config, task_type, **kwargs)
        auto_class = AutoModelForCausalLM if task_type == "CAUSAL_LM" else AutoModelForSequenceClassification
        return auto_class.from_pretrained(name_or_path, **kwargs)
    except OSError as error:
        if not has_only_pickles(name_or_path, kwargs.get("revision")):
            raise
        raise ValueError(
            f"{name_or_path}: got only weights in .bin files, expected safetensors. A .bin file is a pickle, which "
            "can run code when it is loaded. Use a revision with model.safetensors. If you trust the file, convert it "
            "once with from_pretrained(...) and save_pretrained(DIRECTORY) of transformers."
        ) from error


def _load_classifier(name_or_path: str, task_type: str, **kwargs) -> PreTrainedModel:
    """
    Loads a base model with a new classification head. Warns if other weights are new, or if the new head replaces a
    head of another size. (transformers would also warn about the new head.)
    """
    kwargs = _without_quantized_head(name_or_path, kwargs)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        model, info = _from_pretrained(
            name_or_path, task_type, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    finally:
        hf_logging.set_verbosity(verbosity)
    mismatched = {name for name, _, _ in info["mismatched_keys"]}
    set_new_weights(model, {*info["missing_keys"], *mismatched})
    heads = tuple(head_modules(model))
    for name, shape, expected in info["mismatched_keys"]:
        if not name.startswith(heads):
            raise ValueError(
                f"{name_or_path}: got the shape {tuple(shape)} for {name}, expected {tuple(expected)}. Correct its "
                "config.json."
            )
        logger.warning(
            f"{name_or_path}: the checkpoint has a head of another size ({name} {tuple(shape)}), which is replaced by "
            "a new head"
        )
    dequantize_head(model)
    layer = output_layer(classification_head(model))
    n_outputs = getattr(layer.weight, "ds_shape", layer.weight.shape)[0]  # ZeRO-3 splits the weights over ranks
    if n_outputs != layer.out_features:
        raise ValueError(
            f"{name_or_path}: got a head of {n_outputs} outputs, expected {layer.out_features}. transformers "
            f"{transformers.__version__} does not replace the head of a quantized model. Update transformers."
        )
    missing = [name for name in info["missing_keys"] if not name.startswith(HEAD_NAMES)]
    if missing:
        logger.warning(
            f"{name_or_path}: these weights are not in the checkpoint and are newly initialized: "
            f"{', '.join(sorted(missing))}"
        )
    return model


def _without_quantized_head(name_or_path: str, kwargs: dict) -> dict:
    """
    Returns keyword arguments of `from_pretrained` that exclude new layers of the head from quantization. The
    quantization may be an argument, or the checkpoint may contain 4-bit or 8-bit weights. Layers of the head that
    are stored in quantized form must be loaded in this form.
    """
    options = {key: kwargs[key] for key in (*FILE_OPTIONS, "trust_remote_code") if key in kwargs}
    config = copy.deepcopy(kwargs["config"]) if "config" in kwargs else load_config(name_or_path, **options)
    stored: Any = getattr(config, "quantization_config", None)
    requested: Any = kwargs.get("quantization_config")
    if is_deepspeed_zero3_enabled() or (stored is None and requested is None):
        return kwargs
    if stored is not None:
        stored = dict(stored if isinstance(stored, dict) else stored.to_dict())
        if not stored.get("load_in_4bit") and not stored.get("load_in_8bit"):
            return kwargs  # another quantization library has a different list of excluded layers
        del config.quantization_config
    fields = {*config.to_dict(), "num_labels"} - {"dtype"}
    n_stored_labels = config.num_labels
    for key in fields & kwargs.keys():
        setattr(config, key, kwargs[key])
    with torch.device("meta"):
        remote = {key: value for key, value in options.items() if key == "trust_remote_code"}
        skeleton = AutoModelForSequenceClassification.from_config(config, **remote)
    poolers = {name for name, _ in skeleton.base_model.named_parameters() if "pooler" in name.split(".")}
    dtypes = _stored_dtypes(name_or_path, options) if poolers or stored is not None else {}
    if not any("pooler" in name.split(".") for name in dtypes):
        set_new_weights(skeleton, [f"{skeleton.base_model_prefix}.{name}" for name in poolers])
    layers = list(head_linears(skeleton))
    quantized = {name for name in layers if dtypes.get(f"{name}.weight") in ("U8", "I8")}
    if config.num_labels != n_stored_labels:
        quantized.discard(layers[-1])  # a new layer replaces it
    # The patterns are anchored, because a plain name also matches all layers that end with it.
    skip = [f"^{name}$" for name in layers if name not in quantized]
    if stored is None:
        requested = copy.deepcopy(requested)
        skip = [pattern for pattern in skip if not pattern[1:].startswith(HEAD_NAMES)]
        requested.llm_int8_skip_modules = [*(requested.llm_int8_skip_modules or []), *skip]
        return {**kwargs, "quantization_config": requested}
    bits = 4 if stored.get("load_in_4bit") else 8
    if requested is not None and getattr(requested, f"load_in_{bits}bit") is False:
        logger.warning(
            f"{name_or_path}: the checkpoint is stored in {bits} bit. Other quantization options are ignored."
        )
    config.quantization_config = stored | {"llm_int8_skip_modules": [*(stored["llm_int8_skip_modules"] or []), *skip]}
    other = {key: value for key, value in kwargs.items() if key not in {*fields, "quantization_config"}}
    return {**other, "config": config}


def _stored_dtypes(name_or_path: str, options: dict) -> dict[str, str]:
    """Returns the dtype of each tensor of a safetensors checkpoint, by name."""
    options = {key: value for key, value in options.items() if key in FILE_OPTIONS}
    index = optional_file(name_or_path, "model.safetensors.index.json", **options)
    names = {"model.safetensors"}
    if index is not None:
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    files = [optional_file(name_or_path, name, **options) for name in sorted(names)]
    dtypes: dict[str, str] = {}
    for file in files:
        if file is not None:  # otherwise from_pretrained raises an error
            with safe_open(file, framework="pt") as tensors:
                dtypes |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return dtypes


def align_padding(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets the padding token of the model. The classifier of a decoder reads the last token that is not padding."""
    if tokenizer.pad_token_id is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def disable_dropout(model: nn.Module) -> None:
    """
    Sets all dropout probabilities to 0, in place. This includes the dropout of attention, which is not a module. TRL's
    function does not change it.
    """
    disable_dropout_in_model(model)
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]  # torch: tensors and modules only
