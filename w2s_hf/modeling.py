"""Students: a base model in any precision, and LoRA adapters on it."""

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from bitsandbytes.nn import Linear4bit
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import ModulesToSaveWrapper, load_peft_weights
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
    set_seed,
)
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging
from transformers.utils.peft_utils import find_adapter_config_file
from trl.trainer.utils import disable_dropout_in_model

from .config import computes_in_bfloat16
from .heads import HEAD_NAMES, classification_head, find_head, full_precision_head, output_layer
from .hub import FILE_OPTIONS, cached_commit, has_only_pickles
from .original_qwen import (
    is_original_qwen,
    load_original_qwen,
    original_qwen_tokenizer,
    qwen2_config,
    refuse_longer_texts,
)

__all__ = [
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

logger = logging.getLogger(__name__)


def load_tokenizer(name_or_path: str, **kwargs) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token: its own, or its end-of-text token where it has none (GPT-2)."""
    config = _config_dict(name_or_path, **kwargs)
    if is_original_qwen(config):
        return original_qwen_tokenizer(name_or_path, config, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    if tokenizer.pad_token is None:
        # A classifier reads the last token that is not padding. Texts are encoded without an end-of-text token, so
        # sharing it hides nothing; of pairs, which have one, it reads the token before.
        if tokenizer.eos_token is None:
            raise ValueError(f"{name_or_path}: the tokenizer has neither a padding nor an end-of-text token; set one.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """
    The configuration of a model, of an original Qwen as Qwen2's; nothing else of it is read.

    Raises:
        ValueError: an original Qwen that asks for what Qwen2 does not have, see [`w2s_hf.original_qwen.qwen2_config`].
        OSError: there is none, or the Hub does not answer.
    """
    config = _config_dict(name_or_path, revision=revision)
    if is_original_qwen(config):
        return qwen2_config(config, name_or_path)
    return AutoConfig.from_pretrained(name_or_path, revision=revision)


def _config_dict(name_or_path: str, **kwargs) -> dict:
    """The content of a model's config.json; nothing where it has none, such as a directory of adapters."""
    options = {key: kwargs[key] for key in FILE_OPTIONS if key in kwargs}
    file = cached_file(name_or_path, "config.json", _raise_exceptions_for_missing_entries=False, **options)
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
    Loads a student: base model, precision, and adapters if asked for.

    A directory or repository that holds trained adapters (an `adapter_config.json`) loads its base and puts the
    adapters, head included, on it; its head keeps full precision whatever `dtype` is.

    Args:
        name_or_path (`str`): Hub id or local directory of a base model or of a trained student.
        task_type (`str`, *optional*, defaults to `"SEQ_CLS"`):
            `"SEQ_CLS"`, `"REWARD"` (one output), or `"CAUSAL_LM"`.
        num_labels (`int`, *optional*):
            Outputs of the head for `"SEQ_CLS"`; by default those of the checkpoint, and 2 for a base.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            nf4 weights with double quantization and `dtype` compute; the head stays in full precision.
        dtype (`str` or `torch.dtype`, *optional*):
            Of the weights that are not quantized; `"auto"` is that of the checkpoint. Defaults to `"bfloat16"` on a
            machine with a GPU that computes in it, and elsewhere to `"float32"`, which is faster on a CPU.
        peft_config ([`~peft.LoraConfig`], *optional*): Adds fresh adapters, see [`fresh_adapter`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): In place of `load_in_4bit`.
        is_trainable (`bool`, *optional*, defaults to `False`): Train the adapters of a finished student further.
        revision (`str`, *optional*): On the Hub, of `name_or_path`.
        base_model (`str`, *optional*):
            Hub id or directory of the base of a finished student; by default what the adapters say, and its commit.
        kwargs: Passed to `from_pretrained`.

    Returns:
        A model in eval mode; a [`~peft.PeftModel`] when it has adapters. Nothing of the base is trainable then.

    Raises:
        ValueError: unknown task type or dtype, both `load_in_4bit` and `quantization_config`, a `base_model` for
            what has no adapters, weights that are not safetensors, or an original Qwen that asks for what Qwen2 does
            not have (see [`w2s_hf.original_qwen`]).
    """
    if task_type not in ("SEQ_CLS", "REWARD", "CAUSAL_LM"):
        raise ValueError(f"task_type: got {task_type!r}, expected SEQ_CLS, REWARD or CAUSAL_LM.")
    if load_in_4bit and quantization_config is not None:
        raise ValueError("Got load_in_4bit=True and a quantization_config; give one of them.")
    if dtype is None:
        dtype = "bfloat16" if computes_in_bfloat16() else "float32"
    if isinstance(dtype, str) and dtype != "auto":
        if dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"dtype: got {dtype!r}, expected bfloat16, float16, float32 or auto.")
        dtype = getattr(torch, dtype)
    if find_adapter_config_file(name_or_path, revision=revision) is not None:
        adapter = PeftConfig.from_pretrained(name_or_path, revision=revision)
        base = load_student(
            base_model or adapter.base_model_name_or_path,
            task_type=task_type,
            num_labels=num_labels,
            load_in_4bit=load_in_4bit,
            dtype=dtype,
            quantization_config=quantization_config,
            revision=None if base_model else adapter.revision,
            **kwargs,
        )
        align_padding(base, load_tokenizer(name_or_path, revision=revision))
        return PeftModel.from_pretrained(base, name_or_path, revision=revision, is_trainable=is_trainable).eval()

    if base_model is not None:
        raise ValueError(f"Got base_model={base_model!r}, and {name_or_path} has no adapters to put on it.")
    if load_in_4bit:
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        )
    if quantization_config is not None:
        # The default is to skip the module of the last parameter: for a head with a bias that names the bias, and the
        # head's weight would be quantized. An explicit list replaces that default.
        quantization_config = copy.deepcopy(quantization_config)
        skip = [*(quantization_config.llm_int8_skip_modules or []), *HEAD_NAMES, "lm_head"]
        quantization_config.llm_int8_skip_modules = list(dict.fromkeys(skip))
        kwargs["quantization_config"] = quantization_config
    if revision is not None:
        kwargs["revision"] = revision
    if task_type == "CAUSAL_LM":
        model = _from_pretrained(name_or_path, task_type, dtype=dtype, **kwargs)
    else:
        num_labels = 1 if task_type == "REWARD" else num_labels
        if num_labels is not None:
            kwargs["num_labels"] = num_labels
        model = _load_classifier(name_or_path, task_type, dtype=dtype, **kwargs)
        full_precision_head(classification_head(model))
    model.eval()
    keep_4bit_gradients(model)
    refuse_longer_texts(model, name_or_path)
    # Which transformers forgets, and does not write into a config.json.
    model.config._commit_hash = cached_commit(name_or_path, revision, kwargs.get("cache_dir"))
    return model if peft_config is None else fresh_adapter(model, peft_config)


def _from_pretrained(name_or_path: str, task_type: str, **kwargs):
    """`from_pretrained` of the class for a task type, of safetensors alone."""
    kwargs["use_safetensors"] = True
    config = _config_dict(name_or_path, **kwargs)
    if kwargs.get("revision") is None:
        # Of a branch that has no safetensors, transformers asks a service to convert it; of a commit it does not.
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
            f"{name_or_path}: got weights in .bin files alone, expected safetensors. A .bin file is a pickle, which "
            "can run code when it is read. Take a revision that has model.safetensors, or convert what you trust "
            "once: from_pretrained(...) and save_pretrained(DIRECTORY) of transformers."
        ) from error


def _load_classifier(name_or_path: str, task_type: str, **kwargs) -> PreTrainedModel:
    """
    A base with a new head. That the head is new goes without saying; that anything else is, or that it takes the place
    of another one, does not.
    """
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        model, info = _from_pretrained(
            name_or_path, task_type, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    finally:
        hf_logging.set_verbosity(verbosity)
    for name, found, expected in info["mismatched_keys"]:
        if not name.startswith(HEAD_NAMES):
            raise ValueError(f"{name_or_path}: {name} has the shape {tuple(found)}, expected {tuple(expected)}.")
        logger.warning(f"{name_or_path}: has a head of another size, {name} {tuple(found)}; a new one takes its place")
    layer = output_layer(classification_head(model))
    n_outputs = getattr(layer.weight, "ds_shape", layer.weight.shape)[0]  # ZeRO-3 leaves each rank a piece
    if n_outputs != layer.out_features:
        raise ValueError(
            f"{name_or_path}: has a head of {n_outputs} outputs, expected {layer.out_features}, and "
            f"transformers {transformers.__version__} does not replace it in a quantized model: take a newer one."
        )
    missing = [name for name in info["missing_keys"] if not name.startswith(HEAD_NAMES)]
    if missing:
        logger.warning(f"{name_or_path}: not in the checkpoint, so newly initialised: {', '.join(sorted(missing))}")
    return model


def align_padding(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tells the model which token is padding: a decoder classifier reads the last token that is not."""
    if tokenizer.pad_token_id is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def cast_trainable_to_float32(model: nn.Module) -> None:
    """Adapters and head learn in float32: a bfloat16 weight swallows updates smaller than 1/256 of itself."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
    head = find_head(model)
    if head is not None:
        full_precision_head(head)


def keep_4bit_gradients(model: nn.Module) -> None:
    """
    Keeps 4-bit weights in the layout that gradients pass through, also after a prediction.

    On CPUs with AVX512-BF16 instructions, bitsandbytes (0.49 to 0.50) repacks the weights of a
    [`bitsandbytes.nn.Linear4bit`] in its first forward pass in eval mode. The packed layout rounds the scales to
    bfloat16 and has no gradient: a student that predicts and is then trained would get wrong updates.

    Raises:
        ValueError: weights are packed already.
    """
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise ValueError(
                    f"Got a 4-bit model whose weights ({name}) bitsandbytes has packed for inference on this CPU, "
                    "expected weights that gradients pass through. Load the model again with w2s_hf.load_student, or "
                    "give it to the trainer before its first prediction."
                )
            module.support_avx512bf16_for_cpu = False


@contextmanager
def keep_trainable(model: nn.Module) -> Iterator[None]:
    """
    Casts adapters and head to float32 and keeps them while TRL's trainers take the model: of a 4-bit model they round
    whatever is trainable to bfloat16. A model without adapters is left alone.
    """
    kept = {}
    if isinstance(model, PeftModel):
        cast_trainable_to_float32(model)
        kept = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name].to(parameter.device)


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0, that of the attention included, which is no module and which TRL's function passes."""
    disable_dropout_in_model(model)
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def fresh_adapter(
    model: PreTrainedModel | PeftModel, peft_config: LoraConfig | None = None, *, seed: int | None = None
) -> PeftModel:
    """
    Untrained adapters on a base, so that one loaded base serves a ceiling and any number of students in turn.

    Given the [`~peft.PeftModel`] of an earlier call, its adapters are taken off first and the head is put back to what
    it was before it was trained: `PeftModel.unload` alone leaves the trained head on the base.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A base, or the last student made of it.
        peft_config ([`~peft.LoraConfig`], *optional*):
            Defaults to LoRA of rank 16 on all linear layers. It is copied, so one object serves many students.
        seed (`int`, *optional*): Seeds the adapters' first weights.

    Returns:
        [`~peft.PeftModel`] whose only adapter is `"default"` (checkpoints of other names are not found again by
        `load_best_model_at_end`); adapters and head are trainable and float32, the base is frozen.
    """
    if isinstance(model, PeftModel):
        model = model.unload()
    heads = [name for name in HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module)]
    for name in heads:
        head = getattr(model, name)
        if isinstance(head, ModulesToSaveWrapper):
            head = head.original_module
            setattr(model, name, head)
        if not hasattr(model, "_untrained_head"):
            model._untrained_head = {key: value.detach().clone() for key, value in head.state_dict().items()}
        head.load_state_dict(model._untrained_head)
    if peft_config is None:
        task_type = "SEQ_CLS" if heads else "CAUSAL_LM"
        peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task_type)
    if seed is not None:
        set_seed(seed)
    peft_config = copy.deepcopy(peft_config)
    # A base of the Hub may move on: the adapters say which commit is theirs, and load_student reads it.
    peft_config.revision = peft_config.revision or getattr(model.config, "_commit_hash", None)
    student = get_peft_model(model, peft_config)
    cast_trainable_to_float32(student)
    return student


def load_adapter_weights(student: PeftModel, directory: str) -> None:
    """
    Puts trained adapters of another kind of model on the same base into a student, which keeps its own head.

    Args:
        student ([`~peft.PeftModel`]): With adapters of the same shape.
        directory (`str`): Adapters of a language model, say, as [`~peft.PeftModel.save_pretrained`] left them.

    Raises:
        ValueError: the adapters do not fit; a name that one of them lacks is in the message.
    """

    def is_shared(name: str) -> bool:
        return not set(name.split(".")) & {*HEAD_NAMES, "lm_head"}

    own = get_peft_model_state_dict(student)
    weights = {name: value for name, value in load_peft_weights(directory, device="cpu").items() if is_shared(name)}
    expected = {name for name in own if is_shared(name)}
    if weights.keys() != expected:
        raise ValueError(
            f"{directory}: the adapters do not fit the student, such as {min(weights.keys() ^ expected)}; both need "
            "the same base and the same LoRA settings."
        )
    set_peft_model_state_dict(student, own | weights)
