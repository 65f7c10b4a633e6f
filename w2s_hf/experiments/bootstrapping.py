"""Bootstrapping: a chain of students from small to large, each trained on labels of the last one (paper, 4.3.1)."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from ..labels import LabelsById
from ..tasks import TaskSplits
from .finetuner import Model, Workbench

__all__ = ["Chain", "Lessons", "Link", "climb"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lessons:
    """
    What all finetunings of a seed have in common.

    Args:
        bench ([`Workbench`]): Where they are made.
        splits ([`TaskSplits`]): Their rows.
        seed (`int`): Of heads, adapters and row order.
        others (`dict[str, Dataset]`, *optional*): Rows in the place of a part, see [`with_rows`].
    """

    bench: Workbench
    splits: TaskSplits
    seed: int
    others: dict[str, Dataset] = field(default_factory=dict)

    def rows(self, part: str) -> tuple[Dataset, Dataset]:
        """Training and validation rows of a part: `weak`, `student`, or `link_1`, `link_2`, ..."""
        parts = self.splits.parts | self.others
        if part in ("weak", "student"):
            return parts[f"{part}_half"], parts[f"{part}_validation"]
        return parts[part], parts[f"{part}_validation"]

    @property
    def source(self) -> dict:
        """Where the rows come from, for the provenance of labels."""
        return self.splits.provenance

    def with_rows(self, **parts: Dataset) -> "Lessons":
        """The same with other rows in the place of a part: some of its rows, or the same with other texts."""
        return replace(self, others=self.others | parts)

    def on_ground_truth(self, name: str, model: Model, part: str, predict: list[Dataset], **changes) -> Path:
        """[`Workbench.finetune`] on the truth about the rows of a part."""
        train, validation = (self.bench.setting.with_ground_truth(rows) for rows in self.rows(part))
        changes = {**self.bench.setting.arguments_of("naive"), **changes}
        return self._finetune(name, model, train, validation, predict, {}, changes)

    def on_labels(
        self,
        name: str,
        model: Model,
        labels: dict[str, LabelsById],
        predict: list[Dataset],
        *,
        method: str = "naive",
        **changes,
    ) -> Path:
        """[`Workbench.finetune`] on the labels of each part that is named."""
        rows = [[labels[part].join(of_part) for of_part in self.rows(part)] for part in labels]
        train, validation = (concatenate_datasets(list(of_parts)) for of_parts in zip(*rows, strict=True))
        teachers = {
            "taught_by": next(iter(labels.values())).provenance["stage"],
            "weak_labels": "+".join(of_part.fingerprint for of_part in labels.values()),
            "parts": list(labels),
        }
        changes = {**self.bench.setting.arguments_of(method), "is_weak": True, **changes}
        return self._finetune(name, model, train, validation, predict, teachers, changes)

    def _finetune(self, name, model, train, validation, predict, provenance: dict, changes: dict) -> Path:
        provenance = {**self.source, **provenance}
        if self.bench.setting.task_type == "SEQ_CLS":
            changes = {"class_names": self.splits.task.class_names, **changes}
        return self.bench.finetune(
            name, model, train, validation, predict, seed=self.seed, provenance=provenance, **changes
        )

    def labels_of(self, stage: Path) -> LabelsById:
        """What a finetuned model said of the rows that it was given."""
        return self.bench.setting.labels.load(stage / "predictions")


@dataclass(frozen=True)
class Link:
    """
    A model of a chain.

    Args:
        model ([`Model`]): What was finetuned.
        stage (`Path`): Where it is.
        part (`str`): Of which part it learned the labels; see [`Lessons.rows`].
        labels ([`LabelsById`]): What it learned: the labels of the model before it.
    """

    model: Model
    stage: Path
    part: str
    labels: LabelsById


@dataclass(frozen=True)
class Chain:
    """
    A chain that was climbed, and the student that was not.

    Args:
        links (`list[Link]`): Small to large; the last one is the student.
        direct_all (`Path`, *optional*): Where the links have rows of their own, the same student, taught directly by
            the supervisor on the rows of all links: as many rows as the chain has seen.
    """

    links: list[Link]
    direct_all: Path | None


def climb(
    lessons: Lessons,
    weak: Model,
    supervisor: Path,
    weak_labels: LabelsById,
    models: list[Model],
    *,
    has_own_rows: bool,
) -> Chain:
    """
    Trains a chain: the first model on the supervisor's labels, each other one on those of the model before it.

    Every link is a stage, so that a chain goes on where it was stopped, and chains that begin alike share their
    beginning. A base is released before the next one is loaded. Nothing but labels goes from link to link.

    Args:
        lessons ([`Lessons`]): Rows and seed.
        weak ([`Model`]): The supervisor.
        supervisor (`Path`): Where it is, finetuned.
        weak_labels ([`LabelsById`]): What it said of the student half.
        models (`list` of [`Model`]): Small to large, the student last.
        has_own_rows (`bool`): Each link but the last has rows that nobody else learns; else all learn the student
            half.
    """
    bench, test = lessons.bench, lessons.splits.test
    own = [f"link_{number}" for number in range(1, len(models))] if has_own_rows else ["student"] * (len(models) - 1)
    parts = [*own, "student"]
    of_supervisor = {"student": weak_labels}
    if has_own_rows:
        # A stage of its own: that of the supervisor is the same with a chain and without.
        rows = [rows for part in own for rows in lessons.rows(part)]
        truth = [bench.setting.with_ground_truth(of_part) for of_part in lessons.rows("weak")]
        of_supervisor |= dict.fromkeys(own, bench.label("weak-link-labels", weak, supervisor, *truth, rows))
    labels, links = of_supervisor[parts[0]], []
    for number, (model, part) in enumerate(zip(models, parts, strict=True)):
        is_last = number == len(models) - 1
        logger.info(
            f"Seed {lessons.seed}: link {number + 1} of {len(models)}, {model.name} on "
            f"{len(lessons.rows(part)[0])} labels of {labels.provenance['model']}"
        )
        asked = [test] if is_last else [*lessons.rows(parts[number + 1]), test]
        stage = lessons.on_labels("student-bootstrap" if is_last else "link", model, {part: labels}, asked)
        links.append(Link(model, stage, part, labels))
        labels = lessons.labels_of(stage)
    direct_all = None
    if has_own_rows:
        logger.info(f"Seed {lessons.seed}: {models[-1].name} directly on the supervisor's labels of all links' rows")
        direct_all = lessons.on_labels(
            "student-direct", models[-1], {part: of_supervisor[part] for part in parts}, [test]
        )
    return Chain(links, direct_all)
