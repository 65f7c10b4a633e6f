"""The analyses of `--analyses`. Each analysis trains and queries further models of a finished experiment."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from .. import metrics
from ..analysis import (
    ERROR_KINDS,
    balanced_scores,
    choose_stops,
    compare_answers,
    compare_probabilities,
    feature_experiment,
    few_shot_prompts,
    logistic_probe,
    simulate_labels,
    with_opinion,
)
from ..analysis.agreement import agreement_section, plot_agreement
from ..analysis.early_stopping import CHEATING, overfitting_section, plot_overfitting
from ..analysis.probes import plot_probes, probes_section
from ..analysis.prompting import plot_prompting, prompting_section
from ..analysis.saliency import plot_saliency, saliency_section
from ..analysis.weak_errors import plot_weak_errors, weak_errors_section
from ..labels import WeakLabels
from ..methods import BOOTSTRAP
from ..results import BaselineResult, ExperimentResult, SeedResult
from ..tasks import Half
from ..transforms import filtered_by_probe, filtered_by_topology, relabelled_by_probe
from .analysis_context import AnalysisContext
from .config import ANALYSES
from .label_context import labelled
from .prompts import Prompts

__all__ = [
    "analyse", "analysis_notes", "analysis_title", "overfitting", "agreement",
    "prompted", "prompting", "saliency", "probes", "weak_errors",
]  # fmt: skip


def analyse(context: AnalysisContext) -> SeedResult:
    """Runs the analyses, and returns the results of the seed with the analyses. Every rank calls this function."""
    analyses = {}
    for name in context.args.analyses:
        with context.finetuner.cache.progress.group(analysis_title(name)):
            analyses[name] = _ALL[name].measure(context)
    student, baselines = context.models.student, list(context.result.baselines)
    for name, scores in analyses.get("prompting", {}).get("prompted", {}).items():
        baseline = {"name": name, "model": student.name, "revision": student.revision, **scores}
        baselines.append(BaselineResult.from_dict(baseline))
    return replace(context.result, analyses=analyses, baselines=baselines)


def analysis_title(name: str) -> str:
    """Returns the title of the step of an analysis, which is also its kind in [`Progress.plan`]."""
    return f"analysis {name}"


def analysis_notes(results: ExperimentResult, output_dir: Path) -> list[str]:
    """Plots `figures/NAME.png` per analysis, and returns sections of the report. Only rank 0 calls this function."""
    notes = []
    for name in results.runs[0].analyses:
        entries = [run.analyses[name] for run in results.runs]
        _ALL[name].plot(entries, output_dir / "figures" / f"{name}.png")
        notes += [f"## {ANALYSES[name]}", f"![{ANALYSES[name]}](figures/{name}.png)", _ALL[name].section(entries)]
    if notes and {summary.method for summary in results.summary} == {BOOTSTRAP}:
        notes.append(
            "These analyses use a student trained on the labels of the weak supervisor (method naive), not the "
            "student of the chain."
        )
    return notes


def overfitting(context: AnalysisContext) -> dict:
    """Trains each student again without early stopping, and scores it at several steps (snapshots)."""
    splits, setting, weak = context.splits, context.finetuner.setting, context.weak_labels
    validation, test = splits.student_validation, splits.test
    # This training differs from the training of the student only in the choice of the checkpoint.
    changes: dict[str, Any] = {"load_best_model_at_end": False, "metric_for_best_model": None, "eval_strategy": "no"}

    def shares_of(labels, rows) -> tuple[float, float, object]:
        predictions, weak_labels = labels.of(list(rows["id"])), weak.of(list(rows["id"]))
        truth, same = setting.is_correct(predictions, rows), setting.agrees(predictions, weak_labels, rows)
        return float(truth.mean()), float(same.mean()), predictions

    methods = {}
    for name, method in context.methods.items():
        student = context.finetune(
            f"watched-{name}",
            context.labels_of(name),
            [validation, test],
            method=method,
            n_snapshots=context.args.n_snapshots,
            title=f"student without early stopping ({name})",
            **changes,
        )
        snapshots = {int(path.name.split("-")[1]): path for path in (student.directory / "snapshots").iterdir()}
        steps, predictions = sorted(snapshots), []
        curves: dict[str, list[float]] = {}
        for step in steps:
            labels = setting.labels.load(snapshots[step] / "predictions")
            for part, rows in (("validation", validation), ("test", test)):
                truth, same, of_part = shares_of(labels, rows)
                curves.setdefault(f"{part}_ground_truth", []).append(truth)
                curves.setdefault(f"{part}_weak_labels", []).append(same)
            predictions.append(of_part)
        stops = choose_stops(curves["validation_weak_labels"], curves["validation_ground_truth"])
        methods[name] = {
            "steps": steps,
            **curves,
            "stops": {
                name: {"step": steps[position], "cheats": name == CHEATING, **context.scores(predictions[position])}
                for name, position in stops.items()
            },
        }
    return {**_bounds(context), "n_validation": len(validation), "methods": methods}


def agreement(context: AnalysisContext) -> dict:
    """Compares students of all sizes with their supervisor."""
    setting, test, weak = context.finetuner.setting, context.test, context.scorer.predictions["weak"]
    has_probabilities = isinstance(context.weak_labels, WeakLabels)

    def compare(predictions) -> dict:
        if has_probabilities:
            return compare_probabilities(predictions, weak, context.truth())
        same = setting.agrees(predictions, weak, test)
        return compare_answers(same, setting.is_correct(predictions, test), context.scorer.correct["weak"])

    students: dict[str, dict] = {name: {} for name in context.methods}
    for model in context.models.sizes:  # this is the outer loop, so that each base model is loaded once
        for name, of_method in students.items():
            # One of these students is the student of the experiment, which is cached.
            predictions = context.predictions_of(
                f"student-{name}",
                context.labels_of(name),
                method=context.methods[name],
                model=model,
                title=f"student ({name})",
            )
            of_method[model.name] = compare(predictions)
    sizes = [model.name for model in context.models.sizes]
    measures: dict[str, Any] = {"n_test": len(test), "sizes": sizes, "students": students}
    if has_probabilities:
        for role in ("weak", "ceiling"):
            predictions = context.scorer.predictions[role]
            ece = metrics.expected_calibration_error(predictions, context.truth())
            measures[role] = {"ece": ece, "brier": metrics.brier_score(predictions, context.truth())}
    return measures


def prompted(context: AnalysisContext) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Returns the zero-shot and few-shot predictions of the student's base model, which are cached. Every rank
    calls this function.

    Returns:
        `dict`: Two arrays for each baseline, by its name. The first array has the probabilities of the test rows,
        `(N, 2)`. The second array has the probabilities of a text without content in the same prompts, `(N, 2)`.
        Without examples, all prompts of this text are equal, so the second array has one row, `(1, 2)`.
    """
    n_shots, examples, format_of = context.args.prompt_shots, context.splits.student_half, _prompts(context)
    prompt_format = format_of.format
    texts = [format_of.texts_of(part) for part in (context.test["text"][:], examples["text"][:])]
    texts.append(format_of.texts_of([context.task.content_free]))
    weak = context.weak_labels.of(list(examples["id"])).argmax(axis=1)
    conditions = {
        "zero-shot": (0, weak),
        f"{n_shots}-shot, weak labels": (n_shots, weak),
        f"{n_shots}-shot, ground truth": (n_shots, context.truth("student_half")),
    }
    test_texts, example_texts, content_free = texts
    prompts = []
    for n, labels in conditions.values():
        # The prior of a row depends on the examples in its prompt. Without examples, all rows have the same prior.
        for part in (test_texts, content_free * (len(test_texts) if n else 1)):
            prompts.append(few_shot_prompts(part, example_texts, labels, n, prompt_format, seed=context.seed))
    answers = context.ask([prompt for part in prompts for prompt in part], prompt_format)
    parts = np.split(answers, np.cumsum([len(part) for part in prompts])[:-1])
    return dict(zip(conditions, zip(parts[::2], parts[1::2], strict=True), strict=True))


