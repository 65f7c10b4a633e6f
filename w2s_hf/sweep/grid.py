"""The cells of a sweep, and the order in which they run."""

import hashlib
import itertools
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..experiments.config import chain_of
from ..methods import BOOTSTRAP, METHODS, Method, find_methods
from ..tasks import CHESS_TASK, PREFERENCE_TASKS
from ..user_code import split_path

__all__ = ["CHESS_TASK", "Cell", "Job", "SweepArguments", "cells_of", "rounds_of"]

logger = logging.getLogger(__name__)


@dataclass
class SweepArguments:
    """The options of a sweep. All other options are options of `w2s run`, and apply to all cells."""

    _argument_group_name = "sweep"

    tasks: list[str] = field(
        default_factory=lambda: ["boolq"],
        metadata={"help": "Names of the tasks of the grid. `w2s tasks` lists them.", "metavar": "TASK"},
    )
    weak_models: list[str] = field(
        default_factory=list,
        metadata={"help": "Weak supervisors: Hub ids or local directories.", "metavar": "MODEL"},
    )
    student_models: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Students, small to large. Cells whose student comes before its supervisor in this list are left "
            "out.",
            "metavar": "MODEL",
        },
    )
    methods: list[str] = field(
        default_factory=lambda: ["naive", "confidence"],
        metadata={
            "help": f"Methods of training students on weak labels: {', '.join(METHODS)}, {BOOTSTRAP}, or a Python "
            "file with a method of your own, such as my_method.py:NAME. The default compares plain finetuning with "
            f"the paper's confidence loss. With {BOOTSTRAP}, the chain consists of all models of --ladder below the "
            "student.",
            "metavar": "METHOD",
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={
            "help": "Random seeds. Each seed runs the whole grid once, with a different initialization.",
            "metavar": "SEED",
        },
    )
    cell_config: str | None = field(
        default=None,
        metadata={
            "help": "YAML file of options for all cells, or the name of a shipped configuration. All tasks must then "
            "have the same setting. By default, each setting uses its demo.",
            "metavar": "NAME",
        },
    )
    output_dir: str = field(
        default="outputs/sweep", metadata={"help": "Directory for the table, report, figures and trained stages."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Replace the results of another sweep or experiment in --output_dir. Without this option, the "
            "sweep stops with an error. Trained stages that are cached in the directory are kept."
        },
    )
    resume: bool = field(
        default=True, metadata={"help": "Continue an earlier run in --output_dir. `false`: train everything again."}
    )
    engine: str = field(
        default="local",
        metadata={
            "help": "`local`: run the cells in this process, one after the other. `ray`: run them on a Ray cluster.",
            "choices": ["local", "ray"],
        },
    )
    ray_address: str = field(
        default="auto",
        metadata={"help": "Address of the Ray cluster, such as HOST:6379. `auto`: the cluster of this machine."},
    )
    cell_cpus: float = field(default=1, metadata={"help": "Number of CPU cores per cell, with --engine ray."})
    cell_gpus: float = field(default=0, metadata={"help": "Number of GPUs per cell, with --engine ray."})
    accelerate_config: str | None = field(
        default=None,
        metadata={
            "help": "Launch through accelerate with this configuration: single, ddp, fsdp, zero3, or a file of "
            "`accelerate config`. With --engine ray, accelerate launches each cell. Otherwise, it launches the sweep.",
            "metavar": "NAME",
        },
    )

    def __post_init__(self):
        if any(isinstance(method, Method) for method in self.methods):
            raise TypeError(
                "methods: got a Method, expected names or files, because other processes load the methods. Define the "
                "method in a file, and pass its path: my_method.py:NAME."
            )
        find_methods(self.methods)  # raises an error for an unknown method
        for name in ("tasks", "weak_models", "student_models", "methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                got = " ".join(map(str, values)) or "nothing"
                raise ValueError(f"--{name}: got {got}, expected one or more different values.")
        if self.engine not in ("local", "ray"):
            raise ValueError(f"--engine: got {self.engine!r}, expected local or ray.")
        if self.accelerate_config is not None and self.engine != "ray":
            raise ValueError(
                "Got --accelerate_config with --engine local, expected --engine ray. Set --engine ray to launch each "
                f"cell, or launch the sweep with `w2s sweep --accelerate_config {self.accelerate_config}`."
            )

    @property
    def methods_by_name(self) -> dict[str, Method]:
        """The methods by name, in order; see [`find_methods`]."""
        return find_methods(self.methods)

    @property
    def method_files(self) -> dict[str, str]:
        """The absolute file and the variable of each method that a file defines, by the name of the method."""
        files = {}
        for entry, name in zip(self.methods, self.methods_by_name, strict=True):
            if (place := split_path(entry)) is not None:
                path, variable = place
                files[name] = f"{path.resolve()}:{variable}" if variable else str(path.resolve())
        return files


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: one student, with its task, supervisor, method (its name) and seed."""

    task: str
    weak_model: str
    student_model: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the files of the cell."""
        parts = [self.task, self.weak_model, self.student_model, self.method, f"seed{self.seed}"]
        readable = "-".join(Path(part).name for part in parts)
        return f"{readable}-{hashlib.sha256(repr(self).encode()).hexdigest()[:6]}"

    @property
    def setting(self) -> str:
        """The setting of the task: `classification`, `reward` or `chess`."""
        if self.task == CHESS_TASK:
            return "chess"
        return "reward" if self.task in PREFERENCE_TASKS else "classification"


@dataclass(frozen=True)
class Job:
    """
    The cells that one process runs in order, because they share a base model, a ceiling or a supervisor.

    Args:
        cells (`tuple` of [`Cell`]): The cells, in the order in which they run.
        only_supervisors (`bool`): Whether to train only the supervisors of these cells.
    """

    cells: tuple[Cell, ...]
    only_supervisors: bool = False


def cells_of(args: SweepArguments, chain_models: dict[str, list[str]]) -> list[Cell]:
    """
    Returns the cells of the grid that can run.

    Args:
        args ([`SweepArguments`]): The grid.
        chain_models (`dict[str, list[str]]`): The models of `--ladder` in the cell options of each setting.

    Raises:
        ValueError: No cell can run.
    """
    cells: list[Cell] = []
    skipped: Counter[str] = Counter()
    methods = args.methods_by_name
    grid = itertools.product(args.tasks, args.weak_models, args.student_models, methods, args.seeds)
    for cell in itertools.starmap(Cell, grid):
        students, models, method = args.student_models, chain_models[cell.setting], methods[cell.method]
        reason = None
        if cell.weak_model in students[students.index(cell.student_model) + 1 :]:
            reason = "the student comes before its supervisor"
        elif cell.method == BOOTSTRAP and cell.student_model not in models:
            reason = "bootstrap, and the student is not in --ladder"
        elif cell.method == BOOTSTRAP and not chain_of(models, cell.weak_model, cell.student_model):
            reason = "bootstrap, and --ladder has no model between supervisor and student"
        elif cell.setting == "chess" and method.needs_probabilities:
            reason = "the method needs class probabilities, and chess moves are text"
        elif cell.setting != "classification" and method.needs_prompts:
            reason = "the method uses zero-shot answers, and pairs have no prompt"
        if reason is None:
            cells.append(cell)
        else:
            skipped[reason] += 1
    for reason, count in skipped.items():
        logger.warning(f"{count} cells of the grid are left out: {reason}")
    if not cells:
        raise ValueError(
            "Got a grid without cells, expected at least one cell. List --student_models from small to "
            "large, with a student larger than a supervisor."
        )
    return cells


def rounds_of(cells: list[Cell]) -> list[list[Job]]:
    """
    Returns the jobs in three rounds: supervisors, students, chains. A round needs the results of the rounds before it.
    Within a round, the jobs of one student are adjacent, so that one process loads its base model once.
    """
    supervisors: dict[tuple, Cell] = {}
    students: dict[tuple, list[Cell]] = {}
    chains: dict[tuple, list[Cell]] = {}
    for cell in cells:
        supervisors.setdefault((cell.task, cell.weak_model, cell.seed), cell)
        group = chains if cell.method == BOOTSTRAP else students
        group.setdefault((cell.setting, cell.student_model, cell.task, cell.seed), []).append(cell)
    order = {key: number for number, key in enumerate(dict.fromkeys((c.setting, c.student_model) for c in cells))}
    rounds = [[Job((cell,), only_supervisors=True) for cell in supervisors.values()]]
    for group in (students, chains):
        rounds.append([Job(tuple(group[key])) for key in sorted(group, key=lambda key: order[key[:2]])])
    return rounds
