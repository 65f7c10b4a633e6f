"""The options of an experiment on the command line, except the options of its trainer and its student."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..command_line import did_you_mean
from ..demo.worlds import DEMO_WORLDS
from ..methods import BOOTSTRAP, METHODS, Method, find_methods
from ..tasks import task_table

__all__ = [
    "ANALYSES",
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

# `Own` stands for a type that differs between settings: task, arguments, training arguments, trainer, predictions, and
# the world of the demo. The methods of a setting declare the actual type.
Own = Any

# Analyses of --analyses, with the heading of each in the report
ANALYSES = {
    "overfitting": "Overfitting to weak labels",
    "agreement": "Agreement with the supervisor",
    "prompting": "Prompting",
    "saliency": "Saliency",
    "probes": "Weak labels corrected by probes",
    "weak_errors": "Supervisor errors",
}


def check_names(option: str, names: list[str], known: Sequence[str]) -> None:
    """Raises `ValueError` if an option has an unknown or a duplicate name."""
    unknown = [name for name in names if name not in known]
    if unknown:
        if "," in unknown[0]:
            raise ValueError(
                f"{option}: got {unknown[0]}, expected names separated by spaces. Replace the commas with spaces."
            )
        raise ValueError(
            f"{option}: got {' '.join(unknown)}, expected some of {', '.join(known)}.{did_you_mean(unknown[0], known)}"
        )
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{option}: got duplicate names: {' '.join(names)}. Remove one {twice[0]}.")


def chain_of(models: list[str], weak_model: str | None, student_model: str) -> list[str]:
    """
    Returns the models of a chain below its student, small to large.

    Args:
        models (`list[str]`): The models of `--ladder`, small to large, with the student.
        weak_model (`str`, *optional*): The supervisor. If it is one of the models, the chain begins above it.
        student_model (`str`): The student at the end of the chain.
    """
    first = models.index(weak_model) + 1 if weak_model in models else 0
    return models[first : models.index(student_model)]


@dataclass
class ExperimentArguments:
    """The arguments of an experiment: supervisor, student, methods, rows and seeds."""

    _argument_group_name = "experiment"
    possible_analyses: ClassVar[tuple[str, ...]] = tuple(ANALYSES)

    dataset_path: str | None = field(
        default=None,
        metadata={
            "help": "Local directory or file of the rows, with the columns of the dataset. Unset: the rows are "
            "downloaded from the Hub.",
            "metavar": "PATH",
        },
    )
    weak_model: str | None = field(
        default=None,
        metadata={"help": "Model to train as weak supervisor: Hub id or local directory.", "metavar": "MODEL"},
    )
    student_model: str | None = field(
        default=None,
        metadata={"help": "Model to train as student and as ceiling: Hub id or local directory.", "metavar": "MODEL"},
    )
    methods: list[str] = field(
        default_factory=lambda: ["naive", "confidence"],
        metadata={
            "help": f"Methods of training students on weak labels: {', '.join(METHODS)}, {BOOTSTRAP}, or a Python "
            "file with a method of your own, such as my_method.py:NAME. `naive` is plain finetuning. The default "
            "compares it with the paper's confidence loss. `bootstrap` trains a chain of models (see --ladder).",
            "metavar": "METHOD",
        },
    )
    ladder: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Models of the bootstrapping chain (--methods {BOOTSTRAP}), small to large. The first "
            "model is trained on labels of --weak_model, and each later model on labels of the previous model. The "
            "chain ends at --student_model (unset: the last model). With --analyses agreement, these models are "
            "compared as students.",
            "metavar": "MODEL",
        },
    )
    link_rows: str = field(
        default="fresh",
        metadata={
            "help": "Training rows of the bootstrapping chain. `fresh`: each intermediate model gets separate rows, "
            "and the student gets the student half (paper). `same`: all models are trained on the student half.",
            "choices": ["fresh", "same"],
        },
    )
    rows_fit: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Additional models whose context length every row must fit. Rows that are too long for one of "
            "these models are left out, so that runs with different models have the same rows.",
            "metavar": "MODEL",
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={
            "help": "Random seeds. Each seed runs the whole experiment once, with a different initialization and row "
            "order (demo: also with different generated rows).",
            "metavar": "SEED",
        },
    )
    n_train: int | None = field(
        default=None,
        metadata={
            "help": "Number of training rows of students and ceiling (the student half). Unset: the value of "
            "--n_weak, or 0.45 of the training rows (0.1 are for validation)."
        },
    )
    n_weak: int | None = field(
        default=None,
        metadata={
            "help": "Number of training rows of the weak supervisor (the weak half). Unset: the value of --n_train, "
            "or 0.45 of the training rows (0.1 are for validation)."
        },
    )
    n_validation: int | None = field(
        default=None,
        metadata={
            "help": "Number of validation rows for early stopping: one half for the supervisor, the other half for "
            "students. Unset: a tenth of the training rows."
        },
    )
    n_test: int | None = field(default=None, metadata={"help": "Number of test rows. Unset: all rows."})
    split_seed: int = field(
        default=0,
        metadata={"help": "Seed of the split into halves. --seeds does not change the split of real datasets."},
    )
    weak_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the weak supervisor. Unset: the value of --learning_rate."}
    )
    weak_num_train_epochs: float | None = field(
        default=None,
        metadata={"help": "Number of training epochs of the weak supervisor. Unset: the value of --num_train_epochs."},
    )
    weak_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the weak supervisor. Unset: the value of --weight_decay."}
    )
    n_supervisors: int = field(
        default=1,
        metadata={
            "help": "Number of weak supervisors, trained with different seeds. The weak labels are the mean of their "
            "predictions. The method `learned_supervisors` learns a weight per supervisor instead."
        },
    )
    keep_confident: float | None = field(
        default=None,
        metadata={
            "help": "Train students only on this share in (0, 1] of the weak labels: the most confident labels of "
            "each class (paper, appendix B). Unset: all labels."
        },
    )
    analyses: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Additional analyses to run: {', '.join(ANALYSES)}. Preferences and generation have only the "
            "first two. To add analyses to a finished run, repeat its command with this option.",
            "metavar": "ANALYSIS",
        },
    )
    transfer_tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Other tasks on whose test rows supervisor, students and ceiling are also scored, without further "
            "training. Texts: names or Python files of tasks with the same class names. Pairs: any other task of "
            "pairs. To add tasks to a finished run, repeat its command with this option.",
            "metavar": "TASK",
        },
    )
    n_snapshots: int = field(
        default=10, metadata={"help": "Number of evaluations during training, for --analyses overfitting."}
    )
    prompt_shots: int = field(
        default=5, metadata={"help": "Number of examples in a few-shot prompt, for --analyses prompting (paper: 5)."}
    )
    check_memory: bool = field(
        default=True,
        metadata={
            "help": "Estimate the memory of a model before its download, and stop if the memory of the device is too "
            "small."
        },
    )
    demo: bool = field(
        default=False,
        metadata={"help": "Run the embedded demo: generated rows, and small models that are pretrained first."},
    )
    demo_documents: int | None = field(
        default=None,
        metadata={
            "help": "Number of generated documents on which each model of the demo is pretrained. Unset: the default "
            "of each model."
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Replace the results of another experiment in --output_dir. Without this option, the run stops "
            "with an error. Trained stages that are cached in the directory are kept."
        },
    )
    hub_namespace: str | None = field(
        default=None,
        metadata={
            "help": "User or organization that owns the repositories of --push_to_hub. Unset: the owner of the token.",
            "metavar": "NAME",
        },
    )
    hub_private: bool = field(default=False, metadata={"help": "Make new repositories of --push_to_hub private."})

    def __post_init__(self):
        methods = self.methods_by_name  # raises an error for an unknown method
        if self.link_rows not in ("fresh", "same"):
            raise ValueError(f"--link_rows: got {self.link_rows!r}, expected fresh or same.")
        if self.student_model is None and self.ladder:
            self.student_model = self.ladder[-1]
        if BOOTSTRAP in methods:
            self.check_chain()
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"--seeds: got {self.seeds}, expected one or more different integers.")
        check_names("--analyses", self.analyses, self.possible_analyses)
        if self.keep_confident is not None and not 0 < self.keep_confident <= 1:
            raise ValueError(f"--keep_confident: got {self.keep_confident}, expected a share in (0, 1].")
        if BOOTSTRAP in methods and (self.n_supervisors > 1 or self.keep_confident is not None):
            raise ValueError(
                f"Got --n_supervisors or --keep_confident with --methods {BOOTSTRAP}, expected one supervisor and all "
                "of its labels. Leave these options out, or run the other methods separately."
            )
        needs_supervisors = [name for name, method in methods.items() if method.needs_supervisors]
        if needs_supervisors and self.n_supervisors == 1:
            raise ValueError(
                f"--methods {needs_supervisors[0]}: got --n_supervisors 1, expected at least 2, because the method "
                "learns the weights of several supervisors. Set --n_supervisors 3."
            )
        if "agreement" in self.analyses and self.ladder and self.student_model not in self.ladder:
            raise ValueError(
                f"--analyses agreement: got --student_model {self.student_model}, expected one of --ladder "
                f"{' '.join(self.ladder)}. Add the student to --ladder."
            )
        counts = ("n_train", "n_weak", "n_validation", "n_test", "demo_documents", "n_supervisors", "n_snapshots")
        for name in (*counts, "prompt_shots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}: got {value}, expected a positive number.")

    @property
    def methods_by_name(self) -> dict[str, Method]:
        """The methods by name, in order; see [`find_methods`]."""
        return find_methods(self.methods)

    def check_chain(self) -> None:
        """Raises `ValueError` if `--ladder` has fewer than two models, or no model below the student."""
        if len(set(self.ladder)) != len(self.ladder) or len(self.ladder) < 2:
            raise ValueError(
                f"--methods {BOOTSTRAP}: got --ladder {' '.join(self.ladder) or '(nothing)'}, expected two or more "
                "different models, small to large. Add models to --ladder."
            )
        if self.student_model not in self.ladder or not self.chain:
            raise ValueError(
                f"--methods {BOOTSTRAP}: got --student_model {self.student_model}, expected one of --ladder "
                f"{' '.join(self.ladder)} with another model before it. If --weak_model is in --ladder, only the "
                "models between it and the student count. Add a model directly before the student."
            )

    @property
    def chain(self) -> list[str]:
        """The models of the chain before the student, see [`chain_of`]; empty without bootstrapping."""
        if self.student_model is None or BOOTSTRAP not in self.methods_by_name:
            return []
        return chain_of(self.ladder, self.weak_model, self.student_model)

    @property
    def sizes(self) -> list[str]:
        """The students that `--analyses agreement` compares, small to large, with the student itself."""
        if "agreement" not in self.analyses:
            return []
        return self.ladder or ([] if self.student_model is None else [self.student_model])

    @property
    def models(self) -> tuple[str, str]:
        """The names of supervisor and student. Raises `ValueError` if a name is missing."""
        if self.weak_model is None or self.student_model is None:
            raise ValueError(
                f"Got --weak_model {self.weak_model} and --student_model {self.student_model}, expected two models. "
                "Set both options."
            )
        return self.weak_model, self.student_model

    @property
    def n_links(self) -> int:
        """
        The number of links with separate rows. All models of `--ladder` except the last are counted, even models above
        the student. The rows of a link are therefore the same for every student.
        """
        return len(self.ladder) - 1 if self.chain and self.link_rows == "fresh" else 0


@dataclass
class ProbabilityArguments(ExperimentArguments):
    """The options of an experiment whose predictions are class probabilities."""

    linear_probe: bool | None = field(
        default=None,
        metadata={
            "help": "Score a linear probe of the student before finetuning, as a baseline. A ceiling below this "
            "baseline was not trained enough. The probe is fitted to the ground truth of the student half, and its "
            "regularization is chosen on the validation rows. The probe needs a forward pass over these rows and the "
            "test rows. Unset: true, except in the demo and with FSDP or DeepSpeed, where every process would hold "
            "the whole model."
        },
    )


@dataclass
class ClassificationArguments(ProbabilityArguments):
    """The options of an experiment on texts with two classes."""

    conversion: str = field(
        default="pairs",
        metadata={
            "help": "Rows per multiple-choice question. `pairs`: one row with a right and one row with a wrong "
            "answer (paper). `coin_flip`: one of these two rows, at random (published code).",
            "choices": ["pairs", "coin_flip"],
        },
    )
    drop_empty: bool = field(
        default=False,
        metadata={"help": "Leave out rows with an empty field. Without this option, such a row raises an error."},
    )
    use_prompts: bool = field(
        default=False,
        metadata={
            "help": "Put every text into the prompt of the task, for all models. With --head_init answers, a student "
            "then starts from its zero-shot predictions. Exceptions are architectures that cap or scale logits, such "
            "as Gemma 2, Granite and Cohere."
        },
    )
    prompt_form: str = field(
        default="task",
        metadata={
            "help": "Answers in the prompts of --analyses prompting and --self_baselines. `task`: the answer words of "
            "the task. `01`: the digits 0 and 1 (paper). The demo ignores this option.",
            "choices": ["task", "01"],
        },
    )
    self_baselines: bool | None = field(
        default=None,
        metadata={
            "help": "Score baselines of the student's own knowledge: its zero-shot and few-shot answers, and a "
            "student trained on its zero-shot answers. The prompt is the prompt of the task, and examples have weak "
            "labels. All answers are balanced by their median. Unset: true for decoders that know the answer words. "
            "The demo leaves the baselines out, because its models do not know such prompts. FSDP and DeepSpeed leave "
            "them out, because each process would load the whole student."
        },
    )
    demo_world: str = field(
        default="plain",
        metadata={
            "help": "Generated rows of the demo. `plain`: easy rows. `ladder`: harder rows, on which larger students "
            "are better. The test questions of `ladder` are about entities that no training row mentions.",
            "choices": list(DEMO_WORLDS),
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.demo and self.use_prompts:
            raise ValueError(
                "Got --use_prompts and the demo, whose models do not know the words of a prompt. Leave the option "
                "out, or name real models."
            )


class _ListTasks(argparse.Action):
    """Prints the tasks and ends the process when the option is read, as `--help` does."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values:
            print(task_table())
            parser.exit()


