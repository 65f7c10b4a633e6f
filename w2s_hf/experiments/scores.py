"""The results of a seed and over seeds, computed from predictions of the test rows."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from .. import metrics
from ..labels import LabelsById, WeakLabels
from ..methods import BOOTSTRAP, Method
from ..probabilities import summary_of_weights
from ..results import ControlResult, MethodSummary, ModelScore, SeedResult, StudentResult
from ..tasks import TaskSplits
from ..tasks.splits import TransferRows
from ..trainers.student_card import supervisor_weights_of
from .cache import StageCache
from .config import ExperimentArguments
from .finetuner import Finetuned
from .seed import Models, label_confidence, student_rows
from .settings.base import Setting

__all__ = ["Scorer", "keep_outputs", "outputs_of", "pgr_of", "score_seed", "summarise"]


class Scorer:
    """
    Scores the models of a seed on the test rows.

    Args:
        setting ([`Setting`]): Decides which predictions are correct.
        splits ([`TaskSplits`] or [`TransferRows`]): Contains the test rows.
        trained (`dict[str, Finetuned]`): The models, as [`run_seed`] returns them.

    Attributes:
        predictions (`dict`): The predictions of the test rows by role, in the order of the rows.
        correct (`dict[str, np.ndarray]`): Whether each role predicts each test row correctly, `(N,)` bool.
    """

    def __init__(self, setting: Setting, splits: TaskSplits | TransferRows, trained: dict[str, Finetuned]):
        self.setting, self.test = setting, splits.test
        ids = list(self.test["id"])
        self.predictions = {role: model.predictions.of(ids) for role, model in trained.items()}
        self.correct = {role: setting.is_correct(values, self.test) for role, values in self.predictions.items()}

    def scores(self, role: str) -> dict:
        """Returns accuracy with its interval, and the further scores of the setting."""
        return self.setting.scores(self.predictions[role], self.test)

    def pgr(self, role: str, seed: int, ceiling: str = "ceiling") -> dict:
        """Returns the PGR of a role with its interval; see [`pgr_of`]."""
        return pgr_of(self.correct["weak"], self.correct[role], self.correct[ceiling], seed)

    def agreement(self, role: str, supervisor: str = "weak") -> dict:
        """Returns the shares of test rows on which a model and its supervisor agree."""
        same = self.setting.agrees(self.predictions[role], self.predictions[supervisor], self.test)
        return metrics.agreement_shares(same, self.correct[supervisor])


def score_seed(
    models: Models,
    splits: TaskSplits,
    args: ExperimentArguments,
    seed: int,
    trained: dict[str, Finetuned],
    scorer: Scorer,
) -> SeedResult:
    """
    Returns the results of a seed.

    Args:
        models ([`Models`]), splits ([`TaskSplits`]), args ([`ExperimentArguments`]), seed (`int`):
            The arguments of [`run_seed`].
        trained (`dict[str, Finetuned]`): The models, as [`run_seed`] returns them.
        scorer ([`Scorer`]): Scores these models.
    """
    # A model after generative finetuning is not on the Hub. Results name the model that it was trained from.
    student = (models.plain_student or models.student).named
    outputs = outputs_of(args.methods_by_name, seed, trained)
    weak = {**models.weak.named, **scorer.scores("weak")}
    if args.n_supervisors > 1:
        weak["n_supervisors"] = args.n_supervisors
    confidence = label_confidence(trained["weak"], splits, args)
    if confidence is not None:
        weak["label_confidence"] = confidence
    weak_rows = student_rows(splits, trained["weak"], args).train
    weak_labels = trained["weak"].predictions.of(list(weak_rows["id"]))
    weak["label_accuracy"] = float(scorer.setting.is_correct(weak_labels, weak_rows).mean())
    result = SeedResult(
        seed=seed,
        split_fingerprint=splits.fingerprint,
        weak=ModelScore.from_dict(weak),
        ceiling=ModelScore.from_dict({**student, **scorer.scores("ceiling"), **_steps(trained["ceiling"])}),
        students=[],
    )
    if "ceiling_plain" in trained:
        result.ceiling_plain = ModelScore.from_dict({**student, **scorer.scores("ceiling_plain")})
    for method in args.methods_by_name:
        of_method = {
            "method": method,
            **student,
            **scorer.scores(method),
            **scorer.pgr(method, seed),
            "agreement": scorer.agreement(method),
            **_files(outputs[method], trained[method]),
            **({} if method == BOOTSTRAP else _steps(trained[method])),
        }
        if args.methods_by_name[method].transform is not None:
            of_method["labels"] = _labels_entry(trained[method].labels, weak_rows, scorer.setting)
        if "ceiling_plain" in trained:
            of_method["against_plain_ceiling"] = scorer.pgr(method, seed, "ceiling_plain")
        if method == BOOTSTRAP:
            of_method["links"] = _link_entries(splits, outputs, trained, scorer)
            of_method["direct"] = {
                rows: {**scorer.scores(role), **scorer.pgr(role, seed)}
                for rows, role in _DIRECT.items()
                if role in trained
            }
        result.students.append(StudentResult.from_dict(of_method))
    if models.control is not None:
        control = {"method": "naive", **models.control.named, **scorer.scores("control")}
        result.controls.append(ControlResult.from_dict(control))
    return result


def _labels_entry(labels: LabelsById, rows: Dataset, setting: Setting) -> dict:
    """Returns the facts about the labels that a method has transformed, on the training rows that it keeps."""
    known = set(labels.ids)
    rows = rows.select([position for position, row_id in enumerate(rows["id"]) if row_id in known])
    ids = list(rows["id"])
    entry = {
        "n_train": len(rows),
        "accuracy": float(setting.is_correct(labels.of(ids), rows).mean()),
        "transform": labels.provenance.get("transform"),
    }
    if isinstance(labels, WeakLabels):
        entry["confidence"] = float(labels.of(ids).max(axis=1).mean())
    if labels.weights is not None:
        entry["weights"] = summary_of_weights(labels.weights_of(ids))
    return entry


def _files(outputs: "Outputs", model: Finetuned) -> dict[str, str | None]:
    """Returns the directories of a model and its training labels, and the hardware of its training."""
    hardware = StageCache.record(model.directory).get("hardware")
    return {"output": outputs.student, "weak_labels": outputs.labels, "hardware": hardware}


def _steps(model: Finetuned) -> dict[str, Any]:
    """
    Returns the number of optimizer steps of training, the step at which `--aux_start agreement` started, and the
    learned weights of the supervisors.
    """
    history = json.loads((model.directory / "training.json").read_text())
    steps: dict[str, Any] = {"optimizer_steps": max(entry["step"] for entry in history)}
    start = history[-1].get("aux_start_step")
    if start is not None:
        steps["aux_start_step"] = start
    weights = supervisor_weights_of(history)
    return steps if weights is None else steps | {"supervisor_weights": weights}


def _link_entries(
    splits: TaskSplits, outputs: dict[str, "Outputs"], trained: dict[str, Finetuned], scorer: Scorer
) -> list[dict]:
    """Returns the entries of the links of a chain. Each link is compared with the model that labelled its rows."""
    roles = _links(trained)
    entries = []
    for number, (supervisor, role) in enumerate(zip(["weak", *roles], roles, strict=False), start=1):
        link = trained[role]
        (part,) = link.predictions.provenance["parts"]
        rows = splits.student if part == "student" else splits.bootstrap(number)
        entries.append(
            {
                **link.spec.named,
                "taught_by": link.labels.provenance["model"],
                "rows": f"{part}_half" if part == "student" else part,
                "n_train": len(rows.train),
                "labels": link.labels.fingerprint,
                **scorer.scores(role),
                "agreement": scorer.agreement(role, supervisor),
                **_files(outputs[role], link),
            }
        )
    return entries


def _links(trained: dict[str, Finetuned]) -> list[str]:
    """Returns the roles of the links of a chain, small to large. The last link is the student of the method."""
    return [role for role in trained if role.startswith("link_") or role == BOOTSTRAP]


# A chain is compared with students without a chain, which have these roles. The keys name the rows of the students.
_DIRECT = {"same_rows": "direct", "all_rows": "direct_all"}


def pgr_of(weak: np.ndarray, student: np.ndarray, ceiling: np.ndarray, seed: int) -> dict:
    """
    Returns PGR with its interval, or the reason why it is undefined.

    Args:
        weak, student, ceiling (`np.ndarray` of shape `(N,)`, bool): Whether each model predicts each test row
            correctly.
        seed (`int`): Seeds the bootstrap of the interval.
    """
    accuracies = [float(values.mean()) for values in (weak, student, ceiling)]
    interval = metrics.pgr_interval(weak, student, ceiling, seed=seed)
    return {
        "pgr": metrics.performance_gap_recovered(*accuracies),
        "pgr_ci95": None if interval is None else list(interval),
        "pgr_undefined": metrics.pgr_undefined_reason(accuracies[0], accuracies[2]),
    }


def summarise(correct: list[dict[str, np.ndarray]], method: str, same_rows: bool) -> MethodSummary:
    """
    Summarizes a method over seeds: mean accuracy, median PGR with its interval, number of seeds with undefined PGR.

    Args:
        correct (`list[dict[str, np.ndarray]]`): For each seed, whether each role predicts each test row correctly.
        method (`str`): The method.
        same_rows (`bool`): Whether all seeds have the same test rows, as with real data. In the demo, the rows differ.
    """

    def over_seeds(student: str, ceiling: str = "ceiling") -> dict:
        runs = [(of_seed["weak"], of_seed[student], of_seed[ceiling]) for of_seed in correct]
        return metrics.pgr_over_seeds(runs, same_rows=same_rows)

    def accuracies(role: str) -> np.ndarray:
        return np.array([of_seed[role].mean() for of_seed in correct])

    summary = {"method": method, "accuracy_mean": float(accuracies(method).mean()), **over_seeds(method)}
    if "ceiling_plain" in correct[0]:
        summary["against_plain_ceiling"] = over_seeds(method, "ceiling_plain")
    if method == BOOTSTRAP:
        summary["direct"] = {
            rows: {
                "accuracy_mean": float(accuracies(role).mean()),
                "n_chain_is_better": int((accuracies(method) > accuracies(role)).sum()),
                **over_seeds(role),
            }
            for rows, role in _DIRECT.items()
            if role in correct[0]
        }
    return MethodSummary.from_dict(summary)


class Outputs(NamedTuple):
    """The directories of a student and of its weak labels, relative to the output directory."""

    student: str
    labels: str


def outputs_of(methods: Mapping[str, Method], seed: int, trained: dict[str, Finetuned]) -> dict[str, Outputs]:
    """Returns the directories of the students of all methods and links, by role."""
    outputs = {}
    for name, method in methods.items():
        of_method = "" if method.transform is None else f"-for-{name}"
        outputs[name] = Outputs(f"students/{name}-seed{seed}", f"weak_labels/seed{seed}{of_method}")
    for number, role in enumerate(_links(trained), start=1):
        student = f"students/{BOOTSTRAP}-seed{seed}" + ("" if role == BOOTSTRAP else f"-link{number}")
        outputs[role] = Outputs(student, f"weak_labels/seed{seed}-for-link{number}")
    return outputs


def keep_outputs(methods: Mapping[str, Method], seed: int, trained: dict[str, Finetuned], output_dir: Path) -> None:
    """Copies students and their weak labels from the cache to the output directory."""
    trained["weak"].predictions.save(output_dir / f"weak_labels/seed{seed}")
    for role, places in outputs_of(methods, seed, trained).items():
        trained[role].labels.save(output_dir / places.labels)
        _copy_directory(trained[role].directory / "model", output_dir / places.student)


def _copy_directory(source: Path, target: Path) -> None:
    """Copies a directory to a temporary name, and then renames the copy."""
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, aside)
    if target.exists():
        shutil.rmtree(target)
    os.replace(aside, target)
