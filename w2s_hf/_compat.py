"""
The private and unstable APIs of torch, transformers, TRL, PEFT, accelerate, bitsandbytes and datasets that this
package uses. No other module of the package uses such an API; `tests/test_compat.py` checks this.

An API is private or unstable if its name begins with an underscore, or if the documentation of its library does not
list it. Each comment and docstring says what the API does, and which public API could replace it.

The file has three parts:

- names to import (`IMPORTS`),
- members that a subclass must call or override under their own name (`OVERRIDDEN`),
- attributes and arguments: the functions below, which use the names in `ATTRIBUTES`.

This module imports no library itself: `from ._compat import X` imports only the module that contains `X`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["ATTRIBUTES", "CHECKED", "IMPORTS", "OVERRIDDEN", "SINCE"]

# Every entry of this file was checked with these versions. `SINCE` lists the entries that the lower version lacks.
CHECKED = {
    "torch": ("2.13",),
    "transformers": ("5.17", "5.23"),
    "trl": ("1.0", "1.16"),
    "peft": ("0.18", "0.21"),
    "bitsandbytes": ("0.49", "0.50"),
    "accelerate": ("1.10", "1.15"),
    "datasets": ("4.7", "5.2"),
}


# ---- Names to import ----

IMPORTS = {
    # The memory estimate runs a model on these tensors, which have a shape and no data. There is no public
    # replacement. Tensors of the meta device are public, but autocast has no effect on them.
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    # This mode intercepts every operation of a pass, so that the memory estimate can sum its outputs. There is no
    # public replacement.
    "TorchDispatchMode": "torch.utils._python_dispatch",
    # This function returns the tensors in a nested output. There is no public replacement.
    "tree_leaves": "torch.utils._pytree",
    # `WeightRenaming` is a rule by which `from_pretrained` renames the weights of a checkpoint. The function registers
    # rules for a model class. There is no public replacement. Only the rule `transformers.WeightConverter` is public.
    "WeightRenaming": "transformers.core_model_loading",
    "register_checkpoint_conversion_mapping": "transformers.conversion_mapping",
    # This function returns the characters that represent bytes in byte-level tokenizers. There is no public
    # replacement.
    "bytes_to_unicode": "transformers.convert_slow_tokenizer",
    # This function returns the local path of a file on the Hub or in a directory. The public replacement is
    # `huggingface_hub.hf_hub_download`, with special cases for directories, for offline mode and for the errors of
    # transformers.
    "cached_file": "transformers.utils",
    # This function returns the adapter_config.json of a model, or `None`. The public replacement is
    # `huggingface_hub.hf_hub_download`.
    "find_adapter_config_file": "transformers.utils.peft_utils",
    # This function returns whether DeepSpeed ZeRO-3 shards weights while they are loaded. There is no public
    # replacement.
    "is_deepspeed_zero3_enabled": "transformers.integrations",
    # This function returns the installed trackers, which `report_to="all"` uses. There is no public replacement.
    "get_available_reporting_integrations": "transformers.integrations",
    # This function returns the callbacks of the trackers of `report_to`. There is no public replacement, but the
    # classes of the callbacks are public.
    "get_reporting_integration_callbacks": "transformers.integrations",
    # These functions return whether this machine computes in bfloat16, by the rule of TrainingArguments. The public
    # replacement is `torch.cuda.is_bf16_supported`, for CUDA devices only.
    "is_torch_bf16_gpu_available": "transformers.utils",
    "is_torch_xla_available": "transformers.utils",
    # This function returns whether an object has a length. There is no public replacement, but four lines of code are
    # enough.
    "has_length": "transformers.trainer_utils",
    # This is the base class of callbacks whose state is saved in trainer_state.json. There is no public replacement.
    "ExportableState": "transformers.trainer_callback",
    # The values `"batch_rebalance"` and `"group_by_length"` of `train_sampling_strategy` use these samplers. There is
    # no public replacement.
    "BatchRebalanceSampler": "transformers.trainer_pt_utils",
    "LengthGroupedSampler": "transformers.trainer_pt_utils",
    # These mappings contain class names by model type. The public replacement is
    # `transformers.MODEL_FOR_CAUSAL_LM_MAPPING`. Its keys are configuration classes, so that each lookup imports a
    # model.
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "transformers.models.auto.modeling_auto",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "transformers.models.auto.modeling_auto",
    # This function sets the probability of every `nn.Dropout` to 0. There is no public replacement, but three lines of
    # code are enough.
    "disable_dropout_in_model": "trl.trainer.utils",
    # `ModulesToSaveWrapper` wraps a module that is trained and saved with the adapters (`modules_to_save`). It shares
    # its base class with the wrapper of trainable tokens. There is no public replacement.
    "AuxiliaryTrainingWrapper": "peft.utils",
    "ModulesToSaveWrapper": "peft.utils",
    # This function reads the weights of saved adapters. The public replacement is `PeftModel.load_adapter`, which adds
    # them to the model.
    "load_peft_weights": "peft.utils",
    # This function returns the floating-point weights of a quantized layer. The public replacement is
    # `PreTrainedModel.dequantize`, which converts all layers.
    "dequantize_module_weight": "peft.utils.integrations",
    # This sampler of a data loader skips the batches of a resumed epoch. There is no public replacement.
    "SkipBatchSampler": "accelerate.data_loader",
    # This function reads the environment variables that `accelerate launch` sets. The public replacement is
    # `PartialState.distributed_type`, which exists only after the processes have connected.
    "parse_flag_from_env": "accelerate.utils",
    # These functions are the command `accelerate launch` and its parser. The public replacement is the command in a
    # separate process. If the launched process fails, this process also prints a traceback of the launcher.
    "launch_command": "accelerate.commands.launch",
    "launch_command_parser": "accelerate.commands.launch",
    # torchrun and `accelerate launch` raise this error if a process fails. The public replacement is `Exception`.
    "ChildFailedError": "torch.distributed.elastic.multiprocessing.errors",
    # torchrun raises this error if a signal stops it, such as the signal of Ctrl-C. The public replacement is
    # `Exception`.
    "SignalException": "torch.distributed.elastic.multiprocessing.api",
    # With a random fingerprint, `Dataset.map` does not look for a cache file. The public replacement is
    # `datasets.disable_caching`, which applies to all datasets of the process.
    "generate_random_fingerprint": "datasets.fingerprint",
}


# Only type checkers read the imports below. At run time each name of IMPORTS is imported when it is used.
if TYPE_CHECKING:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.data_loader import SkipBatchSampler
    from accelerate.utils import parse_flag_from_env
    from datasets.fingerprint import generate_random_fingerprint
    from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, load_peft_weights
    from peft.utils.integrations import dequantize_module_weight
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    from transformers.core_model_loading import WeightRenaming
    from transformers.integrations import (
        get_available_reporting_integrations,
        get_reporting_integration_callbacks,
        is_deepspeed_zero3_enabled,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )
    from transformers.trainer_callback import ExportableState
    from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler
    from transformers.trainer_utils import has_length
    from transformers.utils import cached_file, is_torch_bf16_gpu_available, is_torch_xla_available
    from transformers.utils.peft_utils import find_adapter_config_file
    from trl.trainer.utils import disable_dropout_in_model
else:

    def __getattr__(name: str) -> Any:
        if name not in IMPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(IMPORTS[name]), name)


# ---- Members that a subclass calls or overrides under their own name ----

OVERRIDDEN = {
    "transformers.trainer:Trainer": (
        # These methods determine the order of the rows of an epoch and of an evaluation set. The public replacement is
        # to rewrite `get_train_dataloader` and `get_eval_dataloader` completely.
        "_get_train_sampler",
        "_get_eval_sampler",
        # This method returns the number of tokens by which a loss is divided. In training, the public replacement is
        # `get_batch_samples`. In evaluation, there is no replacement, because `prediction_step` calls this method.
        "_get_num_items_in_batch",
        # This method returns the directory of checkpoints. The public replacement is `args.output_dir`, which also
        # names the repository.
        "_get_output_dir",
        # This method compares the arguments with the state of a checkpoint. There is no public replacement.
        "_init_training_state",
        # These three methods load a checkpoint, and only warn if it does not fit. There is no public replacement.
        "_issue_warnings_after_load",
        "_load_best_model",
        "_load_from_checkpoint",
        # This method moves a batch to the device. The public replacement is a data collator, which a user may replace.
        "_prepare_inputs",
        # This method determines the dataset columns that are kept, see `signature_columns`. The public replacement is
        # `remove_unused_columns=False`, which gives all columns to the collator.
        "_set_signature_columns_if_needed",
    ),
    # `_prepare_dataset` tokenizes and checks a dataset. The trainers also call it for datasets of `evaluate` and
    # `predict`, which TRL's trainers expect to be tokenized. There is no public replacement.
    "trl.trainer.reward_trainer:RewardTrainer": ("_prepare_dataset", "_tag_names"),
    # `_tag_names` are the tags of model cards. The public replacement is the argument `tags` of `create_model_card`.
    "trl.trainer.sft_trainer:SFTTrainer": ("_prepare_dataset", "_tag_names"),
    # These fields are JSON on the command line. There is no public replacement.
    "transformers.training_args:TrainingArguments": ("_VALID_DICT_FIELDS",),
    # This attribute of the base class of TrlParser is the heading of a dataclass in `--help`. There is no public
    # replacement, but the docstring of `HfArgumentParser` documents the attribute.
    "transformers.hf_argparser:HfArgumentParser": ("_argument_group_name",),
}


# ---- Attributes and arguments ----

# The functions below use these attributes and arguments. Each key is a module, with a class if the attribute belongs
# to a class.
ATTRIBUTES = {
    "torch.cpu": ("get_capabilities",),
    "torch.nn.modules.module:Module": ("_parameters", "_buffers"),
    "transformers.configuration_utils:PreTrainedConfig": ("_commit_hash",),
    "transformers.utils.hub": ("_raise_exceptions_for_missing_entries",),
    "transformers.core_model_loading": ("_is_hf_initialized", "_weight_conversions"),
    "transformers.quantizers.quantizer_bnb_4bit": ("is_loaded_in_4bit",),
    "transformers.quantizers.base": ("is_quantized",),
    "transformers.modeling_utils:PreTrainedModel": (
        "_keys_to_ignore_on_load_missing",
        "_keys_to_ignore_on_load_unexpected",
    ),
    "transformers.trainer:Trainer": (
        "_signature_columns",
        "_eval_dataloaders",
        "_memory_tracker",
        "neftune_hook_handle",
        "_internal_call",
        "model_accepts_loss_kwargs",
    ),
    "transformers.trainer_utils:TrainerMemoryTracker": ("cur_stage", "peak_monitoring"),
    "transformers.trainer_pt_utils:BatchRebalanceSampler": ("has_tail", "remainder", "dp_size", "grad_accum"),
    "trl.trainer.sft_trainer:SFTTrainer": ("_metrics", "_total_train_tokens", "_tp_size", "log_probs"),
    "trl.trainer.reward_trainer:RewardTrainer": ("_metrics", "_total_train_tokens", "_tp_size"),
    "peft.utils.other:ModulesToSaveWrapper": ("modules_to_save", "original_module", "active_adapters"),
    "bitsandbytes.nn.modules:Linear4bit": ("support_avx512bf16_for_cpu", "packing_format_for_cpu"),
}

# An older version in CHECKED lacks these names. The values are the first versions of the library that have them.
SINCE = {"_tp_size": "1.13", "log_probs": "1.16"}


def cpu_capabilities() -> dict[str, Any]:
    """
    Returns the instructions of this CPU by torch's names. The result is empty in older versions of torch, which do not
    list the instructions. There is no public replacement.
    """
    import torch

    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


def tensors_of(module: Any) -> tuple[dict, dict]:
    """
    Returns parameters and buffers of a `torch.nn.Module` without its submodules, as writable dictionaries.
    The public replacements are `named_parameters` and `register_parameter`, which do not keep shared tensors shared.
    """
    return module._parameters, module._buffers


def commit_hash(config: Any) -> str | None:
    """Returns the Hub commit from which a configuration was loaded, if known. There is no public replacement."""
    return getattr(config, "_commit_hash", None)


def set_commit_hash(config: Any, commit: str | None) -> None:
    """Records a commit, which transformers loses while it loads a model. There is no public replacement."""
    config._commit_hash = commit


def optional_file(name_or_path: str, file: str, **options) -> str | None:
    """
    Returns the local path of a file on the Hub or in a directory; `None` if there is no such file.
    The public replacement is `huggingface_hub.hf_hub_download` with its `EntryNotFoundError`, for Hub files only.
    """
    from transformers.utils import cached_file

    return cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False, **options)


def is_from_checkpoint(parameter: Any) -> bool:
    """
    Returns whether `from_pretrained` has marked a parameter as loaded, not initialized. Copies lack this mark.
    The public replacement is `output_loading_info=True`, for models that this package loads itself.
    """
    return getattr(parameter, "_is_hf_initialized", False)


def forget_weight_conversions(model: Any) -> None:
    """
    Makes `save_pretrained` write the names of the weights in memory, not the names in the loaded checkpoint.
    The public replacement is `save_pretrained(save_original_format=False)`, which trainers and users do not pass.
    """
    model._weight_conversions = None


def mark_as_4bit(model: Any) -> None:
    """
    Marks a model as quantized to 4 bits by bitsandbytes. PEFT reads this mark.
    There is no public replacement: `from_pretrained` sets these attributes.
    """
    model.is_loaded_in_4bit = model.is_quantized = True


def ignored_keys(model: Any) -> tuple[list[str], list[str]]:
    """
    Returns the patterns of weights that may be missing, or unexpected, in the checkpoint of a model.
    There is no public replacement.
    """
    missing = getattr(model, "_keys_to_ignore_on_load_missing", None)
    return missing or [], getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []


def signature_columns(trainer: Any) -> list[str]:
    """
    Returns the dataset columns that a trainer keeps: arguments of `forward`, labels.
    There is no public replacement.
    """
    trainer._set_signature_columns_if_needed()
    return trainer._signature_columns


def add_signature_column(trainer: Any, name: str) -> None:
    """
    Makes a trainer keep another dataset column. Call this function in `_set_signature_columns_if_needed`.
    The public replacement is `remove_unused_columns=False`, which gives all columns to the collator.
    """
    if name not in trainer._signature_columns:
        trainer._signature_columns = [*trainer._signature_columns, name]


def forget_eval_dataloader(trainer: Any) -> None:
    """Drops the cached data loader of `eval_dataset`, which has persistent workers. There is no public replacement."""
    getattr(trainer, "_eval_dataloaders", {}).pop("eval", None)


def memory_stage(trainer: Any) -> str | None:
    """
    Returns the part of a training run whose memory is measured (`skip_memory_metrics=False`).
    There is no public replacement.
    """
    return getattr(trainer._memory_tracker, "cur_stage", None)


def restore_memory_stage(trainer: Any, stage: str | None) -> None:
    """
    Resets the memory tracker to a [`memory_stage`] after an error, and ends the thread of the later stage.
    There is no public replacement.
    """
    if memory_stage(trainer) != stage:
        trainer._memory_tracker.cur_stage, trainer._memory_tracker.peak_monitoring = stage, False


def remove_neftune_hook(trainer: Any) -> None:
    """
    Removes the noise of NEFTune from the embeddings after an error. Without an error, the training removes the noise.
    There is no public replacement.
    """
    hook = vars(trainer).pop("neftune_hook_handle", None)
    if hook is not None:
        hook.remove()


def save_model(trainer: Any, directory: str | None = None) -> None:
    """
    Saves the model of a trainer without the push to the Hub of `push_to_hub=True`. All ranks call this function.
    The public replacement is `Trainer.save_model`, if `args.push_to_hub` is False.
    """
    trainer.save_model(directory, _internal_call=True)


def mark_loss_as_divided(trainer: Any) -> None:
    """
    Declares to transformers before 5.19 that `compute_loss` divides by the number of rows of the whole step.
    The public replacement is the class attribute `loss_is_scaled_for_ga` of transformers 5.19 and later.
    """
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__) < Version("5.19"):
        trainer.model_accepts_loss_kwargs = True


def rows_of_filled_step(sampler: "BatchRebalanceSampler") -> int:
    """
    Returns the number of rows of the last step of an epoch if a `BatchRebalanceSampler` fills it with repeated rows,
    otherwise 0.
    There is no public replacement.
    """
    is_filled = sampler.has_tail and sampler.remainder < sampler.dp_size * sampler.grad_accum
    return sampler.remainder if is_filled else 0


def next_log(trainer: Any, mode: str) -> dict[str, list[float]]:
    """
    Returns the values, by name, whose means a TRL trainer adds to its next log of a `mode`, train or eval.
    There is no public replacement in `trl.SFTTrainer` and `trl.RewardTrainer`.
    """
    return trainer._metrics[mode]


def n_trained_tokens(trainer: Any) -> int | None:
    """
    Returns the number of tokens that a TRL trainer has counted since its training began; `None` for other trainers.
    The public replacement is `num_tokens` in the logs, which are written only at some steps.
    """
    return getattr(trainer, "_total_train_tokens", None)


def set_trained_tokens(trainer: Any, n_tokens: int) -> None:
    """Sets [`n_trained_tokens`], which TRL resets when training is resumed. There is no public replacement."""
    trainer._total_train_tokens = n_tokens


def forget_trained_tokens(trainer: Any, n_tokens: int) -> None:
    """
    Subtracts tokens of all processes from the number that TRL's trainers log.
    There is no public replacement. TRL 1.0 has no `_tp_size`.
    """
    trainer._total_train_tokens -= n_tokens // getattr(trainer, "_tp_size", 1)
    next_log(trainer, "train")["num_tokens"] = [trainer._total_train_tokens]


def weight_token_losses(outputs: Any, labels: Any, weight: Any, n_tokens: Any) -> None:
    """
    Weights the losses of tokens in the outputs of a model, from which an SFTTrainer computes the loss of a batch. TRL
    1.16 sums the negative `log_probs`. TRL 1.0 reads the `loss` of the model, a sum over `n_tokens` tokens.
    There is no public replacement. `labels` and `weight` have the shape `(B, T - 1)`, without the first token.
    """
    from torch.nn.functional import cross_entropy, pad

    if getattr(outputs, "log_probs", None) is not None:
        log_probs = outputs.log_probs
        n_virtual = log_probs.shape[1] - weight.shape[1]  # virtual tokens of prompt tuning have no loss
        outputs["log_probs"] = log_probs * pad(weight, (n_virtual, 0)).to(log_probs.device)
        return
    if getattr(outputs, "logits", None) is None:
        raise ValueError(
            f"weight: got rows with weights and outputs with {', '.join(outputs)}, expected `logits` or `log_probs` "
            "(TRL 1.0 or 1.16). Remove the column `weight`, or install one of these versions."
        )
    # In TRL 1.0, the model has summed the losses. This layout is that of its loss, so that the gradients of both terms
    # cancel exactly for weight 0.
    logits = outputs.logits[:, -weight.shape[1] - 1 : -1].float()  # without virtual tokens of prompt tuning
    targets, factors = labels.flatten().to(logits.device), weight.flatten().to(logits.device) - 1
    difference = (factors * cross_entropy(logits.flatten(0, 1), targets, reduction="none")).sum()
    outputs["loss"] = outputs.loss + difference / n_tokens


def restore_forward(model: Any) -> None:
    """
    Restores the `forward` that a model had before its first SFTTrainer, or records it for the next SFTTrainer. Each
    SFTTrainer (TRL 1.16) patches `forward` of its model, on top of earlier patches.
    There is no public replacement: TRL would have to remove its patch. `_untrained_forward` is a name of this package.
    """
    if "_untrained_forward" in vars(model):
        model.forward = model._untrained_forward
    else:
        model._untrained_forward = model.forward


def module_in_use(module: Any) -> Any:
    """
    Returns the trained copy of a module (`modules_to_save`) of the active adapters, or the module if it has no copy.
    There is no public replacement.
    """
    from peft.utils import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper):
        return module
    return module.modules_to_save[module.active_adapters[0]] if module.active_adapters else module.original_module


def original_and_copies(wrapper: Any) -> tuple[Any, Any]:
    """
    Returns the module that a `ModulesToSaveWrapper` wraps, and its copies by adapter.
    There is no public replacement.
    """
    return wrapper.original_module, wrapper.modules_to_save


def is_packed_for_cpu(layer: Any) -> bool:
    """
    Returns whether bitsandbytes has repacked the weights of a `Linear4bit` for inference on this CPU. Repacked weights
    pass no gradients.
    There is no public replacement.
    """
    return getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False)


def never_pack_for_cpu(layer: Any) -> None:
    """Keeps the weights of a `Linear4bit` in the layout that passes gradients. There is no public replacement."""
    layer.support_avx512bf16_for_cpu = False
