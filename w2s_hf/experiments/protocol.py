"""The experiment, whatever the setting: supervisor, weak labels, ceiling, students, scores, seed by seed."""

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState

from .. import metrics
from ..config import StudentConfig
from ..tasks import TaskSplits
from ..tasks.demo_ladder import DEMO_MODELS, DemoModel, World, build_demo_model
from .finetuning import Model, Workbench
from .options import ExperimentArguments
from .stages import Stages, library_versions

__all__ = [
    "Materials",
    "SeedRun",
    "collect_results",
    "find_demo_models",
    "find_models",
    "ladder_stages",
    "run_seed",
    "split_options",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Materials:
    """
    What one seed starts from.

    Args:
        splits ([`TaskSplits`]): Rows.
        weak, student ([`Model`]): The supervisor; and what students and ceiling are made of.
        unpretrained ([`Model`], *optional*): The student's twin without pretraining, a control.
        plain_student ([`Model`], *optional*):
            The student before a stage that came in between; it makes a second ceiling, to compare with.
    """

    splits: TaskSplits
    weak: Model
    student: Model
    unpretrained: Model | None = None
    plain_student: Model | None = None


@dataclass(frozen=True)
class SeedRun:
    """
    What one seed came to.

    Args:
        entry (`dict`): Its entry in `results.json`.
        correct (`dict[str, np.ndarray]`): Which test rows each model has right, `(N,)` bool by name.
        answers (`dict`): What each model answered to them, by name; of what kind depends on the setting.
    """

    entry: dict
    correct: dict[str, np.ndarray]
    answers: dict


def split_options(args: ExperimentArguments) -> dict:
    """What the command line says of the rows of each part, as [`load_task`] and [`load_pairs`] take it."""
    names = ("n_train", "n_weak", "n_validation", "n_test")
    return {name: getattr(args, name) for name in names} | {"seed": args.split_seed}


def find_models(args: ExperimentArguments, student_config: StudentConfig) -> tuple[Model, Model]:
    """Supervisor and student that the command line names. Raises as [`Model.find`]."""
    return (
        Model.find(args.weak_model, "--weak_model"),
        Model.find(args.student_model, "--student_model", student_config),
    )


def find_demo_models(
    args: ExperimentArguments,
    student_config: StudentConfig,
    world: World,
    ladder: Stages,
    models: dict[str, DemoModel] = DEMO_MODELS,
) -> tuple[Model, Model, Model | None]:
    """Supervisor, student, and the student's twin without pretraining, made for a world or found in the cache."""

    def demo_model(name: str, config: StudentConfig | None = None) -> Model:
        if name not in models:
            raise ValueError(f"The demo has no model {name!r}; its models are {', '.join(models)}.")
        # Only a pretrained model depends on how much it reads.
        n_documents = args.demo_documents if models[name].n_documents else None
        settings = {
            "model": repr(models[name]),
            "world": repr(world.config),
            "seed": world.seed,
            "n": n_documents,
        }
        directory = ladder.run(
            name,
            settings,
            lambda path: build_demo_model(models[name], world, path, n_documents=n_documents),
        )
        return Model(f"demo/{name}", str(directory), directory.name, config)

    twin = args.student_model.replace("pretrained-", "scratch-")
    return (
        demo_model(args.weak_model),
        demo_model(args.student_model, student_config),
        demo_model(twin) if twin in models and twin != args.student_model else None,
    )


def run_seed(
    materials: Materials, args: ExperimentArguments, seed: int, bench: Workbench, output_dir: Path
) -> SeedRun:
    """One experiment: supervisor, weak labels, ceiling, students, scores."""
    splits, setting, rows = materials.splits, bench.setting, bench.setting.rows
    source = {"task": splits.task.name, "dataset": splits.source, "split_fingerprint": splits.fingerprint}

    logger.info(f"Seed {seed}: weak supervisor {materials.weak.name} on {len(splits.weak_half)} {rows}, ground truth")
    weak_args = {
        "learning_rate": args.weak_learning_rate,
        "num_train_epochs": args.weak_num_train_epochs,
        "weight_decay": args.weak_weight_decay,
    }
    supervisor = bench.finetune(
        "weak",
        materials.weak,
        setting.with_ground_truth(splits.weak_half),
        # Rows of its own: on rows that chose it, its labels would be too good.
        setting.with_ground_truth(splits.weak_validation),
        [splits.student_half, splits.student_validation, splits.test],
        seed=seed,
        provenance=source,
        **{name: value for name, value in weak_args.items() if value is not None},
        **setting.arguments_of("naive"),
    )
    weak_labels = setting.labels.load(supervisor / "predictions")

    def train_ceiling(model: Model, kind: str) -> Path:
        logger.info(f"Seed {seed}: {kind} ceiling {model.name} on {len(splits.student_half)} {rows}, ground truth")
        return bench.finetune(
            "ceiling",
            model,
            setting.with_ground_truth(splits.student_half),
            setting.with_ground_truth(splits.student_validation),
            [splits.test],
            seed=seed,
            provenance=source,
            **setting.arguments_of("naive"),
        )

    def train_on_weak_labels(name: str, model: Model, **changes) -> Path:
        return bench.finetune(
            name,
            model,
            weak_labels.join(splits.student_half),
            weak_labels.join(splits.student_validation),
            [splits.test],
            seed=seed,
            provenance={**source, "weak_labels": weak_labels.fingerprint},
            **changes,
        )

    stages = {}
    if materials.plain_student is not None:
        stages["ceiling_plain"] = train_ceiling(materials.plain_student, "plain")
    stages["ceiling"] = train_ceiling(materials.student, "strong")
    for method in args.methods:
        logger.info(
            f"Seed {seed}: student {materials.student.name} on {len(splits.student_half)} weak labels, {method}"
        )
        stages[method] = train_on_weak_labels(f"student-{method}", materials.student, **setting.arguments_of(method))
    if materials.unpretrained is not None:
        # What the student makes of the weak labels without what it learned before: all weights, its own settings.
        logger.info(f"Seed {seed}: control {materials.unpretrained.name} on the same weak labels")
        stages["control"] = train_on_weak_labels(
            "control", materials.unpretrained, **setting.arguments_of("naive") | setting.control
        )

    test = splits.test
    test_ids = list(test["id"])
    answers = {"weak": weak_labels.of(test_ids)}
    answers |= {name: setting.labels.load(path / "predictions").of(test_ids) for name, path in stages.items()}
    correct = {name: setting.is_correct(values, test) for name, values in answers.items()}
    entry = {
        "seed": seed,
        "split_fingerprint": splits.fingerprint,
        "weak": {"model": materials.weak.name, **setting.scores(answers["weak"], test)},
        "ceiling": {"model": materials.student.name, **setting.scores(answers["ceiling"], test)},
        "students": [],
        "controls": [],
    }
    if materials.plain_student is not None:
        plain = setting.scores(answers["ceiling_plain"], test)
        entry["ceiling_plain"] = {"model": materials.plain_student.name, **plain}
    for method in args.methods:
        same = setting.is_same(answers[method], answers["weak"], test)
        student = {
            "method": method,
            "model": materials.student.name,
            **setting.scores(answers[method], test),
            **pgr_of(correct, method, "ceiling", seed),
            "agreement": metrics.agreement_shares(same, correct["weak"]),
            "output": f"students/{method}-seed{seed}",
        }
        if materials.plain_student is not None:
            student["against_plain_ceiling"] = pgr_of(correct, method, "ceiling_plain", seed)
        entry["students"].append(student)
    if materials.unpretrained is not None:
        control = {"method": "naive", "model": materials.unpretrained.name}
        entry["controls"].append({**control, **setting.scores(answers["control"], test)})
    if PartialState().is_main_process:
        weak_labels.save(output_dir / "weak_labels" / f"seed{seed}")
        for method in args.methods:
            put_directory(stages[method] / "model", output_dir / "students" / f"{method}-seed{seed}")
    return SeedRun(entry, correct, answers)


def collect_results(
    task_name: str,
    args: ExperimentArguments,
    splits: TaskSplits,
    runs: list[SeedRun],
    bench: Workbench,
    ladder: Stages,
    started: float,
) -> dict:
    """
    The content of `results.json` (schema 1).

    Args:
        splits ([`TaskSplits`]): Of the first seed.
        ladder ([`Stages`]): Where the demo's models were made.
        started (`float`): `time.monotonic()` of the beginning.
    """
    n_built = bench.stages.n_built + ladder.n_built
    logger.info(
        f"Nothing was trained: all {bench.stages.n_reused + ladder.n_reused} stages were finished by an earlier run."
        if n_built == 0
        else f"{n_built} stages built, {bench.stages.n_reused + ladder.n_reused} reused."
    )
    return {
        "schema": 1,
        "task": task_name,
        "setting": bench.setting.name,
        "preset": "demo" if args.demo else "custom",
        "chance": bench.setting.chance,
        "dataset": {
            **splits.source,
            "n_weak_half": len(splits.weak_half),
            "n_student_half": len(splits.student_half),
            "n_validation": len(splits.weak_validation) + len(splits.student_validation),
            "n_test": len(splits.test),
            "n_dropped": splits.n_dropped,
        },
        "runs": [run.entry for run in runs],
        "summary": [summarise(runs, method) for method in args.methods],
        "versions": library_versions(),
        "wall_seconds": {**bench.stages.seconds, **ladder.seconds, "total": round(time.monotonic() - started, 1)},
    }


def pgr_of(correct: dict[str, np.ndarray], student: str, ceiling: str, seed: int) -> dict:
    """`pgr` with its interval against one of the ceilings, or why there is none."""
    triple = [correct[name] for name in ("weak", student, ceiling)]
    weak, _, best = accuracies = [float(values.mean()) for values in triple]
    interval = metrics.pgr_interval(*triple, seed=seed)
    return {
        "pgr": metrics.performance_gap_recovered(*accuracies),
        "pgr_ci95": None if interval is None else list(interval),
        "pgr_undefined": metrics.pgr_undefined_reason(weak, best),
    }


def summarise(runs: list[SeedRun], method: str) -> dict:
    """Of a method, over the seeds: median PGR with its interval, and how often PGR is undefined."""

    def over_seeds(ceiling: str) -> dict:
        return metrics.pgr_over_seeds([[run.correct[name] for name in ("weak", method, ceiling)] for run in runs])

    accuracy = float(np.mean([run.correct[method].mean() for run in runs]))
    summary = {"method": method, "accuracy_mean": accuracy, **over_seeds("ceiling")}
    if "ceiling_plain" in runs[0].correct:
        summary["against_plain_ceiling"] = over_seeds("ceiling_plain")
    return summary


def put_directory(source: Path, target: Path) -> None:
    """A whole copy or none: written aside and renamed, in place of an older one."""
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, aside)
    if target.exists():
        shutil.rmtree(target)
    os.replace(aside, target)


def ladder_stages() -> Stages:
    """Where the demo's models are kept: `$W2S_HF_CACHE`, else `w2s_hf` in the user's cache directory."""
    if "W2S_HF_CACHE" in os.environ:
        directory = Path(os.environ["W2S_HF_CACHE"])
    else:
        directory = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "w2s_hf"
    return Stages(directory / "demo_ladder")
