"""The command line of a sweep."""

import argparse
import difflib
import sys
from dataclasses import field, make_dataclass
from pathlib import Path

from accelerate import PartialState

from ..experiments.cli import check_directory
from ..experiments.config_file import RecipeParser
from ..launch import ACCELERATE_CONFIGS, CONFIGS, config_file
from .grid import SweepArguments
from .run import run_sweep

__all__ = ["main", "parse_sweep"]

# `--help` shows these options, with this short help.
_ESSENTIAL = {
    "config": "Shipped configuration of a grid (sweep_demo), or a YAML file of these options.",
    "tasks": "Names of the tasks of the grid. `w2s tasks` lists them.",
    "weak_models": "Weak supervisors: Hub ids or local directories.",
    "student_models": "Students, small to large.",
    "methods": "Training methods, such as naive, reverse_kl, self_labels, or my_method.py:NAME.",
    "seeds": "Random seeds. Each seed runs the whole grid once.",
    "cell_config": "Shipped configuration or YAML file of options for all cells.",
    "output_dir": "Directory for the table, report, figures and trained stages.",
    "resume": "Continue an earlier run. `false` trains everything again.",
    "engine": "Run the cells in this process (local) or on a Ray cluster (ray).",
    "cell_gpus": "Number of GPUs per cell, with --engine ray.",
    "num_processes": "Number of processes (one per GPU) to launch with accelerate.",
    "accelerate_config": "Configuration of accelerate: single, ddp, fsdp, zero3, or a file.",
}

# Cells of a sweep do not have these options of `w2s run`. The grid sets them, or they do not apply to sweeps. `--help`
# does not list them.
_REFUSED = (
    "analyses", "demo", "hub_namespace", "hub_private", "push_to_hub", "rows_fit", "seed", "student_model", "task",
    "weak_model",
)  # fmt: skip
RefusedOptions = make_dataclass(
    "RefusedOptions",
    [(name, str | None, field(default=None, metadata={"help": argparse.SUPPRESS, "nargs": "*"})) for name in _REFUSED],
)


_DESCRIPTION = """\
Runs a grid of tasks, supervisors, students, methods and seeds. Each combination is a cell, which
trains one student. The sweep writes one table and its figures.

examples:
  w2s sweep    (the embedded demo: students of three sizes, no network, no GPU, a few minutes)
  w2s sweep --cell_config single_gpu --tasks boolq sciq --weak_models Qwen/Qwen2.5-0.5B
      --student_models Qwen/Qwen2.5-1.5B Qwen/Qwen2.5-7B --seeds 0 1 2 --n_train 4000
  w2s sweep --config sweep_demo --engine ray

If a sweep is stopped, repeat the command to resume it."""


def main(description: str | None = None, argv: list[str] | None = None, prog: str | None = None) -> None:
    """
    Runs the sweep of a command line, and ends the process with an error if cells failed.

    Args:
        description (`str`, *optional*): The first lines of `--help`. Defaults to three examples.
        argv (`list[str]`, *optional*): The command line. Defaults to the command line of the process.
        prog (`str`, *optional*): Name of the command, for `--help`. Defaults to the name of the script.
    """
    args, options = parse_sweep(description or _DESCRIPTION, CONFIGS / "sweep_demo.yaml", argv, prog)
    table = run_sweep(args, options, CONFIGS)
    n_failed = int((table["status"] == "failed").sum())
    if PartialState().is_main_process:
        print(f"{n_failed} of {len(table)} cells failed.")
        print(f"Results in {args.output_dir}: report.html, figures/, sweep.csv, sweep.parquet")
    if n_failed:
        sys.exit(f"error: {n_failed} cells failed. report.html has the reasons. Repeat the command to retry them.")


def parse_sweep(
    description: str, demo_config: Path, argv: list[str] | None = None, prog: str | None = None
) -> tuple[SweepArguments, list[str]]:
    """
    Reads the command line of a sweep.

    Args:
        description (`str`): The first lines of `--help`.
        demo_config (`Path`): The grid for a command line that names no models and no configuration.
        argv (`list[str]`, *optional*): The command line. Defaults to the command line of the process.
        prog (`str`, *optional*): Name of the command, for `--help`. Defaults to the name of the script.

    Returns:
        The grid, and the arguments of all other options, which apply to its cells.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = RecipeParser(
        (SweepArguments, RefusedOptions),
        configs=CONFIGS,
        lets_pass=True,
        prog=prog,
        description=description,
        usage="%(prog)s [options] [options of all cells]",
        launch=prog is not None,
        essential=_ESSENTIAL,
        defaults="Without models and configuration, the grid of `--config sweep_demo` runs. All other options are "
        "options of `w2s run` and apply to all cells.",
    )
    try:
        # Step 1: the options of the command line choose the configuration. Without models, it is the demo's grid.
        command_line = parser.options_in(argv)
        is_demo = all(
            value is None
            for value in (command_line.weak_models, command_line.student_models, command_line.cell_config)
        )
        config = command_line.config or (demo_config if is_demo and not command_line.help else None)
        # Step 2: the parser reads the values of all options of the grid. The remaining words are options of cells.
        args, *_, options = parser.parse(argv, config, return_remaining_strings=True)
        if args.cell_config is not None:
            args.cell_config = str(config_file(args.cell_config, CONFIGS, "--cell_config"))
        if args.accelerate_config is not None:
            path = config_file(args.accelerate_config, ACCELERATE_CONFIGS, "--accelerate_config")
            args.accelerate_config = str(path)
        # Step 3: misspelt options of the grid are refused. Options that cells do not know are refused when the first
        # cell is parsed.
        for word in options:
            _check_spelling(word, parser)
        # Step 4: options of `w2s run` that do not apply to cells of a sweep are refused.
        refused = [f"--{name}" for name in _REFUSED if vars(command_line)[name] is not None]
        if refused:
            raise ValueError(
                f"Got {', '.join(refused)}, expected options of the grid or of all cells. Name models, tasks and "
                "seeds with --weak_models, --student_models, --tasks and --seeds. A sweep sets "
                "--rows_fit to its models, has no analyses, and pushes nothing."
            )
        check_directory("--output_dir", args.output_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return args, options


def _check_spelling(word: str, parser: RecipeParser) -> None:
    """Raises `ValueError` if an option for the cells is spelt almost like an option of the grid."""
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    if word.startswith("--") and difflib.get_close_matches(name, parser.options, cutoff=0.85):
        raise ValueError(parser.unknown(word))
