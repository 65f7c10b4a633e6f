"""The checks of the trainers before the first step: arguments, model, rows and loss."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils.logging import get_logger
from trl import RewardConfig

from .._compat import ModulesToSaveWrapper, original_and_copies
from ..probabilities import as_supervisor_labels, as_weights

__all__ = [
    "THRESHOLD_LOSSES",
    "check_arguments",
    "check_columns",
    "check_dataset",
    "check_loss",
    "check_pair_columns",
    "check_supervisor_labels",
    "check_weights",
    "named_parts",
    "refuse_frozen",
    "refuse_longer",
    "refuse_misspelt",
    "refuse_problem_type",
    "refuse_prompt_tuning",
    "refuse_supervisor_labels",
    "warn_of_unread_ends",
    "without_training_columns",
]

logger = get_logger(__name__)

# The hard targets of these losses come from a threshold on P(class 1) over the rows of the whole optimizer step.
THRESHOLD_LOSSES = ("confidence", "openai")

# A dataset may have these columns although no trainer reads them. No warning names them.
_RIDE_ALONG = ("id", "ground_truth")

# The pattern matches `soft_labels`, `weak_label`, `hard_label`, `target`, `probs` and `gold_truth`, but not `problem`
# and `logprobs`.
_LABEL_WORDS = re.compile(r"label|lable|target|truth|proba|(?<!log)(?<!log_)probs?(_|$)", re.IGNORECASE)


def check_arguments(args: Any, config_class: type[TrainingArguments]) -> None:
    """Raises `ValueError` for `args` of another class than the trainer's configuration, and for Liger kernels."""
    if not isinstance(args, config_class):
        name = config_class.__name__
        # The parent is `TrainingArguments`, `RewardConfig` or `SFTConfig`.
        parent = next(kind.__name__ for kind in config_class.__mro__ if not kind.__module__.startswith("w2s_hf."))
        raise ValueError(
            f"args: got a {type(args).__name__}, expected a {name}. Create {name}(output_dir=...), which has all "
            f"fields of {parent} and of the trainer."
        )
    if args.use_liger_kernel:
        # transformers calls `_apply_liger_kernel_to_instance` when the training begins. This function gives a
        # classifier the `forward` of a language model with a fused loss. It also replaces layers in the module that
        # defines the model, so that all later models of the process have the new layers.
        raise ValueError(
            "use_liger_kernel: got True, expected False, since Liger replaces the forward pass that computes the "
            "logits. It also replaces layers of all later models of the process. Remove use_liger_kernel. "
            "torch_compile=True is supported."
        )


# ---- Model and loss ----


def refuse_frozen(model: nn.Module) -> None:
    """Raises `ValueError` for a model without trainable parameters, or whose trained parameters would not be saved."""
    modules = list(model.modules())
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in modules):
        raise ValueError(
            "model: got a model whose adapters are merged into its base model, which leaves only its head to train, "
            "expected separate adapters. Call model.unmerge_adapter()."
        )
    if any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in modules):
        raise ValueError(
            "model: got a model whose adapters are disabled, expected active adapters to train. Call "
            "model.enable_adapter_layers() on a PeftModel, or model.enable_adapters() on a transformers model."
        )
    inactive = {id(parameter) for module in modules for parameter in _inactive_parameters(module)}
    if not any(parameter.requires_grad and id(parameter) not in inactive for parameter in model.parameters()):
        raise ValueError(
            "model: got a train_dataset and a model whose parameters are all frozen, expected trainable parameters. "
            "To train a finished student further, load it with load_student(..., is_trainable=True). For new "
            "adapters, pass a peft_config or call w2s_hf.fresh_adapter."
        )


