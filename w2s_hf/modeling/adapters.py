"""Adds untrained LoRA adapters to a base model, and prepares adapters for trainers."""

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, set_seed

from .._compat import (
    AuxiliaryTrainingWrapper,
    ModulesToSaveWrapper,
    commit_hash,
    is_packed_for_cpu,
    load_peft_weights,
    never_pack_for_cpu,
    original_and_copies,
)
from .heads import (
    HEAD_NAMES,
    base_of,
    dequantize_head,
    full_precision_head,
    head_modules,
    new_weights,
    set_new_weights,
)

__all__ = [
    "cast_trainable_to_float32",
    "fresh_adapter",
    "keep_4bit_gradients",
    "keep_trainable",
    "load_adapter_weights",
    "prepare_adapters",
    "refuse_unsaved_layers",
    "remember_base",
    "stored_shapes",
]

logger = logging.getLogger(__name__)


def fresh_adapter(
    model: PreTrainedModel | PeftModel, peft_config: PeftConfig | None = None, *, seed: int | None = None
) -> PeftModel:
    """
    Adds untrained adapters to a base model. A ceiling and any number of students can be trained in turn on one loaded
    base model.

    If `model` is the [`~peft.PeftModel`] of an earlier call, its adapters are removed first, and the head is reset to
    its untrained state. (`PeftModel.unload` alone leaves the trained head on the base model.)

    All layers between the backbone and the logits are trained and saved with the adapters, not only `score` or
    `classifier`, which PEFT adds itself. A pooler that the base checkpoint lacks is included.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A base model, or the last student on this base.
        peft_config ([`~peft.LoraConfig`], *optional*):
            Defaults to LoRA of rank 16 on all linear layers. The function uses a copy, so that the same object can be
            passed for many students.
        seed (`int`, *optional*): Seed of the adapters' initial weights.

    Returns:
        [`~peft.PeftModel`] with one adapter, `"default"`. (`load_best_model_at_end` does not find checkpoints of
        adapters with other names.) Adapters and head are trainable and in float32. The base model is frozen.

    Raises:
        ValueError: Adapters are merged into the base model, or its weights have changed since its first student.
            Its checkpoint lacks weights that adapters cannot save. This kind of adapters cannot save a head.
    """
    model = _without_adapters(model)
    # The weights are recorded first, because layers that are replaced or copied lose the flags of transformers.
    set_new_weights(model, new_weights(model))
    dequantize_head(model)
    heads = head_modules(model)
    _reset_head(model, heads)
    unsaved = sorted(name for name in new_weights(model) if not name.startswith(tuple(f"{head}." for head in heads)))
    if unsaved:
        raise ValueError(
            f"{model.config.name_or_path or type(model).__name__}: the checkpoint lacks {', '.join(unsaved)}, which "
            "adapters neither train nor save. Use a checkpoint with these weights, or train all weights without "
            "adapters."
        )
    if peft_config is None:
        peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    if seed is not None:
        set_seed(seed)
    peft_config = copy.deepcopy(peft_config)
    if peft_config.task_type is None:
        peft_config.task_type = "SEQ_CLS" if heads else "CAUSAL_LM"  # otherwise no head is trained or saved
    if heads:
        if not hasattr(peft_config, "modules_to_save"):
            raise ValueError(
                f"Got a {type(peft_config).__name__}, which cannot save the head of a classifier. Use a LoraConfig."
            )
        # PEFT adds the names of HEAD_NAMES itself.
        modules = peft_config.modules_to_save or []
        new = [name for name in heads if name not in (*modules, *HEAD_NAMES)]
        peft_config.modules_to_save = [*modules, *new] or None
    # A base model on the Hub may change. The adapters therefore store its commit, which load_student reads.
    peft_config.revision = peft_config.revision or commit_hash(model.config)
    student = get_peft_model(model, peft_config)
    config = student.peft_config["default"]
    for name, value in vars(config).items():
        if isinstance(value, set):  # the order of a set, and so the saved file, would differ between processes
            setattr(config, name, sorted(value))
    cast_trainable_to_float32(student)
    return student


