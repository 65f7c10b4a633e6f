"""The settings of a training run in cards and results. Only settings that can change the model are included."""

import os
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from .config import LossArguments

__all__ = ["WITHOUT_EFFECT", "changed_fields", "training_settings"]

# These arguments change output files, messages or speed, but no results.
WITHOUT_EFFECT = frozenset({
    "output_dir", "logging_dir", "logging_strategy", "logging_first_step", "logging_steps", "log_level",
    "log_level_replica", "log_on_each_node", "report_to", "run_name", "project", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id", "disable_tqdm",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
    "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "skip_memory_metrics", "ddp_timeout", "resume_from_checkpoint", "do_train",
    "do_eval", "do_predict", "per_device_eval_batch_size", "local_rank",
})  # fmt: skip

# These are the arguments of devices, micro-batches, kernels and reports. They may change the last digits of a number.
# Runs are not grouped by these arguments.
_HOW_IT_IS_COMPUTED = frozenset({
    "seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "max_tokens_per_micro_batch",
    "auto_find_batch_size", "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "activation_offloading", "use_cpu", "bf16", "fp16", "tf32", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps", "use_liger_kernel",
    "liger_kernel_config",
    "pad_to_multiple_of", "padding_free", "fsdp", "fsdp_config", "deepspeed", "parallelism_config", "ddp_backend",
    "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters", "ddp_static_graph",
    "full_determinism", "dataset_num_proc", "dataset_text_field", "remove_unused_columns", "debug",
    "eval_accumulation_steps", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object",
    "batch_eval_metrics", "prediction_loss_only", "include_for_metrics", "include_num_input_tokens_seen",
    "include_tokens_per_second", "logging_nan_inf_filter", "save_only_model", "save_on_each_node",
    "restore_callback_states_from_checkpoint", "enable_jit_checkpoint",
    "model_init_kwargs",  # the effect of these arguments is recorded from the model itself, and they may hold a token
    "max_steps", "num_train_epochs",  # one of these arguments is always among the settings
})  # fmt: skip

# These arguments matter only if the best of several checkpoints is kept.
_EARLY_STOPPING = frozenset({
    "eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "metric_for_best_model",
    "greater_is_better",
})  # fmt: skip


def changed_fields(config: Any, besides: frozenset[str] | set[str] = frozenset()) -> dict[str, object]:
    """
    Returns the fields of a configuration with a value that is not the default, as JSON values.

    Fields with their default are left out, so that new fields in later versions of a library change nothing. Paths are
    reduced to their last part.

    Args:
        config (dataclass): The configuration.
        besides (`frozenset[str]`, *optional*): Fields to leave out.
    """
    changed = {}
    for item in fields(config):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        value = getattr(config, item.name)
        if default is None and is_dataclass(value) and not isinstance(value, type):
            default = type(value)()
        value, default = _as_json(value), _as_json(default)
        if item.name not in besides and value != default:
            changed[item.name] = value
    return changed


def _as_json(value: object) -> object:
    if isinstance(value, Enum):
        value = value.value
    if value is MISSING or (not value and not isinstance(value, bool | int | float)):
        return None  # an empty list or an empty text
    if is_dataclass(value):
        return {item.name: _as_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {str(name): _as_json(part) for name, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        # PEFT and transformers also write a list of one name as the name itself.
        return _as_json(value[0]) if len(value) == 1 else [_as_json(part) for part in value]
    if isinstance(value, bool | int | float):
        return value
    return os.path.basename(str(value)) if os.path.exists(str(value)) else str(value)


def training_settings(args: TrainingArguments) -> dict[str, str | float]:
    """
    Returns the settings of a training run as JSON values. They include the arguments that matter in every run. Other
    arguments are included if they differ from their default and can change the trained model. Arguments of losses are
    left out (see [`LossArguments.loss_settings`]), and so are seeds, devices, paths, logging and micro-batches.
    """
    names = ["learning_rate", "num_train_epochs", "optim", "adam_beta2", "weight_decay", "max_grad_norm"]
    names += ["lr_scheduler_type", "warmup_steps", "max_length", "max_new_tokens"]
    if args.max_steps > 0:
        names[1] = "max_steps"
    settings = {name: getattr(args, name) for name in names if hasattr(args, name)}
    settings = {name: getattr(value, "value", value) for name, value in settings.items()}  # some are enumerations
    settings["rows per optimizer step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings["mixed precision"] = "bfloat16" if args.bf16 else "float16" if args.fp16 else "no"
    besides = WITHOUT_EFFECT | _HOW_IT_IS_COMPUTED | set(settings)
    if isinstance(args, LossArguments):
        besides |= {item.name for item in fields(LossArguments)}
    if not args.load_best_model_at_end:
        besides |= _EARLY_STOPPING
    elif args.greater_is_better == (not str(args.metric_for_best_model).endswith("loss")):
        besides |= {"greater_is_better"}
    return settings | changed_fields(args, besides)
