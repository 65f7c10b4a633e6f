"""Trains the models of the tables in docs/results.md, and copies their results into this folder.

    python results/run.py                            # all tables, with models and rows from the Hub
    python results/run.py sst2 confidence            # two tables
    python results/run.py --models ~/models --data ~/data         # local copies, without access to the Hub
    python results/run.py confidence/random_head --dry_run        # only print the commands
    python results/run.py --add_methods entropy --add_seeds 3     # more methods and seeds in all tables
    python results/run.py sst2 --only_methods entropy             # add one method to the published results
    python results/run.py sst2 --check --seeds 2 0                # train two seeds again and compare their predictions

The directory of `--models` has a folder for each model, named as in tables.yaml (`smollm2-135m`), with config.json,
weights and tokenizer. The directory of `--data` has a folder for each dataset (`sst2`) with a file for each split
(`train.parquet`).

Repeat a command to resume a run that was stopped. A run includes the methods, seeds and analyses of its published
results. List added methods, seeds and analyses in tables.yaml, too. Models in `--outputs` are not trained again.
`--only_methods` trains the supervisor, the ceiling, and the students of `naive` and of the given methods. The other
students of the published results are kept. Their predictions are the same as in a run with all methods, because the
training is deterministic. The command fails if supervisor, ceiling or naive students have other predictions than the
published ones. Results depend on the number of threads, so set OMP_NUM_THREADS to the number on the page, also for
`--check`. Baselines of the student's own answers are added if they are missing. Analyses are not repeated, so their
tables lack the new methods.

If the options of a table have changed, add `--overwrite`. Afterwards, `python results/build.py` writes the page.

`--check` trains published runs again from scratch, by default all of them. It writes to `--outputs` with the suffix
`_check`. Steps that several runs share are trained once. Analyses and their predictions by prompts are left out. The
check compares the predictions of the test rows with `predictions.parquet` and writes `check.json` beside it. It fails
if a predicted class differs although CPU, cores and threads are the same. Repeat the command to resume a check that
was stopped or had an error. A finished check removes its trained models, so that the next check trains them again.
"""

import datetime
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from compare import compare_predictions, merge
from filelock import FileLock, Timeout

import w2s_hf
from w2s_hf.command_line import CommandLine, did_you_mean
from w2s_hf.experiments.cache import library_versions
from w2s_hf.experiments.config import ANALYSES, check_names
from w2s_hf.methods import BOOTSTRAP, METHODS
from w2s_hf.results import PREDICTIONS, ExperimentResult, read_predictions
from w2s_hf.results.predictions import write_predictions

__all__ = ["ROOT", "TABLES", "Model", "Page", "Run", "Table", "machine_differs", "read_page"]

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "results" / "tables.yaml"
CONFIGS = ROOT / "w2s_hf" / "configs"


