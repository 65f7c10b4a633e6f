"""The command line of a sweep."""

import argparse
import difflib
import sys
from dataclasses import field, make_dataclass
from pathlib import Path

from ..experiments.cli import check_directory
from ..experiments.config_file import RecipeParser, config_file
from .grid import SweepArguments

__all__ = ["parse_sweep"]


# Options of the recipes that a sweep does not take for its cells: the grid sets them, or a sweep has none. `--help`
# does not list them.
_REFUSED = (
    "analyses", "demo", "hub_namespace", "hub_private", "push_to_hub", "rows_fit", "seed", "student_model", "task",
    "weak_model",
)  # fmt: skip
RefusedOptions = make_dataclass(
    "RefusedOptions",
    [(name, str | None, field(default=None, metadata={"help": argparse.SUPPRESS, "nargs": "*"})) for name in _REFUSED],
)


def parse_sweep(
    description: str, demo_config: Path, argv: list[str] | None = None
) -> tuple[SweepArguments, list[str]]:
    """
    Reads the command line of a sweep.

    Args:
        description (`str`): The first lines of `--help`.
        demo_config (`Path`): The grid for a command line that names no models and no configuration.
        argv (`list[str]`, *optional*): Defaults to that of the process.

    Returns:
        The grid, and the words of all other options, which are those of its cells.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = RecipeParser(
        (SweepArguments, RefusedOptions),
        configs=demo_config.parent,
        lets_pass=True,
        description=description,
        usage="%(prog)s [--config FILE] [--option VALUE ...] [options of all cells]",
    )
    try:
        # 1 The options that the command line contains choose the configuration: without models, the demo's grid.
        given = parser.given(argv)
        is_demo = all(value is None for value in (given.weak_models, given.student_models, given.cell_config))
        config = given.config or (demo_config if is_demo else None)
        # 2 The values of all options of the grid, and the words that are none of them.
        args, *_, options = parser.parse(argv, config, return_remaining_strings=True)
        if args.cell_config is not None:
            args.cell_config = str(config_file(args.cell_config, demo_config.parent, "--cell_config"))
        # 3 Misspelt options of the grid. What the cells do not know either is refused when the first cell is parsed.
        for word in options:
            _check_spelling(word, parser)
        # 4 Options of the recipes that cells of a sweep do not take.
        refused = [f"--{name}" for name in _REFUSED if vars(given)[name] is not None]
        if refused:
            raise ValueError(
                f"Got {', '.join(refused)}: models, tasks and seeds are those of the grid (--weak_models, "
                "--student_models, --tasks, --seeds), --rows_fit follows from them, and a sweep pushes nothing."
            )
        check_directory("--output_dir", args.output_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return args, options


def _check_spelling(word: str, parser: RecipeParser) -> None:
    """Raises `ValueError` where an option for the cells is spelt almost like one of the grid."""
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    if word.startswith("--") and difflib.get_close_matches(name, parser.options, cutoff=0.85):
        raise ValueError(parser.unknown(word))
