"""The experiment, whatever the setting: supervisor, weak labels, ceiling, students, scores of one seed."""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import metrics
from ..labels import LabelsById
from ..tasks import TaskSplits
from .bootstrapping import Lessons, climb
from .cache import Stages
from .config import BOOTSTRAP, ExperimentArguments
from .finetuner import Model, Workbench

__all__ = ["Materials", "SeedRun", "keep_outputs", "run_seed", "summarise", "train_supervisor"]

logger = logging.getLogger(__name__)

# Between the seeds of several supervisors of one experiment, so that they are none of another one's.
_FURTHER_SEEDS = 1_000_003


@dataclass(frozen=True)
class Materials:
    """
    What one seed starts from.

    Args:
        splits ([`TaskSplits`]): Rows.
        weak, student ([`Model`]): The supervisor; and what students and ceiling are made of.
        chain (`tuple` of [`Model`], *optional*): Models between them, small to large, for bootstrapping.
        unpretrained ([`Model`], *optional*): The student's twin without pretraining, a control.
        sizes (`tuple` of [`Model`], *optional*): Students of other sizes to compare, the student among them.
        plain_student ([`Model`], *optional*):
            The student before a stage that came in between; it makes a second ceiling, to compare with.
    """

    splits: TaskSplits
    weak: Model
    student: Model
    chain: tuple[Model, ...] = ()
    unpretrained: Model | None = None
    sizes: tuple[Model, ...] = ()
    plain_student: Model | None = None


@dataclass(frozen=True)
class SeedRun:
    """
    What one seed came to.

    Args:
        materials ([`Materials`]): What it started from.
        entry (`dict`): Its entry in `results.json`.
        correct (`dict[str, np.ndarray]`): Which test rows each model has right, `(N,)` bool by name.
        answers (`dict`): What each model answered to them, by name; of what kind depends on the setting.
        lessons ([`Lessons`]): What the students learned from.
        weak_labels ([`LabelsById`]): Of the supervisor: of student half, its validation rows, and test rows.
        students (`dict[str, Path]`): Every student that learned labels, by the name of its directory.
        labels (`dict[str, LabelsById]`): What students learned from, by the name of its directory.
    """

    materials: Materials
    entry: dict
    correct: dict[str, np.ndarray]
    answers: dict
    lessons: Lessons
    weak_labels: LabelsById
    students: dict[str, Path]
    labels: dict[str, LabelsById]


def train_supervisor(materials: Materials, args: ExperimentArguments, seed: int, bench: Workbench) -> Path:
    """The weak supervisor, finetuned on ground truth; its predictions are the weak labels."""
    splits, weak = materials.splits, materials.weak
    logger.info(
        f"Seed {seed}: weak supervisor {weak.name} on {len(splits.weak_half)} {bench.setting.rows}, ground truth"
    )
    weak_args = {
        "learning_rate": args.weak_learning_rate,
        "num_train_epochs": args.weak_num_train_epochs,
        "weight_decay": args.weak_weight_decay,
    }
    return Lessons(bench, splits, seed).on_ground_truth(
        "weak",
        weak,
        # Validation rows of its own, too: on rows that chose it, its labels would be too good.
        "weak",
        [splits.student_half, splits.student_validation, splits.test],
        **{name: value for name, value in weak_args.items() if value is not None},
    )