@dataclass(frozen=True)
class Run:
    """
    One command of a recipe.

    Args:
        name (`str`): Folder of the results, relative to the folder of `tables.yaml`.
        label (`str`): The difference from the other runs of the table. Empty if the table has one run.
        recipe (`str`): Path of the recipe in the repository.
        rows (`str`): Directory of the rows below `--data`.
        options (`dict`): Options of the recipe.
    """

    name: str
    label: str
    recipe: str
    rows: str
    options: dict[str, Any]

    @property
    def arguments(self) -> list[str]:
        """The options as words of a command line."""
        return [word for name, value in self.options.items() for word in (f"--{name}", *_words(value))]

    @property
    def command(self) -> str:
        """The command of the recipe, with the names of models and datasets on the Hub."""
        return shlex.join(["python", self.recipe, *self.arguments])

    @property
    def resolved(self) -> dict[str, Any]:
        """The options, including the options of the configuration that they name."""
        options = dict(self.options)
        if name := options.pop("config", None):
            path = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
            options = yaml.safe_load(path.read_text(encoding="utf-8")) | options
        return options

    def grown(self, **more: list) -> "Run":
        """Returns the run with more methods, seeds or analyses."""
        lists = {name: [*self.options.get(name, []), *values] for name, values in more.items()}
        return replace(self, options=self.options | {name: list(dict.fromkeys(v)) for name, v in lists.items() if v})

    def with_results(self, folder: Path) -> "Run":
        """Returns the run with the methods, seeds and analyses of its published results, if there are any."""
        if not (folder / self.name / "results.json").is_file():
            return self
        results = ExperimentResult.read(folder / self.name / "results.json")
        return self.grown(
            methods=[summary.method for summary in results.summary],
            seeds=[run.seed for run in results.runs],
            analyses=list(results.runs[0].analyses),
        )

    def published(self, folder: Path, option: str) -> ExperimentResult:
        """
        Returns the published results of the run.

        Args:
            folder (`Path`): The directory that contains the published results of all runs.
            option (`str`): The option that needs them, for errors.

        Raises:
            ValueError: No predictions are published, or they have other options.
        """
        if not (folder / self.name / PREDICTIONS).is_file():
            raise ValueError(
                f"{option}: got no {self.name}/{PREDICTIONS} in {folder.name}, expected published predictions. Run "
                f"{self.name} without {option} first."
            )
        published = json.loads((folder / self.name / "run.json").read_text())["options"]
        current = json.loads(json.dumps(self.resolved))
        for name in {**published, **current}:
            if name not in ("methods", "seeds", "analyses") and published.get(name) != current.get(name):
                raise ValueError(
                    f"{option}: got {self.name} with {name}={current.get(name)} in tables.yaml or its configuration, "
                    f"expected {published.get(name)}, as in its published results. Run {self.name} without {option} "
                    "first."
                )
        return ExperimentResult.read(folder / self.name / "results.json")

    def only(self, folder: Path, methods: list[str]) -> tuple["Run", "Run"]:
        """
        Returns two runs. The first has the published methods, seeds and analyses, and then the other methods. The
        second trains only the other methods and `naive`, without analyses.

        Raises:
            ValueError: The published results have other options, versions of libraries or threads, or no `naive`
                student.
        """
        results = self.published(folder, "--only_methods")
        n_threads = json.loads((folder / self.name / "run.json").read_text())["published_by"]["threads"]
        if n_threads != machine()["threads"]:
            raise ValueError(
                f"--only_methods: got {machine()['threads']} threads, expected {n_threads}, as in the published "
                f"results of {self.name}. Set OMP_NUM_THREADS={n_threads}."
            )
        if results.versions != (here := library_versions()):
            differing = [name for name in here | results.versions if here.get(name) != results.versions.get(name)]
            raise ValueError(
                f"--only_methods: got other versions of {', '.join(differing)} than the published results of "
                f"{self.name}, expected the same versions. Run {self.name} with --add_methods instead."
            )
        known = [summary.method for summary in results.summary]
        if "naive" not in known:
            raise ValueError(
                f"--only_methods: got published results of {self.name} without naive, expected a naive student, whose "
                f"predictions are compared. Run {self.name} with --add_methods instead."
            )
        # Methods of tables.yaml that are not published are left out.
        lists = {"seeds": [run.seed for run in results.runs], "methods": list(dict.fromkeys([*known, *methods]))}
        options = self.options | lists | {"analyses": list(results.runs[0].analyses)}
        whole = replace(self, options={name: value for name, value in options.items() if value != []})
        options = {name: value for name, value in whole.options.items() if name != "analyses"}
        return whole, replace(self, options=options | {"methods": list(dict.fromkeys(["naive", *methods]))})

    def to_check(self, folder: Path, seeds: list[int]) -> "Run":
        """
        Returns the run with its published methods and without analyses, for a check of the given seeds. Without
        seeds, the run has all published seeds.

        Raises:
            ValueError: No predictions are published, they have other options, or they lack one of the seeds.
        """
        results = self.published(folder, "--check")
        known = read_predictions(folder / self.name / PREDICTIONS)["seed"].unique().tolist()
        unknown = [seed for seed in seeds if seed not in known]
        if unknown:
            raise ValueError(
                f"--seeds: got {unknown[0]}, expected seeds of {self.name}: {', '.join(map(str, known))}."
            )
        options = {name: value for name, value in self.options.items() if name != "analyses"}
        methods = [summary.method for summary in results.summary]
        if results.setting == "classification" and results.self_trained is None:
            options["self_baselines"] = False
        return replace(self, options=options | {"seeds": seeds or known, "methods": methods})

    def local(self, models: dict[str, "Model"], models_dir: Path | None, data_dir: Path | None) -> "Run":
        """Returns the run with local copies of models and rows."""
        options, resolved = dict(self.options), self.resolved
        if models_dir is not None:
            for name in ("weak_model", "student_model"):
                options[name] = _local_model(resolved[name], models, models_dir)
            if "ladder" in resolved:
                options["ladder"] = [_local_model(model, models, models_dir) for model in resolved["ladder"]]
        if data_dir is not None:
            options["dataset_path"] = str(data_dir / self.rows)
            if not Path(options["dataset_path"]).is_dir():
                raise ValueError(
                    f"--data: got {data_dir}, expected a directory {self.rows!r} in it, for {self.name}. Copy the "
                    f"rows to {options['dataset_path']}."
                )
        return replace(self, options=options)


