"""Runs a sweep: a grid of experiments, in this process or on a cluster, with one table of results."""

import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState

from ..cards.trained_with import subject
from ..config import LossArguments
from ..experiments.experiment import Experiment
from ..experiments.output_directory import Manifest, check_output_dir, clear
from .cells import DEMO_CONFIGS, Session, run_job
from .cluster import run_on_cluster
from .grid import Cell, Job, SweepArguments, cells_of, rounds_of
from .live import SweepView
from .report import write_sweep_report

__all__ = ["run_sweep"]


def run_sweep(args: SweepArguments, options: list[str], configs_dir: Path) -> pd.DataFrame:
    """
    Runs all cells of a grid and writes `sweep.parquet`, `sweep.csv`, `report.html` and figures below
    `args.output_dir`.

    A stage that several cells share, such as a supervisor or a ceiling, is trained once. If a cell fails, its error is
    recorded, and the other cells run. Trained stages are cached, so that a stopped sweep can be resumed.

    Args:
        args ([`SweepArguments`]): The grid.
        options (`list[str]`): The command line of every cell, without models, method and seed.
        configs_dir (`Path`): The directory of the configurations of the demos.

    Returns:
        `pandas.DataFrame`: The tidy table, with one row per cell.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: An option, a file or a model is wrong. Nothing was trained.
    """
    output_dir = Path(args.output_dir).resolve()
    state = PartialState()
    if state.num_processes > 1 and args.engine == "ray":
        raise ValueError(
            "Got --engine ray and several processes, expected one process. Start the sweep without a launcher."
        )
    sources = {setting: str(path) for setting, path in config_files(args, configs_dir).items()}
    session = Session(str(output_dir), options, sources)
    first = {cell.setting: session.experiment(cell) for cell in first_cells(args)}
    for experiment in first.values():
        demo_models = experiment.setting.demo_models
        if experiment.args.demo and not {*args.weak_models, *args.student_models} & set(demo_models):
            raise ValueError(
                "Got the demo (no --cell_config) and none of its models, expected some of "
                f"{', '.join(demo_models)}. For other models, name a configuration such as --cell_config single_gpu."
            )
    chain_models = {setting: experiment.args.ladder for setting, experiment in first.items()}
    # Every row must fit all models of the grid, so that all cells of a task have the same rows.
    models = dict.fromkeys([*args.weak_models, *args.student_models, *itertools.chain(*chain_models.values())])
    cells = cells_of(args, chain_models)
    rounds = rounds_of(cells)
    manifest = identity_of_sweep(args, first)
    previous = check_output_dir(output_dir, manifest, overwrite=args.overwrite_output_dir)
    manifest.methods = (previous.methods if previous else {}) | manifest.methods
    if args.resume and not args.overwrite_output_dir:
        check_cells(output_dir, cells)
    state.wait_for_everyone()  # waits until all ranks have read the directory
    if state.is_main_process:
        if args.overwrite_output_dir:
            clear(output_dir)
        if not args.resume:
            for name in ("_stages", "cells", "logs", "jobs"):
                shutil.rmtree(output_dir / name, ignore_errors=True)
        manifest.write(output_dir)
        copy_configs(args, sources, output_dir / "configs")
    state.wait_for_everyone()
    configs = {setting: str(output_dir / "configs" / f"{setting}.yaml") for setting in sources}
    options_of_cells = ["--rows_fit", *models, *options]
    files = args.method_files
    session = Session(str(output_dir), options_of_cells, configs, run_id=uuid.uuid4().hex, method_files=files)
    run: Callable[[Session, list[list[Job]], Callable[[Cell, dict], None]], None] = run_here
    if args.engine == "ray":
        run = partial(
            run_on_cluster,
            address=args.ray_address,
            n_cpus=args.cell_cpus,
            n_gpus=args.cell_gpus,
            accelerate_config=args.accelerate_config and str(output_dir / "configs" / "accelerate.yaml"),
        )
    with SweepView(cells, is_shown=state.is_main_process) as view:

        def on_record(cell: Cell, record: dict) -> None:
            view.update(cell, record)
            if state.is_main_process:
                write_tables(session.table(cells), output_dir)

        run(session, rounds, on_record)
    state.wait_for_everyone()
    if state.is_main_process:
        for cell in cells:
            if session.read(cell) is None:
                session.write(cell, session.failure(cell, RuntimeError("no record of this cell")))
        table = session.table(cells)
        write_tables(table, output_dir)
        # The report has no paths of this machine.
        hidden = ("output_dir", "overwrite_output_dir", "cell_config", "ray_address", "accelerate_config")
        settings = {name: value for name, value in asdict(args).items() if name not in hidden}
        settings["methods"] = list(args.methods_by_name)
        settings = {**settings, "options of all cells": " ".join(options)}
        # In the report, task names show that rows are generated. The tables have the column `preset` for this.
        demos = {cell.task: subject(cell.task, True) for cell in first_cells(args) if first[cell.setting].args.demo}
        shown = table.assign(task=table["task"].replace(demos))
        write_sweep_report(shown, {name: str(value) for name, value in settings.items()}, output_dir)
    state.wait_for_everyone()
    return session.table(cells)


