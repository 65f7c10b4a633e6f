"""The records of `results.json`, schema 1."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from .record import Record, always, rest
from .settings import RunSettings

__all__ = [
    "SELF_TRAINED", "Agreement", "AnyScore", "BaselineResult", "ControlResult", "DatasetInfo", "DirectResult",
    "DirectSummary", "ExperimentResult", "LabelsResult", "LinkResult", "MethodSummary", "ModelScore", "Pgr",
    "PgrSummary", "SeedResult", "SelfTrainedSummary", "StudentResult", "TransferResult", "TransferStudent",
    "TransferSummary", "is_results",
]  # fmt: skip


# The name of the student trained on its own zero-shot answers, in predictions, tables and cards
SELF_TRAINED = "trained on its zero-shot answers"


@dataclass(kw_only=True)
class Agreement(Record):
    """
    The shares of test rows on which a model and its supervisor make the same prediction.

    `overall` is the share of all rows. `supervisor_right` and `supervisor_wrong` are the shares of the rows on which
    the supervisor is right or wrong. A share without rows is `None`.
    """

    overall: float
    supervisor_right: float | None
    supervisor_wrong: float | None
    extra: dict = rest()


@dataclass(kw_only=True)
class Pgr(Record):
    """
    The PGR of one seed. Its 95 % interval is `None` if unbounded. If PGR is undefined, `pgr_undefined` is the reason.
    """

    pgr: float | None
    pgr_ci95: list[float] | None = always()
    pgr_undefined: str | None = always()
    extra: dict = rest()


@dataclass(kw_only=True)
class ModelScore(Record):
    """
    The accuracy of a model on the test rows.

    Args:
        model (`str`): Hub id, name of a local directory, or name of a model of the demo.
        revision (`str`, *optional*): Commit on the Hub.
        weights (`str`, *optional*): Hash of a model that is a local directory.
        accuracy (`float`), ci95 (`list[float]`): Accuracy with its 95 % interval.
        n (`int`): Number of test rows.
        scores (`dict`): Further scores of the setting, such as `auroc` and `ece`.
        n_supervisors (`int`, *optional*): Number of supervisors whose labels are averaged, if there are several.
        optimizer_steps (`int`, *optional*): Optimizer steps of the training (ceiling only).
        label_confidence (`float`, *optional*): Mean larger probability of the weak labels (supervisor only).
        label_accuracy (`float`, *optional*): Share of the students' training rows with a correct weak label
            (supervisor only).
    """

    model: str
    revision: str | None = always()
    weights: str | None = None
    accuracy: float
    ci95: list[float] | None = always()
    n: int
    scores: dict = rest()
    n_supervisors: int | None = None
    optimizer_steps: int | None = None
    label_confidence: float | None = None
    label_accuracy: float | None = None


@dataclass(kw_only=True)
class BaselineResult(Record):
    """The [`ModelScore`] of a named baseline. `model` is empty for baselines without a model, such as guessing."""

    name: str
    model: str
    accuracy: float
    ci95: list[float] | None = always()
    n: int
    scores: dict = rest()

    @property
    def revision(self) -> str | None:
        """The commit on the Hub. Only prompted models have this key."""
        return self.scores.get("revision")


@dataclass(kw_only=True)
class ControlResult(Record):
    """The [`ModelScore`] of a student without pretraining, trained with a method."""

    method: str
    model: str
    revision: str | None = always()
    weights: str | None = None
    accuracy: float
    ci95: list[float] | None = always()
    n: int
    scores: dict = rest()


@dataclass(kw_only=True)
class DirectResult(Record):
    """The last student of a chain, trained on the labels of the supervisor instead."""

    accuracy: float
    ci95: list[float] | None = always()
    n: int
    scores: dict = rest()
    pgr: float | None
    pgr_ci95: list[float] | None = always()
    pgr_undefined: str | None = always()


@dataclass(kw_only=True)
class LinkResult(Record):
    """
    The scores of a model in a bootstrapping chain, as in [`ModelScore`].

    Args:
        taught_by (`str`): Model of the training labels.
        rows (`str`, *optional*): Split of the training rows: `link_1`, ..., or `student_half`.
        n_train (`int`): Number of training rows.
        labels (`str`, *optional*): Fingerprint of the training labels.
        agreement ([`Agreement`]): Agreement with `taught_by`.
        output (`str`): Directory of the model, in the output directory.
        weak_labels (`str`): Directory of its training labels, in the output directory.
        hardware (`str`, *optional*): Hardware of the training.
    """

    model: str
    revision: str | None = always()
    weights: str | None = None
    taught_by: str
    rows: str | None = None
    n_train: int
    labels: str | None = None
    accuracy: float
    ci95: list[float] | None = always()
    n: int
    scores: dict = rest()
    agreement: Agreement | None
    output: str
    weak_labels: str
    hardware: str | None = always()


@dataclass(kw_only=True)
class LabelsResult(Record):
    """
    The training labels of a student whose method transforms the weak labels.

    Args:
        n_train (`int`): Number of training rows. A method may leave out rows.
        accuracy (`float`): Share of these rows with a correct label. For the loss `learned_supervisors`, the label is
            the mean of the labels of all supervisors.
        confidence (`float`, *optional*): Mean larger probability of the labels; `None` for text labels.
        weights (`dict`, *optional*): The weights of the rows, if there are weights: their `mean`, and `n_zero`, the
            number of rows with weight 0.
        transform (`dict`, *optional*): For transforms of the package, the `name`, the settings, and the results, such
            as a temperature.
    """

    n_train: int
    accuracy: float
    confidence: float | None = None
    weights: dict | None = None
    transform: dict | None = None
    extra: dict = rest()


@dataclass(kw_only=True)
class StudentResult(Record):
    """
    The [`ModelScore`] and the [`Pgr`] of a student.

    Args:
        method (`str`): Method of training on the weak labels.
        agreement ([`Agreement`]): Agreement with the weak supervisor.
        output (`str`): Directory of the student, in the output directory.
        weak_labels (`str`): Directory of its training labels, in the output directory.
        hardware (`str`, *optional*): Hardware of the training.
        against_plain_ceiling ([`Pgr`], *optional*): PGR against the ceiling without generative finetuning.
        links (`list` of [`LinkResult`]): Links of the chain. The last link is the student.
        direct (`dict` of [`DirectResult`]): The same student without the chain, trained on the rows of its last link
            (`same_rows`) and on the rows of all links (`all_rows`).
        fingerprint (`str`, *optional*): Hash that is equal for all seeds of an experiment, see
            [`StudentCard.fingerprint`].
        optimizer_steps (`int`, *optional*): Optimizer steps of its training; unknown for a chain.
        aux_start_step (`int`, *optional*): The step after which the auxiliary weight rises (`aux_start="agreement"`).
        labels ([`LabelsResult`], *optional*): Its training labels, if the method transforms the weak labels.
        supervisor_weights (`list[float]`, *optional*): The final weights of the supervisors (`learned_supervisors`).
    """

    method: str
    model: str
    revision: str | None = always()
    weights: str | None = None
    accuracy: float
    ci95: list[float] | None = always()
    n: int
    scores: dict = rest()
    pgr: float | None
    pgr_ci95: list[float] | None = always()
    pgr_undefined: str | None = always()
    agreement: Agreement
    output: str
    weak_labels: str
    hardware: str | None = always()
    against_plain_ceiling: Pgr | None = None
    links: list[LinkResult] = field(default_factory=list)
    direct: dict[str, DirectResult] = field(default_factory=dict)
    fingerprint: str | None = None
    optimizer_steps: int | None = None
    aux_start_step: int | None = None
    labels: LabelsResult | None = None
    supervisor_weights: list[float] | None = None


@dataclass(kw_only=True)
class TransferStudent(Record):
    """The scores of a student on the test rows of another task, and its PGR on these rows."""

    method: str
    accuracy: float
    ci95: list[float] | None = always()
    n: int
    scores: dict = rest()
    pgr: float | None
    pgr_ci95: list[float] | None = always()
    pgr_undefined: str | None = always()


@dataclass(kw_only=True)
class TransferResult(Record):
    """
    The scores of one seed on the test rows of another task (`--transfer_tasks`). No model was trained on this task.

    Args:
        dataset (`str`): Dataset of the test rows, on the Hub.
        revision (`str`): Commit on the Hub, `"local"` or `"generated"`.
        n_shared (`int`): Number of test rows that were dropped, because they share their text or a group with a
            training row.
        weak, ceiling ([`ModelScore`]): Supervisor and ceiling.
        students (`list` of [`TransferStudent`]): One student per method.
    """

    dataset: str
    revision: str
    n_shared: int
    weak: ModelScore
    ceiling: ModelScore
    students: list[TransferStudent]
    extra: dict = rest()


AnyScore = ModelScore | BaselineResult | ControlResult | LinkResult | StudentResult | DirectResult | TransferStudent


@dataclass(kw_only=True)
class SeedResult(Record):
    """
    The results of one seed.

    Args:
        seed (`int`): Seed of heads, adapters and row order; in the demo also of the generated rows.
        split_fingerprint (`str`, *optional*): Hash of all rows and their split.
        weak, ceiling ([`ModelScore`]): Supervisor and ceiling.
        students (`list` of [`StudentResult`]): One student per method.
        controls (`list` of [`ControlResult`]): Students without pretraining.
        ceiling_plain ([`ModelScore`], *optional*): The ceiling without generative finetuning.
        baselines (`list` of [`BaselineResult`]): Baselines without finetuning.
        self_trained ([`DirectResult`], *optional*): The student trained on its own zero-shot answers.
        by_situation, easy_to_hard (`dict`, *optional*): Results that only the reward demo or chess have.
        analyses (`dict[str, dict]`): Results of `--analyses` by name.
        transfer (`dict` of [`TransferResult`]): Results of `--transfer_tasks` by the name of the task.
    """

    seed: int
    split_fingerprint: str | None = None
    weak: ModelScore
    ceiling: ModelScore
    students: list[StudentResult]
    controls: list[ControlResult] = always(factory=list)
    ceiling_plain: ModelScore | None = None
    baselines: list[BaselineResult] = field(default_factory=list)
    self_trained: DirectResult | None = None
    by_situation: dict = field(default_factory=dict)
    easy_to_hard: dict = field(default_factory=dict)
    analyses: dict[str, dict] = field(default_factory=dict)
    transfer: dict[str, TransferResult] = field(default_factory=dict)
    extra: dict = rest()

    def accuracy_of_guessing(self, chance: float | None) -> float | None:
        """
        Returns the accuracy of guessing, in [0, 1].

        Args:
            chance (`float`, *optional*): `ExperimentResult.chance`. If it is `None`, guessing depends on the rows. Its
                accuracy is then the lowest of the baselines without a model, or `None` without such baselines.
        """
        if chance is not None:
            return chance
        return min((baseline.accuracy for baseline in self.baselines if not baseline.model), default=None)

    def is_supervisor_at_chance(self, chance: float | None) -> bool:
        """
        Returns whether the 95 % interval of the supervisor's accuracy begins at or below the accuracy of guessing.

        Args:
            chance (`float`, *optional*): As in [`~SeedResult.accuracy_of_guessing`].
        """
        return self.weak.ci95 is not None and self.weak.ci95[0] <= (self.accuracy_of_guessing(chance) or 0.0)

    @property
    def above_ceiling(self) -> dict[str, float]:
        """
        The accuracies of baselines that are above the ceiling, although they use its model without finetuning.

        These baselines are a linear probe and prompts, also with a calibrated threshold (`accuracy_at_median`,
        `accuracy_content_free`).
        """
        above = {}
        for baseline in self.baselines if self.ceiling.model else ():
            for name in ("accuracy", "accuracy_at_median", "accuracy_content_free"):
                accuracy = baseline.accuracy if name == "accuracy" else baseline.scores.get(name, 0.0)
                if baseline.model == self.ceiling.model and accuracy > self.ceiling.accuracy:
                    above[baseline.name + name.removeprefix("accuracy").replace("_", " ")] = accuracy
        return above


@dataclass(kw_only=True)
class PgrSummary(Record):
    """The median of PGR over the seeds, its 95 % interval, and the number of seeds with an undefined PGR."""

    pgr_median: float | None
    pgr_ci95: list[float] | None = always()
    n_seeds: int
    n_undefined: int
    extra: dict = rest()


@dataclass(kw_only=True)
class DirectSummary(Record):
    """A [`DirectResult`] over the seeds, and the number of seeds in which the chain is better."""

    accuracy_mean: float
    n_chain_is_better: int
    pgr_median: float | None
    pgr_ci95: list[float] | None = always()
    n_seeds: int
    n_undefined: int
    extra: dict = rest()


@dataclass(kw_only=True)
class TransferSummary(Record):
    """The mean accuracy and [`PgrSummary`] of a method on the test rows of another task."""

    accuracy_mean: float
    pgr_median: float | None
    pgr_ci95: list[float] | None = always()
    n_seeds: int
    n_undefined: int
    extra: dict = rest()


@dataclass(kw_only=True)
class MethodSummary(Record):
    """
    The mean accuracy and [`PgrSummary`] of a method over the seeds. Further fields are as in [`StudentResult`].
    `transfer` has a [`TransferSummary`] by the name of each other task.
    """

    method: str
    accuracy_mean: float
    pgr_median: float | None
    pgr_ci95: list[float] | None = always()
    n_seeds: int
    n_undefined: int
    against_plain_ceiling: PgrSummary | None = None
    direct: dict[str, DirectSummary] = field(default_factory=dict)
    transfer: dict[str, TransferSummary] = field(default_factory=dict)
    extra: dict = rest()


@dataclass(kw_only=True)
class SelfTrainedSummary(Record):
    """
    The comparison of weak labels with the zero-shot answers of the student, over the seeds.

    Args:
        method (`str`): Method of the student that is trained on the weak labels.
        accuracy_mean (`float`): Mean accuracy of the student that is trained on its own zero-shot answers.
        difference (`float`), difference_ci95 (`list[float]`): Mean accuracy of the method minus `accuracy_mean`, and
            its 95 % interval.
        n_better (`int`): Number of seeds in which the student of the method is better.
        n_seeds (`int`): Number of seeds.
    """

    method: str
    accuracy_mean: float
    difference: float
    difference_ci95: list[float]
    n_better: int
    n_seeds: int
    extra: dict = rest()


@dataclass(kw_only=True)
class DatasetInfo(Record):
    """
    The rows of an experiment.

    Args:
        id (`str`): Dataset on the Hub.
        revision (`str`): Commit on the Hub, `"local"` or `"generated"`.
        n_weak_half, n_student_half, n_validation, n_test, n_links (`int`): Sizes of the splits.
        n_dropped (`dict[str, int]`): Number of dropped rows by reason.
        split_seed (`int`, *optional*): Seed of the split.
        options (`dict`): Options of the conversion of the rows: `conversion`; in the demo `demo_world` and
            `demo_documents`.
    """

    id: str
    revision: str
    n_weak_half: int
    n_student_half: int
    n_validation: int
    n_test: int
    n_links: int | None = None
    n_dropped: dict[str, int] = always(factory=dict)
    split_seed: int | None = None
    options: dict = rest()


@dataclass(kw_only=True)
class ExperimentResult(Record):
    """
    The content of `results.json`.

    Args:
        run_name (`str`, *optional*): Name of the run.
        task, setting (`str`): Name of the task, and its setting, such as `"classification"`.
        preset (`str`): `"demo"` or `"custom"`.
        chance (`float`, *optional*): Accuracy of guessing if it is the same for all rows.
        dataset ([`DatasetInfo`]): The rows.
        runs (`list` of [`SeedResult`]): Results of each seed.
        summary (`list` of [`MethodSummary`]): Results of each method over the seeds.
        self_trained ([`SelfTrainedSummary`], *optional*): Comparison with the student's own zero-shot answers.
        settings ([`RunSettings`]): Settings of the training runs.
        versions (`dict[str, str]`): Versions of libraries.
        wall_seconds (`dict[str, float]`): Durations by step and by the directory of a student.
        generative_finetuning (`bool`, *optional*): Whether students were first trained on the responses (pairs only).
        text_form, class_names, example_prompt, description (*optional*): Facts of the task for cards.
    """

    schema: int = always(1)
    run_name: str | None = always()
    task: str
    setting: str
    preset: str
    chance: float | None = always()
    dataset: DatasetInfo
    runs: list[SeedResult]
    summary: list[MethodSummary]
    self_trained: SelfTrainedSummary | None = None
    settings: RunSettings
    versions: dict[str, str] = always(factory=dict)
    wall_seconds: dict[str, float] = field(default_factory=dict)
    generative_finetuning: bool | None = None
    text_form: str | None = None
    class_names: list[str] | None = None
    example_prompt: str | None = None
    description: str | None = None
    extra: dict = rest()

    @property
    def is_demo(self) -> bool:
        """Returns whether the run is the embedded demo."""
        return self.preset == "demo"

    def summary_of(self, method: str) -> MethodSummary:
        """Returns the summary of a method."""
        return next(summary for summary in self.summary if summary.method == method)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """
        Reads a `results.json`.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is not a `results.json` of schema 1.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"Got {path}, expected a results.json: {error}. Pass the file of a finished experiment."
            ) from error
        if not is_results(content):
            raise ValueError(
                f"Got {path}, expected a results.json of schema 1. Pass the file of a finished experiment."
            )
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(
                f"Got {path}, expected a results.json of schema 1: {error} Pass the file of a finished experiment."
            ) from error

    def write(self, path: str | Path) -> None:
        """Writes a `results.json`. The file is renamed when it is complete."""
        aside = Path(path).with_name(Path(path).name + ".partial")
        aside.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        os.replace(aside, path)


def is_results(content: object) -> bool:
    """Returns whether JSON values are the content of a `results.json` of schema 1."""
    return isinstance(content, dict) and content.get("schema") == 1 and {"task", "runs", "settings"} <= set(content)
