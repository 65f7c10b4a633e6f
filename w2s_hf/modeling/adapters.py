"""LoRA adapters on a base: untrained ones, and what trainers need of them."""

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
    Untrained adapters on a base, so that one loaded base serves a ceiling and any number of students in turn.

    Given the [`~peft.PeftModel`] of an earlier call, its adapters are taken off first and the head is put back to what
    it was before it was trained: `PeftModel.unload` alone leaves the trained head on the base.

    All layers between the backbone and the logits are trained and saved with the adapters, not only the `score` or
    `classifier` that PEFT knows, and so is a pooler that the checkpoint of the base lacks.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A base, or the last student made of it.
        peft_config ([`~peft.LoraConfig`], *optional*):
            Defaults to LoRA of rank 16 on all linear layers. It is copied, so one object serves many students.
        seed (`int`, *optional*): Seeds the adapters' first weights.

    Returns:
        [`~peft.PeftModel`] whose only adapter is `"default"` (checkpoints of other names are not found again by
        `load_best_model_at_end`); adapters and head are trainable and float32, the base is frozen.

    Raises:
        ValueError: adapters are merged into the base, its weights have changed since its first student was made, its
            checkpoint lacks weights that adapters cannot save, or the kind of adapters cannot save a head.
    """
    model = _without_adapters(model)
    # The marks of transformers go with layers that are replaced or copied.
    set_new_weights(model, new_weights(model))
    dequantize_head(model)
    heads = head_modules(model)
    _put_back(model, heads)
    unsaved = sorted(name for name in new_weights(model) if not name.startswith(tuple(f"{head}." for head in heads)))
    if unsaved:
        raise ValueError(
            f"{model.config.name_or_path or type(model).__name__}: the checkpoint lacks {', '.join(unsaved)}, which "
            "adapters neither train nor save. Take a checkpoint that has them, or train all weights, without adapters."
        )
    if peft_config is None:
        peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    if seed is not None:
        set_seed(seed)
    peft_config = copy.deepcopy(peft_config)
    if peft_config.task_type is None:
        peft_config.task_type = "SEQ_CLS" if heads else "CAUSAL_LM"  # without it a head is neither trained nor saved
    if heads:
        if not hasattr(peft_config, "modules_to_save"):
            raise ValueError(
                f"Got a {type(peft_config).__name__}, which does not save the head of a classifier. Take a LoraConfig."
            )
        # PEFT adds the names of HEAD_NAMES itself.
        saved = peft_config.modules_to_save or []
        new = [name for name in heads if name not in (*saved, *HEAD_NAMES)]
        peft_config.modules_to_save = [*saved, *new] or None
    # A base of the Hub may move on: the adapters say which commit is theirs, and load_student reads it.
    peft_config.revision = peft_config.revision or commit_hash(model.config)
    student = get_peft_model(model, peft_config)
    config = student.peft_config["default"]
    for name, value in vars(config).items():
        if isinstance(value, set):  # its order, and so the saved file, would differ from process to process
            setattr(config, name, sorted(value))
    cast_trainable_to_float32(student)
    return student


def _without_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The base of a student, without adapters and with its own modules where adapters trained a copy."""
    base = base_of(model)
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in base.modules()):
        raise ValueError(
            "Got a student whose adapters are merged into the base. Load the base again for another student, or take "
            "the adapters out with unmerge_adapter(), which may change weights of the base by rounding."
        )
    for name, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            base.set_submodule(name, original_and_copies(module)[0])
    if isinstance(model, PeftModel) and not model.active_peft_config.is_prompt_learning:
        return model.unload()
    # A base that was kept beside its student has the adapters in it.
    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            base.set_submodule(name, module.get_base_layer())
    return base


def remember_base(base: nn.Module) -> None:
    """Keeps what [`fresh_adapter`] compares a base with, before a finished student, which may be merged, is on it."""
    _put_back(base, head_modules(base))


