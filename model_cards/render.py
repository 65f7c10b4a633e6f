"""Cards of a finished run, for this folder: its results.json, and the card and the figure of each of its students.

python model_cards/render.py outputs/demo model_cards/boolq-demo
python model_cards/render.py            # all that are here, again, after the template has changed
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
    """The cards of the students in `results.json` of a folder, in place of those that are there."""
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
    parser.add_argument("output_dir", nargs="?", type=Path, help="of a recipe that is finished")
    parser.add_argument("folder", nargs="?", type=Path, help="where its cards go")
    args = parser.parse_args()
    if args.output_dir is None:
        for file in Path(__file__).parent.glob("*/results.json"):
            render(file.parent)
        return
    if args.folder is None or not (args.output_dir / "results.json").is_file():
        sys.exit(f"error: expected a directory with results.json, and a folder; got {args.output_dir}, {args.folder}.")
    args.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.output_dir / "results.json", args.folder)
    render(args.folder)


if __name__ == "__main__":
    main()
