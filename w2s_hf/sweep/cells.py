"""The cells of a sweep. Each cell is one student; models that several cells share are trained once."""

import hashlib
import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from transformers import AutoModel

from ..experiments.cache import code_versions, library_versions
from ..experiments.cli import COMMAND_LINES, options_of, parse_arguments
from ..experiments.config import ClassificationArguments
from ..experiments.experiment import Experiment, setting_of
from ..experiments.report import ceiling_warnings
from ..experiments.seed import train_supervisor
from ..methods import find_method
from ..modeling import load_config
from ..results import LinkResult, SeedResult, StudentResult
from ..tasks import find_any_task
from .grid import Cell, Job
from .plots import SWEEP_COLUMNS

__all__ = ["DEMO_CONFIGS", "Session", "run_job"]

logger = logging.getLogger(__name__)

DEMO_CONFIGS = {
    "classification": "demo_ladder.yaml",
    "reward": "demo_reward.yaml",
    "chess": "demo_chess.yaml",
}


@dataclass
class Session:
    """
    Runs cells in one process, and keeps the rows, models and stages that they share.

    Args:
        output_dir (`str`): The directory of the sweep, with the stages of all cells.
        options (`list[str]`): Command line of every cell, except for models, method and seed.
        configs (`dict[str, str]`): The YAML file of each setting.
        run_id (`str`): Name of this run of the sweep, which distinguishes its records from records of earlier runs.
        key (`str`, *optional*): Hash of all common settings of the cells that can change a number. The process that
            starts the sweep (the head) computes it and passes it to all other processes.
        code (`dict[str, str]`, *optional*): The versions of the code of the head, from [`code_versions`].
        method_files (`dict[str, str]`, *optional*): The absolute file of each method that is not a method of the
            package, by its name. On a cluster, the files are in a folder that all machines share.
        method_codes (`dict[str, str]`, *optional*): A hash of each of these methods, which the head computes.

    Raises:
        RuntimeError: This process runs other code than the head.
    """

    output_dir: str
    options: list[str]
    configs: dict[str, str]
    run_id: str = ""
    key: str = ""
    code: dict[str, str] = field(default_factory=code_versions)
    method_files: dict[str, str] = field(default_factory=dict)
    method_codes: dict[str, str] = field(default_factory=dict)
    _experiments: dict[str, Experiment] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        here = code_versions()
        if differences := [
            f"{name} {here.get(name)} instead of {there}"
            for name, there in self.code.items()
            if here.get(name) != there
        ]:
            raise RuntimeError(
                f"{socket.gethostname()} runs other code than the head node: {', '.join(differences)}. Install the "
                "same versions in the same way on all machines."
            )
        if not self.key:
            texts = {setting: Path(path).read_text() for setting, path in self.configs.items()}
            content = json.dumps([self.options, texts, self.code], sort_keys=True)
            self.key = hashlib.sha256(content.encode()).hexdigest()[:12]
            self.method_codes = {name: _hash_of_method(file) for name, file in self.method_files.items()}

    def for_others(self) -> dict:
        """Returns the arguments that create the same session in another process."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def experiment(self, cell: Cell) -> Experiment:
        """Returns the experiment of a cell. Experiments of one setting share stages, rows and base model."""
        line = COMMAND_LINES[cell.setting]
        options = [*self.options, "--config", self.configs[cell.setting], "--output_dir", self.output_dir]
        options += ["--weak_model", cell.weak_model, "--student_model", cell.student_model]
        file = self.method_files.get(cell.method)
        if file is not None and _hash_of_method(file) != self.method_codes[cell.method]:
            raise RuntimeError(
                f"{socket.gethostname()} has other code in {file} than the head node. Start the sweep again."
            )
        options += ["--methods", file or cell.method, "--seeds", str(cell.seed)]
        parsed = parse_arguments("", None, options, line.arguments, line.training, announce=False)
        if parsed[0].analyses:
            raise ValueError(
                "Got --analyses in --cell_config, expected a configuration without analyses. Remove them, and run the "
                "analyses with `w2s run`."
            )
        if parsed[0].transfer_tasks:
            raise ValueError(
                "Got --transfer_tasks in --cell_config, expected a configuration without other tasks. Remove them, "
                "and score the tasks with `w2s run`."
            )
        if isinstance(parsed[0], ClassificationArguments) and parsed[0].self_baselines is None:
            parsed[0].self_baselines = False  # the table of a sweep has no baselines
        like = self._experiments.get(cell.setting)
        task = find_any_task(cell.task)
        if options_of(task) is not line:
            raise ValueError(
                f"--tasks: got {cell.task}, a {type(task).__name__}, expected text classification or a task of the "
                f"package. Run it with `w2s run {cell.task}`."
            )
        new_experiment = Experiment(task, setting_of(task), *parsed, like=like)
        self._experiments.setdefault(cell.setting, new_experiment)
        return new_experiment

    def train_supervisor(self, cell: Cell) -> None:
        """Trains the supervisor of a cell, so that it is cached when the students' base model is loaded."""
        experiment = self.experiment(cell)
        models, splits = experiment.inputs(cell.seed)
        train_supervisor(models.weak, splits, experiment.args, cell.seed, experiment.finetuner)

    def run(self, cell: Cell) -> dict:
        """Runs a cell and returns its record: its row of the table and its results, or its error."""
        try:
            experiment = self.experiment(cell)
            context = experiment.seed_context(cell.seed)
            result = context.result
            directories = context.student_directories
            for student in result.students:
                students: list[StudentResult | LinkResult] = [student, *student.links]
                for model in students:  # a sweep does not copy students to its output directory
                    model.output = f"_stages/{directories[model.output].name}/model"
            models, _ = experiment.inputs(cell.seed)
            sizes = [_n_parameters(model.path, model.revision) for model in (models.weak, models.student)]
            results = experiment.collect([context], time.monotonic())
            if PartialState().is_main_process:
                for warning in ceiling_warnings(results):
                    logger.warning(f"{cell.name}: {warning}")
            row = _row_of(result, experiment.setting.chance, *sizes)
            row |= {"run_name": results.run_name, "preset": results.preset}
            row |= {"fingerprint": result.students[0].fingerprint}
            # `common` is the content of `results.json` without the entries that belong to several cells.
            common = {name: value for name, value in results.to_dict().items() if name not in ("runs", "wall_seconds")}
            return {**self._record(cell, "done", row), "entry": result.to_dict(), "results": common}
        except Exception as error:  # after any error, the other cells can still run
            if PartialState().num_processes > 1:
                raise  # the other ranks still run this cell; a restarted sweep continues
            for experiment in self._experiments.values():
                experiment.finetuner.release()
            logger.error(f"{cell.name} failed", exc_info=True)
            return self.failure(cell, error)

    def failure(self, cell: Cell, error: BaseException) -> dict:
        """Returns the record of a cell that failed."""
        trace = "".join(traceback.format_exception(error))
        row = {"error": f"{type(error).__name__}: {error}"}
        return {**self._record(cell, "failed", row), "traceback": trace}

    def _record(self, cell: Cell, status: str, row: dict) -> dict:
        row = {**asdict(cell), "setting": cell.setting, "status": status, **row}
        common = {"options": self.options, "versions": library_versions()}
        return {
            "cell": asdict(cell),
            "sweep": self._key_of(cell),
            "run": self.run_id,
            "status": status,
            "row": row,
            **common,
        }

    def write(self, cell: Cell, record: dict) -> None:
        """
        Writes the record of a cell to `cells/NAME.json`, atomically. A failure does not replace the record of a
        finished cell with other options or code, and is written to `cells/NAME.failed.json`.
        """
        path, failed_path = self._paths(cell)
        earlier = json.loads(path.read_text()) if path.is_file() else record
        if record["status"] == "failed" and earlier["status"] == "done" and earlier["sweep"] != self._key_of(cell):
            path = failed_path
        else:
            failed_path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{_process_name()}.partial")
        aside.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(aside, path)

    def read(self, cell: Cell, any_run: bool = False) -> dict | None:
        """Returns the record of a cell from this run, or with `any_run` from any run with the same settings."""
        for path in self._paths(cell):
            with suppress(FileNotFoundError):
                record = json.loads(path.read_text())
                if record["sweep"] == self._key_of(cell) and (any_run or record["run"] == self.run_id):
                    return record
        return None

    def table(self, cells: list[Cell]) -> pd.DataFrame:
        """Returns the tidy table: one row per recorded cell, in the order of `cells`."""
        records = [record for cell in cells if (record := self.read(cell, any_run=True)) is not None]
        return pd.DataFrame([record["row"] for record in records], columns=list(_COLUMNS)).astype(_COLUMNS)

    def _key_of(self, cell: Cell) -> str:
        """Returns the hash of all settings of a cell that its name does not contain."""
        code = self.method_codes.get(cell.method)
        return self.key if code is None else f"{self.key}-{code}"

    def _paths(self, cell: Cell) -> tuple[Path, Path]:
        directory = Path(self.output_dir) / "cells"
        return directory / f"{cell.name}.json", directory / f"{cell.name}.failed.json"


