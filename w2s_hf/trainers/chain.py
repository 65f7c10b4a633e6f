"""The rows, labels, settings and directory of a chain of students."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..config import BootstrapConfig
from ..labels import WeakLabels, as_probabilities
from ..losses import LOSS_ARGUMENTS
from .checks import check_dataset

__all__ = [
    "ChainDirectory",
    "NoStudent",
    "chain_settings",
    "labels_of",
    "refuse_other_words",
    "row_ids",
    "rows_of_links",
    "unlabelled",
]

_LABEL_COLUMNS = ("label", "labels", "label_ids", "soft_label", "ground_truth")

_RECORD = "link.json"  # written last, because a student without this file is incomplete

# These arguments must stay the same when a chain is resumed.
_ARGUMENTS = (
    "seed", "data_seed", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "lr_scheduler_kwargs", "weight_decay", "max_grad_norm", "optim", "optim_args", "adam_beta1", "adam_beta2",
    "adam_epsilon", "bf16", "fp16", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "eval_strategy", "eval_steps", "neftune_noise_alpha", "max_length", "dataset_text_field", "disable_dropout",
    "hard_labels", "loss_type", *dict.fromkeys(chain.from_iterable(LOSS_ARGUMENTS.values())),
)  # fmt: skip

# A chain that was begun before an argument existed has its default.
_DEFAULTS = {argument.name: argument.default for argument in fields(BootstrapConfig) if argument.name in _ARGUMENTS}


class NoStudent(nn.Module):
    """The placeholder for a trainer's model before the first link and between two links. It has no weights."""

    def __init__(self):
        super().__init__()
        self.config = PreTrainedConfig()

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        raise ValueError(
            "Got no student, expected a trained student. Call train(), or train(resume_from_checkpoint=True)."
        )


def rows_of_links(dataset: Dataset | list[Dataset] | None, name: str, n_links: int, text_field: str) -> list[Dataset]:
    """
    Returns a dataset for each link, and checks all of them before the first link is trained.

    Args:
        dataset ([`~datasets.Dataset`] or `list[Dataset]`):
            One dataset for all links, or a list with one dataset per link.
        name (`str`): The name of the dataset in messages.
        n_links (`int`): The number of links.
        text_field (`str`): The column that is tokenized if there is no `input_ids`.

    Raises:
        ValueError: The number of datasets differs from the number of links. A dataset is empty, or has neither tokens
            nor text. Ids repeat.
    """
    # A list of dictionaries is a list of rows, not of datasets.
    parts = dataset if isinstance(dataset, list) and not any(type(part) is dict for part in dataset) else [dataset]
    for rows in parts:
        if rows is None:
            raise ValueError(f"{name}: got None, expected a datasets.Dataset. Pass the rows of the chain.")
        check_dataset(rows, name, (Dataset,))
    parts = parts if isinstance(dataset, list) else parts * n_links
    if len(parts) != n_links:
        raise ValueError(
            f"{name}: got a list of {len(parts)} datasets for {n_links} links, expected one dataset per link. "
            f"Pass {n_links} datasets. A single dataset without a list is relabelled for every link."
        )
    for number, rows in enumerate(parts, 1):
        which = f"{name} of link {number}" if isinstance(dataset, list) else name
        if len(rows) == 0:
            raise ValueError(f"{which}: got no rows, expected at least one. Pass a dataset with rows.")
        if not {"input_ids", "inputs_embeds", text_field} & set(rows.column_names):
            raise ValueError(
                f"{which}: got the columns {', '.join(rows.column_names)}, expected `input_ids` or `{text_field}`. "
                "Add one of these columns."
            )
        n_repeated = len(rows) - len(set(row_ids(rows)))
        if n_repeated:
            raise ValueError(
                f"{which}: got {n_repeated} repeated ids, expected unique ids, because labels are matched to rows "
                "by `id`. Change the ids, or remove the column to match labels by position."
            )
    return parts


def row_ids(rows: Dataset) -> list[str]:
    """Returns the `id` of each row, or its position if rows have no `id`."""
    return [str(row_id) for row_id in (rows["id"] if "id" in rows.column_names else range(len(rows)))]


def unlabelled(rows: Dataset) -> Dataset:
    """Returns rows without the columns that may contain their labels."""
    return rows.remove_columns([name for name in _LABEL_COLUMNS if name in rows.column_names])


def labels_of(rows: Dataset, name: str) -> WeakLabels:
    """
    Returns the labels of rows. Raises `ValueError` if labels are missing, or are neither probabilities nor classes.
    """
    column = next((column for column in ("labels", "label") if column in rows.column_names), None)
    if column is None:
        raise ValueError(
            f"{name}: got the columns {', '.join(rows.column_names)}, expected `labels`, on which link 1 is trained. "
            "Add the column."
        )
    values = rows.with_format("python")[column][:]
    first = np.asarray(values[0])
    n_classes = len(first) if first.ndim else 2
    if first.dtype.kind in "iu" and not first.ndim:
        n_classes = max(2, 1 + max(value for value in values if value is not None))
    ids = row_ids(rows)
    try:
        return WeakLabels(ids, as_probabilities(values, n_classes, ids))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def chain_settings(
    args: BootstrapConfig,
    rows: dict[str, list[Dataset]],
    labels: dict[str, WeakLabels],
    configs: dict[str, PeftConfig | BitsAndBytesConfig | None],
) -> dict:
    """Returns the settings that must stay the same when a chain is resumed. `labels` are the labels of link 1."""
    settings = {
        "n_links": len(rows["train"]),
        "rows_a_step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        **{name: getattr(args, name) for name in _ARGUMENTS},
        **{f"{name}_labels": of_rows.fingerprint for name, of_rows in labels.items()},
    }
    for name, parts in rows.items():
        fingerprints = {id(part): _fingerprint(part, args.dataset_text_field) for part in parts}
        settings[f"{name}_rows"] = [fingerprints[id(part)] for part in parts]
    for name, config in configs.items():
        values = {} if config is None else config.to_dict()
        settings[name] = {key: value for key, value in values.items() if value and key != "peft_version"}
    # Target modules are a set, which JSON does not support.
    return json.loads(json.dumps(settings, default=lambda it: sorted(it) if isinstance(it, set) else str(it)))


