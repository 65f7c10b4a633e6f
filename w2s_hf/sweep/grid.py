"""The cells of a sweep, and the order in which they run."""

import hashlib
import itertools
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..config import METHODS
from ..experiments.config import BOOTSTRAP, chain_of, check_names
from ..tasks import CHESS_TASK, PREFERENCE_TASKS

__all__ = ["CHESS_TASK", "Cell", "Job", "SweepArguments", "cells_of", "rounds_of"]

logger = logging.getLogger(__name__)


@dataclass
class SweepArguments:
    """The grid, and how it is run. Every other option is one of the recipes and goes to all cells."""

    _argument_group_name = "sweep"

    tasks: list[str] = field(
        default_factory=lambda: ["boolq"],
        metadata={"help": f"Names of tasks (nlp.py --list_tasks), {', '.join(PREFERENCE_TASKS)}, {CHESS_TASK}."},
    )
    weak_models: list[str] = field(default_factory=list, metadata={"help": "Supervisors: Hub ids or directories."})
    student_models: list[str] = field(
        default_factory=list,
        metadata={"help": "Students, small to large; those named before their supervisor are left out."},
    )
    methods: list[str] = field(
        default_factory=lambda: ["naive", "confidence"],
        metadata={"help": "As of the recipes; the chain of bootstrap has all of --ladder that is below the student."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "As of the recipes."})
    cell_config: str | None = field(
        default=None,
        metadata={
            "help": "YAML file of options for all cells, whose tasks are then of one setting; see recipes/configs "
            "(unset: the demo of each setting)."
        },
    )
    output_dir: str = field(default="outputs/sweep", metadata={"help": "Where everything is written to."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Replace the results of another sweep or experiment in --output_dir, which is refused otherwise. "
            "Trained stages that are cached there are kept."
        },
    )
    resume: bool = field(
        default=True, metadata={"help": "Go on where an earlier run was; false trains everything again."}
    )
    engine: str = field(
        default="local",
        metadata={"help": "`local`: here, cell by cell; `ray`: on a Ray cluster.", "choices": ["local", "ray"]},
    )
    ray_address: str = field(
        default="auto", metadata={"help": "Of the cluster, as of ray.init; `auto` is the one this machine is in."}
    )
    cell_cpus: float = field(default=1, metadata={"help": "CPU cores a cell; ray only."})
    cell_gpus: float = field(default=0, metadata={"help": "GPUs a cell; ray only."})
    accelerate_config: str | None = field(
        default=None,
        metadata={
            "help": "Launch each cell by accelerate with this configuration; ray only, for several GPUs a cell."
        },
    )

    def __post_init__(self):
        check_names("--methods", self.methods, (*METHODS, BOOTSTRAP))
        for name in ("tasks", "weak_models", "student_models", "methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                got = " ".join(map(str, values)) or "nothing"
                raise ValueError(f"--{name}: got {got}, expected one or more different values.")
        if self.engine not in ("local", "ray"):
            raise ValueError(f"--engine: got {self.engine!r}, expected local or ray.")
        if self.accelerate_config is not None and self.engine != "ray":
            raise ValueError(
                "Got --accelerate_config and the local engine; launch the sweep itself: accelerate launch "
                f"--config_file {self.accelerate_config} recipes/sweep.py ..."
            )


@dataclass(frozen=True)
class Cell:
    """One student, with its task, its supervisor, its method and its seed."""

    task: str
    weak_model: str
    student_model: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        parts = [self.task, self.weak_model, self.student_model, self.method, f"seed{self.seed}"]
        readable = "-".join(Path(part).name for part in parts)
        return f"{readable}-{hashlib.sha256(repr(self).encode()).hexdigest()[:6]}"

    @property
    def setting(self) -> str:
        """The setting of its task: `classification`, `reward` or `chess`."""
        if self.task == CHESS_TASK:
            return "chess"
        return "reward" if self.task in PREFERENCE_TASKS else "classification"


@dataclass(frozen=True)
class Job:
    """
    The cells that one process runs one after the other, because they share a base, a ceiling or a supervisor.

    Args:
        cells (`tuple` of [`Cell`]): The cells, in the order in which they run.
        only_supervisors (`bool`): Train the supervisors of these cells, and no more.
    """

    cells: tuple[Cell, ...]
    only_supervisors: bool = False


def cells_of(args: SweepArguments, chain_models: dict[str, list[str]]) -> list[Cell]:
    """
    Returns the grid without the cells that make no sense.

    Args:
        args ([`SweepArguments`]): The grid.
        chain_models (`dict[str, list[str]]`): By setting, the models of `--ladder` in the options of its cells.

    Raises:
        ValueError: no cell is left.
    """
    cells: list[Cell] = []
    skipped: Counter[str] = Counter()
    grid = itertools.product(args.tasks, args.weak_models, args.student_models, args.methods, args.seeds)
    for cell in itertools.starmap(Cell, grid):
        students, models = args.student_models, chain_models[cell.setting]
        reason = None
        if cell.weak_model in students[students.index(cell.student_model) + 1 :]:
            reason = "a student that comes before its supervisor"
        elif cell.method == BOOTSTRAP and cell.student_model not in models:
            reason = "bootstrap of a student that is not on the --ladder of the cells"
        elif cell.method == BOOTSTRAP and not chain_of(models, cell.weak_model, cell.student_model):
            reason = "a chain of one"
        elif cell.setting == "chess" and cell.method not in ("naive", BOOTSTRAP):
            reason = "a loss on probabilities, for moves"
        if reason is None:
            cells.append(cell)
        else:
            skipped[reason] += 1
    for reason, count in skipped.items():
        logger.warning(f"{count} cells of the grid are left out: {reason}")
    if not cells:
        raise ValueError("The grid has no cell; name students that come after a supervisor, and known methods.")
    return cells


def rounds_of(cells: list[Cell]) -> list[list[Job]]:
    """
    Returns the jobs in rounds, each of which needs the rounds before: supervisors, students, chains. Within a round,
    the jobs of one student follow one another, so that one process loads its base once.
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
