"""The manifest of an output directory: it names the experiment, so that no other experiment overwrites it."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from transformers import TrainingArguments

from ..cards.trained_with import fingerprint_of, subject
from ..config import StudentConfig
from ..methods import BOOTSTRAP
from ..results import ExperimentResult, SeedResult, is_results
from ..training_settings import changed_fields
from .config import ExperimentArguments
from .report import run_settings

__all__ = ["MANIFEST", "Manifest", "check_output_dir", "clear", "identity_of", "is_still_true", "name_of", "release"]

MANIFEST = "experiment.json"

# Recipes and sweeps write these files to their output directory, in addition to the cache of stages.
_RESULTS = {
    "experiment": ("results.json", "predictions.parquet", "report.md", "figures", "students", "weak_labels"),
    "sweep": ("sweep.csv", "sweep.parquet", "report.html", "figures", "cells", "configs", "logs", "jobs"),
}

# These arguments may differ between two runs of the same experiment. They add results to the experiment, determine how
# it is run, or are compared by their effect (training settings, models, rows).
_NOT_COMPARED = {
    "task", "demo", "seeds", "methods", "analyses", "ladder", "link_rows", "n_snapshots", "prompt_shots",
    "prompt_form", "rows_fit", "transfer_tasks",
    "zero_shot", "max_train_rating", "min_hard_rating", "weak_model", "student_model", "dataset_path",
    "weak_learning_rate", "weak_num_train_epochs", "weak_weight_decay", "n_supervisors", "keep_confident",
    "generative_finetuning", "generative_learning_rate", "generative_num_train_epochs", "check_memory", "list_tasks",
    "hub_namespace", "hub_private", "overwrite_output_dir", "linear_probe",
    "self_baselines",
}  # fmt: skip


@dataclass
class Manifest:
    """
    The content of `experiment.json`, which identifies the experiment in an output directory.

    Args:
        kind (`str`): `"experiment"` (of a recipe) or `"sweep"`.
        name (`str`): The name of an experiment in error messages.
        settings (`dict`): JSON values by name. These values identify the experiment.
        found (`dict`): Fingerprints of rows and versions of models, once they are loaded. Entries that two manifests
            have in common must be equal.
        seeds (`list[int]`): Seeds with results.
        methods, analyses (`dict[str, dict]`): Methods and analyses with results, and their own settings.
        is_complete (`bool`): Whether all settings are known. `False` for results of older versions of this
            package.
    """

    kind: str
    name: str
    settings: dict
    found: dict[str, str | None] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    methods: dict[str, dict] = field(default_factory=dict)
    analyses: dict[str, dict] = field(default_factory=dict)
    is_complete: bool = True

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """
        Reads the manifest of a directory, or derives it from results that an older version wrote. Returns `None` if
        the directory has neither.

        Raises:
            ValueError: The manifest cannot be read.
        """
        path = directory / MANIFEST
        if path.is_file():
            try:
                content = json.loads(path.read_text())
                return cls(**{name: content[name] for name in ("kind", "name", "settings")}, **content["holds"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"--output_dir: got {directory}, whose {MANIFEST} cannot be read ({error}), expected a "
                    f"{MANIFEST} written by w2s_hf. Name another --output_dir, or move the file away."
                ) from error
        if (directory / "results.json").is_file():
            return cls._of_results(directory / "results.json")
        if any((directory / "cells").glob("*.json")) and (directory / "configs").is_dir():
            return cls("sweep", "sweep", {}, is_complete=False)
        return None

    @classmethod
    def _of_results(cls, path: Path) -> Self | None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None  # the file belongs to another program
        if not is_results(content) or not content["runs"]:
            return None
        try:
            results = ExperimentResult.from_dict(content)
        except ValueError as error:
            raise ValueError(
                f"--output_dir: got {path.parent}, whose results.json cannot be read ({error}), expected a "
                "results.json written by w2s_hf. Name another --output_dir, or move the file away."
            ) from error
        first = results.runs[0]
        return cls(
            "experiment",
            subject(results.task, results.is_demo),
            {
                "task": results.task,
                "preset": results.preset,
                "weak_model": first.weak.model,
                "student_model": first.ceiling.model,
                **results.settings.training.to_dict(),
                **results.settings.student.to_dict(),
            },
            found={f"rows of seed {run.seed}": run.split_fingerprint for run in results.runs if run.split_fingerprint},
            seeds=[run.seed for run in results.runs],
            methods={summary.method: {} for summary in results.summary},
            analyses={name: {} for name in first.analyses},
            is_complete=False,
        )

    def write(self, directory: Path) -> None:
        """Writes the file atomically."""
        holds = asdict(self)
        content = {"schema": 1} | {name: holds.pop(name) for name in ("kind", "name", "settings")} | {"holds": holds}
        directory.mkdir(parents=True, exist_ok=True)
        aside = directory / f"{MANIFEST}.partial"
        aside.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(aside, directory / MANIFEST)

    @property
    def shown(self) -> str:
        """The content of the directory, for error messages."""
        if self.kind == "sweep":
            return "a sweep"
        return f"the experiment {self.name!r}" + ("" if self.seeds else " (started, no results yet)")

    def differences(self, other: Self) -> list[str]:
        """Returns a phrase for each setting, model or part of the rows that differs in another manifest."""
        names = [name for name in {**self.settings, **other.settings}]
        if not (self.is_complete and other.is_complete):
            names = [name for name in names if name in self.settings and name in other.settings]
        differences = [
            f"{name}: {_shown(self.settings.get(name))} there, {_shown(other.settings.get(name))} here"
            for name in names
            if fingerprint_of({name: self.settings.get(name)}) != fingerprint_of({name: other.settings.get(name)})
        ]
        for kind in ("methods", "analyses"):
            there, here = getattr(self, kind), getattr(other, kind)
            for name in [name for name in there if name in here and there[name] and there[name] != here[name]]:
                differences.append(f"{name}: {there[name]} there, {here[name]} here")
        for name in [name for name, value in self.found.items() if other.found.get(name, value) != value]:
            differences.append(f"{name}: {self.found[name]} there, {other.found[name]} here")
        return differences


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value is None else f"{value:.12g}" if isinstance(value, int | float) else str(value)


def identity_of(
    task: str, setting: str, args: ExperimentArguments, training_args: TrainingArguments, config: StudentConfig
) -> Manifest:
    """Returns the manifest of the experiment of a command line, before its models and rows are loaded."""
    settings = run_settings(args, training_args, config)
    name = subject(task, args.demo) + (f", run {training_args.run_name}" if training_args.run_name else "")
    ladder, sizes = ([name_of(model, args.demo) for model in models] for models in (args.ladder, args.sizes))
    weak_model, student_model = (name_of(model, args.demo) for model in args.models)
    methods = {method: settings.losses.get(method, {}) for method in args.methods_by_name}
    if BOOTSTRAP in methods:
        methods[BOOTSTRAP] = {**methods[BOOTSTRAP], "ladder": ladder, "link_rows": args.link_rows}
    of_analyses: dict[str, dict] = {
        "overfitting": {"n_snapshots": args.n_snapshots},
        "prompting": {"prompt_shots": args.prompt_shots, **_prompt_form(args)},
        "agreement": {"sizes": sizes},
    }
    analyses = {name: of_analyses.get(name, {}) for name in args.analyses}
    if getattr(args, "zero_shot", False):
        analyses["zero_shot"] = {}
    if getattr(args, "max_train_rating", None) is not None:
        names = ("max_train_rating", "min_hard_rating")
        analyses["max_train_rating"] = {name: getattr(args, name) for name in names}
    return Manifest(
        "experiment",
        name,
        {
            "task": task,
            "setting": setting,
            "preset": "demo" if args.demo else "custom",
            "weak_model": weak_model,
            "student_model": student_model,
            **settings.training.to_dict(),
            **settings.student.to_dict(),
            **changed_fields(args, _NOT_COMPARED),
        },
        seeds=list(args.seeds),
        methods=methods,
        analyses=analyses,
    )


def _prompt_form(args: ExperimentArguments) -> dict:
    """Returns `--prompt_form` if the prompts depend on it and differ from prompts of older versions."""
    form = getattr(args, "prompt_form", "01")
    return {} if args.demo or form == "01" else {"prompt_form": form}


def name_of(model: str, is_demo: bool) -> str:
    """Returns the name of a model in results, as [`ModelSpec.find`] determines it."""
    return f"demo/{model}" if is_demo else Path(model).resolve().name if Path(model).is_dir() else model


def check_output_dir(directory: Path, wanted: Manifest, *, overwrite: bool) -> Manifest | None:
    """
    Checks that an experiment may use a directory. Returns the manifest of the directory if it already contains a part
    of the same experiment, otherwise `None`.

    Args:
        directory (`Path`): The output directory, which need not exist.
        wanted ([`Manifest`]): The experiment, with all seeds, methods and analyses that it will have.
        overwrite (`bool`): Whether another experiment in the directory may be overwritten.

    Raises:
        ValueError: The directory has another experiment. Results of this experiment would be lost. Files of another
            program have the names of results.
    """
    there = Manifest.read(directory)
    if there is None:
        foreign = [name for name in _RESULTS[wanted.kind] if (directory / name).exists()]
        if foreign:
            raise ValueError(
                f"--output_dir: got {directory}, which has {', '.join(foreign)} of another program, expected "
                "a directory without such files. Name another --output_dir, or move these files away."
            )
        return None
    if overwrite:
        return None
    ways_out = (
        "Name another --output_dir, or set --overwrite_output_dir true, which removes the results in the directory "
        "(the trained models in _stages/ are kept)."
    )
    if there.kind != wanted.kind:
        raise ValueError(
            f"--output_dir: got {directory}, which has {there.shown}, expected a directory for "
            f"{'a sweep' if wanted.kind == 'sweep' else 'an experiment'}. {ways_out}"
        )
    differences = there.differences(wanted)
    if differences:
        more = f", and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise ValueError(
            f"--output_dir: got {directory}, which has {there.shown} with other settings ("
            f"{'; '.join(differences[:4])}{more}). {ways_out}"
        )
    # In a sweep, each cell has its own record, so no results are lost if a cell is missing.
    for name in ("seeds", "methods", "analyses") if there.kind == "experiment" else ():
        lost = [str(value) for value in getattr(there, name) if value not in getattr(wanted, name)]
        if lost:
            raise ValueError(
                f"--output_dir: got {directory}, which has results of this experiment for the {name} "
                f"{' '.join(lost)}. This command would remove these results. Add the {name} to the command (finished "
                f"models are not trained again). {ways_out}"
            )
    return there


def clear(directory: Path) -> None:
    """Removes the results of the experiment or sweep in a directory, and its manifest. Trained models are kept."""
    there = Manifest.read(directory)
    for name in (*_RESULTS[there.kind], MANIFEST) if there else ():
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def release(directory: Path) -> None:
    """
    Removes the manifest of an experiment that ended with an error before its first results. The corrected command can
    then use the same directory. Trained models are kept.
    """
    there = Manifest.read(directory)
    if there is not None and not there.seeds and not any((directory / name).exists() for name in _RESULTS[there.kind]):
        (directory / MANIFEST).unlink(missing_ok=True)


def is_still_true(path: Path, run: SeedResult | dict) -> bool:
    """
    Returns whether `results.json` agrees with the new results about the students of a seed, or has no such students.
    The file is then kept while seeds or methods are added, so that an interrupted run loses no results.
    """
    new = run.to_dict() if isinstance(run, SeedResult) else run
    try:
        results = ExperimentResult.read(path)
        old = [student for old in results.runs if old.seed == new["seed"] for student in old.students]
        before = {student.output: student.to_dict() for student in old}
        after = {student["output"]: student for student in json.loads(json.dumps(new["students"]))}
        return all(
            output in after and all(student.get(name) == value for name, value in after[output].items())
            for output, student in before.items()
        )
    except (OSError, ValueError):
        return False
