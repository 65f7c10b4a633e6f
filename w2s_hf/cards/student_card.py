"""The model card of a student as data. The text of the card is in `templates/student_card.md`."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from huggingface_hub import EvalResult, ModelCardData, constants

from ..metrics import performance_gap_recovered, pgr_undefined_reason
from ..results import ExperimentResult, LinkResult, MethodSummary, SeedResult, StudentResult, TransferStudent
from .from_results import facts_of
from .markdown import Markup, render
from .score import Score, interval
from .trained_with import fingerprint_of, plain, subject, trained_with

__all__ = ["BLOCK", "FIGURE", "ROWS", "SCHEMA", "Score", "StudentCard"]

# Name of the rows in each setting
ROWS = {"classification": "rows", "reward": "pairs", "chess": "puzzles", "generation": "rows", "completion": "rows"}

FIGURE = "pgr.png"  # a file in the directory of the card

_PIPELINES = {"SEQ_CLS": "text-classification", "REWARD": "text-classification", "CAUSAL_LM": "text-generation"}
BLOCK, SCHEMA = "weak_to_strong", 1  # the key in the front matter, and the version of its content


@dataclass
class StudentCard:
    """
    The content of a student's model card. The card leaves out unknown facts.

    Experiments build cards from their results ([`StudentCard.from_results`]). Trainers have a card, `trainer.card`,
    and write it in `create_model_card` and `push_to_hub`. Trainers fill in the facts of the training. Set the facts of
    the experiment yourself:

    ```python
    trainer.card.task, trainer.card.method = "spam", "naive"
    trainer.card.weak = Score("gpt2", accuracy=0.71, n=1000)
    trainer.card.student = Score("Qwen/Qwen2.5-7B", accuracy=0.83, n=1000)
    trainer.card.ceiling = Score("Qwen/Qwen2.5-7B", accuracy=0.91, n=1000)
    trainer.push_to_hub()
    ```

    Args:
        task (`str`, *optional*): Name of the task.
        description (`str`, *optional*): Description of the task in one sentence.
        text_form (`str`, *optional*): Format of the training texts of a classifier, with names in braces.
        class_names (`list[str]`, *optional*): Names of the classes, in order.
        setting (`str`, *optional*, defaults to `"classification"`):
            `"classification"`, `"reward"`, `"chess"`, `"generation"` or `"completion"`.
        dataset, dataset_revision (`str`, *optional*): Dataset of the rows, and its commit.
        rows_fingerprint (`str`, *optional*): Hash of all rows and their split. `None` for the demo, which generates
            different rows for each seed.
        dataset_is_on_hub (`bool`, *optional*, defaults to `False`): Whether the metadata name the dataset.
        method (`str`, *optional*): Method of training on the weak labels.
        weak, student, ceiling ([`Score`], *optional*): Scores on the same test rows.
        pgr_ci95 (`tuple[float, float]`, *optional*): 95 % interval of PGR. In results of an experiment, `None` means
            that it is unbounded.
        no_pgr (`str`, *optional*): Reason for a missing PGR, other than a ceiling that is not above the supervisor.
        others (`dict[str, Score]`, *optional*): Scores to compare with, by name, such as a linear probe.
        chance (`float`, *optional*): Accuracy of guessing.
        ceiling_warning (`str`, *optional*): Warning for a ceiling that is below the same model before finetuning.
        agreement (`dict`, *optional*):
            Shares of test rows with equal predictions of student and supervisor: `overall`, `supervisor_right`,
            `supervisor_wrong`.
        early_stopping (`dict`, *optional*): Step, accuracy and PGR of other stopping rules, by name. Rules with
            `cheats` are marked as diagnostics.
        transfer (`dict[str, TransferStudent]`, *optional*): Scores on the test rows of other tasks, by task.
        taught_by (`str`, *optional*): Model of the training labels if it is not `weak`: the previous link of a chain.
        links (`list` of [`LinkResult`], *optional*): Links of the chain, of which the student is the last.
        n_rows (`dict[str, int]`, *optional*): Number of rows of each split.
        n_train (`int`, *optional*): Number of training rows of a link of a chain.
        pgr_against_plain (`float`, *optional*): PGR against the ceiling without generative finetuning.
        summary ([`MethodSummary`], *optional*): Results of the same method over the seeds.
        weak_labels (`str`, *optional*): Dataset on the Hub with the training labels.
        weak_labels_fingerprint (`str`, *optional*): Fingerprint of these labels.
        is_demo (`bool`, *optional*, defaults to `False`): Whether this is a student of the embedded demo.
        repo_id (`str`, *optional*): Repository in the code that loads the student; the current directory by default.
        has_figure (`bool`, *optional*, defaults to `False`): Whether the directory of the card has a `pgr.png`.
        tags (`list[str]`, *optional*): Additional tags.
        base_model, base_revision (`str`, *optional*): Model that was finetuned, and its commit.
        base_is_on_hub (`bool`, *optional*, defaults to `False`): Whether the metadata name the base model.
        task_type (`str`, *optional*, defaults to `"SEQ_CLS"`): Task type, see [`load_student`].
        library_name (`str`, *optional*, defaults to `"peft"`): `"peft"` (adapters) or `"transformers"` (full model).
        loading (`dict`, *optional*): Arguments of [`load_student`] that restore the precision of the training.
        max_new_tokens (`int`, *optional*, defaults to `12`): Token limit of completions.
        example_prompt (`str`, *optional*): Prompt in the code that loads the student.
        settings (`dict`, *optional*): Settings of the training, by name. They are part of `fingerprint`.
        run_name (`str`, *optional*): Name of the run that trained the student.
        seed (`int`, *optional*): Seed of head, adapters and row order.
        versions (`dict[str, str]`, *optional*): Versions of libraries.
        hardware (`str`, *optional*), seconds (`float`, *optional*): Hardware and duration of the training.
        label_accuracy (`float`, *optional*): Share of the training rows with a correct weak label.
        changed_labels (`dict`, *optional*): The training labels of a method that transforms the weak labels: the
            number of rows, `n_train`, and the share of correct labels, `accuracy`.
        row_weights (`dict`, *optional*): The weights of the training rows, if they have weights: `mean`, and `n_zero`,
            the number of rows with weight 0.
        supervisor_weights (`list[float]`, *optional*): The learned weights of the supervisors whose labels were
            combined.
    """

    # Facts about the experiment
    task: str | None = None
    description: str | None = None
    text_form: str | None = None
    class_names: list[str] | None = None
    setting: str = "classification"
    dataset: str | None = None
    dataset_revision: str | None = None
    rows_fingerprint: str | None = None
    dataset_is_on_hub: bool = False
    method: str | None = None
    weak: Score | None = None
    student: Score | None = None
    ceiling: Score | None = None
    pgr_ci95: tuple[float, float] | None = None
    no_pgr: str | None = None
    others: dict[str, Score] = field(default_factory=dict)
    chance: float | None = None
    ceiling_warning: str | None = None
    agreement: dict | None = None
    early_stopping: dict = field(default_factory=dict)
    transfer: dict[str, TransferStudent] = field(default_factory=dict)
    taught_by: str | None = None
    links: list[LinkResult] = field(default_factory=list)
    n_rows: dict[str, int] = field(default_factory=dict)
    n_train: int | None = None
    pgr_against_plain: float | None = None
    summary: MethodSummary | None = None
    weak_labels: str | None = None
    weak_labels_fingerprint: str | None = None
    is_demo: bool = False
    run_name: str | None = None
    repo_id: str | None = None
    has_figure: bool = False
    tags: list[str] = field(default_factory=list)
    # Facts about the training, set by trainers
    base_model: str | None = None
    base_revision: str | None = None
    base_is_on_hub: bool = False
    task_type: str = "SEQ_CLS"
    library_name: str = "peft"
    loading: dict = field(default_factory=dict)
    max_new_tokens: int = 12
    example_prompt: str | None = None
    settings: dict = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str | None = None
    seconds: float | None = None
    label_accuracy: float | None = None
    changed_labels: dict | None = None
    row_weights: dict | None = None
    supervisor_weights: list[float] | None = None

    def __post_init__(self) -> None:
        # Parts of a results.json are accepted as dicts, too.
        self.links = [LinkResult.from_dict(link) if isinstance(link, dict) else link for link in self.links]
        if isinstance(self.summary, dict):
            self.summary = MethodSummary.from_dict(self.summary)

    @classmethod
    def from_results(
        cls,
        results: ExperimentResult | dict,
        run: SeedResult | dict,
        student: StudentResult | dict,
        link: LinkResult | None = None,
    ) -> Self:
        """
        Builds the card of a student of an experiment. All records may also be dicts, as in `results.json`.

        Args:
            results ([`ExperimentResult`]): The content of `results.json`.
            run ([`SeedResult`]): The results of the student's seed.
            student ([`StudentResult`]): The student. A `dict` may also be a link of a chain, with the `method` of the
                chain.
            link ([`LinkResult`], *optional*): Link of the student's chain. The card is then the card of the link.

        Raises:
            ValueError: The results are of an older version.
        """
        return cls(**facts_of(results, run, student, link))

    @property
    def pgr(self) -> float | None:
        """The PGR of the three scores; `None` if a score is missing or PGR is undefined."""
        if self.weak is None or self.student is None or self.ceiling is None:
            return None
        return performance_gap_recovered(self.weak.accuracy, self.student.accuracy, self.ceiling.accuracy)

    @property
    def pgr_undefined(self) -> str | None:
        """The reason why PGR is undefined; `None` if it is defined."""
        if self.pgr is not None:
            return None
        if self.no_pgr is not None:
            return self.no_pgr
        if self.weak is None or self.ceiling is None:
            missing = [name for name in ("weak", "student", "ceiling") if getattr(self, name) is None]
            return f"the card has no accuracy of: {', '.join(missing)}"
        reason = pgr_undefined_reason(self.weak.accuracy, self.ceiling.accuracy)
        return reason or "the card has no accuracy of: student"

    @property
    def subject(self) -> str | None:
        """The name of the task; for the demo with a note that the rows are generated, see [`subject`]."""
        return None if self.task is None else subject(self.task, self.is_demo)

    @property
    def title(self) -> str:
        """The title, such as `Qwen/Qwen2.5-7B finetuned on boolq labels of Qwen/Qwen2.5-0.5B`."""
        name, supervisor = self.base_model or "A student", self.taught_by or (self.weak and self.weak.model)
        if supervisor is None:
            return f"{name}, finetuned" + (f" on {self.subject}" if self.subject else "")
        return f"{name} finetuned on {self.subject + ' ' if self.subject else ''}labels of {supervisor}"

    @property
    def trained_with(self) -> dict[str, str | float | bool]:
        """
        The facts that define the training, as JSON values by name: task, rows, models, method, settings, and the
        version of this package. Students with equal values are seeds of the same experiment.

        They do not include the seed, names of runs, paths, devices, the division of a step into micro-batches, and
        versions of other libraries. For the demo they do not include the rows, which differ between seeds.
        """
        return trained_with(self)

    @property
    def fingerprint(self) -> str | None:
        """The hash of `trained_with`, 12 hexadecimal digits; `None` for cards without settings, such as older ones."""
        return fingerprint_of(self.trained_with) if self.settings else None

    def metadata(self) -> ModelCardData:
        """
        Returns the front matter.

        `model-index` has accuracy and PGR for the Hub, without PGR if it is undefined. `weak_to_strong` has all facts
        that [`w2s_hf.leaderboard.read_card`] returns.
        """
        results = []
        common: dict[str, Any] = {
            "task_type": _PIPELINES[self.task_type],
            "dataset_type": "-".join((self.dataset or "unknown").split()),
            "dataset_name": self.subject or self.dataset or "unknown",
        }
        if self.dataset_is_on_hub and self.dataset_revision:
            common["dataset_revision"] = self.dataset_revision
        if self.student is not None:
            accuracy = self.student.accuracy
            results.append(EvalResult(**common, metric_type="accuracy", metric_name="Accuracy", metric_value=accuracy))
        if self.pgr is not None:
            args = {name: getattr(self, name).accuracy for name in ("weak", "student", "ceiling")}
            common |= {"metric_type": "pgr", "metric_name": "Performance gap recovered", "metric_value": self.pgr}
            results.append(EvalResult(**common, metric_args=args))
        block: dict[str, Any] = {"schema": SCHEMA, "task": self.task, "setting": self.setting, "method": self.method}
        block |= {"seed": self.seed, "taught_by": self.taught_by}
        if self.is_demo:
            block["preset"] = "demo"
        if self.run_name is not None:
            block["run_name"] = self.run_name
        for name in ("weak", "student", "ceiling"):
            score = getattr(self, name)
            block[name] = None if score is None else plain(dataclasses.asdict(score))
            if score is not None and score.weights is None:
                del block[name]["weights"]
        block |= {"pgr_ci95": plain(self.pgr_ci95), "pgr_undefined": self.pgr_undefined}
        block["agreement"] = plain(self.agreement)
        if self.settings:
            block["fingerprint"] = self.fingerprint
            block["dataset"] = {"id": self.dataset, "revision": self.dataset_revision, "rows": self.rows_fingerprint}
            block["n_rows"] = dict(self.n_rows) | ({"train": self.n_train} if self.n_train else {})
            block["settings"] = {name: value for name, value in plain(self.settings).items() if value is not None}
            block["versions"] = dict(self.versions)
        datasets = [name for name in (self.dataset if self.dataset_is_on_hub else None, self.weak_labels) if name]
        # A search of the Hub for the task must not list demos, because their rows are generated.
        tags = ["weak-to-strong", "w2s_hf", self.method, "w2s_hf-demo" if self.is_demo else self.task]
        tags += ["reward-model"] if self.setting == "reward" else ["chess"] if self.setting == "chess" else []
        front: dict[str, Any] = {BLOCK: block}
        return ModelCardData(
            base_model=self.base_model if self.base_is_on_hub else None,
            datasets=datasets or None,
            library_name=self.library_name,
            pipeline_tag=_PIPELINES[self.task_type],
            tags=[tag for tag in dict.fromkeys([*tags, *self.tags]) if tag],
            metrics=["accuracy"] if results else None,
            eval_results=results or None,
            model_name=(self.repo_id.split("/")[-1] if self.repo_id else self.title) if results else None,
            **front,
        )

    def render(self) -> str:
        """Returns the card: front matter and Markdown."""
        names = self.class_names or ("class 0", "class 1")
        return render(
            "student_card.md",
            card=self,
            metadata=Markup(self.metadata().to_yaml()),
            rows=ROWS[self.setting],
            figure=FIGURE if self.has_figure else None,
            hub=Markup(constants.ENDPOINT),
            pgr=None if self.pgr is None else Markup(f"{self.pgr:.2f}") + interval(self.pgr_ci95, 2),
            pgr_over_seeds=_over_seeds(self.summary),
            source=Markup(_literal(self.repo_id or ".")),
            options=Markup("".join(f", {name}={_literal(value)}" for name, value in self._options().items())),
            classes=Markup(", ".join(f"P({_printable(name)})" for name in names)),
            is_blind=self._is_blind(),
            example=Markup(_literal(self._example())),
            links=[(link.taught_by, Score.of(link), link.n_train) for link in self.links],
            duration=None if self.seconds is None else _duration(self.seconds),
        )

    def save(self, path: str | Path) -> None:
        """Writes the card to a file."""
        Path(path).write_text(self.render(), encoding="utf-8")

    def _is_blind(self) -> bool:
        """Returns whether the supervisor is not clearly better than chance."""
        guesses = [score.accuracy for score in self.others.values() if not score.model]
        chance = min(guesses) if self.chance is None and guesses else self.chance
        return chance is not None and self.weak is not None and (self.weak.ci95 or (1.0,))[0] <= chance

    def _example(self) -> str:
        """Returns the text in the code of the card."""
        form = self.text_form if self.task_type == "SEQ_CLS" else None
        return self.example_prompt or form or "A text in the format of the training texts"

    def _options(self) -> dict:
        """Returns the options of [`load_student`] in the code of the card."""
        options: dict[str, Any] = {} if self.task_type == "SEQ_CLS" else {"task_type": self.task_type}
        if self.repo_id and self.library_name == "peft" and not self.base_is_on_hub:
            options["base_model"] = "PATH"
        if self.class_names and self.library_name == "peft" and self.task_type == "SEQ_CLS":
            # Adapters are saved without the config.json of the base model, which has the class names.
            options["id2label"] = dict(enumerate(self.class_names))
        return options | self.loading


def _printable(text: str) -> str:
    """Returns a text for a comment in code: unprintable characters, such as line breaks, become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def _literal(value: object) -> str:
    if isinstance(value, dict) and 0 in value:  # class names by class number, as in config.json
        return "{" + ", ".join(f"{key}: {_literal(name)}" for key, name in value.items()) + "}"
    if isinstance(value, dict):
        return f"BitsAndBytesConfig({', '.join(f'{name}={_literal(part)}' for name, part in value.items())})"
    # JSON writes characters such as emoji as surrogates, which Python would not read as one character.
    return json.dumps(value) if isinstance(value, str) and value.isascii() else repr(value)


def _over_seeds(summary: MethodSummary | None) -> Markup | None:
    if summary is None or summary.n_seeds == 1:
        return None
    if summary.pgr_median is None:
        return Markup("undefined")
    return Markup(f"{summary.pgr_median:.2f}") + interval(summary.pgr_ci95, 2)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