def _prompts(context: AnalysisContext) -> Prompts:
    return cast(Prompts, context.prompts)  # --analyses prompting is refused for pairs and completions


def prompting(context: AnalysisContext) -> dict:
    """Scores the zero-shot and few-shot predictions of the student's base model: baselines of the main table."""
    scores = {
        name: {
            **context.finetuner.setting.scores(probabilities, context.test),
            **balanced_scores(probabilities, prior, context.truth()),
        }
        for name, (probabilities, prior) in prompted(context).items()
    }
    note = {}
    if context.world is not None:
        note["note"] = (
            "The answer words are the words of the demo's corpus for things that are not alive and things that are. "
            "Choosing them requires knowledge of how the corpus is generated. The demo's models were pretrained on "
            "documents of 25 tokens and cannot use longer prompts."
        )
    return {
        **_bounds(context),
        **note,
        "format": asdict(_prompts(context).format),
        "n_shots": context.args.prompt_shots,
        "prompted": scores,
        "finetuned": {
            f"student, {student.method}": {"accuracy": student.accuracy, "ci95": student.ci95, "n": student.n}
            for student in context.result.students
        },
    }


def saliency(context: AnalysisContext) -> dict:
    """Fits linear probes of the student before and after it was trained on the weak labels."""
    splits, weak = context.splits, context.weak_labels
    naive = context.finetune("student-naive", weak, [context.test], title="student (naive)")

    # The probe of weak labels is fitted to the training rows of the student. The ceiling may have more rows.
    is_trained_on = np.isin(splits.student_half["id"][:], context.student_rows.train["id"][:])
    validation_ids = list(splits.student_validation["id"])

    def probe_weak(states: dict[str, np.ndarray]) -> np.ndarray:
        labels = weak.of(list(splits.student_half["id"]))[is_trained_on]
        validation = states["student_validation"], weak.of(validation_ids)
        return logistic_probe(states["student_half"][is_trained_on], labels, validation).predict_proba(states["test"])

    predictions = {
        "lp(weak)": probe_weak(context.hidden_states()),
        "lp(gt)": context.linear_probe(),
        "ft(weak)": naive.predictions.of(list(context.test["id"])),
        "ft(weak)+lp(gt)": context.linear_probe(naive),
        "ft(gt)": context.scorer.predictions["ceiling"],
    }
    return {**_bounds(context), "accuracies": {name: context.scores(values) for name, values in predictions.items()}}


