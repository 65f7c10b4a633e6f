"""A finished experiment of one seed, as an analysis finds it: its answers, and the means to train and ask more."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors.numpy import load_file, save_file
from transformers import set_seed

from ..analysis import PromptFormat, answer_probabilities, last_hidden_states
from ..demo.worlds import DemoWorld
from ..labels import LabelsById, WeakLabels
from ..metrics import agreement_shares
from ..modeling import load_tokenizer
from ..tasks import TaskSplits
from ..trainers.completion import autocast
from .bootstrapping import Lessons
from .config import BOOTSTRAP, ExperimentArguments
from .finetuner import Model, load_base
from .seed import Materials, SeedRun, pgr_of
from .settings.base import Setting

__all__ = ["Study"]

T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """
    What there is of a seed. Whatever is trained or asked here is a stage, and is found again.

    Args:
        args ([`ExperimentArguments`]): Of the experiment.
        setting ([`Setting`]): Of the experiment.
        run ([`SeedRun`]): What came of them.
        world ([`DemoWorld`], *optional*): Of the demo of texts and pairs, whose models know few words.
    """

    args: ExperimentArguments
    setting: Setting
    run: SeedRun
    world: DemoWorld | None = None

    @property
    def materials(self) -> Materials:
        """Models; the rows are [`splits`]."""
        return self.run.materials

    @property
    def lessons(self) -> Lessons:
        """What the students learned from."""
        return self.run.lessons

    @property
    def seed(self) -> int:
        """Of the experiment."""
        return self.lessons.seed

    @property
    def methods(self) -> list[str]:
        """Those that teach a student directly; a chain's student has another teacher."""
        return [method for method in self.args.methods if method != BOOTSTRAP] or ["naive"]

    @property
    def splits(self) -> TaskSplits:
        """All rows."""
        return self.lessons.splits

    @property
    def test(self) -> Dataset:
        """The test rows."""
        return self.splits.test

    def truth(self, part: str = "test") -> np.ndarray:
        """True classes of a part, `(N,)` int64."""
        return np.array(self.splits.parts[part]["ground_truth"])

    def learn(
        self, name: str, labels: LabelsById, *, method: str = "naive", model: Model | None = None, **parts: Dataset
    ):
        """
        A student of other labels than the experiment's, and where they are given of another model or other rows.

        Args:
            name (`str`): Of its stage.
            labels ([`LabelsById`]): Of the rows of the student half and its validation rows.
            method (`str`, *optional*, defaults to `"naive"`): How it learns them.
            model ([`Model`], *optional*): Defaults to the experiment's student.
            parts ([`~datasets.Dataset`]): In the place of a part, see [`Lessons.with_rows`].

        Returns:
            What it answers to the test rows, in order: probabilities `(N, 2)`, or a `list` of [`Completion`].
        """
        lessons, test = self.lessons.with_rows(**parts), parts.get("test", self.test)
        stage = lessons.on_labels(name, model or self.materials.student, {"student": labels}, [test], method=method)
        return lessons.labels_of(stage).of(list(test["id"]))

    def scores(self, answers, supervisor=None) -> dict:
        """
        Accuracy with its interval, PGR, and agreement with the supervisor.

        Args:
            answers: To the test rows, as of [`learn`].
            supervisor (*optional*): Answers of another one than the experiment's, against whose accuracy PGR is then.
        """
        test = self.test
        weak = self.run.answers["weak"] if supervisor is None else supervisor
        correct = {
            "weak": self.setting.is_correct(weak, test),
            "student": self.setting.is_correct(answers, test),
            "ceiling": self.run.correct["ceiling"],
        }
        scores = self.setting.scores(answers, test)
        return {
            **{name: scores[name] for name in ("accuracy", "ci95", "n")},
            **pgr_of(correct, "student", "ceiling", self.seed),
            "agreement": agreement_shares(self.setting.is_same(answers, weak, test), correct["weak"]),
        }

    def made_of_weak_labels(self, probabilities: np.ndarray, ids: list[str], what: str) -> WeakLabels:
        """Other labels in place of the supervisor's, with their own provenance."""
        provenance = self.run.weak_labels.provenance
        return WeakLabels(ids, probabilities, {**provenance, "stage": f"{provenance['stage']} {what}"})

    def once(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank: the last digits of a fit may differ, and stages are found by them."""
        made = [make() if PartialState().is_main_process else None]
        if PartialState().num_processes > 1:
            broadcast_object_list(made, from_process=0)
        return made[0]

    def ask(self, prompts: list[str], form: PromptFormat) -> np.ndarray:
        """P(answer) of the student before any finetuning, `(N, 2)`; see [`answer_probabilities`]."""
        bench, student = self.lessons.bench, self.materials.student
        asked = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
        settings = {"model": student.identity, "prompts": asked, "format": repr(form)}
        settings |= {"mixed_precision": [bench.args.bf16, bench.args.fp16]}
        settings |= {"n_processes": PartialState().num_processes}

        def build(directory: Path) -> None:
            tokenizer = load_tokenizer(student.path, revision=student.revision)
            bench.release()
            model = bench.in_place(load_base(student, "CAUSAL_LM"))
            batch_size = bench.args.per_device_eval_batch_size
            with autocast(bench.args):
                found = answer_probabilities(model, tokenizer, prompts, form, batch_size=batch_size)
            _keep({"probabilities": found}, directory)

        return load_file(bench.stages.run("prompted", settings, build) / "arrays.safetensors")["probabilities"]

    def hidden_states(self, trained: Path | None = None) -> dict[str, np.ndarray]:
        """Last hidden states of the rows of each part but the links, before finetuning or after `trained`."""
        lessons, student = self.lessons, self.materials.student
        bench = lessons.bench
        names = ("weak_half", "student_half", "student_validation", "test")
        parts = {name: self.splits.parts[name] for name in names}
        settings = {
            "model": student.identity,
            "trained": None if trained is None else trained.name,
            "rows": [bench.fingerprint(rows, with_labels=False) for rows in parts.values()],
            "max_length": bench.args.max_length,
            "mixed_precision": [bench.args.bf16, bench.args.fp16],
            "seed": self.seed,
            "n_processes": PartialState().num_processes,
        }

        def build(directory: Path) -> None:
            tokenizer = load_tokenizer(student.path, revision=student.revision)
            bench.release()
            set_seed(self.seed)  # some encoders have new layers before the head
            if trained is None:
                model = bench.untrained(student, tokenizer, self.seed)
            else:
                model = bench.finished(student, trained / "model")
            model = bench.in_place(model)
            tokens = {name: bench.tokenize(student, tokenizer, rows) for name, rows in parts.items()}
            batch_size = bench.args.per_device_eval_batch_size
            with autocast(bench.args):
                states = {
                    name: last_hidden_states(model, tokenizer, rows, batch_size=batch_size)
                    for name, rows in tokens.items()
                }
            _keep(states, directory)

        return load_file(bench.stages.run("hidden-states", settings, build) / "arrays.safetensors")


def _keep(arrays: dict[str, np.ndarray], directory: Path) -> None:
    if PartialState().is_main_process:
        save_file(arrays, directory / "arrays.safetensors")