@dataclass(frozen=True)
class Table:
    """
    A table of docs/results.md.

    Args:
        name (`str`), title (`str`): The folder and the heading of the table.
        runs (`list` of [`Run`]): One run, or several that are compared.
        short (`str`, *optional*): The name in the README. Tables without it are only on the page.
        notes (`str`, *optional*): A paragraph for the page.
        compare_with (`str`, *optional*): The name of another run with the same test rows, whose predictions are
            compared with the predictions of this table.
    """

    name: str
    title: str
    runs: list[Run]
    short: str | None = None
    notes: str | None = None
    compare_with: str | None = None


@dataclass(frozen=True)
class Model:
    """The local copy of a model: its `directory`, a hash of its `weights`, and a description of it (`local`)."""

    directory: str
    weights: str
    local: str


@dataclass(frozen=True)
class Page:
    """
    The content of `tables.yaml`.

    Args:
        tables (`list` of [`Table`]): All tables.
        models (`dict[str, Model]`): Local copies of models, by the name of the model on the Hub.
        local_rows (`dict[str, str]`): Notes on local rows: a note on all rows (`all`), and a note for each directory.
    """

    tables: list[Table]
    models: dict[str, Model]
    local_rows: dict[str, str]

    @property
    def runs(self) -> list[Run]:
        """The runs of all tables."""
        return [run for table in self.tables for run in table.runs]


