"""
Measures all methods in the two worlds of the demo, over five seeds, and writes the table of docs/methods.md.

    python results/methods.py --run outputs   # trains about 370 small students; can be resumed
    python results/methods.py                 # writes the table again from results/methods/

All numbers are from generated rows. Each seed has its own world, rows and models.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from w2s_hf.cards.markdown import markdown_table
from w2s_hf.methods import BOOTSTRAP, METHODS
from w2s_hf.metrics import difference_interval, rounded
from w2s_hf.results import SELF_TRAINED, ExperimentResult, read_predictions

ROOT = Path(__file__).resolve().parents[1]
PAGE, FOLDER = ROOT / "docs" / "methods.md", ROOT / "results" / "methods"
BEGIN, END = "<!-- methods table: begin -->", "<!-- methods table: end -->"
SEEDS = (0, 1, 2, 3, 4)
# The title of each world, and the options of its first command.
WORLDS = {"plain": ("plain", []), "ladder": ("ladder", ["--config", "demo_ladder"])}
# The methods of the second command, whose weak labels are from three supervisors.
_OF_SEVERAL = ["naive", "learned_supervisors"]
_SEVERAL = "{}, 3 supervisors"


def commands_of(world: str) -> list[list[str]]:
    """Returns the two commands of a world. They write to a directory below `outputs`."""
    _, options = WORLDS[world]
    methods = [name for name in METHODS if name not in _OF_SEVERAL[1:]] + [BOOTSTRAP] * (world == "ladder")
    command, seeds = ["w2s", "run", "boolq", *options], ["--seeds", *map(str, SEEDS)]
    one, several = (f"outputs/{name}" for name in folders_of(world))
    return [
        [*command, "--methods", *methods, *seeds, "--self_baselines", "true", "--output_dir", one],
        [*command, "--methods", *_OF_SEVERAL, *seeds, "--n_supervisors", "3", "--output_dir", several],
    ]


def folders_of(world: str) -> tuple[str, str]:
    """Returns the names of the output directories of a world."""
    return f"methods_{world}", f"methods_{world}_3_supervisors"


def run(outputs: Path) -> None:
    """Trains the models of both worlds below `outputs`, and writes the summaries to results/methods/."""
    for world in WORLDS:
        folders = [outputs / name for name in folders_of(world)]
        for command, folder in zip(commands_of(world), folders, strict=True):
            print(shlex.join(command), flush=True)
            subprocess.run([sys.executable, "-m", "w2s_hf", *command[1:-1], str(folder)], check=True)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{world}.json").write_text(json.dumps(summary_of(world, *folders), indent=1) + "\n")


def _correct(folder: Path) -> dict[str, np.ndarray]:
    """Returns whether the predictions of each role are correct, `(seeds, N)`."""
    predictions = read_predictions(folder / "predictions.parquet")
    # Rows differ between seeds, so they are numbered within each seed.
    return {
        str(role): np.array([part["correct"].to_numpy(float) for _, part in of_role.groupby("seed", sort=True)])
        for role, of_role in predictions.groupby("role", sort=False)
    }


def summary_of(world: str, folder: Path, several: Path) -> dict:
    """Returns the numbers of the table from the results of a world, with one and with several supervisors."""
    results, correct = ExperimentResult.read(folder / "results.json"), _correct(folder)
    summaries = {summary.method: summary for summary in results.summary}
    of_several = ExperimentResult.read(several / "results.json")
    summaries |= {_SEVERAL.format(summary.method): summary for summary in of_several.summary}
    correct |= {_SEVERAL.format(name): values for name, values in _correct(several).items() if name in _OF_SEVERAL}
    entries = {}
    for role, values in correct.items():
        entry: dict = {"accuracy": float(values.mean())}
        if role != "naive":
            entry["difference"] = float(values.mean() - correct["naive"].mean())
            entry["difference_ci95"] = list(difference_interval(values, correct["naive"]))
            entry["n_better"] = int((values.mean(axis=1) > correct["naive"].mean(axis=1)).sum())
        entries[role] = entry
    for name, summary in summaries.items():
        entries[name] |= {"pgr": summary.pgr_median, "pgr_ci95": summary.pgr_ci95}
    return {
        "seeds": [run.seed for run in results.runs],
        "n_test": results.dataset.n_test,
        "versions": results.versions,
        "roles": entries,
    }


# The rows of the table besides the methods, with the description of each
_OTHERS = {
    "weak": "weak supervisor",
    "control": "control without pretraining, naive",
    "zero-shot, balanced": "zero-shot prompt, balanced",
    "4-shot with weak labels, balanced": "4-shot prompt with weak labels, balanced",
    SELF_TRAINED: "student on its zero-shot answers",
    "ceiling": "strong ceiling",
}


def table(summaries: dict[str, dict]) -> str:
    """Returns the table of both worlds in Markdown."""
    header = ["method"]
    for world in summaries:
        title, _ = WORLDS[world]
        header += [f"{title}: accuracy", f"{title}: PGR [95 %]", f"{title}: minus naive [95 %]"]
    roles = dict.fromkeys(role for summary in summaries.values() for role in summary["roles"])
    methods = [name for name in (*METHODS, BOOTSTRAP, *map(_SEVERAL.format, _OF_SEVERAL)) if name in roles]
    first, last = list(_OTHERS)[:-1], list(_OTHERS)[-1:]
    rows = []
    for role in (*first, *methods, *last):
        if role not in roles or role == SELF_TRAINED and "self_labels" in roles:
            continue
        name, comma, rest = role.partition(",")
        cells = [f"`{name}`{comma}{rest}" if role in methods else _OTHERS[role]]
        for summary in summaries.values():
            cells += _cells(summary["roles"].get(role))
        rows.append(cells)
    return markdown_table(header, rows)


def _cells(entry: dict | None) -> list[str]:
    if entry is None:
        return ["", "", ""]
    pgr = "" if entry.get("pgr") is None else f"{entry['pgr']:.2f}{_interval(entry['pgr_ci95'], 2)}"
    difference = ""
    if "difference" in entry:
        difference = f"{entry['difference']:+.3f}{_interval(entry['difference_ci95'], 3)}"
    return [rounded(entry["accuracy"]), pgr, difference]


def _interval(ends: list[float] | None, digits: int) -> str:
    return "" if ends is None else f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def text(summaries: dict[str, dict]) -> str:
    """Returns the generated part of the page."""
    commands = "\n".join(shlex.join(command) for world in summaries for command in commands_of(world))
    n_tests = " and ".join(f"{summary['n_test']} ({WORLDS[world][0]})" for world, summary in summaries.items())
    return (
        f"Accuracies are means over the seeds {', '.join(map(str, SEEDS))}, and PGR is the median. Each seed has its "
        f"own generated rows, of which {n_tests} are test rows. Differences are paired: both students of a seed "
        "have the same test rows.\n\n"
        f"{table(summaries)}\n\n```bash\n{commands}\n```\n"
    )


def write_page(path: Path = PAGE, folder: Path = FOLDER) -> str:
    """Returns the page with the table of the summaries in results/methods/."""
    summaries = {world: json.loads((folder / f"{world}.json").read_text()) for world in WORLDS}
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{text(summaries)}{END}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="DIR", help="train all models below this directory first")
    options = parser.parse_args()
    if options.run is not None:
        run(options.run)
    PAGE.write_text(write_page(), encoding="utf-8")
