"""Makes the card of a student from the results of its experiment."""

import dataclasses

import numpy as np

from ..metrics import accuracy_interval, rounded
from ..results import SELF_TRAINED, ExperimentResult, LinkResult, SeedResult, StudentResult
from .markdown import Markup, as_text
from .score import Score, interval
from .trained_with import method_settings, shared_settings

__all__ = ["ceiling_warning", "facts_of"]

_TASK_TYPES = {"classification": "SEQ_CLS", "reward": "REWARD", "chess": "CAUSAL_LM", "generation": "CAUSAL_LM"}


def facts_of(
    results: ExperimentResult | dict, run: SeedResult | dict, student: StudentResult | dict, link: LinkResult | None
) -> dict:
    """Returns the fields of the card of a student or of a link of its chain, see [`StudentCard.from_results`]."""
    results, run, student, link = _records(results, run, student, link)
    method, model = student.method, student if link is None else link
    dataset, settings = results.dataset, results.settings
    is_on_disk = dataset.revision in ("local", "generated")
    revision: str | None = dataset.revision
    if results.is_demo:
        revision = f"world {run.seed}"  # the results state the world of the first seed
    elif revision == "cached":
        revision = None  # offline, `datasets` does not know the commit
    facts = dict(
        task=results.task,
        description=results.description,
        text_form=results.text_form,
        class_names=results.class_names,
        setting=results.setting,
        dataset=dataset.id,
        dataset_revision=revision,
        rows_fingerprint=None if results.is_demo else run.split_fingerprint,
        dataset_is_on_hub=not results.is_demo and not is_on_disk,
        method=method,
        weak=Score.of(run.weak),
        student=Score.of(model),
        chance=results.chance,
        agreement=model.agreement and model.agreement.to_dict(),
        n_rows={
            "weak half": dataset.n_weak_half,
            "student half": dataset.n_student_half,
            "validation": dataset.n_validation,
            "test": dataset.n_test,
        },
        is_demo=results.is_demo,
        base_model=model.model,
        base_revision=model.revision,
        base_is_on_hub=model.revision is not None,
        task_type=_TASK_TYPES[results.setting],
        library_name="peft" if settings.student.use_peft else "transformers",
        loading=settings.loading,
        max_new_tokens=settings.training.arguments.get("max_new_tokens", 12),
        example_prompt=results.example_prompt,
        settings=method_settings(results, model, method) | shared_settings(results),
        run_name=results.run_name,
        seed=run.seed,
        versions=results.versions,
        hardware=model.hardware,
        seconds=results.wall_seconds.get(model.output),
    )
    return facts | (_facts_of_student(results, run, student) if link is None else _facts_of_link(run, link))


def _facts_of_link(run: SeedResult, link: LinkResult) -> dict:
    return {
        "no_pgr": "no ceiling was trained for this link of the chain",
        "taught_by": link.taught_by,
        "n_train": link.n_train,
        # Baselines with a model use the model of the student, which is not the model of this link.
        "others": {baseline.name: Score.of(baseline) for baseline in run.baselines if not baseline.model},
    }


def _facts_of_student(results: ExperimentResult, run: SeedResult, student: StudentResult) -> dict:
    labels = student.labels
    analysis = run.analyses.get("overfitting", {}).get("methods", {})
    plain = student.against_plain_ceiling
    return {
        "ceiling": Score.of(run.ceiling),
        "pgr_ci95": None if student.pgr_ci95 is None else tuple(student.pgr_ci95),
        "others": _others(run, student),
        "ceiling_warning": ceiling_warning(run),
        "early_stopping": analysis.get(student.method, {}).get("stops", {}),
        "links": student.links,
        # The last link of a chain is trained on labels of the previous link.
        "label_accuracy": None if student.links else run.weak.label_accuracy,
        "changed_labels": labels and {"n_train": labels.n_train, "accuracy": labels.accuracy},
        "row_weights": labels and labels.weights,
        "supervisor_weights": student.supervisor_weights,
        "taught_by": student.links[-1].taught_by if student.links else None,
        "pgr_against_plain": None if plain is None else plain.pgr,
        "transfer": {
            task: next(other for other in scores.students if other.method == student.method)
            for task, scores in run.transfer.items()
        },
        "summary": results.summary_of(student.method),
    }


def ceiling_warning(run: SeedResult) -> Markup | None:
    """
    Returns a warning if the ceiling is less accurate than the same model before finetuning (with a linear probe or a
    prompt), else `None`. The difference is significant if the 95 % intervals of both accuracies do not overlap.
    """
    ceiling, above = run.ceiling, run.above_ceiling
    if not above:
        return None
    intervals = {
        name: accuracy_interval(np.arange(ceiling.n) < round(accuracy * ceiling.n))  # on the same test rows
        for name, accuracy in above.items()
    }
    shown = ", ".join(f"{as_text(name)} {rounded(above[name])}{interval(ci95, 3)}" for name, ci95 in intervals.items())
    steps = "" if ceiling.optimizer_steps is None else f" after {ceiling.optimizer_steps} optimizer steps"
    if ceiling.ci95 is None:
        condition = "Unless this difference is random, "
    elif max(low for low, _ in intervals.values()) <= ceiling.ci95[1]:
        condition = "The 95 % intervals overlap, so the difference may be random. If it is not, "
    else:
        condition = ""
    return Markup(
        f"on {ceiling.n} test rows the ceiling has an accuracy of {rounded(ceiling.accuracy)}"
        f"{interval(ceiling.ci95, 3)}{steps}, less than the same model before finetuning: {shown}. "
        f"{condition}PGR against this ceiling is not meaningful."
    )


def _records(
    results: ExperimentResult | dict, run: SeedResult | dict, student: StudentResult | dict, link: LinkResult | None
) -> tuple[ExperimentResult, SeedResult, StudentResult, LinkResult | None]:
    """Returns the arguments of [`StudentCard.from_results`] as records."""
    if isinstance(results, dict):
        if "settings" not in results:
            raise ValueError(
                "Got a results.json of an older version of w2s_hf, expected schema 1 with `settings`. Run the "
                "experiment again."
            )
        results = ExperimentResult.from_dict(results)
    if isinstance(run, dict):
        run = SeedResult.from_dict(run)
    if isinstance(student, StudentResult):
        return results, run, student, link
    if "pgr" in student:
        return results, run, StudentResult.from_dict(student), link
    last = next(other for other in run.students if other.method == student["method"])
    return results, run, last, LinkResult.from_dict(student)


def _others(run: SeedResult, student: StudentResult) -> dict[str, Score]:
    """Returns the scores that a card compares the student with, besides supervisor and ceiling, by name."""
    scores = {baseline.name: Score.of(baseline) for baseline in run.baselines}
    if run.self_trained is not None:
        score = dataclasses.replace(Score.of(run.self_trained), model=student.model)
        scores[f"same student, {SELF_TRAINED} instead of the weak labels"] = score
    for control in run.controls:
        scores["same architecture without pretraining, on labels of the supervisor"] = Score.of(control)
    if "all_rows" in student.direct:
        direct = dataclasses.replace(Score.of(student.direct["all_rows"]), model=student.model)
        scores["same student without the chain, on labels of the supervisor for the rows of all links"] = direct
    if run.ceiling_plain is not None:
        scores["ceiling without generative finetuning"] = Score.of(run.ceiling_plain)
    return scores