def _hash_of_method(file: str) -> str:
    """Returns a hash of everything of a method in a file that can change a result."""
    method = find_method(file)
    loss = method.loss if isinstance(method.loss, str) else ""
    content = json.dumps([loss, method.code, dict(method.training_args)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@cache
def _n_parameters(path: str, revision: str | None) -> int:
    """Returns the number of parameters of a model without its head. Reads only its configuration."""
    config = load_config(path, revision)
    with torch.device("meta"):
        network = AutoModel.from_config(config)
    return sum(parameter.numel() for parameter in network.parameters())


def _row_of(result: SeedResult, chance: float | None, weak_parameters: int, student_parameters: int) -> dict:
    """Returns the row of the tidy table for the results of one seed and one method."""
    (student,) = result.students
    accuracy_low, accuracy_high = student.ci95 or (None, None)
    pgr_low, pgr_high = student.pgr_ci95 or (None, None)
    return {
        "weak_parameters": weak_parameters,
        "student_parameters": student_parameters,
        "n_test": student.n,
        "chance": result.accuracy_of_guessing(chance),
        "weak_accuracy": result.weak.accuracy,
        "ceiling_accuracy": result.ceiling.accuracy,
        "accuracy": student.accuracy,
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
        "pgr": student.pgr,
        "pgr_low": pgr_low,
        "pgr_high": pgr_high,
        "pgr_undefined": student.pgr_undefined,
        "agreement": student.agreement.overall,
        "agreement_supervisor_right": student.agreement.supervisor_right,
        "agreement_supervisor_wrong": student.agreement.supervisor_wrong,
        "direct_accuracy": student.direct["same_rows"].accuracy if student.direct else None,
    }


# The figures do not need these columns of the table.
_ABOUT_THE_RUN = ("run_name", "preset", "fingerprint")
_TEXT = {"task", "setting", "weak_model", "student_model", "method", "status", "pgr_undefined", "error"}
_TEXT |= set(_ABOUT_THE_RUN)
_COUNTS = {"weak_parameters", "student_parameters", "n_test"}
_COLUMNS = {
    name: "string" if name in _TEXT else "Int64" if name in _COUNTS else "int64" if name == "seed" else "float64"
    for name in (*SWEEP_COLUMNS, *_ABOUT_THE_RUN)
}


def run_job(session: Session, job: Job, on_record: Callable[[Cell, dict], None] = lambda cell, record: None) -> None:
    """Runs the cells of a job and writes a record per cell, `cells/NAME.json`."""
    with _logged_to(Path(session.output_dir) / "logs" / f"{_process_name()}.txt"):
        for cell in job.cells:
            if job.only_supervisors:
                try:
                    session.train_supervisor(cell)
                except Exception as error:  # the cells raise and record this error again
                    if PartialState().num_processes > 1:
                        raise
                    logger.error(f"{cell.weak_model}, {cell.task}, seed {cell.seed}: {error}", exc_info=True)
                continue
            record = session.run(cell)
            if PartialState().is_main_process:
                session.write(cell, record)
            on_record(cell, record)


def _process_name() -> str:
    """Returns a name that is unique among the processes of all machines."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Redirects the output and the debug log of training runs to a file, since the screen shows the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    with open(path, "a", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handlers, root.handlers = root.handlers, [handler]
        package = logging.getLogger("w2s_hf")
        level = package.level
        if package.isEnabledFor(logging.INFO):  # rank 0
            package.setLevel(logging.DEBUG)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            root.handlers = handlers
            package.setLevel(level)


def main(path: str) -> None:
    """Runs a job in a separate process: `accelerate launch -m w2s_hf.sweep.cells JOB.json`."""
    job = json.loads(Path(path).read_text())
    logging.getLogger("w2s_hf").setLevel(logging.INFO)
    run_job(Session(**job["session"]), Job(tuple(Cell(**cell) for cell in job["cells"]), job["only_supervisors"]))


if __name__ == "__main__":
    main(sys.argv[1])
