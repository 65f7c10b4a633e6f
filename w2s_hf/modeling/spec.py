"""The specification of a model to finetune: name, version, location, precision and adapters."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig
from transformers import PreTrainedModel
from trl import get_peft_config, get_quantization_config

from ..config import StudentConfig
from ..hub import ensure_available
from .students import load_student

__all__ = ["ModelSpec", "load_base", "peft_config_of"]

# These files of a local directory determine a model's weights or its tokens.
_FILES_OF_A_MODEL = ("*.safetensors", "*.bin", "tokenizer*", "*.tiktoken", "*.model", "vocab*", "merges.txt")


@dataclass(frozen=True)
class ModelSpec:
    """
    The specification of a model to finetune.

    Args:
        name (`str`): The name of the model in results: a Hub id, or the last part of a local path.
        path (`str`): Hub id or local directory.
        version (`str`): Commit on the Hub, or a hash of the local files.
        student_config ([`StudentConfig`], *optional*):
            Precision, adapters and head of a student. It is `None` for weak supervisors and controls, which are
            finetuned in float32 with all their weights, independent of the options of students.
        revision (`str`, *optional*): Commit to load from the Hub.
        adapters (`str`, *optional*): Directory of trained adapters to start from, instead of new adapters.
        weights (`str`, *optional*): Hash of the weights of a local directory. Copies of a model have the same hash.
    """

    name: str
    path: str
    version: str
    student_config: StudentConfig | None = None
    revision: str | None = None
    adapters: str | None = None
    weights: str | None = None

    @classmethod
    def find(cls, name_or_path: str, option: str, student_config: StudentConfig | None = None) -> "ModelSpec":
        """
        Finds a model on the Hub or on disk, without loading it.

        Args:
            name_or_path (`str`): Hub id or local directory.
            option (`str`): The command line option that names the model, for errors.
            student_config ([`StudentConfig`], *optional*): Precision, adapters and head of a student.

        Raises:
            ValueError, FileNotFoundError, ConnectionError: See [`w2s_hf.hub.ensure_available`].
        """
        revision = "main" if student_config is None else student_config.model_revision
        commit = ensure_available(name_or_path, repo_type="model", option=option, revision=revision)
        directory = Path(name_or_path)
        if directory.is_dir():
            if revision != "main":
                raise ValueError(
                    f"{option}: got the revision {revision!r} of the directory {name_or_path!r}, expected no "
                    "revision. Only Hub repositories have revisions. Remove the revision, or pass a Hub id."
                )
            if not (directory / "config.json").is_file():
                raise FileNotFoundError(
                    f"{option}: got the directory {name_or_path!r} without config.json, expected a model. Correct the "
                    "path."
                )
            digest = hashlib.sha256((directory / "config.json").read_bytes())
            for file in sorted({file for pattern in _FILES_OF_A_MODEL for file in directory.glob(pattern)}):
                # Hashing 140 GB of weights is too slow. A changed file has another size or modification time.
                stat = file.stat()
                digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
            # The path is absolute, because adapters store it and may be loaded from another working directory.
            path = directory.resolve()
            return cls(path.name, str(path), digest.hexdigest()[:16], student_config, weights=_hash_of_weights(path))
        return cls(name_or_path, name_or_path, str(commit), student_config, commit)

    @property
    def config(self) -> StudentConfig:
        """The precision, adapters and head of the model. Without `student_config`, there are no adapters."""
        return StudentConfig(use_peft=False) if self.student_config is None else self.student_config

    @property
    def identity(self) -> dict:
        """
        The part of a cache key that identifies the model: `name`, `version` and `config` (`None` for supervisors).
        """
        config = None if self.student_config is None else dataclasses.asdict(self.student_config)
        return {"name": self.name, "version": self.version, "config": config}

    @property
    def named(self) -> dict:
        """
        The entries of results that identify the model: `model`, `revision` and, for local directories, `weights`.
        """
        entries = {"model": self.name, "revision": self.revision}
        return entries if self.weights is None else entries | {"weights": self.weights}


def _hash_of_weights(directory: Path) -> str:
    """
    Returns a hash of the configuration of a local model and of samples of its weights, with 12 hexadecimal digits.
    Copies of a model have the same hash, and models with other weights have different hashes. Sampling 140 GB takes
    milliseconds.
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


def load_base(spec: ModelSpec, task_type: str, path: Path | None = None) -> PreTrainedModel:
    """
    Loads a model without adapters, in the precision of its specification. A model that is trained with all its weights
    is loaded in float32.

    Args:
        spec ([`ModelSpec`]): The model.
        task_type (`str`): As in [`load_student`].
        path (`Path`, *optional*): The directory of a finetuned version of the model, to load instead.
    """
    config = spec.config
    attention = config.attn_implementation
    kwargs: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    model = load_student(
        spec.path if path is None else str(path),
        task_type=task_type,
        dtype=config.dtype if config.use_peft else "float32",
        quantization_config=get_quantization_config(config) if config.use_peft else None,
        revision=spec.revision if path is None else None,
        **kwargs,
    )
    return cast(PreTrainedModel, model)


def peft_config_of(spec: ModelSpec, task_type: str) -> PeftConfig | None:
    """
    Returns the adapter configuration of a model for a `task_type` of [`load_student`], or `None` if the model is
    trained with all its weights.
    """
    peft_config = get_peft_config(spec.config)
    if peft_config is not None and task_type == "CAUSAL_LM":
        peft_config.task_type = task_type
    return peft_config