def run_here(session: Session, rounds: list[list[Job]], on_record: Callable[[Cell, dict], None]) -> None:
    """Runs the jobs one after the other in this process."""
    for jobs in rounds:
        for job in jobs:
            run_job(session, job, on_record)


def first_cells(args: SweepArguments) -> list[Cell]:
    """Returns one cell per task, with the method `naive`, which every setting has."""
    return [Cell(task, args.weak_models[0], args.student_models[-1], "naive", args.seeds[0]) for task in args.tasks]


def identity_of_sweep(args: SweepArguments, experiments: dict[str, Experiment]) -> Manifest:
    """Returns the settings that all cells share. They identify the sweep of an output directory."""
    settings: dict[str, Any] = {}
    methods: dict[str, Any] = {}
    for setting, experiment in experiments.items():
        shared = experiment.identity.settings | {"ladder": " ".join(experiment.args.ladder) or None}
        of_a_cell = ("task", "weak_model", "student_model")
        settings |= {f"{setting}, {name}": value for name, value in shared.items() if name not in of_a_cell}
        if isinstance(experiment.training_args, LossArguments):
            for name, method in args.methods_by_name.items():
                methods[f"{setting}, {name}"] = method.settings(experiment.training_args)
    return Manifest("sweep", "sweep", settings, methods=methods)


def config_files(args: SweepArguments, configs_dir: Path) -> dict[str, Path]:
    """
    Returns the configuration file of the cells of each setting.

    Raises:
        ValueError: One file is given for several settings.
        FileNotFoundError: The file does not exist.
    """
    settings = list(dict.fromkeys(cell.setting for cell in first_cells(args)))
    if args.cell_config is not None and len(settings) > 1:
        raise ValueError(
            f"Got one --cell_config for tasks of {' and '.join(settings)}, expected tasks of one setting. Run a sweep "
            "for each setting."
        )
    files = {
        setting: configs_dir / DEMO_CONFIGS[setting] if args.cell_config is None else Path(args.cell_config)
        for setting in settings
    }
    options = dict.fromkeys(files.values(), "--cell_config")
    if args.accelerate_config is not None:
        options[Path(args.accelerate_config)] = "--accelerate_config"
    for path, option in options.items():
        if not path.is_file():
            raise FileNotFoundError(f"{option}: got {str(path)!r}, expected an existing file. Check the path.")
    return files


def copy_configs(args: SweepArguments, sources: dict[str, str], target: Path) -> None:
    """Copies the configurations of the cells to the output directory, where all machines read them."""
    target.mkdir(parents=True, exist_ok=True)
    if args.accelerate_config is not None:
        sources = sources | {"accelerate": args.accelerate_config}
    for name, source in sources.items():
        if Path(source).resolve() != (target / f"{name}.yaml").resolve():
            shutil.copyfile(source, target / f"{name}.yaml")


def check_cells(output_dir: Path, cells: list[Cell]) -> None:
    """Raises `ValueError` if finished cells are not in the grid, because the table would not contain them."""
    lost = []
    for path in sorted((output_dir / "cells").glob("*.json")):
        record = json.loads(path.read_text())
        if record["status"] == "done" and Cell(**record["cell"]) not in cells:
            lost.append(path.stem)
    if lost:
        raise ValueError(
            f"--output_dir: got {output_dir}, which has {len(lost)} finished cells that the grid does not have, such "
            f"as {lost[0]}. The tables would not contain them. Add their tasks, models, methods and seeds (finished "
            "cells are not trained again), name another --output_dir, or set --overwrite_output_dir true."
        )


def write_tables(table: pd.DataFrame, directory: Path) -> None:
    """Writes `sweep.parquet` and `sweep.csv`. If a write is interrupted, the previous file stays."""
    for name, write in (("sweep.parquet", table.to_parquet), ("sweep.csv", table.to_csv)):
        aside = directory / f"{name}.partial"
        write(aside, index=False)
        os.replace(aside, directory / name)
