"""Copies results.json of a finished run to this folder, and renders the card and figure of each student.

python model_cards/render.py outputs/demo model_cards/boolq-demo
python model_cards/render.py            # renders all cards in this folder again, after a change of the template
"""

import shutil
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from w2s_hf.cards import FIGURE, StudentCard
from w2s_hf.command_line import CommandLine
from w2s_hf.plots import plot_gap
from w2s_hf.results import ExperimentResult


def render(folder: Path) -> None:
    """Renders the cards of all students in `results.json` of a folder, and removes the old ones."""
    results = ExperimentResult.read(folder / "results.json")
    for old in folder.glob("*/README.md"):
        shutil.rmtree(old.parent)
    for run in results.runs:
        for student in run.students:
            directory = folder / Path(student.output).name
            directory.mkdir()
            card = StudentCard.from_results(results, run, student)
            plot_gap(card.weak, card.student, card.ceiling, card.pgr, directory / FIGURE, title=card.subject)
            card.has_figure = True
            card.save(directory / "README.md")


def main() -> None:
    parser = CommandLine(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "output_dir",
        nargs="?",
        type=Path,
        help="output directory of a finished run (default: render all cards in model_cards/ again)",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="directory for the cards, such as model_cards/boolq-demo")
    args = parser.parse_args()
    if args.output_dir is None:
        for file in Path(__file__).parent.glob("*/results.json"):
            render(file.parent)
        return
    if args.folder is None or not (args.output_dir / "results.json").is_file():
        sys.exit(
            f"error: got {args.output_dir} and {args.folder}, expected a directory with results.json and a directory "
            "for the cards. Pass both."
        )
    args.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.output_dir / "results.json", args.folder)
    render(args.folder)


if __name__ == "__main__":
    main()