def run_seed(materials: Materials, args: ExperimentArguments, seed: int, bench: Workbench) -> SeedRun:
    """One experiment: supervisor, weak labels, ceiling, students, scores."""
    splits, setting, student = materials.splits, bench.setting, materials.student
    lessons, test, n_rows = Lessons(bench, splits, seed), splits.test, len(splits.student_half)

    supervisor = train_supervisor(materials, args, seed, bench)
    weak_labels = lessons.labels_of(supervisor)
    if args.n_supervisors > 1:
        seeds = [seed + _FURTHER_SEEDS * number for number in range(1, args.n_supervisors)]
        others = [lessons.labels_of(train_supervisor(materials, args, further, bench)) for further in seeds]
        weak_labels = type(weak_labels).mean([weak_labels, *others])
    taught = lessons
    if args.keep_confident is not None:
        # Of the students alone: the ceiling learns the truth about all rows.
        kept = weak_labels.most_confident(list(splits.student_half["id"]), args.keep_confident)
        taught = lessons.with_rows(student_half=splits.student_half.select(np.flatnonzero(kept)))
    n_taught = len(taught.rows("student")[0])

    def train_ceiling(model: Model, kind: str) -> Path:
        logger.info(f"Seed {seed}: {kind} ceiling {model.name} on {n_rows} {setting.rows}, ground truth")
        return lessons.on_ground_truth("ceiling", model, "student", [test])

    def train_student(name: str, model: Model, method: str, **changes) -> Path:
        return taught.on_labels(name, model, {"student": weak_labels}, [test], method=method, **changes)

    stages = {}
    if materials.plain_student is not None:
        stages["ceiling_plain"] = train_ceiling(materials.plain_student, "plain")
    stages["ceiling"] = train_ceiling(student, "strong")
    chain = None
    for method in args.methods:
        logger.info(f"Seed {seed}: student {student.name} on {n_taught} weak labels, {method}")
        if method == BOOTSTRAP:
            # Direct training on the rows of the last link is the naive method, and the same stage.
            stages["direct"] = train_student("student-naive", student, "naive")
            has_own_rows, models = args.link_rows == "fresh", [*materials.chain, student]
            chain = climb(taught, materials.weak, supervisor, weak_labels, models, has_own_rows=has_own_rows)
            stages |= {f"link_{number}": link.stage for number, link in enumerate(chain.links[:-1], start=1)}
            stages[BOOTSTRAP] = chain.links[-1].stage
            if chain.direct_all is not None:
                stages["direct_all"] = chain.direct_all
        else:
            stages[method] = train_student(f"student-{method}", student, method)
    if materials.unpretrained is not None:
        # What the student makes of the weak labels without what it learned before: all weights, its own settings.
        logger.info(f"Seed {seed}: control {materials.unpretrained.name} on the same weak labels")
        stages["control"] = train_student("control", materials.unpretrained, "naive", **setting.control)

    test_ids = list(test["id"])
    answers = {"weak": weak_labels.of(test_ids)}
    answers |= {name: lessons.labels_of(path).of(test_ids) for name, path in stages.items()}
    correct = {name: setting.is_correct(values, test) for name, values in answers.items()}

    def scores(name: str) -> dict:
        return setting.scores(answers[name], test)

    def agreement(name: str, teacher: str = "weak") -> dict:
        same = setting.is_same(answers[name], answers[teacher], test)
        return metrics.agreement_shares(same, correct[teacher])

    # A stage in between may have left a model that is not on the Hub; it is called by what it was made of.
    base = materials.plain_student or student
    entry = {
        "seed": seed,
        "split_fingerprint": splits.fingerprint,
        "weak": {**name_of(materials.weak), **scores("weak")},
        "ceiling": {**name_of(base), **scores("ceiling")},
        "students": [],
        "controls": [],
    }
    if args.n_supervisors > 1:
        entry["weak"]["n_supervisors"] = args.n_supervisors
    if materials.plain_student is not None:
        entry["ceiling_plain"] = {**name_of(materials.plain_student), **scores("ceiling_plain")}
    for method in args.methods:
        of_method = {
            "method": method,
            **name_of(base),
            **scores(method),
            **pgr_of(correct, method, "ceiling", seed),
            "agreement": agreement(method),
            "output": f"students/{method}-seed{seed}",
            "weak_labels": labels_at(seed),
            "hardware": Stages.record(stages[method]).get("hardware"),
        }
        if materials.plain_student is not None:
            of_method["against_plain_ceiling"] = pgr_of(correct, method, "ceiling_plain", seed)
        if method == BOOTSTRAP:
            teachers = ["weak", *(f"link_{number}" for number in range(1, len(chain.links)))]
            of_method["links"] = [
                {
                    **name_of(link.model),
                    "taught_by": link.labels.provenance["model"],
                    "rows": f"{link.part}_half" if link.part == "student" else link.part,
                    "n_train": len(lessons.rows(link.part)[0]),
                    "labels": link.labels.fingerprint,
                    **scores(name),
                    # With its own teacher, which is the link before.
                    "agreement": agreement(name, teacher),
                    "output": output_of(seed, number, len(chain.links)),
                    "weak_labels": labels_at(seed, number),
                    "hardware": Stages.record(link.stage).get("hardware"),
                }
                for number, (link, teacher, name) in enumerate(
                    zip(chain.links, teachers, [*teachers[1:], BOOTSTRAP], strict=True), start=1
                )
            ]
            of_method["weak_labels"] = of_method["links"][-1]["weak_labels"]
            of_method["direct"] = {
                rows: {**scores(name), **pgr_of(correct, name, "ceiling", seed)}
                for rows, name in (("same_rows", "direct"), ("all_rows", "direct_all"))
                if name in stages
            }
        entry["students"].append(of_method)
    if materials.unpretrained is not None:
        entry["controls"].append({"method": "naive", **name_of(materials.unpretrained), **scores("control")})
    students = {f"{method}-seed{seed}": stages[method] for method in args.methods}
    labels = {Path(labels_at(seed)).name: weak_labels}
    for number, link in enumerate(chain.links if chain else [], start=1):
        students[Path(output_of(seed, number, len(chain.links))).name] = link.stage
        labels[Path(labels_at(seed, number)).name] = link.labels
    return SeedRun(materials, entry, correct, answers, taught, weak_labels, students, labels)


