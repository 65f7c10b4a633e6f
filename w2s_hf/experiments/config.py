"""The options of an experiment on the command line, besides those of its trainer and its student."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..command_line import did_you_mean
from ..config import METHODS
from ..demo.worlds import DEMO_WORLDS
from ..tasks import task_table

__all__ = [
    "ANALYSES",
    "BOOTSTRAP",
    "AnyTaskArguments",
    "ChessArguments",
    "ClassificationArguments",
    "ExperimentArguments",
    "GenerationArguments",
    "Own",
    "RewardArguments",
    "chain_of",
    "check_names",
]

# A type that each setting has of its own: its task, its arguments and training arguments, its trainer, its
# predictions, and the world of its demo. The methods of a setting declare which one it is.
Own = Any

# The analyses of --analyses, and the heading of each in the report.
ANALYSES = {
    "overfitting": "Overfitting to weak labels",
    "agreement": "Agreement with the supervisor",
    "prompting": "Prompting",
    "saliency": "Saliency",
    "probes": "Weak labels mended by probes",
    "weak_errors": "Which errors a supervisor makes",
}

# The method that is not a loss: a chain of students, each trained on the labels of the one before.
BOOTSTRAP = "bootstrap"


def check_names(option: str, names: list[str], known: Sequence[str]) -> None:
    """Raises `ValueError` where an option is given an unknown name, or a name twice."""
    unknown = [name for name in names if name not in known]
    if unknown:
        if "," in unknown[0]:
            raise ValueError(f"{option}: got {unknown[0]}, expected names with spaces between them, not commas.")
        raise ValueError(
            f"{option}: got {' '.join(unknown)}, expected some of {', '.join(known)}.{did_you_mean(unknown[0], known)}"
        )
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{option}: got {' '.join(names)}, expected each name once. Leave out one {twice[0]}.")


def chain_of(models: list[str], weak_model: str | None, student_model: str) -> list[str]:
    """
    Returns the models of a chain below its student, small to large.

    Args:
        models (`list[str]`): The models of `--ladder`, small to large, the student among them.
        weak_model (`str`, *optional*): The supervisor. If it is one of them, the chain begins above it.
        student_model (`str`): The student at the end of the chain.
    """
    first = models.index(weak_model) + 1 if weak_model in models else 0
    return models[first : models.index(student_model)]


@dataclass
class ExperimentArguments:
    """The experiment: whose labels, which student, which methods, how many rows and seeds."""

    _argument_group_name = "experiment"
    possible_analyses: ClassVar[tuple[str, ...]] = tuple(ANALYSES)

    dataset_path: str | None = field(
        default=None,
        metadata={
            "help": "Local directory or file in the dataset's own schema; without it the rows come from the Hub."
        },
    )
    weak_model: str | None = field(
        default=None, metadata={"help": "Weak supervisor: Hub id or local directory.", "metavar": "MODEL"}
    )
    student_model: str | None = field(
        default=None, metadata={"help": "Strong student: Hub id or local directory.", "metavar": "MODEL"}
    )
    methods: list[str] = field(
        default_factory=lambda: ["naive", "confidence"],
        metadata={"help": f"How students learn from the weak labels, of: {', '.join(METHODS)}, {BOOTSTRAP}."},
    )
    ladder: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Models of the chain of --methods {BOOTSTRAP}, small to large: each learns the labels of the one "
            "before it, the first those of --weak_model, up to --student_model (unset: the last)."
        },
    )
    link_rows: str = field(
        default="fresh",
        metadata={
            "help": "What the links of the chain learn: `fresh`, rows of their own (paper), and the last one the "
            "student half; or `same`, all the student half.",
            "choices": ["fresh", "same"],
        },
    )
    rows_fit: list[str] = field(
        default_factory=list,
        metadata={
            "help": "More models that all rows must fit, so that runs with different models have the same rows; where "
            "rows are left out for their length."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "One whole experiment a seed (models, order; demo: world)."}
    )
    n_train: int | None = field(
        default=None, metadata={"help": "Rows of the student half (unset: half of what there is)."}
    )
    n_weak: int | None = field(default=None, metadata={"help": "Rows of the weak half (unset: as --n_train)."})
    n_validation: int | None = field(
        default=None, metadata={"help": "Validation rows, for early stopping (unset: a tenth of the training rows)."}
    )
    n_test: int | None = field(default=None, metadata={"help": "Test rows (unset: all)."})
    split_seed: int = field(
        default=0, metadata={"help": "Seed of the halves; --seeds never moves a row of real data."}
    )
    weak_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the weak supervisor (unset: --learning_rate)."}
    )
    weak_num_train_epochs: float | None = field(
        default=None, metadata={"help": "Epochs of the weak supervisor (unset: --num_train_epochs)."}
    )
    weak_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the weak supervisor (unset: --weight_decay)."}
    )
    n_supervisors: int = field(
        default=1,
        metadata={"help": "Weak supervisors, trained with different seeds; the weak labels are their mean."},
    )
    keep_confident: float | None = field(
        default=None,
        metadata={
            "help": "Students learn this share of the weak labels alone, the most confident of either class (paper, "
            "appendix B)."
        },
    )
    analyses: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"What to find out besides, of: {', '.join(ANALYSES)} (pairs and puzzles: the first two). Also of "
            "a finished run: the same command with this option. With --ladder, agreement compares its models."
        },
    )
    n_snapshots: int = field(
        default=10, metadata={"help": "How often --analyses overfitting looks at a student in training."}
    )
    prompt_shots: int = field(default=5, metadata={"help": "Examples in a few-shot prompt of --analyses prompting."})
    check_memory: bool = field(
        default=True,
        metadata={"help": "Before a model is downloaded, refuse one that memory is too small for (w2s_hf.memory)."},
    )
    demo: bool = field(
        default=False, metadata={"help": "The embedded demo: generated rows, models pretrained on the spot."}
    )
    demo_documents: int | None = field(
        default=None, metadata={"help": "Pretraining documents of the demo's models (unset: each model's own)."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Replace the results of another experiment in --output_dir, which is refused otherwise. Trained "
            "stages that are cached there are kept."
        },
    )
    hub_namespace: str | None = field(
        default=None, metadata={"help": "User or organization that --push_to_hub pushes to (unset: the token's own)."}
    )
    hub_private: bool = field(default=False, metadata={"help": "Make the repositories of --push_to_hub private."})

    def __post_init__(self):
        check_names("--methods", self.methods, (*METHODS, BOOTSTRAP))
        if not self.methods:
            raise ValueError(f"--methods: got none, expected some of {', '.join(METHODS)}, {BOOTSTRAP}.")
        if self.link_rows not in ("fresh", "same"):
            raise ValueError(f"--link_rows: got {self.link_rows!r}, expected fresh or same.")
        if self.student_model is None and self.ladder:
            self.student_model = self.ladder[-1]
        if BOOTSTRAP in self.methods:
            self.check_chain()
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"--seeds: got {self.seeds}, expected one or more different integers.")
        check_names("--analyses", self.analyses, self.possible_analyses)
        if self.keep_confident is not None and not 0 < self.keep_confident <= 1:
            raise ValueError(f"--keep_confident: got {self.keep_confident}, expected a share in (0, 1].")
        if BOOTSTRAP in self.methods and (self.n_supervisors > 1 or self.keep_confident is not None):
            raise ValueError(
                f"Got --n_supervisors or --keep_confident, and --methods {BOOTSTRAP}: a chain has one supervisor, and "
                "its links learn all that they are told."
            )
        if "agreement" in self.analyses and self.ladder and self.student_model not in self.ladder:
            raise ValueError(
                f"--analyses agreement: got --student_model {self.student_model}, expected one of --ladder "
                f"{' '.join(self.ladder)}, which are compared small to large."
            )
        counts = ("n_train", "n_weak", "n_validation", "n_test", "demo_documents", "n_supervisors", "n_snapshots")
        for name in (*counts, "prompt_shots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: got {value}, expected a positive number.")

    def check_chain(self) -> None:
        """Raises `ValueError` where `--ladder` names fewer than two models, or none below the student."""
        if len(set(self.ladder)) != len(self.ladder) or len(self.ladder) < 2:
            raise ValueError(
                f"--methods {BOOTSTRAP}: got --ladder {' '.join(self.ladder) or '(nothing)'}, expected two or more "
                "different models, small to large."
            )
        if self.student_model not in self.ladder or not self.chain:
            raise ValueError(
                f"--methods {BOOTSTRAP}: got --student_model {self.student_model}, expected one of --ladder "
                f"{' '.join(self.ladder)} that has another before it, above --weak_model if that is one of them."
            )

    @property
    def chain(self) -> list[str]:
        """The models before the student, as [`chain_of`]; none without bootstrapping."""
        if self.student_model is None or BOOTSTRAP not in self.methods:
            return []
        return chain_of(self.ladder, self.weak_model, self.student_model)

    @property
    def sizes(self) -> list[str]:
        """The students that `--analyses agreement` compares, small to large; the student is one of them."""
        if "agreement" not in self.analyses:
            return []
        return self.ladder or ([] if self.student_model is None else [self.student_model])

    @property
    def models(self) -> tuple[str, str]:
        """The names of supervisor and student. Raises `ValueError` where one is missing."""
        if self.weak_model is None or self.student_model is None:
            raise ValueError(
                f"Got --weak_model {self.weak_model} and --student_model {self.student_model}, expected both."
            )
        return self.weak_model, self.student_model

    @property
    def n_links(self) -> int:
        """
        The number of links that get rows of their own. All models of `--ladder` but the last count, also those above
        the student, so that the rows of a link are the same for every student.
        """
        return len(self.ladder) - 1 if self.chain and self.link_rows == "fresh" else 0


@dataclass
class ProbabilityArguments(ExperimentArguments):
    """An experiment whose predictions are class probabilities."""

    linear_probe: bool | None = field(
        default=None,
        metadata={
            "help": "Score a linear probe of the student before finetuning, fitted to the ground truth of the student "
            "half; its regularization is chosen by the ground truth of the validation rows. A ceiling below it has "
            "not learned its task. It takes a forward pass over these rows and the test rows. Unset: on, but not in "
            "the demo, nor with FSDP or DeepSpeed, since every process holds the whole model for it."
        },
    )


@dataclass
class ClassificationArguments(ProbabilityArguments):
    """An experiment on texts with a yes or a no."""

    conversion: str = field(
        default="pairs",
        metadata={
            "help": "Rows of a multiple-choice question: `pairs`, a right and a wrong answer (paper), or `coin_flip`, "
            "either (published code).",
            "choices": ["pairs", "coin_flip"],
        },
    )
    drop_empty: bool = field(
        default=False, metadata={"help": "Leave rows with an empty field out; else they are errors."}
    )
    use_prompts: bool = field(
        default=False,
        metadata={
            "help": "Train and predict on the text inside the task's prompt, the same for all models. With "
            "--head_init answers, a student starts from its zero-shot predictions (not if its architecture caps or "
            "scales logits, as Gemma 2, Granite and Cohere)."
        },
    )
    prompt_form: str = field(
        default="task",
        metadata={
            "help": "Prompts of --analyses prompting: `task`, with the answer words of the task, or `01`, with the "
            "answers 0 and 1 (paper). The demo has prompts of its own.",
            "choices": ["task", "01"],
        },
    )
    demo_world: str = field(
        default="plain",
        metadata={
            "help": "World of the demo: `plain`, or `ladder`, a harder one in which larger students know more, and "
            "test questions are about entities that no training row is about.",
            "choices": list(DEMO_WORLDS),
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.demo and self.use_prompts:
            raise ValueError(
                "Got --use_prompts and the demo, whose models know none of the words of a prompt. Leave it out, or "
                "name real models."
            )


class _ListTasks(argparse.Action):
    """Prints the tasks and ends the process as soon as the option is read, as `--help` does."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values:
            print(task_table())
            parser.exit()