def probes(context: AnalysisContext) -> dict:
    """Relabels and filters the weak labels by probes, and trains a student on the labels of each variant."""
    rows_of_context = context.label_context
    kinds: dict[str, Literal["logistic", "knn"]] = {"logistic": "logistic", "kNN": "knn"}
    variants: dict[str, WeakLabels] = {}
    variants |= {
        f"relabelled by {name}": relabelled_by_probe(rows_of_context, kind=kind) for name, kind in kinds.items()
    }
    variants |= {f"filtered by {name}": filtered_by_probe(rows_of_context, kind=kind) for name, kind in kinds.items()}
    variants["filtered by topology"] = filtered_by_topology(rows_of_context)
    results: dict[str, dict] = {}
    for variant in ("as they are", *variants):
        labels: Any = context.weak_labels
        if variant in variants:
            labels = rows_of_context.with_own_ids(variants[variant], variant)
        rows = labelled(context.student_rows, labels)
        if not len(rows.train):  # no row has most of its neighbours in its class
            results[variant] = {"n_train": 0, "n_class_1": 0, "label_accuracy": None, "accuracy": None, "pgr": None}
            continue
        hard = labels.of(list(rows.train["id"])).argmax(axis=1)
        is_correct = hard == np.array(rows.train["ground_truth"])
        # The naive student, which is cached, was trained on the unchanged labels.
        stage = "student-naive" if variant == "as they are" else "student-mended"
        predictions = context.predictions_of(stage, labels, rows=rows, title=f"student on labels {variant}")
        results[variant] = {
            "n_train": len(rows.train),
            "n_class_1": int(hard.sum()),
            "label_accuracy": float(is_correct.mean()),
            **context.scores(predictions),
        }
    return {**_bounds(context), "labels": results}