def _fingerprint(rows: Dataset, text_field: str) -> str:
    """Hashes the ids and tokens, or texts, of rows in their order, and their weights if they have weights."""
    columns = [name for name in ("id", "input_ids", text_field, "weight") if name in rows.column_names]
    digest = hashlib.sha256()
    for batch in rows.with_format("python").select_columns(columns).iter(1000):
        digest.update(json.dumps(batch).encode())
    return digest.hexdigest()[:16]


def refuse_other_words(
    tokenizers: Sequence[PreTrainedTokenizerBase | None], rows: dict[str, list[Dataset]], text_field: str
) -> None:
    """Raises `ValueError` for tokenized rows if the tokenizers have different vocabularies. `None` is ignored."""
    if not any("input_ids" in part.column_names for parts in rows.values() for part in parts):
        return
    known = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
    if any(other is not known[0] and other.get_vocab() != known[0].get_vocab() for other in known):
        raise ValueError(
            "Got rows with `input_ids`, and links whose tokenizers have different vocabularies, expected rows of "
            f"text. Pass rows with the column `{text_field}`."
        )


@dataclass(frozen=True)
class ChainDirectory:
    """
    The directory of a chain: its links `link-1`, `link-2`, ..., and its settings in `chain.json`.

    A running link has its checkpoints in `link-<k>`. Its student and labels are written to `link-<k>.partial`, which
    replaces the checkpoints when it is complete.

    Args:
        root (`Path`): The directory.
        n_links (`int`): The number of links.
    """

    root: Path
    n_links: int

    def link(self, link: int) -> Path:
        """Returns the directory of link 0, 1, ..."""
        return self.root / f"link-{link + 1}"

    def aside(self, link: int) -> Path:
        """Returns the directory that a link is written to until it is finished."""
        return self.root / f"link-{link + 1}.partial"

    def is_finished(self, link: int) -> bool:
        """Returns whether the student and its labels are complete."""
        return (self.link(link) / _RECORD).is_file()

    def is_trained(self, link: int) -> bool:
        """Returns whether the student is complete but its labels are incomplete, because labelling was interrupted."""
        return (self.aside(link) / _RECORD).is_file()

    def record(self, link: int, labels: dict[str, WeakLabels]) -> None:
        """Marks the student as complete, with the fingerprints of its training labels."""
        fingerprints = {f"{name}_labels": of_rows.fingerprint for name, of_rows in labels.items()}
        _write_json(self.aside(link) / _RECORD, {"link": link + 1, **fingerprints})

    def finish(self, link: int) -> None:
        """Replaces the checkpoints with the finished files."""
        shutil.rmtree(self.link(link), ignore_errors=True)
        os.replace(self.aside(link), self.link(link))

    def check_labels(self, link: int, labels: dict[str, WeakLabels]) -> None:
        """Raises `ValueError` if a finished link was trained on other labels."""
        got = json.loads((self.link(link) / _RECORD).read_text())["train_labels"]
        if got != labels["train"].fingerprint:
            raise ValueError(
                f"{self.link(link)}: got a student trained on labels with the fingerprint {got}, expected "
                f"{labels['train'].fingerprint}, the labels of link {link}. The directories of two chains are mixed. "
                "Remove this directory and the directories of later links."
            )

    def begin(self, settings: dict) -> int:
        """Begins a chain, and removes unfinished links. Returns 0, or raises `ValueError` if links are finished."""
        finished = sorted(record.parent.name for record in self.root.glob(f"link-*/{_RECORD}"))
        if finished:
            raise ValueError(
                f"output_dir: got {self.root}, where {', '.join(finished)} of a chain are finished, expected no "
                "finished links. Resume with train(resume_from_checkpoint=True), set another output_dir, or remove "
                "these directories."
            )
        for left in self.root.glob("link-*"):
            if re.fullmatch(r"link-\d+(\.partial)?", left.name):
                shutil.rmtree(left)
        _write_json(self.root / "chain.json", settings)
        return 0

    def resume(self, settings: dict) -> int:
        """Returns the number of finished links. Raises `ValueError` if there is no chain, or its settings differ."""
        file = self.root / "chain.json"
        if not file.is_file():
            raise ValueError(
                f"resume_from_checkpoint: got True, expected a chain in {self.root} (there is no chain.json). "
                "Call train() without resume_from_checkpoint."
            )
        begun = json.loads(file.read_text())
        for name in {**settings, **begun}:
            expected = begun.get(name, _DEFAULTS.get(name))
            if expected != settings.get(name):
                raise ValueError(
                    f"{name}: got {settings.get(name)!r}, expected {expected!r}, with which the chain in "
                    f"{self.root} was begun. Set it to this value, or begin a new chain in another output_dir."
                )
        finished = [self.is_finished(link) for link in range(self.n_links)]
        n_finished = [*finished, False].index(False)
        if any(finished[n_finished:]):
            raise ValueError(
                f"{self.link(n_finished)}: got no finished link, expected a finished link, since later "
                "links are trained on its labels. Restore its directory, or remove the later links."
            )
        return n_finished


def _write_json(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".partial")
    aside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(aside, file)