def _put_back(base: nn.Module, heads: dict[str, nn.Module]) -> None:
    """Puts the head back to its state before the first student. Raises `ValueError` if the rest has changed."""
    # Of quantized weights, the state holds the scales too, which merged adapters change.
    entries = {
        name: value.reshape(-1)[:: max(1, value.numel() // 64)].clone()
        for name, value in base.state_dict().items()
        if not name.startswith(tuple(f"{head}." for head in heads))
    }
    kept = vars(base)
    if "_untrained_head" not in kept:
        kept["_untrained_entries"] = entries
        kept["_untrained_head"] = {
            name: {key: value.detach().clone() for key, value in head.state_dict().items()}
            for name, head in heads.items()
        }
        return
    for name, state in kept["_untrained_head"].items():
        heads[name].load_state_dict(state)
    # Rounding of a float32 weight that adapters were merged into and taken out of again is no change.
    changed = []
    for name, now in entries.items():
        before = kept["_untrained_entries"].get(name, now)
        if now.shape != before.shape or not torch.allclose(now.cpu().float(), before.cpu().float(), 1e-5, 1e-7):
            changed.append(name)
    if changed:
        raise ValueError(
            f"Got a base whose weights have changed since its first student was made ({changed[0]} and "
            f"{len(changed) - 1} more), by merge_and_unload() or by training. Load the base again."
        )


def load_adapter_weights(student: PeftModel, directory: str) -> None:
    """
    Puts trained adapters of another kind of model on the same base into a student, which keeps its own head.

    Args:
        student ([`~peft.PeftModel`]): With adapters of the same shape.
        directory (`str`): Adapters of a language model, say, as [`~peft.PeftModel.save_pretrained`] left them.

    Raises:
        ValueError: the adapters do not fit; a name that one of them lacks is in the message.
    """
    heads = tuple(f"base_model.model.{name}." for name in (*head_modules(student), *HEAD_NAMES, "lm_head"))

    def is_shared(name: str) -> bool:
        return not name.startswith(heads)

    own = get_peft_model_state_dict(student)
    weights = {name: value for name, value in load_peft_weights(directory, device="cpu").items() if is_shared(name)}
    expected = {name for name in own if is_shared(name)}
    if weights.keys() != expected:
        raise ValueError(
            f"{directory}: the adapters do not fit the student, such as {min(weights.keys() ^ expected)}; both need "
            "the same base and the same LoRA settings."
        )
    set_peft_model_state_dict(student, own | weights)


def stored_shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor in a safetensors file; nothing else of it is read."""
    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def cast_trainable_to_float32(model: nn.Module) -> None:
    """Adapters and head learn in float32: a bfloat16 weight swallows updates smaller than 1/256 of itself."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
    full_precision_head(model)


def prepare_adapters(student: PeftModel) -> None:
    """
    Makes adapters ready for a trainer. They are called `"default"`, since checkpoints and students of other names are
    saved in subdirectories, where neither `load_best_model_at_end` nor [`load_student`] finds them. Trainable weights
    are float32.

    Raises:
        ValueError: several adapters are active, adapters of another name are active beside `"default"`, or the
            adapters leave out layers that the base lacks (see [`refuse_unsaved_layers`]).
    """
    _call_default(student)
    refuse_unsaved_layers(student)
    cast_trainable_to_float32(student)


def _call_default(student: PeftModel) -> None:
    names, active = ", ".join(student.peft_config), student.active_adapters
    if len(active) > 1:
        raise ValueError(
            f"Got {len(active)} active adapters ({', '.join(active)}), expected one. Choose it with set_adapter."
        )
    if not active or active[0] == "default":
        return
    name = active[0]
    if "default" in student.peft_config:
        raise ValueError(
            f"Got the adapters {names}, of which {name!r} is active. Expected the active one to be called 'default', "
            "as which students are saved. Remove the other one with delete_adapter('default')."
        )

    def renamed(parameter: str) -> str:
        return re.sub(rf"(.*)\.{re.escape(name)}(?=\.|$)", r"\1.default", parameter)

    trained = {renamed(key): parameter for key, parameter in student.named_parameters() if renamed(key) != key}
    with torch.random.fork_rng():  # new adapters are drawn, and thrown away
        student.add_adapter("default", copy.deepcopy(student.peft_config[name]))
    requires_grad = {key: parameter.requires_grad for key, parameter in trained.items()}
    student.set_adapter("default")
    student.delete_adapter(name)
    for key, parameter in student.named_parameters():
        if key in trained:
            parameter.data = trained[key].data
            parameter.requires_grad_(requires_grad[key])
    logger.warning(f"The adapters {name!r} are called 'default' from here on, as which students are saved.")


def refuse_unsaved_layers(student: PeftModel) -> None:
    """
    Raises `ValueError` if adapters neither train nor save layers that the checkpoint of their base lacks. Such layers
    stay random, and are others whenever the student is loaded.
    """
    base = base_of(student)
    unsaved = sorted(name for name in new_weights(base) if not _is_saved(base, name))
    if unsaved:
        layers = sorted({name.rpartition(".")[0] for name in unsaved})
        raise ValueError(
            f"Got adapters without {', '.join(layers)}, which the checkpoint of the base lacks, so that it is random "
            "and is not saved. Make the adapters with w2s_hf.fresh_adapter, or name it in modules_to_save of the "
            "peft_config."
        )


def _is_saved(base: PreTrainedModel, weight: str) -> bool:
    """Returns whether a weight of the base is in a module that adapters train and save as a whole."""
    module: nn.Module = base
    for part in weight.split(".")[:-1]:
        module = getattr(module, part)
        if isinstance(module, AuxiliaryTrainingWrapper):
            return True
    return False


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
            if is_packed_for_cpu(module):
                raise ValueError(
                    f"Got a 4-bit model whose weights ({name}) bitsandbytes has packed for inference on this CPU, "
                    "expected weights that gradients pass through. Load the model again with w2s_hf.load_student, or "
                    "give it to the trainer before its first prediction."
                )
            never_pack_for_cpu(module)


@contextmanager
def keep_trainable(model: nn.Module) -> Iterator[None]:
    """
    Casts adapters and head to float32 and keeps them while TRL's trainers take the model: of a 4-bit model they round
    whatever is trainable to bfloat16. A model without adapters is left alone.
    """
    kept = {}
    if isinstance(model, PeftModel):
        prepare_adapters(model)
        kept = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name].to(parameter.device)