@dataclass
class AnyTaskArguments(ClassificationArguments):
    """
    The options of an experiment on a task that is named on the command line.

    Args:
        task (`str`): As in [`w2s_hf.tasks.find_task`].
        list_tasks (`bool`, *optional*): On the command line, prints the tasks and ends the process.
    """

    task: str | None = field(
        default=None,
        metadata={"help": "Name of a task (see --list_tasks), or a Python file with a task.", "metavar": "TASK"},
    )
    list_tasks: bool = field(
        default=False,
        metadata={"help": "Print the tasks and the sources of their rows, and exit.", "action": _ListTasks},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.task is None:
            raise ValueError("Got no --task, expected the name of a task. --list_tasks prints the names.")


@dataclass
class RewardArguments(ProbabilityArguments):
    """The options of an experiment on pairs of responses, in which all models are reward models."""

    possible_analyses: ClassVar[tuple[str, ...]] = ("overfitting", "agreement")

    generative_finetuning: bool = field(
        default=False,
        metadata={
            "help": "Before reward training, finetune students and ceiling to write both responses of the pairs "
            "(paper, 5.2.2). Results then have PGR against the ceiling with this finetuning and against the plain "
            "ceiling."
        },
    )
    generative_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of --generative_finetuning. Unset: the value of --learning_rate."},
    )
    generative_num_train_epochs: float = field(
        default=1.0, metadata={"help": "Number of training epochs of --generative_finetuning."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.generative_num_train_epochs <= 0:
            raise ValueError(
                f"--generative_num_train_epochs: got {self.generative_num_train_epochs}, expected a positive number."
            )


@dataclass
class GenerationArguments(ExperimentArguments):
    """The options of an experiment on prompts, in which all models write completions."""

    possible_analyses: ClassVar[tuple[str, ...]] = ("overfitting", "agreement")

    methods: list[str] = field(
        default_factory=lambda: ["naive"],
        metadata={
            "help": f"Methods of training students on completions of the supervisor: naive, {BOOTSTRAP}, or a Python "
            "file with a method of your own. The other methods need class probabilities.",
            "metavar": "METHOD",
        },
    )
    zero_shot: bool = field(
        default=True, metadata={"help": "Also score the student before finetuning (paper, figure 15)."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.transfer_tasks:
            raise ValueError(
                f"--transfer_tasks: got {' '.join(self.transfer_tasks)} for a task with completions, expected text "
                "classification or pairs of responses. Leave the option out."
            )
        wrong = [name for name, method in self.methods_by_name.items() if method.needs_probabilities]
        if wrong:
            raise ValueError(
                f"--methods: got {' '.join(wrong)}, expected naive, {BOOTSTRAP} or a method of your own with the loss "
                "xent. The other methods need class probabilities, but completions are text."
            )
        if self.n_supervisors > 1 or self.keep_confident is not None:
            raise ValueError(
                "Got --n_supervisors or --keep_confident, but completions are text and have no class probabilities. "
                "Leave these options out."
            )


@dataclass
class ChessArguments(GenerationArguments):
    """The options of an experiment on chess puzzles, in which all models write the best move."""

    max_train_rating: int | None = field(
        default=None,
        metadata={
            "help": "Easy-to-hard generalization (paper, appendix C): also train a student on true moves of puzzles "
            "up to this rating. For comparison, a second student is trained on the same number of puzzles of any "
            "rating."
        },
    )
    min_hard_rating: int = field(
        default=2000,
        metadata={"help": "Lowest rating of the test puzzles that count as hard, for --max_train_rating."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_train_rating is not None and self.min_hard_rating <= self.max_train_rating:
            raise ValueError(
                f"--min_hard_rating: got {self.min_hard_rating}, expected more than --max_train_rating "
                f"{self.max_train_rating}, so that no hard puzzle counts as easy."
            )
        if self.max_train_rating is not None and self.demo:
            raise ValueError(
                "Got --max_train_rating and the demo, whose puzzles have no ratings. Remove --max_train_rating."
            )
