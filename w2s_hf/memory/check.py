"""Checks whether a model fits into memory before its weights are downloaded, from its configuration alone."""

import logging
import os
from dataclasses import replace
from typing import cast

import psutil
import torch
from transformers import PretrainedConfig, TrainingArguments

from .._compat import parse_flag_from_env
from ..config import AnyConfig, LossArguments
from ..modeling import load_config
from ..modeling.original_qwen import longer_text
from ..modeling.spec import ModelSpec, peft_config_of
from .estimate import OPTIMIZERS, NoEstimateError, StudentMemory, gib, usable_bytes

__all__ = ["check_fits"]

logger = logging.getLogger(__name__)


def check_fits(model: ModelSpec, option: str, args: AnyConfig, task_type: str) -> None:
    """
    Raises an error for a model that does not fit into memory, and warns if a micro-batch may not fit.

    Args:
        model ([`ModelSpec`]): The model.
        option (`str`): The command line option that names the model.
        args ([`~transformers.TrainingArguments`]): The training arguments of the model.
        task_type (`str`): A task type of [`load_student`].

    Raises:
        ValueError: Not even one row of `max_length` tokens fits, or the model does not support `max_length` tokens.
            The message contains the estimate and settings that would fit.
    """
    config = load_config(model.path, model.revision)
    length = args.max_length or 512
    features = getattr(config, "past_trained_length", "")
    if features and length > config.max_position_embeddings:
        raise ValueError(f"{option}: " + longer_text(model.name, length, features, config.max_position_embeddings))
    if args.process_index:
        return  # rank 0 checks for all ranks
    reason = _not_estimated(model, args)
    if reason:
        logger.info(f"{option} {model.name}: memory is not estimated {reason}")
        return
    capacity = _capacity(args)
    try:
        memory = _memory_of(config, model, args, task_type)
        estimate = memory.estimate(1, length)
    except NoEstimateError as error:
        logger.warning(f"{option} {model.name}: {error} The check whether the model fits is skipped")
        return
    if estimate.peak > capacity:
        raise ValueError(
            f"{option} {model.name}: needs {gib(estimate.peak)} GiB to train on one row of {length} tokens, but only "
            f"{gib(capacity)} GiB are available. The parts are weights "
            f"({gib(estimate.weights + estimate.trained)} GiB), gradients and optimizer "
            f"({gib(estimate.gradients + estimate.optimizer)}) and activations ({gib(estimate.activations)}). "
            f"{_advice(config, model, args, task_type, length, capacity)} To skip "
            "this check, set --check_memory false."
        )
    n_tokens = length * (2 if task_type == "REWARD" else 1)  # per row; a pair has two texts
    n_rows = args.per_device_train_batch_size
    if isinstance(args, LossArguments) and args.max_tokens_per_micro_batch is not None:
        n_rows = min(n_rows, max(1, args.max_tokens_per_micro_batch // n_tokens))
    estimate = memory.estimate(n_rows, length, args.per_device_eval_batch_size)
    logger.info(f"{option} {model.name}: needs about {gib(estimate.peak)} of {gib(capacity)} GiB of memory")
    if estimate.peak <= capacity:
        return
    if estimate.training_peak > capacity:
        largest = memory.largest_micro_batch(capacity, length, at_most=n_rows)
        change = f"--per_device_train_batch_size {largest} and a larger --gradient_accumulation_steps"
        if isinstance(args, LossArguments):
            change = f"--max_tokens_per_micro_batch {largest * n_tokens}"
        problem = f"micro-batches of {n_rows} rows of {length} tokens may need {gib(estimate.training_peak)} GiB"
    else:
        change = "a smaller --per_device_eval_batch_size"
        problem = (
            f"predicting {args.per_device_eval_batch_size} rows of {length} tokens may need {gib(estimate.peak)} GiB"
        )
    logger.warning(f"{option} {model.name}: {problem}, but only {gib(capacity)} GiB are available. Use {change}")


def _memory_of(
    config: PretrainedConfig,
    model: ModelSpec,
    args: TrainingArguments,
    task_type: str,
    checkpointing: bool | None = None,
) -> StudentMemory:
    student = model.config
    dtype = cast(str, student.resolved(args.use_cpu).dtype)
    if dtype == "auto":
        dtype = str(config.dtype or torch.float32).removeprefix("torch.")
    load_in_4bit = student.use_peft and student.load_in_4bit
    return StudentMemory(
        config,
        task_type=task_type,
        load_in_4bit=load_in_4bit,
        double_quant=student.use_bnb_nested_quant,
        dtype=dtype,
        peft_config=peft_config_of(model, task_type),
        gradient_checkpointing=bool(args.gradient_checkpointing if checkpointing is None else checkpointing),
        bf16=args.bf16 or args.fp16,
        attn_implementation=student.attn_implementation,
        optim=args.optim,
        n_gpus=args.world_size,
        # A 4-bit base model is replicated on each GPU, and accelerate does not shard models on CPUs.
        sharded=parse_flag_from_env("ACCELERATE_USE_FSDP") and args.device.type == "cuda" and not load_in_4bit,
    )


def _not_estimated(model: ModelSpec, args: TrainingArguments) -> str:
    """Returns the reason why there is no estimate for these settings, or `""` if there is one."""
    student = model.config
    if args.optim not in OPTIMIZERS:
        return f"with --optim {getattr(args.optim, 'value', args.optim)}"
    if student.use_peft and student.load_in_8bit:
        return "in 8 bits"
    if args.device.type not in ("cuda", "cpu"):
        return f"on {args.device.type}"
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return "under DeepSpeed"
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
            return "if FSDP offloads weights to the CPU"
        if student.use_peft and student.load_in_4bit and student.bnb_4bit_quant_storage not in (None, "uint8"):
            return "if FSDP shards a 4-bit base model"
    return ""


def _capacity(args: TrainingArguments) -> int:
    """Returns the number of bytes available to each process."""
    if args.device.type == "cuda":
        return usable_bytes(torch.cuda.get_device_properties(args.device).total_memory)
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _advice(
    config: PretrainedConfig,
    model: ModelSpec,
    args: TrainingArguments,
    task_type: str,
    length: int,
    capacity: int,
) -> str:
    """Returns advice: the first settings with which the model fits, else a smaller model or a larger GPU."""
    variants = {"--gradient_checkpointing true": model}
    if model.student_config is not None:
        quantized = replace(model, student_config=replace(model.student_config, use_peft=True, load_in_4bit=True))
        variants["--use_peft true --load_in_4bit true --gradient_checkpointing true"] = quantized
    too_large = []
    for options, variant in variants.items():
        try:
            peak = _memory_of(config, variant, args, task_type, checkpointing=True).estimate(1, length).peak
        except NoEstimateError:
            continue  # for example DoRA on a 4-bit model; the error about the model itself is more important
        if peak <= capacity:
            return f"Use {options}, with which the model needs {gib(peak)} GiB."
        too_large.append(options)
    return f"It does not fit with {' or '.join(too_large)} either. Use a smaller model, or a GPU with more memory."