def read_page(path: Path = TABLES) -> Page:
    """Reads `tables.yaml`. Raises `ValueError` if it is not valid YAML, has an unknown key, or lacks a key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: got invalid YAML ({error}), expected valid YAML. Correct the file.") from error
    _check_keys(content, f"{path.name}", {"models", "local_rows", "options", "tables"})
    tables = []
    for name, table in content["tables"].items():
        further = {"short", "rows", "options", "runs", "notes", "compare_with"}
        _check_keys(table, f"{path.name}, the table {name}", {"title", "recipe"}, further)
        shared = content["options"] | table.get("options", {})
        runs = []
        for label, run_options in table.get("runs", {"": {}}).items():
            options = {key: value for key, value in (shared | run_options).items() if value is not None}
            for key in {"methods", "seeds", "analyses"} & set(options):
                if not isinstance(options[key], list):
                    raise ValueError(
                        f"{path.name}, the table {name}: {key}: got {options[key]!r}, expected a list. Write [...]."
                    )
            folder = f"{name}/{re.sub(r'[^a-zA-Z0-9.-]+', '_', label)}" if label else name
            runs.append(Run(folder, label, table["recipe"], table.get("rows", options.get("task")), options))
        texts = {key: table.get(key) for key in ("short", "notes", "compare_with")}
        tables.append(Table(name, table["title"], runs, **texts))
    known = [run.name for table in tables for run in table.runs]
    for table in tables:
        if table.compare_with is not None and table.compare_with not in known:
            raise ValueError(
                f"{path.name}: got compare_with: {table.compare_with} in the table {table.name}, expected the name of "
                f"a run: {', '.join(known)}.{did_you_mean(table.compare_with, known)}"
            )
    for name, model in content["models"].items():
        _check_keys(model, f"{path.name}, the model {name}", {"directory", "weights", "local"})
    models = {name: Model(**model) for name, model in content["models"].items()}
    return Page(tables, models, content["local_rows"])


def _check_keys(content: Any, where: str, required: set[str], further: Set[str] = frozenset()) -> None:
    """Raises `ValueError` if a part of `tables.yaml` has an unknown key or lacks a required key."""
    keys = set(content) if isinstance(content, dict) else set()
    known = [*sorted(required), *sorted(further)]
    for name in sorted(keys - set(known)):
        raise ValueError(f"{where}: got the key {name!r}, expected {', '.join(known)}.{did_you_mean(name, known)}")
    if missing := sorted(required - keys):
        raise ValueError(
            f"{where}: got no {', '.join(missing)}, expected {', '.join(sorted(required))}. Add the missing keys."
        )


def _words(value: Any) -> Iterator[str]:
    """Yields the value of an option as words of a command line."""
    for part in value if isinstance(value, list) else [value]:
        yield str(part).lower() if isinstance(part, bool) else str(part)


def _local_model(name: str, models: dict[str, Model], models_dir: Path) -> str:
    if name not in models:
        raise ValueError(
            f"--models: got {name}, which is not in tables.yaml, expected one of {', '.join(models)}. Add it under "
            "`models`."
        )
    directory = models_dir / models[name].directory
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"--models: got {models_dir}, expected the directory {models[name].directory!r} there, with {name}. "
            f"Copy the model, including {directory / 'config.json'}."
        )
    return str(directory)


def chosen(runs: list[Run], names: list[str]) -> list[Run]:
    """Returns the named runs, and all runs of the named tables. Without names, returns all runs."""
    known = [run.name for run in runs]
    tables = dict.fromkeys(name.split("/")[0] for name in known)
    for name in names:
        if name not in known and name not in tables:
            raise ValueError(
                f"Got {name}, expected a table or a run: {', '.join(dict.fromkeys([*tables, *known]))}."
                f"{did_you_mean(name, [*tables, *known])}"
            )
    return [run for run in runs if not names or {run.name, run.name.split("/")[0]} & set(names)]


def revision() -> str:
    """Returns the commit of this repository, with a note if the code that runs differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit, changes = (
            git("rev-parse", "--short=12", "HEAD"),
            git("status", "--porcelain", "--", "w2s_hf", "recipes"),
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git repository"
    package = Path(w2s_hf.__file__).parent
    here = {path.relative_to(ROOT / "w2s_hf"): path for path in (ROOT / "w2s_hf").rglob("*.py")}
    there = {path.relative_to(package): path for path in package.rglob("*.py")}
    same = here.keys() == there.keys() and all(
        path.read_bytes() == there[name].read_bytes() for name, path in here.items()
    )
    return commit if same and not changes else f"{commit} with changes"


def machine() -> dict:
    """Returns the properties of this machine that can change rounding and speed, without its name."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        cpu = names[0].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def machine_differs(one: dict, other: dict) -> bool:
    """Returns whether numbers from two machines, as described by [`machine`], can differ in their last digits."""
    return any(one[name] != other[name] for name in ("cpu", "cores", "threads", "instructions"))


# The values of these keys of results.json are texts of this package. Elsewhere, a text of many words could be a row.
_PROSE = {
    "description", "text_form", "note", "notes", "format", "pgr_undefined", "prompt", "content_free", "template",
    "hardware", "quantization", "n_dropped",
}  # fmt: skip
_MAX_WORDS = 5


def check_publishable(content: Any, key: str = "results.json", in_prose: bool = False) -> None:
    """Raises `ValueError` if JSON values contain a path of this machine, or if they could be the text of a row."""
    if isinstance(content, dict):
        for name, value in content.items():
            check_publishable(name, f"{key}, a key", in_prose)
            check_publishable(value, f"{key}.{name}", in_prose or name in _PROSE)
    elif isinstance(content, list):
        for position, value in enumerate(content):
            check_publishable(value, f"{key}[{position}]", in_prose)
    elif isinstance(content, str):
        # The pattern contains home/NAME, because a name alone can be a word of the results, such as student.
        home = re.escape(f"{Path.home().parent.name}/{Path.home().name}")
        is_path = re.search(rf"(?<![\w.:/])(/|~/|[A-Za-z]:\\)[\w.-]+[/\\]|(?<![\w.-]){home}(?![\w.-])", content)
        if is_path:
            raise ValueError(f"{key}: got {content[:80]!r}, expected no local path. Use Hub ids.")
        if not in_prose and len(content.split()) > _MAX_WORDS:
            raise ValueError(
                f"{key}: got {content[:80]!r}, expected at most {_MAX_WORDS} words, because a longer text could be a "
                "row. If the package wrote the text, add its key to _PROSE in results/run.py. Then repeat the "
                "command, which trains nothing again."
            )


def check_predictions(predictions: pd.DataFrame) -> None:
    """Raises `ValueError` if ids of predictions are not hashes, because they could be texts of rows."""
    for row_id in predictions["id"].unique():
        if not re.fullmatch(r"[0-9a-f]{16}(-\d+)?", row_id):
            raise ValueError(
                f"{PREDICTIONS}: got the id {row_id[:80]!r}, expected a hash of 16 hexadecimal digits. Publish runs "
                "of this package only."
            )
    check_publishable(list(predictions["role"].unique()), f"{PREDICTIONS}, role")


def share_stages(outputs: Path, output_dir: Path) -> None:
    """Links one cache of trained models for all runs. Runs that differ only in a loss share supervisor and ceiling."""
    (outputs / "_stages").mkdir(parents=True, exist_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    if not (output_dir / "_stages").exists():
        (output_dir / "_stages").unlink(missing_ok=True)  # a link to a directory that was removed
        (output_dir / "_stages").symlink_to(os.path.relpath(outputs / "_stages", output_dir))


def remove_stages(directory: Path) -> None:
    """Removes the trained models in a directory, or its link to shared models."""
    stages = directory / "_stages"
    if stages.is_symlink():
        stages.unlink()
    elif stages.exists():
        shutil.rmtree(stages)


def launch(command: list[str]) -> None:
    """Runs a command in the repository. Raises `subprocess.CalledProcessError` if it fails."""
    subprocess.run(command, cwd=ROOT, check=True)


def trained_on(output_dir: Path) -> list[str]:
    """Returns the dates on which the first and the last student were saved."""
    times = [path.stat().st_mtime for path in output_dir.glob("students/*/*.safetensors")]
    if not times:
        raise ValueError(
            f"Got no trained students in {output_dir}, expected students/*/*.safetensors. Repeat the command."
        )
    return [datetime.date.fromtimestamp(time).isoformat() for time in (min(times), max(times))]


def publish(run: Run, output_dir: Path, folder: Path, code: str, is_added: bool = False) -> None:
    """
    Copies results and predictions of a finished run into its folder, with a `run.json` that contains command, options
    and dates. Removes `check.json` if the predictions of a model that it covers have changed.

    Args:
        run (`Run`): The run, with all methods that are published.
        output_dir (`Path`): Its output directory.
        folder (`Path`): The directory that contains the published results of all runs.
        code (`str`): The commit of this repository.
        is_added (`bool`, *optional*): Add the methods in the output directory to the published results.
    """
    results, trained = ExperimentResult.read(output_dir / "results.json"), trained_on(output_dir)
    predictions = read_predictions(output_dir / PREDICTIONS)
    if is_added:
        results, predictions = merge(folder / run.name, output_dir)
        days = [*trained, *json.loads((folder / run.name / "run.json").read_text())["trained"]]
        trained = [min(days), max(days)]
    facts = {
        "command": run.command,
        "options": run.resolved,
        "trained": trained,
        "published_by": {"commit": code, **machine()},
    }
    for content in (results.to_dict(), {**facts, "command": ""}):
        check_publishable(content)
    check_predictions(predictions)
    (folder / run.name).mkdir(parents=True, exist_ok=True)
    published, check_path = (folder / run.name / name for name in (PREDICTIONS, "check.json"))
    if check_path.is_file():
        models = json.loads(check_path.read_text())["models"]
        if not (published.is_file() and _has_same_predictions(predictions, read_predictions(published), models)):
            check_path.unlink()
    write_predictions(predictions, published)
    results.write(folder / run.name / "results.json")
    (folder / run.name / "run.json").write_text(json.dumps(facts, indent=2) + "\n")


def _has_same_predictions(new: pd.DataFrame, published: pd.DataFrame, models: list[dict]) -> bool:
    """Returns whether these models have the same predictions in both tables."""
    keys = {(model["seed"], model["role"]) for model in models}

    def of_models(predictions: pd.DataFrame) -> dict:
        return {
            (row.seed, row.role, row.id): (row.correct, None if row.prediction is None else row.prediction.tobytes())
            for row in predictions.itertuples()
            if (row.seed, row.role) in keys
        }

    return of_models(new) == of_models(published)


def check(run: Run, output_dir: Path, folder: Path, code: str) -> bool:
    """
    Compares the predictions of a run that was trained again with the published predictions. Prints the differences and
    writes them to `check.json`.

    Returns:
        `bool`: Whether all predicted classes are the same, or the machine is of another kind.

    Raises:
        ValueError: The test rows are not the same.
    """
    published, seeds = read_predictions(folder / run.name / PREDICTIONS), run.options["seeds"]
    results = ExperimentResult.read(folder / run.name / "results.json")
    prompts = results.runs[0].analyses.get("prompting", {}).get("prompted", {})  # a check repeats no analysis
    is_checked = published["seed"].isin(seeds) & ~published["role"].isin(prompts)
    comparisons = compare_predictions(published[is_checked], read_predictions(output_dir / PREDICTIONS))
    columns = ("seed", "role", "n", "largest_difference", "n_different")
    facts = {
        "date": datetime.date.today().isoformat(),
        "checked_by": {"commit": code, **machine()},
        "seeds": seeds,
        "models": [{name: model[name] for name in columns} for model in comparisons],
    }
    check_publishable(facts)
    (folder / run.name / "check.json").write_text(json.dumps(facts, indent=2) + "\n")
    for model in comparisons:
        largest = model["largest_difference"]
        size = "" if largest is None else f"largest difference in probability {largest:.2g}, "
        print(
            f"{run.name}, seed {model['seed']}, {model['role']}: {size}"
            f"{model['n_different']} of {model['n']} predictions differ"
        )
    published_by = json.loads((folder / run.name / "run.json").read_text())["published_by"]
    n_different = sum(model["n_different"] for model in comparisons)
    print(
        f"{n_different or 'No'} predicted classes or completions differ. The comparison is in "
        f"{folder / run.name / 'check.json'}. "
        "Run python results/build.py to show it on the page."
    )
    if not n_different or machine_differs(facts["checked_by"], published_by):
        return True
    print(
        f"error: {run.name}: got {n_different} predictions that differ on the same kind of machine, expected the "
        f"published predictions. To publish results of the current code and libraries, run {run.name} "
        "without --check.",
        file=sys.stderr,
        flush=True,
    )
    return False


def run_all(jobs: list[tuple[Run, list[str]]], outputs: Path, folder: Path, is_check: bool, is_added: bool) -> None:
    """
    Runs the commands of runs one after the other, and publishes or checks each run.

    Args:
        jobs (`list`): Runs with their commands.
        outputs (`Path`): The directory that contains the output directories of all runs.
        folder (`Path`): The directory that contains the published results of all runs.
        is_check (`bool`): Compare the predictions with the published predictions, and publish nothing else.
        is_added (`bool`): Add the methods of the commands to the published results.

    Raises:
        SystemExit: A run failed, was stopped, or has predictions that differ from the published predictions.
    """
    code, failures, differing = revision(), [], []
    for run, command in jobs:
        print(f"{run.name}: {shlex.join(command)}", flush=True)
        output_dir = outputs / run.name
        try:
            share_stages(outputs, output_dir)
            launch(command)
            if not is_check:
                publish(run, output_dir, folder, code, is_added)
            elif not check(run, output_dir, folder, code):
                differing.append(run.name)
        except (subprocess.CalledProcessError, ValueError, OSError) as error:
            failures.append(run.name)
            print(f"error: {run.name}: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            sys.exit(f"\nThe run {run.name} was stopped. Repeat the command to resume it.")
    if is_check and not failures:
        for directory in (outputs, *(outputs / run.name for run, _ in jobs)):
            remove_stages(directory)
    errors = [f"error: Runs with predictions that differ: {', '.join(differing)}."] if differing else []
    if failures:
        errors.append(f"error: Runs that failed: {', '.join(failures)}. Repeat the command to resume them.")
    if errors:
        sys.exit("\n".join(errors))


def main(argv: list[str] | None = None) -> None:
    parser = CommandLine(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="Names of the tables or single runs to train (default: all tables)."
    )
    parser.add_argument(
        "--models", type=Path, help="Directory with local copies of the models (default: load them from the Hub)."
    )
    parser.add_argument(
        "--data", type=Path, help="Directory with local copies of the datasets (default: load them from the Hub)."
    )
    parser.add_argument(
        "--add_methods", nargs="+", default=[], help="Methods to train in addition to the methods of the tables."
    )
    parser.add_argument(
        "--only_methods",
        nargs="+",
        default=[],
        help="Methods to add to the published results. Of the other methods, only naive is trained again.",
    )
    parser.add_argument(
        "--add_seeds", nargs="+", type=int, default=[], help="Seeds to run in addition to the seeds of the tables."
    )
    parser.add_argument(
        "--add_analyses", nargs="+", default=[], help="Analyses to run in addition to the analyses of the tables."
    )
    parser.add_argument(
        "--outputs", type=Path, default=ROOT / "outputs" / "results", help="Directory for the trained models."
    )
    parser.add_argument(
        "--tables", type=Path, default=TABLES, help="YAML file with the list of tables. Results are written beside it."
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="Replace outputs whose options have changed, instead of stopping with an error.",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="Train published runs again from scratch, compare their predictions, and write only check.json.",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        help="Seeds to check, in this order (default: all published seeds).",
    )
    parser.add_argument("--dry_run", action="store_true", help="Print the commands without running them.")
    args = parser.parse_args(argv)
    if args.only_methods and (args.add_methods or args.add_seeds or args.add_analyses):
        parser.error("--only_methods: got another option that adds to the runs, expected none. Use two commands.")
    if args.check and (args.add_methods or args.only_methods or args.add_seeds or args.add_analyses or args.overwrite):
        parser.error(
            "--check: got an option that changes the runs, expected at most --seeds. Remove the other options."
        )
    if args.seeds and not args.check:
        parser.error("--seeds: got no --check, expected both. Add --check, or use --add_seeds to train more seeds.")
    try:
        check_names("--add_methods", args.add_methods, (*METHODS, BOOTSTRAP))
        check_names("--only_methods", args.only_methods, list(METHODS))
        check_names("--add_analyses", args.add_analyses, list(ANALYSES))
        folder = args.tables.resolve().parent
        page = read_page(args.tables)
        runs = chosen(page.runs, args.names)
        if args.check:
            # Without names, a check covers all published runs.
            runs = [run for run in runs if args.names or (folder / run.name / PREDICTIONS).is_file()]
            runs = trained = [run.to_check(folder, args.seeds) for run in runs]
        elif args.only_methods:
            both = [run.only(folder, args.only_methods) for run in runs]
            runs, trained = [whole for whole, _ in both], [only for _, only in both]
        else:
            added = {"methods": args.add_methods, "seeds": args.add_seeds, "analyses": args.add_analyses}
            runs = trained = [run.with_results(folder).grown(**added) for run in runs]
        if args.check and not runs:
            raise ValueError(
                f"--check: got no run with {PREDICTIONS} in {folder}, expected published runs. Publish a run "
                "first, without --check."
            )
        directories = [path.expanduser().resolve() if path else None for path in (args.models, args.data)]
        commands = [(run, of_run.local(page.models, *directories)) for run, of_run in zip(runs, trained, strict=True)]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    outputs = args.outputs.resolve()
    if args.check:
        outputs = outputs.with_name(f"{outputs.name}_check")
    # The directory may contain a check of other seeds. Overwriting keeps its trained models.
    further = ["--overwrite_output_dir", "true"] if args.overwrite or args.check else []
    jobs = [
        (run, [sys.executable, run.recipe, *local.arguments, "--output_dir", str(outputs / run.name), *further])
        for run, local in commands
    ]
    if args.dry_run:
        for run, command in jobs:
            print(f"{run.name}: {shlex.join(command)}")
        return
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        # If two checks ran at the same time, the check that ends first would remove models of the other check.
        with FileLock(outputs / "check.lock", timeout=0) if args.check else nullcontext():
            run_all(jobs, outputs, folder, args.check, bool(args.only_methods))
    except Timeout:
        parser.error(
            f"--check: got {outputs}, which another check uses, expected one check at a time. Wait until it ends, or "
            "name another directory with --outputs."
        )


if __name__ == "__main__":
    main()
