"""The finished experiment of one seed for an analysis, with methods to train and query further models."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from datasets import Dataset

from ..analysis import PromptFormat, logistic_probe
from ..labels import LabelsById, WeakLabels
from ..methods import BOOTSTRAP, NAIVE, Method
from ..metrics import agreement_shares
from ..modeling.spec import ModelSpec
from ..results import SeedResult
from ..tasks import Half, TaskSplits
from .config import Own
from .finetuner import Finetuned, Finetuner, prompt_of_head
from .label_context import StudentRows, labelled, labels_of_method
from .model_queries import PROBED, ask, hidden_states, load_arrays, on_rank_0, save_arrays
from .prompts import Prompts, prompts_of
from .scores import Scorer, outputs_of, pgr_of
from .seed import Models, student_rows

__all__ = ["AnalysisContext"]

T = TypeVar("T")


@dataclass(frozen=True)
class AnalysisContext:
    """
    The results of one seed, with methods to train and query further models. Every stage is cached.

    Args:
        args ([`ExperimentArguments`]), models ([`Models`]), splits ([`TaskSplits`]), seed (`int`):
            The arguments of [`run_seed`].
        finetuner ([`Finetuner`]): Trains further models.
        trained (`dict[str, Finetuned]`): The models, as [`run_seed`] returns them.
        result ([`SeedResult`]): The results of the seed.
        scorer ([`Scorer`]): The predictions of the test rows, and which of them are correct.
        world ([`World`], *optional*): The world of the demo, whose models have a small vocabulary.
        transfer (`dict[str, Scorer]`, *optional*): The predictions of the test rows of other tasks, by task.
    """

    args: Own
    models: Models
    splits: TaskSplits
    seed: int
    finetuner: Finetuner
    trained: dict[str, Finetuned]
    result: SeedResult
    scorer: Scorer
    world: Own = None
    transfer: dict[str, Scorer] = field(default_factory=dict)

    @property
    def weak_labels(self) -> LabelsById:
        """The weak labels of the student half, its validation rows and the test rows."""
        return self.trained["weak"].predictions

    @cached_property
    def student_rows(self) -> Half:
        """The training rows of the students, with ground truth."""
        return student_rows(self.splits, self.trained["weak"], self.args)

    @property
    def methods(self) -> dict[str, Method]:
        """The methods by name, except the chain, whose student is trained on labels of a link."""
        methods = {name: method for name, method in self.args.methods_by_name.items() if name != BOOTSTRAP}
        return methods or {NAIVE.name: NAIVE}

    def labels_of(self, method: str) -> LabelsById:
        """Returns the labels that the student of a method is trained on."""
        return self.trained[method].labels if method in self.trained else self.weak_labels

    @property
    def student_directories(self) -> dict[str, Path]:
        """The cached step of each student and each link of the chain, by `output` in the results."""
        outputs = outputs_of(self.args.methods_by_name, self.seed, self.trained)
        return {places.student: self.trained[role].directory for role, places in outputs.items()}

    @property
    def test(self) -> Dataset:
        """The test rows."""
        return self.splits.test

    @property
    def task(self) -> Own:
        """The task of the rows."""
        return self.splits.task

    def truth(self, part: str = "test") -> np.ndarray:
        """Returns the true classes of a part, `(N,)` int64."""
        return np.array(self.splits.parts[part]["ground_truth"])

    def finetune(
        self,
        name: str,
        labels: LabelsById,
        predict: list[Dataset],
        *,
        method: Method = NAIVE,
        model: ModelSpec | None = None,
        rows: Half | None = None,
        **changes,
    ) -> Finetuned:
        """
        Trains a student on labels.

        Args:
            name (`str`): Name of the stage.
            labels ([`LabelsById`]): The labels of the training rows.
            predict (`list` of [`~datasets.Dataset`]): Rows to predict.
            method ([`Method`], *optional*): The method of training. Defaults to naive finetuning.
            model ([`ModelSpec`], *optional*): Defaults to the experiment's student.
            rows ([`Half`], *optional*): Defaults to the rows of the experiment's students.
            changes: Training arguments that differ, and options of [`Finetuner.finetune`].
        """
        rows = (labelled(self.student_rows, labels) if rows is None else rows).map(labels.join)
        return self.finetuner.finetune(
            name,
            self.models.student if model is None else model,
            rows,
            predict,
            splits=self.splits,
            seed=self.seed,
            method=method,
            labels={"student": labels},
            **changes,
        )

    def predictions_of(
        self,
        name: str,
        labels: LabelsById,
        *,
        test: Dataset | None = None,
        **options,
    ):
        """
        Trains a student as [`finetune`] does, and returns its predictions of the test rows, in order: probabilities
        `(N, 2)`, or a `list` of [`Completion`]. `test` replaces the test rows by rows with other texts.
        """
        test = self.test if test is None else test
        student = self.finetune(name, labels, [test], **options)
        return student.predictions.of(list(test["id"]))

    def scores(self, predictions, supervisor=None) -> dict:
        """
        Returns accuracy with its interval, PGR, and agreement with the supervisor.

        Args:
            predictions: Predictions of the test rows.
            supervisor (*optional*): Predictions of another supervisor, to compare with. Defaults to the weak
                supervisor of the experiment.
        """
        setting, test = self.finetuner.setting, self.test
        weak = self.scorer.predictions["weak"] if supervisor is None else supervisor
        weak_correct = setting.is_correct(weak, test)
        correct = setting.is_correct(predictions, test)
        scores = setting.scores(predictions, test)
        return {
            **{name: scores[name] for name in ("accuracy", "ci95", "n")},
            **pgr_of(weak_correct, correct, self.scorer.correct["ceiling"], self.seed),
            "agreement": agreement_shares(setting.agrees(predictions, weak, test), weak_correct),
        }

    def changed_weak_labels(self, probabilities: np.ndarray, ids: list[str], what: str) -> WeakLabels:
        """Returns weak labels with other probabilities, and a provenance that records the change."""
        provenance = self.weak_labels.provenance
        return WeakLabels(ids, probabilities, {**provenance, "stage": f"{provenance['stage']} {what}"})

    def once(self, make: Callable[[], T]) -> T:
        """Calls a function on rank 0 and returns its result on every rank; see [`on_rank_0`]."""
        return on_rank_0(make)

    @property
    def prompts(self) -> Prompts | None:
        """The prompts of the rows; `None` for pairs and completions."""
        return prompts_of(self.task, self.args, self.world)

    @property
    def label_context(self) -> StudentRows:
        """The context of label transforms, without the true labels of the rows."""
        weak = self.trained["weak"]
        return StudentRows.of(self.student_rows, weak, (weak,), **self._for_labels)

    @property
    def _for_labels(self) -> dict[str, Any]:
        """The keyword arguments of [`labels_of_method`]."""
        student, finetuner = self.models.student, self.finetuner
        return {
            "splits": self.splits, "student": student, "prompts": self.prompts, "seed": self.seed,
            "finetuner": finetuner,
        }  # fmt: skip

    def transformed_labels(self, method: Method) -> LabelsById:
        """Returns the labels of a method for all student rows, see [`labels_of_method`]."""
        weak = self.trained["weak"]
        return labels_of_method(method, self.splits.student, weak, (weak,), **self._for_labels)

    def ask(self, prompts: list[str], prompt_format: PromptFormat) -> np.ndarray:
        """Returns P(answer) of the student before any finetuning, `(N, 2)`; see [`answer_probabilities`]."""
        return ask(self.finetuner, self.models.student, prompts, prompt_format)

    def linear_probe(self, trained: Finetuned | None = None) -> np.ndarray:
        """
        Returns the predictions of the test rows, `(N, 2)`, of a linear probe of the student before finetuning, or of
        `trained`. The probe is a logistic regression on the last hidden states. It is fitted to the ground truth of
        the student half, and its regularization is chosen on the validation rows.
        """
        states = self._hidden_states(trained, PROBED)
        rows = [self.finetuner.setting.with_ground_truth(self.splits.parts[name]) for name in PROBED[:2]]
        settings = {"states": states.name, "labels": [self.finetuner.fingerprint(part) for part in rows]}

        def build(directory: Path) -> None:
            if not PartialState().is_main_process:
                return
            arrays = load_arrays(states)
            half, validation = ((arrays[name], np.eye(2)[self.truth(name)]) for name in PROBED[:2])
            probe = logistic_probe(*half, validation)
            save_arrays({"probabilities": probe.predict_proba(arrays["test"])}, directory)

        title = f"linear probe {'before finetuning' if trained is None else 'of the finetuned student'}"
        directory = self.finetuner.cache.run("linear-probe", settings, build, title=title)
        return load_arrays(directory)["probabilities"]

    def hidden_states(
        self, trained: Finetuned | None = None, parts: tuple[str, ...] = PROBED
    ) -> dict[str, np.ndarray]:
        """Returns the last hidden states of the rows of parts of the splits, before finetuning or of `trained`."""
        return load_arrays(self._hidden_states(trained, parts))

    def _hidden_states(self, trained: Finetuned | None, names: tuple[str, ...]) -> Path:
        student = self.models.student
        return hidden_states(
            self.finetuner,
            student,
            {name: self.splits.parts[name] for name in names},
            seed=self.seed,
            form=prompt_of_head(student, self.task) if trained is None else None,
            trained=trained,
        )