@dataclass
class AnyTaskArguments(ClassificationArguments):
    """
    An experiment on a task that is named on the command line.

    Args:
        task (`str`): As in [`w2s_hf.tasks.find_task`].
        list_tasks (`bool`, *optional*): Prints the tasks and ends the process where the command line has this option.
    """

    task: str | None = field(
        default=None, metadata={"help": "Name of a task (see --list_tasks), or a Python file that defines one."}
    )
    list_tasks: bool = field(
        default=False, metadata={"help": "Print the tasks and where their rows are, and stop.", "action": _ListTasks}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.task is None:
            raise ValueError("Got no --task; --list_tasks prints their names.")


@dataclass
class RewardArguments(ProbabilityArguments):
    """An experiment on pairs of responses: supervisor, students and ceiling are reward models."""

    possible_analyses: ClassVar[tuple[str, ...]] = ("overfitting", "agreement")

    generative_finetuning: bool = field(
        default=False,
        metadata={
            "help": "Before students and ceiling learn rewards, train them to write both responses of the same pairs "
            "(paper, 5.2.2); PGR is then given against this ceiling and against the plain one."
        },
    )
    generative_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the generative stage (unset: --learning_rate)."}
    )
    generative_num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs of the generative stage."})

    def __post_init__(self):
        super().__post_init__()
        if self.generative_num_train_epochs <= 0:
            raise ValueError(
                f"--generative_num_train_epochs: got {self.generative_num_train_epochs}, expected a positive number."
            )