def weak_errors(context: AnalysisContext) -> dict:
    """Trains students and probes on labels of simulated supervisors and of a supervisor that is trivial to imitate."""
    seed, (half, validation) = context.seed, context.student_rows
    parts = {"student_half": half, "student_validation": validation, "test": context.test}
    truth = {name: np.array(rows["ground_truth"]) for name, rows in parts.items()}
    ids = {name: list(rows["id"]) for name, rows in parts.items()}
    all_ids = [row_id for of_part in ids.values() for row_id in of_part]
    weak = {name: context.weak_labels.of(of_part).argmax(axis=1) for name, of_part in ids.items()}
    # This model is finetuned on other rows than the rows that it predicts. On its training rows, it would be
    # overconfident.
    strong = context.finetuner.finetune(
        "strong-on-weak-half",
        context.models.student,
        context.splits.weak.map(context.finetuner.setting.with_ground_truth),
        list(parts.values()),
        splits=context.splits,
        seed=seed,
        title="strong model on the weak half",
    ).predictions
    simulated = {"weak, hard labels": weak}
    for kind in ERROR_KINDS:
        simulated[kind] = {
            name: simulate_labels(
                kind,
                truth[name],
                int((weak[name] != truth[name]).sum()),
                texts=rows["text"][:],
                strong=strong.of(ids[name]),
                seed=seed,
            )
            for name, rows in parts.items()
        }
    supervisors = {}

    def add_scores(name: str, predictions, hard: dict[str, np.ndarray]) -> None:
        supervisor = np.eye(2)[hard["test"]]
        accuracy = metrics.accuracy(supervisor, context.truth())
        supervisors[name] = {"supervisor": accuracy, **context.scores(predictions, supervisor)}

    for name, hard in simulated.items():
        labels = context.changed_weak_labels(np.eye(2)[np.concatenate(list(hard.values()))], all_ids, f"({name})")
        title = f"student on simulated labels ({name})"
        add_scores(name, context.predictions_of("student-simulated", labels, title=title), hard)
    # The vocabulary of the demo's models lacks the words of the default opinions.
    opinions = {} if context.world is None else {"opinions": (" : no ?", " : yes ?")}
    parts_with_opinion = {name: with_opinion(rows, weak[name], **opinions) for name, rows in parts.items()}
    rows = Half(parts_with_opinion["student_half"], parts_with_opinion["student_validation"])
    for name, method in context.methods.items():
        of_method = context.labels_of(name)
        predictions = context.predictions_of(
            "student-told",
            of_method,
            method=method,
            rows=labelled(rows, of_method),
            test=parts_with_opinion["test"],
            title=f"student whose texts contain the weak label ({name})",
        )
        add_scores(f"told, {name}", predictions, weak)
    states = context.hidden_states() | context.hidden_states(parts=("weak_half",))
    parts_with_truth = {part: (of_part, context.truth(part)) for part, of_part in states.items()}
    n_features = states["test"].shape[1]
    widths = sorted({max(1, n_features // part) for part in (32, 16, 8, 4, 2, 1)})
    features = feature_experiment(
        parts_with_truth["weak_half"], parts_with_truth["student_half"], parts_with_truth["test"], widths, seed=seed
    )
    return {**_bounds(context), "supervisors": supervisors, "features": features}


def _bounds(context: AnalysisContext) -> dict:
    return {
        "weak": context.result.weak.accuracy,
        "ceiling": context.result.ceiling.accuracy,
        "n_test": len(context.test),
    }


@dataclass(frozen=True)
class _Analysis:
    """
    The functions of an analysis.

    Args:
        measure (`Callable`): Returns the results of a seed as JSON values.
        plot (`Callable`), section (`Callable`): Plot the results of all seeds, and return their section of the report.
    """

    measure: Callable[[AnalysisContext], dict]
    plot: Callable[[Sequence[dict], Path], None]
    section: Callable[[Sequence[dict]], str]


_ALL = {
    "overfitting": _Analysis(overfitting, plot_overfitting, overfitting_section),
    "agreement": _Analysis(agreement, plot_agreement, agreement_section),
    "prompting": _Analysis(prompting, plot_prompting, prompting_section),
    "saliency": _Analysis(saliency, plot_saliency, saliency_section),
    "probes": _Analysis(probes, plot_probes, probes_section),
    "weak_errors": _Analysis(weak_errors, plot_weak_errors, weak_errors_section),
}