def _inactive_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of adapters and their heads that the forward pass does not use."""
    if isinstance(module, BaseTunerLayer):
        parts = [getattr(module, name) for name in module.adapter_layer_names]
    elif isinstance(module, ModulesToSaveWrapper):
        parts = [original_and_copies(module)[1]]
    else:
        return []
    return [
        parameter
        for part in parts
        if isinstance(part, nn.ModuleDict | nn.ParameterDict)
        for adapter, values in part.items()
        if adapter not in module.active_adapters
        for parameter in ([values] if isinstance(values, nn.Parameter) else values.parameters())
    ]


def refuse_prompt_tuning(config: PreTrainedConfig, peft_config: PeftConfig) -> None:
    """
    Raises `ValueError` for prompt tuning and p-tuning of a classifier that reads its last token.

    These methods prepend virtual tokens as embeddings. Without token ids, a decoder classifier cannot find the last
    token that is not padding. It reads the last position (transformers 5.17 and 5.23), so that the probabilities of a
    row depend on the other rows of its batch. Encoders read the first position or mask the padding. Prefix tuning
    keeps the token ids.
    """
    # "CARTRIDGE" is a kind of prefix tuning, too. Older versions of PEFT do not have it.
    is_prefix = peft_config.peft_type == PeftType.PREFIX_TUNING or peft_config.peft_type == "CARTRIDGE"
    reads_both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if peft_config.is_prompt_learning and not is_prefix and not reads_both_ways:
        raise ValueError(
            f"peft_config: got {getattr(peft_config.peft_type, 'value', peft_config.peft_type)} for a classifier of "
            f"type {config.model_type!r}, expected adapters that keep the tokens, such as LoRA, IA3 or prefix tuning. "
            "With prepended embeddings, the model cannot find the last token that is not padding. Use a LoraConfig."
        )


def refuse_problem_type(config: PreTrainedConfig) -> None:
    """Raises `ValueError` for a classifier whose `problem_type` is not `single_label_classification`."""
    problem_type = getattr(config, "problem_type", None)
    if problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"model.config.problem_type: got {problem_type!r}, expected 'single_label_classification', since losses "
            "and probabilities assume classes that exclude each other. For exclusive classes, set "
            "model.config.problem_type=None."
        )


def check_loss(loss_type: str, n_classes: int) -> None:
    """Raises `ValueError` for a loss that a classifier of `n_classes` cannot be trained with."""
    if loss_type in THRESHOLD_LOSSES and n_classes != 2:
        raise ValueError(
            f"loss_type: got {loss_type!r} and a model of {n_classes} classes, expected two classes, because "
            "this loss has a threshold on P(class 1). Use 'adaptive_confidence', which supports any number of classes."
        )


# ---- Rows ----


def check_dataset(dataset: Any, name: str, kinds: tuple[type, ...] = ()) -> None:
    """
    Raises `ValueError` for rows in a form that no trainer reads. The message has the call that converts them.

    Args:
        dataset: The argument of a trainer. `None` is accepted.
        name (`str`): The name of the dataset in messages.
        kinds (`tuple`, *optional*): The classes that the trainer reads. By default, every map-style or iterable
            dataset that [`~transformers.Trainer`] reads.
    """
    if dataset is None:
        return
    if kinds:
        is_read = isinstance(dataset, kinds)
    else:
        is_iterable = isinstance(dataset, datasets.IterableDataset | torch.utils.data.IterableDataset)
        is_read = is_iterable or (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))
        is_read &= not isinstance(dataset, _NO_DATASETS) and type(dataset).__name__ != "DataFrame"
    if not is_read:
        raise ValueError(f"{name}: got a {type(dataset).__name__}, expected a datasets.Dataset. {_how_to(dataset)}")


def named_parts(dataset: Any, name: str) -> dict[str, Any]:
    """Returns a dictionary of the evaluation sets. Its keys are their names in messages."""
    # The values of a dictionary of lists are columns, not datasets.
    if not isinstance(dataset, dict) or any(isinstance(part, list | tuple) for part in dataset.values()):
        return {name: dataset}
    return {f"{name}[{key!r}]": part for key, part in dataset.items()}


# Containers of these types have a length and items, and are not datasets.
_NO_DATASETS = (dict, list, tuple, set, str, bytes, np.ndarray, torch.Tensor)


def _how_to(rows: Any) -> str:
    if isinstance(rows, dict) and any(
        isinstance(part, datasets.Dataset | datasets.IterableDataset) for part in rows.values()
    ):
        return f"Choose one of its splits: {', '.join(map(repr, rows))}."
    if isinstance(rows, list | tuple):
        return "Use datasets.Dataset.from_list(rows) for a list of dictionaries."
    if isinstance(rows, dict):
        return "Use datasets.Dataset.from_dict(rows) for a dictionary of columns."
    if type(rows).__name__ == "DataFrame":
        return f"Use datasets.Dataset.from_{type(rows).__module__.partition('.')[0]}(rows)."
    return "Load it with datasets.load_dataset, or build it with datasets.Dataset.from_list(rows)."


def refuse_longer(model: nn.Module, lengths: Sequence[int] | np.ndarray, name: str) -> None:
    """
    Raises `ValueError` for rows with more tokens than the model has learned positions.

    Args:
        model ([`~torch.nn.Module`]): The model. With rotary or relative positions, it reads rows of any length.
        lengths (`Sequence[int]` of length N): Tokens of each row.
        name (`str`): The name of the rows in messages.
    """
    n_positions = _n_positions(model)
    too_long = [row for row, length in enumerate(lengths) if n_positions is not None and length > n_positions]
    if too_long:
        raise ValueError(
            f"{name}: got {len(too_long)} of {len(lengths)} rows with more tokens than the {n_positions} positions of "
            f"the model (row {too_long[0]} has {lengths[too_long[0]]}). Set args.max_length={n_positions} if the rows "
            "are text, or shorten the rows."
        )


def warn_of_unread_ends(
    model: nn.Module, rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase | None, name: str
) -> None:
    """
    Warns about rows that end with the padding token. A decoder classifier reads the last token that is not padding, so
    that the end of such rows has no influence.

    Pairs need no warning, since TRL ends all texts with the end-of-text token. If it is also the padding token, the
    rewards of all pairs are read from the last token of the response.

    Args:
        model ([`~torch.nn.Module`]): A classifier.
        rows (iterable of `list[int]`): Token ids of each row.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The tokenizer that pads.
        name (`str`): The name of the rows in messages.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    pad = getattr(tokenizer, "pad_token_id", None)
    if tokenizer is None or pad is None or not hasattr(base, "score"):  # the head of decoders has this name
        return
    n_unread = sum(1 for ids in rows if len(ids) and ids[-1] == pad)
    if n_unread:
        logger.warning_once(
            f"{name}: {n_unread} rows end with the padding token {tokenizer.pad_token!r}, and a decoder classifier "
            "reads the token before it. Set tokenizer.pad_token to a token that occurs in no text."
        )


