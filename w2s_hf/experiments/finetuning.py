"""Finetune one model on one set of labels and predict: the step that supervisor, ceiling and students share."""

import dataclasses
import gc
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, Value, concatenate_datasets
from peft import PeftModel
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed
from trl import get_peft_config, get_quantization_config

from ..checkpoints import last_complete_checkpoint
from ..config import LossArguments, StudentConfig
from ..hub import ensure_available
from ..labels import WeakLabels, as_probabilities
from ..modeling import fresh_adapter, initialise_head, load_adapter_weights, load_student, load_tokenizer
from ..tasks import PAIR_COLUMNS, TEXT_COLUMNS, tokenize_pairs, tokenize_rows
from ..trainers import RewardPairTrainer, WeakToStrongTrainer
from .stages import Stages, library_versions

__all__ = ["CLASSIFICATION", "REWARD", "Model", "Setting", "Workbench", "load_base", "save_training"]

# Arguments that change where a run writes, what it prints or how fast it is, and none of its numbers. Every other
# argument is part of a stage's key, so a new one can only cost a needless rebuild, never a stale result.
_WITHOUT_EFFECT = {
    "output_dir", "logging_dir", "logging_strategy", "logging_first_step", "logging_steps", "log_level",
    "log_level_replica", "log_on_each_node", "report_to", "run_name", "project", "trackio_space_id", "disable_tqdm",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
    "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "skip_memory_metrics", "ddp_timeout", "resume_from_checkpoint", "do_train",
    "do_eval", "do_predict", "per_device_eval_batch_size", "local_rank",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """
    What a setting of the paper differs in from the others when a model is finetuned and labels rows.

    Args:
        name (`str`): In results.
        rows (`str`): What its rows are called.
        task_type (`str`): Of [`load_student`].
        trainer (`type`): Its `predict_proba` returns `(N, 2)`.
        columns (`tuple[str]`): What is needed to tokenize a row.
        tokenize (`Callable`): Of rows with these columns, a tokenizer and a longest length.
        add_labels (`Callable`): Tokenized rows with the `labels` of others, as the trainer wants them.
    """

    name: str
    rows: str
    task_type: str
    trainer: type
    columns: tuple[str, ...]
    tokenize: Callable[..., Dataset]
    add_labels: Callable[[Dataset, Dataset], Dataset]


def _add_labels(tokenized: Dataset, rows: Dataset) -> Dataset:
    return tokenized.add_column("labels", rows["labels"][:], feature=rows.features["labels"])


def _add_soft_label(tokenized: Dataset, rows: Dataset) -> Dataset:
    first_is_better = as_probabilities(rows["labels"][:])[:, 1]
    return tokenized.add_column("soft_label", first_is_better.tolist(), feature=Value("float32"))


CLASSIFICATION = Setting(
    "classification", "rows", "SEQ_CLS", WeakToStrongTrainer, TEXT_COLUMNS, tokenize_rows, _add_labels
)
# Class 1 of a pair: the first response is the better one. It is the trainer's `chosen`, whatever the truth is.
REWARD = Setting("reward", "pairs", "REWARD", RewardPairTrainer, PAIR_COLUMNS, tokenize_pairs, _add_soft_label)


@dataclass(frozen=True)
class Model:
    """
    A model to finetune.

    Args:
        name (`str`): How results call it; a Hub id, or the last part of a local path.
        path (`str`): Hub id or local directory.
        version (`str`): Commit on the Hub, or a hash of the local files.
        config ([`StudentConfig`], *optional*):
            Adapters, precision, head. `None`, and a configuration without adapters, finetune all weights in float32.
        revision (`str`, *optional*): Commit to load from the Hub.
        adapters (`str`, *optional*): Directory of adapters for `config` to start from, in place of new ones.
    """

    name: str
    path: str
    version: str
    config: StudentConfig | None = None
    revision: str | None = None
    adapters: str | None = None

    @classmethod
    def find(cls, name_or_path: str, option: str, config: StudentConfig | None = None) -> "Model":
        """Looks the model up before anything trains. Raises as [`w2s_hf.hub.ensure_available`]."""
        revision = "main" if config is None else config.model_revision
        commit = ensure_available(name_or_path, repo_type="model", option=option, revision=revision)
        directory = Path(name_or_path)
        if directory.is_dir():
            if revision != "main":
                raise ValueError(f"{option}: got the directory {name_or_path!r}, which has no revision {revision!r}.")
            if not (directory / "config.json").is_file():
                raise FileNotFoundError(f"{option}: the directory {name_or_path!r} has no config.json; not a model.")
            digest = hashlib.sha256((directory / "config.json").read_bytes())
            for file in sorted(
                file for pattern in ("*.safetensors", "*.bin", "tokenizer*") for file in directory.glob(pattern)
            ):
                # Hashing 140 GB of weights would take longer than the demo; a changed file has another size or time.
                stat = file.stat()
                digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
            # An absolute path: adapters keep it, and are loaded from other working directories.
            path = directory.resolve()
            return cls(path.name, str(path), digest.hexdigest()[:16], config)
        return cls(name_or_path, name_or_path, commit, config, commit)

    @property
    def student_config(self) -> StudentConfig:
        """`config`, or what it means that there is none."""
        return StudentConfig(use_peft=False) if self.config is None else self.config

    @property
    def identity(self) -> dict:
        config = None if self.config is None else dataclasses.asdict(self.config)
        return {"name": self.name, "version": self.version, "config": config}


def load_base(model: Model, task_type: str) -> PreTrainedModel:
    """The base of a model for [`load_student`]'s `task_type`, in its precision; float32 where all weights train."""
    config = model.student_config
    kwargs = {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
    return load_student(
        model.path,
        task_type=task_type,
        dtype=config.dtype if config.use_peft else "float32",
        quantization_config=get_quantization_config(config) if config.use_peft else None,
        revision=model.revision,
        **kwargs,
    )


def save_training(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """The end of a training stage: `model/` and `training.json` stay, the checkpoints go, the memory is given back."""
    trainer.save_model(str(directory / "model"))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(directory / "model")
        # The arguments hold machine paths and are of no use to a reader of the student.
        (directory / "model" / "training_args.bin").unlink(missing_ok=True)
        (directory / "training.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
        if (directory / "checkpoints").is_dir():
            shutil.rmtree(directory / "checkpoints")
    trainer.accelerator.free_memory()


def _accuracy_on_given_labels(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy against the labels of the rows: weak ones for a student, as in the paper's early stopping."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = prediction.label_ids
    labels = labels.argmax(axis=1) if labels.ndim == 2 else np.rint(labels)  # P(class 1), or the class
    return {"accuracy": float((logits.argmax(axis=1) == labels).mean())}


@dataclass
class Workbench:
    """
    What the finetunings of an experiment share: the stage cache, a loaded base, tokenized rows.

    Args:
        stages ([`Stages`]): The cache.
        args ([`WeakToStrongConfig`] or [`RewardPairConfig`]):
            Training arguments of the setting; each finetuning replaces what differs.
        setting ([`Setting`]): What is finetuned on what.
    """

    stages: Stages
    args: LossArguments
    setting: Setting
    _base: tuple[tuple, PreTrainedModel | PeftModel] | None = None
    _tokenized: dict[tuple, Dataset] = field(default_factory=dict)

    def finetune(
        self,
        name: str,
        model: Model,
        train: Dataset,
        validation: Dataset,
        predict: list[Dataset],
        *,
        seed: int,
        provenance: dict,
        **changes,
    ) -> Path:
        """
        Finetunes `model` on the `labels` of `train` and predicts the rows of `predict`.

        Args:
            name (`str`): Name of the stage.
            train, validation ([`~datasets.Dataset`]): Rows with the columns of the setting and `labels`.
            predict (`list` of [`~datasets.Dataset`]): Rows with the columns of the setting.
            seed (`int`): Of head, adapters and row order.
            provenance (`dict`): Recorded with the predictions.
            changes: Training arguments that differ from the experiment's.

        Returns:
            `Path` with `model/` (adapters, head and tokenizer, or the whole model) and `predictions/`
            ([`WeakLabels`] of the rows of `predict`).
        """
        if "ground_truth" in train.column_names or "ground_truth" in validation.column_names:
            raise ValueError(
                f"{name}: training rows still carry `ground_truth`; a student must not be able to see it."
            )
        changes = {**changes, "seed": seed, "data_seed": seed, "push_to_hub": False}
        settings = {
            "setting": self.setting.name,
            "model": model.identity,
            "args": self.settings_of(changes),
            "train": self.fingerprint(train),
            "validation": self.fingerprint(validation),
            "predict": [self.fingerprint(rows) for rows in predict],
            "seed": seed,
            "n_processes": PartialState().num_processes,
        }
        provenance = {**provenance, "model": model.name, "model_version": model.version, "seed": seed}
        provenance |= {"stage": self.stages.key(name, settings), "versions": library_versions()}

        def build(directory: Path) -> None:
            # The arguments are made here: making them resets accelerate's state for whoever came before.
            args = dataclasses.replace(self.args, output_dir=str(directory / "checkpoints"), **changes)
            tokenizer = load_tokenizer(model.path, revision=model.revision)
            trainer = self.setting.trainer(
                model=self._untrained(model, tokenizer, seed),
                args=args,
                train_dataset=self.tokenize(model, tokenizer, train),
                eval_dataset=self.tokenize(model, tokenizer, validation),
                processing_class=tokenizer,
                compute_metrics=_accuracy_on_given_labels,
            )
            trainer.train(resume_from_checkpoint=last_complete_checkpoint(directory / "checkpoints"))
            rows = concatenate_datasets([part.select_columns(list(self.setting.columns)) for part in predict])
            probabilities = trainer.predict_proba(self.tokenize(model, tokenizer, rows))
            if trainer.is_world_process_zero():
                WeakLabels(list(rows["id"]), probabilities, provenance).save(directory / "predictions")
            save_training(trainer, tokenizer, directory)

        return self.stages.run(name, settings, build)

    def settings_of(self, changes: dict) -> dict:
        """Every training argument that can change a number, as JSON values."""
        # Not dataclasses.replace: making TrainingArguments resets accelerate's state.
        values = {f.name: getattr(self.args, f.name) for f in dataclasses.fields(self.args)} | changes
        return {name: str(value) for name, value in values.items() if name not in _WITHOUT_EFFECT}

    def _untrained(self, model: Model, tokenizer, seed: int) -> PreTrainedModel | PeftModel:
        """The model with a new head and new adapters; the base of a student is loaded once and used again."""
        config = model.student_config
        if not config.use_peft:
            self.release()
            set_seed(seed)
            untrained = load_base(model, self.setting.task_type)
            initialise_head(untrained, config.head_init, seed=seed, tokenizer=tokenizer)
            return untrained
        key = (model.path, model.revision, str(config))  # not the version: adapters to start from change it
        if self._base is None or self._base[0] != key:
            self.release()
            self._base = (key, load_base(model, self.setting.task_type))
        student = fresh_adapter(self._base[1], get_peft_config(config), seed=seed)
        if model.adapters is not None:
            load_adapter_weights(student, model.adapters)
        initialise_head(student, config.head_init, seed=seed, tokenizer=tokenizer)
        self._base = (key, student)
        return student

    def release(self) -> None:
        """Forgets the loaded base, and gives its memory back."""
        self._base = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def tokenize(self, model: Model, tokenizer, rows: Dataset) -> Dataset:
        """Token columns and `labels`; tokenized once a tokenizer and set of rows, whatever the labels are."""
        words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else model.path
        # Two models of a family may differ in these alone.
        words += f" {tokenizer.bos_token} {tokenizer.eos_token} {tokenizer.chat_template}"
        key = (hashlib.sha256(words.encode()).hexdigest(), self.fingerprint(rows, with_labels=False))
        setting = self.setting
        if key not in self._tokenized:
            tokenized = setting.tokenize(rows.select_columns(list(setting.columns)), tokenizer, self.args.max_length)
            self._tokenized[key] = tokenized.remove_columns([name for name in setting.columns if name != "id"])
        tokenized = self._tokenized[key]
        return setting.add_labels(tokenized, rows) if "labels" in rows.column_names else tokenized

    def fingerprint(self, rows: Dataset, with_labels: bool = True) -> str:
        """Hash of all that makes the tokens of rows, and where there are any of their labels, in order."""
        digest = hashlib.sha256()
        for row in zip(*(rows[column][:] for column in self.setting.columns), strict=True):
            digest.update(("\0".join(map(str, row)) + "\n").encode())
        if with_labels and "labels" in rows.column_names:
            digest.update(np.asarray(rows["labels"][:], dtype=np.float32).tobytes())
        return digest.hexdigest()[:16]