@dataclass
class GenerationArguments(ExperimentArguments):
    """An experiment on prompts: supervisor, students and ceiling write completions."""

    possible_analyses: ClassVar[tuple[str, ...]] = ("overfitting", "agreement")

    methods: list[str] = field(
        default_factory=lambda: ["naive"],
        metadata={
            "help": f"How students learn from the supervisor's completions, which are text: naive, {BOOTSTRAP}."
        },
    )
    zero_shot: bool = field(
        default=True, metadata={"help": "Score the student before any finetuning, too (paper, figure 15)."}
    )

    def __post_init__(self):
        super().__post_init__()
        if set(self.methods) - {"naive", BOOTSTRAP}:
            raise ValueError(
                f"--methods: got {' '.join(self.methods)}, expected naive or {BOOTSTRAP}: the other losses are about "
                "probabilities of classes, and completions are text."
            )
        if self.n_supervisors > 1 or self.keep_confident is not None:
            raise ValueError(
                "Got --n_supervisors or --keep_confident, which are about probabilities of classes; completions are "
                "text."
            )


@dataclass
class ChessArguments(GenerationArguments):
    """An experiment on chess puzzles: supervisor, students and ceiling write the best move."""

    max_train_rating: int | None = field(
        default=None,
        metadata={
            "help": "Easy-to-hard (paper, appendix C): train the student on true moves of puzzles rated at most this, "
            "and on as many of any rating."
        },
    )
    min_hard_rating: int = field(default=2000, metadata={"help": "Easy-to-hard: test puzzles from here on are hard."})

    def __post_init__(self):
        super().__post_init__()
        if self.max_train_rating is not None and self.min_hard_rating <= self.max_train_rating:
            raise ValueError(
                f"--min_hard_rating: got {self.min_hard_rating}, expected more than --max_train_rating "
                f"{self.max_train_rating}, so that no hard puzzle counts as easy."
            )
        if self.max_train_rating is not None and self.demo:
            raise ValueError("Got --max_train_rating and the demo, whose puzzles have no rating.")