def _n_positions(model: nn.Module) -> int | None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITION_EMBEDDINGS:
            # OPT and BART do not use the first positions. RoBERTa does not use the positions up to the id of its
            # padding token.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - getattr(module, "offset", unused)
    return None


# The embedding of learned positions in transformers has these names (BERT, OPT, GPT-2).
_POSITION_EMBEDDINGS = ("position_embeddings", "embed_positions", "wpe")


def check_columns(
    dataset: Any, name: str, *, labels: str, reads: Collection[str], optional: Collection[str] = ()
) -> None:
    """Calls [`refuse_misspelt`], and warns once about columns that the trainer does not use."""
    unread = refuse_misspelt(dataset, name, labels=labels, reads=reads, optional=optional)
    if unread:
        logger.warning_once(f"{name}: the trainer does not use the columns {', '.join(unread)}")


def check_pair_columns(dataset: Any, name: str, args: RewardConfig) -> None:
    """Calls [`check_dataset`] and [`check_columns`] for a dataset of pairs, or for each dataset of a dictionary."""
    for which, part in named_parts(dataset, name).items():
        check_dataset(part, which, (datasets.Dataset, datasets.IterableDataset))
        if args.remove_unused_columns:
            optional = {"prompt", "soft_label", "margin", "weight", "supervisor_labels"}
            if "chosen_ids" in (getattr(part, "column_names", None) or ()):
                optional.remove("prompt")
            check_columns(part, which, labels="soft_label", reads=_PAIR_COLUMNS, optional=optional)


# TRL's RewardTrainer (1.0 and 1.16) reads these columns of pairs. `soft_label`, `weight` and `supervisor_labels` are
# additional columns.
_PAIR_COLUMNS = (
    "chosen", "rejected", "prompt", "chosen_ids", "rejected_ids", "soft_label", "weight", "supervisor_labels",
    "margin", "tools", "chat_template_kwargs",
)  # fmt: skip


