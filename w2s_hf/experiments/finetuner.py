"""Finetune one model on one set of labels and predict: the step that supervisor, ceiling and students share."""

import dataclasses
import gc
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from trl import get_peft_config, get_quantization_config

from ..config import StudentConfig
from ..hub import ensure_available
from ..labels import LabelsById
from ..modeling import load_student, load_tokenizer
from ..modeling.adapters import fresh_adapter, load_adapter_weights
from ..modeling.heads import initialise_head
from ..trainers.checkpoints import last_complete_checkpoint
from ..trainers.snapshots import SnapshotCallback
from ..training_settings import WITHOUT_EFFECT
from .cache import Stages, library_versions
from .settings.base import Setting, metric_name

__all__ = ["Model", "Workbench", "load_base", "peft_config_of", "save_training"]

# Of a local directory, whatever changes its weights or its tokens.
_FILES_OF_A_MODEL = ("*.safetensors", "*.bin", "tokenizer*", "*.tiktoken", "*.model", "vocab*", "merges.txt")


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
        weights (`str`, *optional*): Hash of a local directory that is the same for every copy of it.
    """

    name: str
    path: str
    version: str
    config: StudentConfig | None = None
    revision: str | None = None
    adapters: str | None = None
    weights: str | None = None

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
            for file in sorted({file for pattern in _FILES_OF_A_MODEL for file in directory.glob(pattern)}):
                # Hashing 140 GB of weights would take longer than the demo; a changed file has another size or time.
                stat = file.stat()
                digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
            # An absolute path: adapters keep it, and are loaded from other working directories.
            path = directory.resolve()
            return cls(path.name, str(path), digest.hexdigest()[:16], config, weights=_hash_of_weights(path))
        return cls(name_or_path, name_or_path, commit, config, commit)

    @property
    def student_config(self) -> StudentConfig:
        """`config`, or what it means that there is none."""
        return StudentConfig(use_peft=False) if self.config is None else self.config

    @property
    def identity(self) -> dict:
        config = None if self.config is None else dataclasses.asdict(self.config)
        return {"name": self.name, "version": self.version, "config": config}


def _hash_of_weights(directory: Path) -> str:
    """
    Hash of the configuration of a local model and of samples of its weights: 12 hexadecimal digits. Another copy of
    the model has the same, and two models of one architecture have not; 140 GB are sampled in milliseconds.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for start in [*range(0, size, max(size // 64, 4096)), max(size - 4096, 0)]:
                file.seek(start)
                digest.update(file.read(4096))
    return digest.hexdigest()[:12]


def load_base(model: Model, task_type: str, path: Path | None = None) -> PreTrainedModel:
    """
    The base of a model for [`load_student`]'s `task_type`, in its precision; float32 where all weights train. `path`
    is where it is after all weights were trained.
    """
    config = model.student_config
    kwargs = {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
    return load_student(
        model.path if path is None else str(path),
        task_type=task_type,
        dtype=config.dtype if config.use_peft else "float32",
        quantization_config=get_quantization_config(config) if config.use_peft else None,
        revision=model.revision if path is None else None,
        **kwargs,
    )


def peft_config_of(model: Model, task_type: str) -> PeftConfig | None:
    """The adapters of a model for [`load_student`]'s `task_type`; `None` where all weights are trained."""
    peft_config = get_peft_config(model.student_config)
    if peft_config is not None and task_type == "CAUSAL_LM":
        peft_config.task_type = task_type
    return peft_config


def name_classes(model: PreTrainedModel | PeftModel, class_names: Sequence[str]) -> None:
    """Gives the outputs of a classifier their names, which its `config.json` keeps and pipelines show."""
    config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    if config.num_labels == len(class_names):
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: position for position, name in enumerate(class_names)}


def save_training(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """The end of a training: `model/` stays, and `training.json`, which says that it is whole; the checkpoints go."""
    trainer.save_model(str(directory / "model"))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(directory / "model")
        # The arguments hold machine paths and are of no use to a reader of the student.
        (directory / "model" / "training_args.bin").unlink(missing_ok=True)
        aside = directory / "training.json.partial"
        aside.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
        os.replace(aside, directory / "training.json")
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _prepare_to_label(trainer: Trainer) -> None:
    """
    What a trainer needs before it labels with a model that was finetuned earlier: FSDP and DeepSpeed cut a model into
    pieces only together with an optimizer, so a training of no step does it.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.args.num_train_epochs, trainer.args.max_steps = 0, -1
        trainer.train()


@dataclass
class Workbench:
    """
    What the finetunings of an experiment share: the stage cache, a loaded base, tokenized rows.

    Args:
        stages ([`Stages`]): The cache.
        args ([`WeakToStrongConfig`], [`RewardPairConfig`] or [`CompletionConfig`]):
            Training arguments of the setting; each finetuning replaces what differs.
        setting ([`Setting`]): What is finetuned on what.
    """

    stages: Stages
    args: TrainingArguments
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
        n_snapshots: int = 0,
        is_weak: bool = False,
        class_names: Sequence[str] | None = None,
        **changes,
    ) -> Path:
        """
        Finetunes `model` on the labels of `train` and lets it label the rows of `predict`.

        Args:
            name (`str`): Name of the stage.
            train, validation ([`~datasets.Dataset`]): Rows with the columns of the setting and its label column.
            predict (`list` of [`~datasets.Dataset`]): Rows with the columns of the setting.
            seed (`int`): Of head, adapters and row order.
            provenance (`dict`): Recorded with the predictions.
            n_snapshots (`int`, *optional*, defaults to 0): Label them on the way, too, at so many evenly spaced
                steps, the last one among them.
            is_weak (`bool`, *optional*, defaults to `False`): The labels are those of a model, not ground truth.
            class_names (sequence of `str`, *optional*): `id2label` of a classifier.
            changes: Training arguments that differ from the experiment's.

        Returns:
            `Path` with `model/` (adapters, head and tokenizer, or the whole model) and `predictions/`
            ([`WeakLabels`] or [`WeakCompletions`] of the rows of `predict`); of each snapshot
            `snapshots/step-N/predictions/`.
        """
        if "ground_truth" in train.column_names or "ground_truth" in validation.column_names:
            raise ValueError(
                f"{name}: training rows still carry `ground_truth`; a student must not be able to see it."
            )
        metric = metric_name(changes.get("metric_for_best_model", self.args.metric_for_best_model), is_weak)
        changes = {**changes, "metric_for_best_model": metric, "seed": seed, "data_seed": seed, "push_to_hub": False}
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
        if class_names is not None:
            settings["class_names"] = list(class_names)
        if n_snapshots:
            settings["n_snapshots"] = n_snapshots
        provenance = {**provenance, "model": model.name, "model_version": model.version, "seed": seed}
        provenance |= {"stage": self.stages.key(name, settings), "versions": library_versions()}

        def build(directory: Path) -> None:
            # The arguments are made here: making them resets accelerate's state for whoever came before.
            args = dataclasses.replace(self.args, output_dir=str(directory / "checkpoints"), **changes)
            tokenizer = load_tokenizer(model.path, revision=model.revision)
            is_trained = (directory / "training.json").is_file()  # and was stopped while it labelled
            network = (
                self.finished(model, directory / "model") if is_trained else self.untrained(model, tokenizer, seed)
            )
            if class_names is not None:
                name_classes(network, class_names)
            tokenize = partial(self.tokenize, model, tokenizer)
            trainer = self.setting.make_trainer(network, args, tokenizer, train, validation, tokenize, is_weak)

            def take(step: int) -> None:
                there = directory / "snapshots" / f"step-{step}"
                self._label(trainer, model, tokenizer, predict, {**provenance, "step": step}, there)

            if n_snapshots:
                trainer.add_callback(SnapshotCallback(take, n_snapshots))
            if is_trained:
                _prepare_to_label(trainer)
            else:
                trainer.train(resume_from_checkpoint=last_complete_checkpoint(directory / "checkpoints"))
                save_training(trainer, tokenizer, directory)
            self._label(trainer, model, tokenizer, predict, provenance, directory)
            trainer.accelerator.free_memory()
            if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
                self.release()  # cut into pieces, or wrapped by an engine: no base for another student

        return self.stages.run(name, settings, build)

    def label(
        self, name: str, model: Model, trained: Path, train: Dataset, validation: Dataset, rows: list[Dataset]
    ) -> LabelsById:
        """
        What a finetuned model says of more rows, as a stage of its own.

        Args:
            name (`str`): Name of the stage.
            model ([`Model`]): What was finetuned.
            trained (`Path`): What [`finetune`] returned.
            train, validation ([`~datasets.Dataset`]): Labelled rows of its kind; trainers ask for some, and nothing
                learns them.
            rows (`list` of [`~datasets.Dataset`]): Rows with the columns of the setting.
        """
        settings = {
            "trained": trained.name,
            "rows": [self.fingerprint(part) for part in rows],
            "n_processes": PartialState().num_processes,
        }
        provenance = self.setting.labels.load(trained / "predictions").provenance
        provenance = {**provenance, "trained": trained.name, "stage": self.stages.key(name, settings)}

        def build(directory: Path) -> None:
            args = dataclasses.replace(self.args, output_dir=str(directory / "checkpoints"), push_to_hub=False)
            tokenizer = load_tokenizer(model.path, revision=model.revision)
            network = self.finished(model, trained / "model")
            tokenize = partial(self.tokenize, model, tokenizer)
            trainer = self.setting.make_trainer(network, args, tokenizer, train, validation, tokenize)
            _prepare_to_label(trainer)
            self._label(trainer, model, tokenizer, rows, provenance, directory)
            trainer.accelerator.free_memory()
            if trainer.is_world_process_zero():
                shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # trainers make it, and this one has none

        return self.setting.labels.load(self.stages.run(name, settings, build) / "predictions")

    def _label(
        self, trainer: Trainer, model: Model, tokenizer, rows: list[Dataset], provenance: dict, directory: Path
    ):
        """Leaves `predictions/` in a directory."""
        asked = concatenate_datasets([part.select_columns(list(self.setting.columns)) for part in rows])
        answers = self.setting.answer(trainer, asked, partial(self.tokenize, model, tokenizer), directory)
        if trainer.is_world_process_zero():
            self.setting.labels(list(asked["id"]), answers, provenance).save(directory / "predictions")
            shutil.rmtree(directory / "completions", ignore_errors=True)  # what was kept on the way

    def settings_of(self, changes: dict) -> dict:
        """
        Every training argument that can change a number, as JSON values: a new one can only cost a needless rebuild,
        never a stale result.
        """
        # Not dataclasses.replace: making TrainingArguments resets accelerate's state.
        values = {f.name: getattr(self.args, f.name) for f in dataclasses.fields(self.args)} | changes
        return {name: str(value) for name, value in values.items() if name not in WITHOUT_EFFECT}

    def untrained(self, model: Model, tokenizer, seed: int) -> PreTrainedModel | PeftModel:
        """The model with a new head and new adapters; the base of a student is loaded once and used again."""
        config, has_head = model.student_config, self.setting.task_type != "CAUSAL_LM"
        if not config.use_peft:
            self.release()
            set_seed(seed)
            untrained = load_base(model, self.setting.task_type)
            if has_head:
                initialise_head(untrained, config.head_init, seed=seed, tokenizer=tokenizer)
            return untrained
        key = (model.path, model.revision, str(config))  # not the version: adapters to start from change it
        if self._base is None or self._base[0] != key:
            self.release()
            self._base = (key, load_base(model, self.setting.task_type))
        student = fresh_adapter(self._base[1], peft_config_of(model, self.setting.task_type), seed=seed)
        if model.adapters is not None:
            load_adapter_weights(student, model.adapters)
        if has_head:
            initialise_head(student, config.head_init, seed=seed, tokenizer=tokenizer)
        self._base = (key, student)
        return student

    def finished(self, model: Model, directory: Path) -> PreTrainedModel | PeftModel:
        """What was finetuned of a model, from the `model/` of its stage."""
        self.release()
        if not model.student_config.use_peft:
            return load_base(model, self.setting.task_type, directory)
        # Not by load_student, which may have another precision. Trainable, since trainers refuse a model that is not,
        # though nothing trains it again.
        base = load_base(model, self.setting.task_type)
        return PeftModel.from_pretrained(base, str(directory), is_trainable=True).eval()

    def in_place(self, network: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
        """Where a trainer would have put it, in eval mode."""
        if not getattr(network, "is_quantized", False):  # bitsandbytes has put it where it belongs
            network.to(self.args.device)
        return network.eval()

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
        return setting.add_labels(tokenized, rows) if setting.label_column in rows.column_names else tokenized

    def fingerprint(self, rows: Dataset, with_labels: bool = True) -> str:
        """Hash of all that makes the tokens of rows, and where there are any of their labels, in order."""
        digest = hashlib.sha256()
        for row in zip(*(rows[column][:] for column in self.setting.columns), strict=True):
            digest.update(("\0".join(map(str, row)) + "\n").encode())
        if with_labels and self.setting.label_column in rows.column_names:
            labels = rows[self.setting.label_column][:]
            is_text = isinstance(labels[0], str)
            digest.update(json.dumps(labels).encode() if is_text else np.asarray(labels, dtype=np.float32).tobytes())
        return digest.hexdigest()[:16]
