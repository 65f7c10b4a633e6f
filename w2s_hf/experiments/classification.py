"""Weak-to-strong generalization on a binary task, from rows to PGR."""

import logging
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Value

from .. import metrics
from ..config import METHODS, ExperimentArguments, StudentConfig, WeakToStrongConfig
from ..labels import WeakLabels
from ..tasks import Task, TaskSplits, find_task, load_task
from ..tasks.demo import DemoWorld
from ..tasks.demo_ladder import DEMO_MODELS, build_demo_model
from ..tasks.demo_rows import demo_rows
from .finetuning import Model, Workbench
from .report import write_report
from .stages import Stages, library_versions

__all__ = ["run_classification"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Materials:
    """What one seed starts from: rows, two models, and the student's twin without pretraining if there is one."""

    splits: TaskSplits
    weak: Model
    student: Model
    unpretrained: Model | None = None


def run_classification(
    task: str | Task, args: ExperimentArguments, training_args: WeakToStrongConfig, student_config: StudentConfig
) -> dict:
    """
    Runs the experiment for every seed and writes everything below `training_args.output_dir`.

    Args:
        task (`str` or [`~w2s_hf.Task`]): Your own, or as in [`w2s_hf.tasks.find_task`].
        args ([`ExperimentArguments`]): Models, methods, rows, seeds.
        training_args ([`WeakToStrongConfig`]): Training of the students and the ceiling; of the weak supervisor, too,
            where `args` says nothing else.
        student_config ([`StudentConfig`]): Adapters and precision of the students and the ceiling.

    Returns:
        `dict`: The content of `results.json` (schema 1).

    Raises:
        ValueError, FileNotFoundError, ConnectionError: before anything is trained, see [`w2s_hf.tasks.load_task`] and
            [`w2s_hf.hub.ensure_available`].
    """
    started = time.monotonic()
    task = find_task(task) if isinstance(task, str) else task
    output_dir = Path(training_args.output_dir)
    bench = Workbench(Stages(output_dir / "_stages"), training_args)
    ladder = Stages(_cache_directory() / "demo_ladder")
    if args.drop_empty:
        task = replace(task, drop_empty=True)
    splits = None if args.demo else load_task(task, dataset_path=args.dataset_path, **split_options(args))
    every = [gather_materials(task, args, student_config, seed, ladder, splits) for seed in args.seeds]
    runs = []
    for seed, materials in zip(args.seeds, every, strict=True):
        runs.append(run_seed(materials, args, seed, bench, output_dir))
    results = {
        "schema": 1,
        "task": task.name,
        "preset": "demo" if args.demo else "custom",
        "dataset": {
            **every[0].splits.source,
            "n_weak_half": len(every[0].splits.weak_half),
            "n_student_half": len(every[0].splits.student_half),
            "n_validation": len(every[0].splits.weak_validation) + len(every[0].splits.student_validation),
            "n_test": len(every[0].splits.test),
            "conversion": args.conversion,
        },
        "runs": [run for run, _ in runs],
        "summary": summarise([run for run, _ in runs], [correct for _, correct in runs], args.methods),
        "versions": library_versions(),
        "wall_seconds": {
            **bench.stages.seconds,
            **ladder.seconds,
            "total": round(time.monotonic() - started, 1),
        },
    }
    n_built, n_reused = bench.stages.n_built + ladder.n_built, bench.stages.n_reused + ladder.n_reused
    if PartialState().is_main_process:
        write_report(results, output_dir, task, training_args)
    logger.info(
        f"Nothing was trained: all {n_reused} stages were finished by an earlier run."
        if n_built == 0
        else f"{n_built} stages built, {n_reused} reused."
    )
    PartialState().wait_for_everyone()
    return results


def split_options(args: ExperimentArguments) -> dict:
    """What [`load_task`] is told of the command line."""
    names = ("n_train", "n_weak", "n_validation", "n_test", "conversion")
    return {name: getattr(args, name) for name in names} | {"seed": args.split_seed}


def gather_materials(
    task: Task,
    args: ExperimentArguments,
    student_config: StudentConfig,
    seed: int,
    ladder: Stages,
    splits: TaskSplits | None,
) -> Materials:
    """Rows and models of one seed; without `splits` the demo's, which has a world a seed."""
    if splits is not None:
        weak = Model.find(args.weak_model, "--weak_model")
        return Materials(splits, weak, Model.find(args.student_model, "--student_model", student_config))

    world = DemoWorld(seed=seed)
    # Half as many again as asked for: balancing drops rows of the more frequent answer, and groups are dealt whole.
    n_pool = 3 * (args.n_train + args.n_weak + args.n_validation) // 2 + 100
    n_test_pool = 3 * args.n_test // 2 + 100
    if args.conversion == "coin_flip":  # half as many texts a question
        n_pool, n_test_pool = 2 * n_pool, 2 * n_test_pool
    raw = DatasetDict(
        {
            task.train_split[0]: demo_rows(task, world, n_pool, "train"),
            task.test_split[0]: demo_rows(task, world, n_test_pool, "test"),
        }
    )
    splits = load_task(task, raw=raw, **split_options(args))
    splits = replace(splits, source={"id": "w2s_hf demo", "revision": f"world {seed}"})

    def demo_model(name: str, config: StudentConfig | None = None) -> Model:
        if name not in DEMO_MODELS:
            raise ValueError(f"The demo has no model {name!r}; its models are {', '.join(DEMO_MODELS)}.")
        # Only a pretrained model depends on how much it reads.
        n_documents = args.demo_documents if DEMO_MODELS[name].n_documents else None
        settings = {"model": repr(DEMO_MODELS[name]), "world": repr(world.config), "seed": seed, "n": n_documents}
        directory = ladder.run(
            name,
            settings,
            lambda path: build_demo_model(DEMO_MODELS[name], world, path, n_documents=n_documents),
        )
        return Model(f"demo/{name}", str(directory), directory.name, config)

    twin = args.student_model.replace("pretrained-", "scratch-")
    return Materials(
        splits,
        demo_model(args.weak_model),
        demo_model(args.student_model, student_config),
        demo_model(twin) if twin in DEMO_MODELS and twin != args.student_model else None,
    )


def run_seed(
    materials: Materials, args: ExperimentArguments, seed: int, bench: Workbench, output_dir: Path
) -> tuple[dict, dict[str, np.ndarray]]:
    """
    One experiment: supervisor, weak labels, ceiling, students, scores.

    Returns:
        The entry of `results.json`, and which test rows each model has right: `(N,)` bool by name.
    """
    splits = materials.splits
    source = {"task": splits.task.name, "dataset": splits.source, "split_fingerprint": splits.fingerprint}

    logger.info(f"Seed {seed}: weak supervisor {materials.weak.name} on {len(splits.weak_half)} rows, ground truth")
    weak_args = {
        "learning_rate": args.weak_learning_rate,
        "num_train_epochs": args.weak_num_train_epochs,
        "weight_decay": args.weak_weight_decay,
    }
    supervisor = bench.finetune(
        "weak",
        materials.weak,
        with_ground_truth(splits.weak_half),
        # Rows of its own: on rows that chose it, its labels would be too good.
        with_ground_truth(splits.weak_validation),
        [splits.student_half, splits.student_validation, splits.test],
        seed=seed,
        provenance=source,
        **{name: value for name, value in weak_args.items() if value is not None},
        loss_type="xent",
    )
    weak_labels = WeakLabels.load(supervisor / "predictions")

    logger.info(
        f"Seed {seed}: strong ceiling {materials.student.name} on {len(splits.student_half)} rows, ground truth"
    )
    ceiling = bench.finetune(
        "ceiling",
        materials.student,
        with_ground_truth(splits.student_half),
        with_ground_truth(splits.student_validation),
        [splits.test],
        seed=seed,
        provenance=source,
        loss_type="xent",
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

    students = {}
    for method in args.methods:
        logger.info(
            f"Seed {seed}: student {materials.student.name} on {len(splits.student_half)} weak labels, {method}"
        )
        students[method] = train_on_weak_labels(f"student-{method}", materials.student, loss_type=METHODS[method])

    truth = np.array(splits.test["ground_truth"])
    test_ids = list(splits.test["id"])
    probabilities = {"weak": weak_labels.of(test_ids), "ceiling": predictions_of(ceiling, test_ids)}
    probabilities |= {method: predictions_of(path, test_ids) for method, path in students.items()}
    correct = {name: metrics.is_correct(values, truth) for name, values in probabilities.items()}
    run = {
        "seed": seed,
        "split_fingerprint": splits.fingerprint,
        "weak": {"model": materials.weak.name, **scores(probabilities["weak"], truth)},
        "ceiling": {"model": materials.student.name, **scores(probabilities["ceiling"], truth)},
        "students": [],
        "controls": [],
    }
    for method in args.methods:
        weak, student, ceiling_accuracy = (float(correct[name].mean()) for name in ("weak", method, "ceiling"))
        interval = metrics.pgr_interval(correct["weak"], correct[method], correct["ceiling"], seed=seed)
        run["students"].append(
            {
                "method": method,
                "model": materials.student.name,
                **scores(probabilities[method], truth),
                "pgr": metrics.performance_gap_recovered(weak, student, ceiling_accuracy),
                "pgr_ci95": None if interval is None else list(interval),
                "pgr_undefined": metrics.pgr_undefined_reason(weak, ceiling_accuracy),
                "agreement": metrics.agreement(probabilities[method], probabilities["weak"], truth),
                "output": f"students/{method}-seed{seed}",
            }
        )
    if materials.unpretrained is not None:
        # What the student makes of the weak labels without what it learned before: all weights, its own learning rate.
        logger.info(f"Seed {seed}: control {materials.unpretrained.name} on the same weak labels")
        control = train_on_weak_labels("control", materials.unpretrained, loss_type="xent", learning_rate=2e-3)
        run["controls"].append(
            {
                "method": "naive",
                "model": materials.unpretrained.name,
                **scores(predictions_of(control, test_ids), truth),
            }
        )
    if PartialState().is_main_process:
        weak_labels.save(output_dir / "weak_labels" / f"seed{seed}")
        for method, path in students.items():
            put_directory(path / "model", output_dir / "students" / f"{method}-seed{seed}")
    return run, correct


def with_ground_truth(rows: Dataset) -> Dataset:
    """Rows to learn from ground truth: `labels` as int64."""
    return rows.rename_column("ground_truth", "labels").cast_column("labels", Value("int64"))


def predictions_of(stage: Path, ids: list[str]) -> np.ndarray:
    """Class probabilities `(len(ids), C)` that a finetuning stage predicted for these rows."""
    return WeakLabels.load(stage / "predictions").of(ids)


def scores(probabilities: np.ndarray, truth: np.ndarray) -> dict:
    """Accuracy with its interval, AUROC and calibration error on the test rows."""
    correct = metrics.is_correct(probabilities, truth)
    return {
        "accuracy": float(correct.mean()),
        "ci95": list(metrics.accuracy_interval(correct)),
        "n": len(truth),
        "auroc": metrics.auroc(probabilities[:, 1], truth),
        "ece": metrics.expected_calibration_error(probabilities, truth),
    }


def summarise(runs: list[dict], correct: list[dict[str, np.ndarray]], methods: list[str]) -> list[dict]:
    """Per method, over the seeds: median PGR with its interval, and how often PGR is undefined."""
    summary = []
    for method in methods:
        triples = [(seed["weak"], seed[method], seed["ceiling"]) for seed in correct]
        accuracies = [
            student["accuracy"] for run in runs for student in run["students"] if student["method"] == method
        ]
        summary.append(
            {"method": method, "accuracy_mean": float(np.mean(accuracies)), **metrics.pgr_over_seeds(triples)}
        )
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


def _cache_directory() -> Path:
    """`$W2S_HF_CACHE`, else `w2s_hf` in the user's cache directory."""
    if "W2S_HF_CACHE" in os.environ:
        return Path(os.environ["W2S_HF_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "w2s_hf"