def check_weights(dataset: Any, name: str) -> None:
    """
    Raises `ValueError` for a column `weight` of training rows that has no valid weights, see
    [`w2s_hf.probabilities.as_weights`], or whose weights are all 0. Weights that a transform or a stream returns are
    checked batch by batch. Evaluation does not use this column.
    """
    if not name.startswith("train_dataset"):
        return
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return
    if "weight" not in dataset.column_names:
        return
    try:
        weights = as_weights(
            dataset.with_format("python")["weight"][:], list(dataset["id"]) if "id" in dataset.column_names else None
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if len(weights) and not weights.any():
        raise ValueError(
            f"{name}: got weight 0 in all {len(weights)} rows, expected a positive weight in at least one row. "
            "Correct the column `weight`, or remove it to give equal weight to all rows."
        )


def without_training_columns(dataset: Any, name: str) -> Any:
    """
    Returns rows for evaluation or prediction without the columns `weight` and `supervisor_labels`, which only a
    training uses. Training rows, and rows with a transform, are returned unchanged.
    """
    is_table = isinstance(dataset, datasets.Dataset | datasets.IterableDataset)
    if name.startswith("train_dataset") or not is_table:
        return dataset
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom":
        return dataset
    present = [column for column in ("weight", "supervisor_labels") if column in (dataset.column_names or ())]
    return dataset.remove_columns(present) if present else dataset


def check_supervisor_labels(dataset: Any, name: str, loss_type: str, n_classes: int = 2) -> None:
    """
    Raises `ValueError` if training rows lack the column `supervisor_labels` of the loss, or have it for another loss.
    Labels must be valid, see [`w2s_hf.probabilities.as_supervisor_labels`]. Batches of a transform or a stream are
    checked during training. Evaluation does not use this column.
    """
    if not name.startswith("train_dataset"):
        return
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return
    refuse_supervisor_labels(dataset.column_names, name, loss_type)
    if "supervisor_labels" in dataset.column_names and len(dataset):
        ids = list(dataset["id"]) if "id" in dataset.column_names else None
        try:
            as_supervisor_labels(dataset.with_format("python")["supervisor_labels"][:], n_classes, ids)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def refuse_supervisor_labels(columns: Collection[str], name: str, loss_type: str) -> None:
    """Raises `ValueError` if a column or a part of a batch `supervisor_labels` is missing, or is not read."""
    is_read = loss_type == "learned_supervisors"
    if is_read and "supervisor_labels" not in columns:
        raise ValueError(
            f"{name}: got {', '.join(map(repr, columns))} and the loss 'learned_supervisors', expected "
            "'supervisor_labels' among them: the probabilities of each supervisor for every row. Add the column, or "
            "join labels of WeakLabels.mean(labels, keep_supervisors=True)."
        )
    if not is_read and "supervisor_labels" in columns:
        raise ValueError(
            f"{name}: got 'supervisor_labels' and the loss {loss_type!r}, expected the loss 'learned_supervisors', "
            "which alone reads them. Set loss_type='learned_supervisors', or remove the column."
        )


def refuse_misspelt(
    dataset: Any, name: str, *, labels: str, reads: Collection[str], optional: Collection[str] = ()
) -> list[str]:
    """
    Refuses columns with misspelt names, which the trainer would ignore without an error.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows. Other classes have no columns.
        name (`str`): The name of the dataset in messages.
        labels (`str`): The column that labels are expected in.
        reads (`Collection[str]`): Columns that the trainer uses. `id` and `ground_truth` are allowed in addition.
        optional (`Collection[str]`, *optional*): Columns of `reads` whose absence raises no error.

    Returns:
        `list[str]`: The columns that the trainer does not use.

    Raises:
        ValueError: A column that the trainer does not use holds numbers and has a name like labels. Or its name is
            similar to the name of a missing optional column.
    """
    columns = getattr(dataset, "column_names", None) or []
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom":
        return []  # the transform makes the columns
    unread = [column for column in columns if column not in reads and column not in _RIDE_ALONG]
    missing = [column for column in optional if column not in columns]
    for column in unread:
        alike = difflib.get_close_matches(column.lower(), missing, n=1, cutoff=0.85)
        if alike or (_LABEL_WORDS.search(column) and _holds_numbers(dataset.features, column)):
            expected = alike[0] if alike else labels
            raise ValueError(
                f"{name}: got a column {column!r}, which the trainer does not use, expected {expected!r}. Rename it "
                f"to {expected!r} to use it, "
                + ("" if alike else "to 'ground_truth' to keep it in addition to the labels, ")
                + "or remove it with remove_columns."
            )
    return unread


def _holds_numbers(features: datasets.Features, column: str) -> bool:
    feature = features[column]
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    if isinstance(feature, datasets.Value):
        return feature.dtype == "bool" or feature.dtype.startswith(("int", "uint", "float"))
    return isinstance(feature, datasets.ClassLabel)