def name_of(model: Model) -> dict:
    """The name of a model in results, with its commit on the Hub or a hash of its local directory."""
    named = {"model": model.name, "revision": model.revision}
    return named if model.weights is None else named | {"weights": model.weights}


def labels_at(seed: int, link: int | None = None) -> str:
    """Where the labels of a seed are kept that students learned, or a link of a chain."""
    return f"weak_labels/seed{seed}" + (f"-for-link{link}" if link else "")


def output_of(seed: int, number: int, n_links: int) -> str:
    """Where the student of a link is kept; the last one is the student of the method."""
    return f"students/{BOOTSTRAP}-seed{seed}" + (f"-link{number}" if number < n_links else "")


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
    """Of a method, over the seeds: mean accuracy, median PGR with its interval, how often PGR is undefined."""

    def over_seeds(student: str, ceiling: str = "ceiling") -> dict:
        return metrics.pgr_over_seeds([[run.correct[name] for name in ("weak", student, ceiling)] for run in runs])

    def accuracies(student: str) -> np.ndarray:
        return np.array([run.correct[student].mean() for run in runs])

    summary = {"method": method, "accuracy_mean": float(accuracies(method).mean()), **over_seeds(method)}
    if "ceiling_plain" in runs[0].correct:
        summary["against_plain_ceiling"] = over_seeds(method, "ceiling_plain")
    if method == BOOTSTRAP:
        summary["direct"] = {
            rows: {
                "accuracy_mean": float(accuracies(name).mean()),
                "n_chain_is_better": int((accuracies(method) > accuracies(name)).sum()),
                **over_seeds(name),
            }
            for rows, name in (("same_rows", "direct"), ("all_rows", "direct_all"))
            if name in runs[0].correct
        }
    return summary


def keep_outputs(run: SeedRun, output_dir: Path) -> None:
    """Copies students and the labels they learned out of the stages, to be read, loaded and pushed."""
    for name, labels in run.labels.items():
        labels.save(output_dir / "weak_labels" / name)
    for name, stage in run.students.items():
        put_directory(stage / "model", output_dir / "students" / name)


def put_directory(source: Path, target: Path) -> None:
    """A whole copy or none: written aside and renamed, in place of an older one."""
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, aside)
    if target.exists():
        shutil.rmtree(target)
    os.replace(aside, target)