def _without_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the base model of a student, without adapters, and with original modules instead of trained copies."""
    base = base_of(model)
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in base.modules()):
        raise ValueError(
            "Got a student whose adapters are merged into the base model, expected separate adapters. Load the base "
            "model again, or call unmerge_adapter(), which may change its weights by rounding."
        )
    for name, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            base.set_submodule(name, original_and_copies(module)[0])
    if isinstance(model, PeftModel) and not model.active_peft_config.is_prompt_learning:
        return model.unload()
    # A reference to the base model of a student still contains the adapters.
    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            base.set_submodule(name, module.get_base_layer())
    return base


def remember_base(base: PreTrainedModel | PeftModel) -> None:
    """Records the state of a base model before trained adapters are added, for checks in [`fresh_adapter`]."""
    _reset_head(base, head_modules(base))


def _reset_head(base: nn.Module, heads: dict[str, nn.Module]) -> None:
    """Resets the head to its state before the first student. Raises `ValueError` if other weights have changed."""
    # The state of quantized weights includes their scales, which merged adapters change.
    entries = {
        name: value.reshape(-1)[:: max(1, value.numel() // 64)].clone()
        for name, value in base.state_dict().items()
        if not name.startswith(tuple(f"{head}." for head in heads))
    }
    attributes = vars(base)
    if "_untrained_head" not in attributes:
        attributes["_untrained_entries"] = entries
        attributes["_untrained_head"] = {
            name: {key: value.detach().clone() for key, value in head.state_dict().items()}
            for name, head in heads.items()
        }
        return
    for name, state in attributes["_untrained_head"].items():
        heads[name].load_state_dict(state)
    # The comparison tolerates the rounding of float32 weights when adapters are merged and unmerged.
    changes = []
    for name, now in entries.items():
        before = attributes["_untrained_entries"].get(name, now)
        if now.shape != before.shape or not torch.allclose(now.cpu().float(), before.cpu().float(), 1e-5, 1e-7):
            changes.append(name)
    if changes:
        raise ValueError(
            f"Got a base model whose weights have changed since its first student ({changes[0]} and "
            f"{len(changes) - 1} more), by merge_and_unload() or training, expected the original weights. "
            "Load the base model again."
        )


def load_adapter_weights(student: PeftModel, directory: str) -> None:
    """
    Loads trained adapters into a student, in place. The adapters may be from another kind of model on the same base
    model, such as a language model. The student keeps its own head.

    Args:
        student ([`~peft.PeftModel`]): A student with adapters of the same shapes.
        directory (`str`): A directory of adapters that [`~peft.PeftModel.save_pretrained`] wrote.

    Raises:
        ValueError: The adapters do not match the student. The message names a weight that only one of the
            two has.
    """
    heads = tuple(f"base_model.model.{name}." for name in (*head_modules(student), *HEAD_NAMES, "lm_head"))

    def is_shared(name: str) -> bool:
        return not name.startswith(heads)

    own = get_peft_model_state_dict(student)
    weights = {name: value for name, value in load_peft_weights(directory, device="cpu").items() if is_shared(name)}
    expected = {name for name in own if is_shared(name)}
    if weights.keys() != expected:
        raise ValueError(
            f"{directory}: got adapters that do not match the student, such as {min(weights.keys() ^ expected)}, "
            "expected the same base model and LoRA settings. Use the settings that the adapters were trained with."
        )
    set_peft_model_state_dict(student, own | weights)


def stored_shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor in a safetensors file, without reading the tensors."""
    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def cast_trainable_to_float32(model: PreTrainedModel | PeftModel) -> None:
    """Casts adapters and head to float32. A bfloat16 weight would lose updates smaller than 1/256 of itself."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
    full_precision_head(model)


def prepare_adapters(student: PeftModel) -> None:
    """
    Prepares adapters for a trainer. Renames them to `"default"`, because adapters of other names are saved in
    subdirectories, where neither `load_best_model_at_end` nor [`load_student`] finds them. Casts trainable weights to
    float32.

    Raises:
        ValueError: Several adapters are active. Adapters of another name are active while `"default"` exists. The
            adapters do not save layers that the base checkpoint lacks (see [`refuse_unsaved_layers`]).
    """
    _rename_to_default(student)
    refuse_unsaved_layers(student)
    cast_trainable_to_float32(student)


def _rename_to_default(student: PeftModel) -> None:
    names, active = ", ".join(student.peft_config), student.active_adapters
    if len(active) > 1:
        raise ValueError(
            f"Got {len(active)} active adapters ({', '.join(active)}), expected one active adapter. "
            "Choose it with set_adapter."
        )
    if not active or active[0] == "default":
        return
    name = active[0]
    if "default" in student.peft_config:
        raise ValueError(
            f"Got the adapters {names}, of which {name!r} is active, expected active adapters with the name "
            "'default', under which students are saved. Call delete_adapter('default')."
        )

    def new_name(parameter: str) -> str:
        return re.sub(rf"(.*)\.{re.escape(name)}(?=\.|$)", r"\1.default", parameter)

    parameters = {new_name(key): value for key, value in student.named_parameters() if new_name(key) != key}
    with torch.random.fork_rng():  # add_adapter draws initial weights, which are replaced below
        student.add_adapter("default", copy.deepcopy(student.peft_config[name]))
    requires_grad = {key: parameter.requires_grad for key, parameter in parameters.items()}
    student.set_adapter("default")
    student.delete_adapter(name)
    for key, parameter in student.named_parameters():
        if key in parameters:
            parameter.data = parameters[key].data
            parameter.requires_grad_(requires_grad[key])
    logger.warning(f"The adapters {name!r} were renamed to 'default', the name under which students are saved.")


def refuse_unsaved_layers(student: PeftModel) -> None:
    """
    Raises `ValueError` if adapters neither train nor save layers that the base checkpoint lacks. Such layers
    stay random, with different values each time the student is loaded.
    """
    base = base_of(student)
    unsaved = sorted(name for name in new_weights(base) if not _is_saved(base, name))
    if unsaved:
        layers = sorted({name.rpartition(".")[0] for name in unsaved})
        raise ValueError(
            f"Got adapters without {', '.join(layers)}, which the base checkpoint lacks, expected adapters "
            "that save these randomly initialized layers. Create the adapters with w2s_hf.fresh_adapter, or add the "
            "layers to modules_to_save of the peft_config."
        )


def _is_saved(base: PreTrainedModel, weight: str) -> bool:
    """Returns whether a weight of the base model is in a module that adapters train and save as a whole."""
    module: nn.Module = base
    for part in weight.split(".")[:-1]:
        module = getattr(module, part)
        if isinstance(module, AuxiliaryTrainingWrapper):
            return True
    return False


def keep_4bit_gradients(model: nn.Module) -> None:
    """
    Keeps 4-bit weights in a layout that supports gradients, also after a prediction.

    On CPUs with AVX512-BF16 instructions, bitsandbytes (0.49 to 0.50) repacks the weights of a
    [`bitsandbytes.nn.Linear4bit`] in its first forward pass in eval mode. The packed layout rounds the scales to
    bfloat16 and has no gradient. A student that predicts before it is trained would get wrong updates.

    Raises:
        ValueError: Weights are already packed.
    """
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            if is_packed_for_cpu(module):
                raise ValueError(
                    f"Got a 4-bit model whose weights ({name}) bitsandbytes has packed for inference on this CPU, "
                    "expected weights that support gradients. Load the model again with w2s_hf.load_student, or pass "
                    "it to the trainer before its first prediction."
                )
            never_pack_for_cpu(module)


@contextmanager
def keep_trainable(model: nn.Module) -> Iterator[None]:
    """
    Casts adapters and head to float32 and restores them after the constructor of TRL's trainers, which rounds
    trainable weights of 4-bit models to bfloat16. Models without adapters are not changed.
    """
    weights = {}
    if isinstance(model, PeftModel):
        prepare_adapters(model)
        weights = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.data = weights[name].to(parameter.device)
