"""Writes docs/results.md, and the table and the figure of the README, from the results in this folder.

python results/build.py
python results/build.py --check    # change nothing, and fail if a file is out of date
"""

import hashlib
import inspect
import json
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from compare import compare_predictions
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from run import ROOT, TABLES, Page, Run, Table, machine_differs, read_page

from w2s_hf import read_results
from w2s_hf.analysis.agreement import agreement_section
from w2s_hf.analysis.early_stopping import overfitting_section
from w2s_hf.analysis.saliency import saliency_section
from w2s_hf.cards.markdown import markdown_table
from w2s_hf.command_line import CommandLine
from w2s_hf.experiments.config import ANALYSES
from w2s_hf.experiments.report import training_labels
from w2s_hf.experiments.settings.classification import LINEAR_PROBE
from w2s_hf.methods import BOOTSTRAP, METHODS
from w2s_hf.metrics import difference_interval, rounded
from w2s_hf.plots import PALETTE, STYLE
from w2s_hf.results import (
    PREDICTIONS,
    SELF_TRAINED,
    ExperimentResult,
    MethodSummary,
    PgrSummary,
    SeedResult,
    read_predictions,
)

__all__ = ["Entry", "Group", "build", "read_groups"]

# These analyses have a section on the page. Prompts have no section, because they are baselines in every table.
_SECTIONS = {"overfitting": overfitting_section, "agreement": agreement_section, "saliency": saliency_section}
_ROLES = {
    "weak": "weak supervisor",
    "ceiling": "strong ceiling",
    "ceiling_plain": "ceiling without generative finetuning",
    SELF_TRAINED: f"student {SELF_TRAINED}",
}
# Findings of the paper, by setting and comparison
_PAPER = {
    "classification": {
        "naive and weak": "above, PGR above 0.2 for any pair of models over 22 tasks (4.2)",
        "confidence and naive": "above, most where supervisor and student are far apart (4.3.2)",
        "zero-shot and naive": "above with very weak supervisors (figure 15)",
        "agreement": "below (5.1.2)",
    },
    "reward": {"naive and weak": "above, PGR about 0.1 and rarely above 0.2, on other pairs (4.2)"},
}
_ZERO_SHOT = "zero-shot"  # the name of this prompt in the results
_BALANCED = ", balanced"  # the end of the names of prompts whose answers are balanced
_UNKNOWN = "not distinguishable"
_NOISE = 1e-9  # a mean over seeds that should be 0 may differ slightly from 0, due to rounding
_PROMPT_SCORES = {"accuracy_at_median": "at the median", "accuracy_content_free": "content-free", "auroc": "AUROC"}
_BEGIN, _END = "<!-- begin: python results/build.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Entry:
    """
    A run with its results.

    Args:
        run ([`Run`]): The command and options of the run.
        results ([`ExperimentResult`]): The content of `results.json`.
        facts (`dict`): The content of `run.json`.
        table (`pandas.DataFrame`): The results with a row for each seed and model.
        folder (`Path`): The folder of the files above.
        check (`dict`, *optional*): The content of `check.json`, if the run was trained again.
    """

    run: Run
    results: ExperimentResult
    facts: dict
    table: pd.DataFrame
    folder: Path
    check: dict | None = None
    _differences: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict, init=False, repr=False)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the run."""
        return [run.seed for run in self.results.runs]

    @property
    def methods(self) -> list[str]:
        """The methods by which students were trained."""
        return [summary.method for summary in self.results.summary]

    @property
    def hours(self) -> float:
        """
        The hours of all steps, without those of students' directories and of two kinds of steps within other steps.
        These are students for labels, and hidden states for the labels of probes.
        """
        seconds, repeated = self.results.wall_seconds, ["total", "students/", "student-for-labels"]
        if any(name.startswith(("labels-relabelled", "labels-filtered")) for name in seconds):
            repeated.append("hidden-states")
        return sum(each for name, each in seconds.items() if not name.startswith(tuple(repeated))) / 3600

    @property
    def is_self_trained(self) -> bool:
        """Returns whether the run has a student that is trained on its own zero-shot answers."""
        return self.results.self_trained is not None

    @property
    def is_prompted(self) -> bool:
        """Returns whether the run has the analysis `prompting`, which evaluates prompts of the student model."""
        return "prompting" in self.results.runs[0].analyses

    def accuracies(self, role: str) -> np.ndarray:
        """
        Returns the accuracy by seed, `(seeds,)`, of the supervisor (`weak`), the `ceiling`, the students of a method,
        or a baseline (`zero-shot`).
        """
        return self.scores(role)["accuracy"].to_numpy()

    def scores(self, role: str) -> pd.DataFrame:
        """Returns the rows of a role in the table, one for each seed. A role without models has no rows."""
        if role in _ROLES and role != SELF_TRAINED:
            return self.table[self.table["role"] == role]
        kind = "student" if role in self.methods else "baseline"
        return self.table[(self.table["role"] == kind) & (self.table["method"] == role)]

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The content of `predictions.parquet`."""
        return read_predictions(self.folder / PREDICTIONS)

    @property
    def has_probabilities(self) -> bool:
        """Returns whether the predictions are probabilities (`True`) or completions (`False`)."""
        return bool(self.predictions["prediction"].notna().all())

    def correct(self, role: str) -> np.ndarray:
        """
        Returns whether the predictions of a role, such as `weak` or `zero-shot`, are correct, `(seeds, N)`, 0 or 1.

        Raises:
            ValueError: `predictions.parquet` has no predictions of this role.
        """
        of_role = self.predictions[self.predictions["role"] == role]
        if of_role.empty:
            raise ValueError(
                f"{self.run.name}/{PREDICTIONS}: got no predictions of {role}, expected predictions of all models and "
                f"prompts of its results.json. Run python results/run.py {self.run.name}."
            )
        return of_role.pivot(index="seed", columns="id", values="correct").loc[self.seeds].to_numpy(dtype=float)

    def agrees(self, method: str) -> np.ndarray:
        """Returns whether student and supervisor predict the same class for a test row, `(seeds, N)`, 0 or 1."""

        def classes(role: str) -> np.ndarray:
            of_role = self.predictions[self.predictions["role"] == role]
            of_role = of_role.assign(predicted=[int(prediction.argmax()) for prediction in of_role["prediction"]])
            return of_role.pivot(index="seed", columns="id", values="predicted").loc[self.seeds].to_numpy()

        return (classes(method) == classes("weak")).astype(float)

    def difference(self, one: str, other: str) -> tuple[str, str]:
        """
        Returns the difference in accuracy between two roles with its interval, and its direction. The interval is
        computed once, because the page has most differences in two tables.
        """
        if (one, other) not in self._differences:
            self._differences[one, other] = _difference(self.correct(one), self.correct(other))
        return self._differences[one, other]


@dataclass(frozen=True)
class Group:
    """
    A table of the page.

    Args:
        table ([`Table`]): The title and options.
        entries (`list` of [`Entry`]): The runs of the table that have results.
        comparisons (`dict[str, str]`): By run, a Markdown table that compares its predictions with those of the run
            `compare_with`.
    """

    table: Table
    entries: list[Entry]
    comparisons: dict[str, str]

    def name(self, entry: Entry, short: bool = False) -> str:
        """Returns the name of a run for tables with several runs."""
        name = self.table.short if short and self.table.short else self.table.title
        return f"{name}, {entry.run.label}" if entry.run.label else name


def read_groups(page: Page, folder: Path) -> list[Group]:
    """Reads the results in a folder, in the order of `tables.yaml`. Tables without results are left out."""
    groups = []
    for table in page.tables:
        entries = []
        for run in table.runs:
            path = folder / run.name / "results.json"
            if path.is_file():
                facts = json.loads((folder / run.name / "run.json").read_text())
                check_path = folder / run.name / "check.json"
                check = json.loads(check_path.read_text()) if check_path.is_file() else None
                results = ExperimentResult.read(path)
                entries.append(Entry(run, results, facts, read_results(path), folder / run.name, check))
        comparisons = {}
        if table.compare_with is not None:
            comparisons = {entry.run.name: comparison(entry.run.name, table, folder) for entry in entries}
        if entries:
            groups.append(Group(table, entries, comparisons))
    return groups


# ---- Cells ----


def accuracy_cell(scores: pd.DataFrame) -> str:
    """
    Returns the accuracy of one seed with its interval, or the mean over seeds with the smallest and largest accuracy.
    """
    values = scores["accuracy"]
    if len(values) == 1:
        return rounded(values.iloc[0]) + _interval(
            [scores["accuracy_low"].iloc[0], scores["accuracy_high"].iloc[0]], digits=3
        )
    if values.min() == values.max():
        return rounded(values.mean())
    return f"{rounded(values.mean())} ({rounded(values.min())} to {rounded(values.max())})"


def pgr_cell(summary: MethodSummary | PgrSummary | None) -> str:
    """Returns the median PGR with its interval."""
    if summary is None:
        return ""
    undefined = f"undefined in {summary.n_undefined} of {_seeds(summary.n_seeds)}"
    if summary.pgr_median is None:
        return undefined
    median = f"{summary.pgr_median:.2f}" + (_interval(summary.pgr_ci95, 2) or " [unbounded]")
    return median + (f", {undefined}" if summary.n_undefined else "")


def _interval(ends: Sequence[float] | None, digits: int) -> str:
    if ends is None or any(end is None or np.isnan(end) for end in ends):
        return ""
    return f" [{rounded(ends[0], digits)}, {rounded(ends[1], digits)}]"


def _all_seeds(groups: Sequence[Group]) -> str:
    """Returns the number of seeds of the runs of the README, or `the seeds` if runs have different numbers."""
    numbers = {len(entry.seeds) for group in groups if group.table.short for entry in group.entries}
    return _seeds(numbers.pop()) if len(numbers) == 1 else "the seeds"


def _share(count: int, total: int) -> str:
    return f"{count} of {total}"


def _named_seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) != 1 else ''} {', '.join(map(str, seeds))}"


def _seeds(count: int) -> str:
    return f"{count} seed" + ("s" if count != 1 else "")


# ---- Sections of the page ----


def models_table(entry: Entry) -> str:
    """Returns the table of all models of a run."""
    several = len(entry.seeds) > 1
    header = ["model", "accuracy, mean (range)" if several else "accuracy [95 %]"]
    header += ["seeds " + ", ".join(map(str, entry.seeds))] if several else []
    header += ["median PGR [95 %]" if several else "PGR [95 %]", "agreement, supervisor right / wrong"]
    has_plain = entry.results.summary[0].against_plain_ceiling is not None
    header += ["PGR against the ceiling without generative finetuning [95 %]"] if has_plain else []
    rows = []
    for (role, method, model), scores in _by_model(entry.table):
        if entry.is_prompted and method.endswith(_BALANCED):
            continue  # the accuracy of the same prompt at the median
        line = [_label(role, method, model), accuracy_cell(scores)]
        if role == "baseline":
            line[1] += "".join(f"; {name} {rounded(value)}" for name, value in _prompt_scores(entry, method).items())
        line += [", ".join(map(rounded, scores["accuracy"]))] if several else []
        if role == "student":
            summary = entry.results.summary_of(method)
            agreement = [scores[f"agreement_supervisor_{kind}"].mean() for kind in ("right", "wrong")]
            line += [pgr_cell(summary), " / ".join(f"{share:.2f}" for share in agreement)]
            line += [pgr_cell(summary.against_plain_ceiling)] if has_plain else []
        rows.append(line + [""] * (len(header) - len(line)))
    return markdown_table(header, rows)


def _by_model(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Yields role, method, model and scores of each model, in the order of the results of the first seed."""
    yield from table.fillna({"method": "", "model": ""}).groupby(["role", "method", "model"], sort=False)


def _label(role: str, method: str, model: str) -> str:
    if role in _ROLES:
        return _ROLES[role]
    if method in _ROLES:
        return _ROLES[method]
    if role == "baseline":
        return f"prompt, {method}, no training" if "-shot" in method else method
    if role == "student":
        return f"student, {method}"
    return f"{role}, {method}" + (f" ({model})" if role == "link" else "")


def _prompt_scores(entry: Entry, baseline: str) -> dict[str, float]:
    """Returns the scores of a prompt without its preference for one answer, if they were computed."""
    scores = [each.scores for run in entry.results.runs for each in run.baselines if each.name == baseline]
    return {
        name: float(np.mean([each[key] for each in scores]))
        for key, name in _PROMPT_SCORES.items()
        if scores and all(each.get(key) is not None for each in scores)  # a trained student is no prompt
    }


def comparison(name: str, table: Table, folder: Path) -> str:
    """
    Returns a table that compares the predictions of two runs, a run and its `compare_with`, for their common models.

    Raises:
        ValueError: The predictions of one run are not published or are not probabilities. The two runs have different
            test rows, or no seed and model in common.
    """
    names = (name, str(table.compare_with))
    for each in names:
        if not (folder / each / PREDICTIONS).is_file():
            raise ValueError(
                f"compare_with: {table.compare_with} in the table {table.name}: got no {each}/{PREDICTIONS} in "
                f"{folder.name}, expected the predictions of both runs. Run python results/run.py {each}."
            )
    predictions, others = (read_predictions(folder / each / PREDICTIONS) for each in names)
    is_shared = pd.MultiIndex.from_frame(predictions[["seed", "role"]]).isin(
        pd.MultiIndex.from_frame(others[["seed", "role"]])
    )
    if not is_shared.any():
        raise ValueError(
            f"compare_with: got {names[0]} and {names[1]}, expected runs with a model and seed in common. "
            "Name a run with common models and seeds, or remove `compare_with`."
        )
    differences = pd.DataFrame(compare_predictions(predictions[is_shared], others))
    rows = []
    for role, models in differences.groupby("role", sort=False):
        if models["largest_difference"].isna().any():
            raise ValueError(
                f"compare_with: got completions of {table.name}, expected a task with probabilities. Remove "
                "`compare_with`."
            )
        rows.append([
            _ROLES.get(role) or (f"student, {role}" if role in (*METHODS, BOOTSTRAP) else role),
            *(rounded(models[column].mean()) for column in ("accuracy", "other_accuracy")),
            *(f"{value:.3f}" for value in (models["largest_difference"].max(), models["mean_difference"].mean())),
            f"{1 - models['n_different'].sum() / models['n'].sum():.3f}",
        ])  # fmt: skip
    seeds = _named_seeds(differences["seed"].unique())
    header = ["model", "accuracy", f"accuracy in `{table.compare_with}`", "largest difference", "mean difference"]
    return (
        f"**Comparison with `{table.compare_with}` on the same test rows ({seeds})**\n\nThe differences are absolute "
        "differences of the probability of class 1.\n\n" + markdown_table([*header, "same predicted class"], rows)
    )


_DIFFERENCES = (
    "Each entry is a difference in accuracy with its 95 % interval, and the number of seeds in which the difference "
    "is positive."
)


def differences_table(entry: Entry) -> str:
    """Returns a table of accuracy differences between the models and the supervisor, naive student and baselines."""
    methods = entry.methods
    own = [SELF_TRAINED] if entry.is_self_trained else []
    columns = {"weak": ("supervisor", [*own, *methods])}
    if "naive" in methods and len(methods) > 1:
        columns["naive"] = ("naive student", [*own, *(method for method in methods if method != "naive")])
    if LINEAR_PROBE in set(entry.predictions["role"]):
        columns[LINEAR_PROBE] = ("linear probe", ["ceiling"])
    if own:
        columns[SELF_TRAINED] = ("student trained on its zero-shot answers", methods)
    if entry.is_prompted:
        columns[_ZERO_SHOT] = ("zero-shot prompt", ["weak", *own, *methods])
    rows = []
    for one in ("weak", *own, *methods, "ceiling"):
        cells = [_gain(entry, one, other) if one in models else "" for other, (_, models) in columns.items()]
        if any(cells):
            rows.append([_ROLES.get(one, f"student, {one}"), *cells])
    return markdown_table(["model", *(f"minus {name}" for name, _ in columns.values())], rows)


def _gain(entry: Entry, one: str, other: str) -> str:
    """Returns the difference between two models with its interval, and the number of seeds in which it is positive."""
    difference, _ = entry.difference(one, other)
    above = (entry.accuracies(one) > entry.accuracies(other)).sum()
    return f"{difference}, {_share(above, len(entry.seeds))}"


def warnings_of(entry: Entry) -> list[str]:
    """Returns the reasons why PGR is not meaningful in some seeds, one per line."""
    lines, n = [], len(entry.seeds)
    at_chance = [run.seed for run in entry.results.runs if run.is_supervisor_at_chance(entry.results.chance)]
    if at_chance:
        lines.append(
            f"The supervisor is not clearly better than chance in {_share(len(at_chance), n)} seeds "
            f"({_named_seeds(at_chance)}). PGR is not meaningful in these seeds, because the weak labels may be no "
            "better than random labels."
        )
    no_gap = [run.seed for run in entry.results.runs if any(student.pgr_ci95 is None for student in run.students)]
    if no_gap:
        lines.append(
            f"The ceiling is not clearly above the supervisor in {_share(len(no_gap), n)} seeds. PGR is not "
            "meaningful in these seeds, and its interval is unbounded."
        )
    return lines


def facts_of(entry: Entry, page: Page) -> list[str]:
    """Returns the models, rows, hardware and date of a run, one line for each."""
    data, by = entry.results.dataset, entry.facts["published_by"]
    first = entry.results.runs[0]
    local = page.local_rows.get(entry.run.rows, f"{data.id}, a local copy of a part")
    source = local if data.revision == "local" else f"{data.id}, revision {data.revision[:12]}"
    rows = (
        f"The supervisor is trained on {data.n_weak_half} rows, students and ceiling on {data.n_student_half} rows. "
        f"There are {data.n_validation} validation rows and {data.n_test} test rows."
    )
    days = " to ".join(dict.fromkeys(entry.facts["trained"]))
    devices = {student.hardware or "an unknown device" for run in entry.results.runs for student in run.students}
    versions = ", ".join(f"{name} {version}" for name, version in entry.results.versions.items())
    return [
        f"The supervisor is {_model(first, 'weak', page)}. Students and ceiling are {_model(first, 'ceiling', page)}.",
        f"The dataset is {source}. {rows}",
        f"The models were trained in {_duration(entry.hours)} on {' and '.join(sorted(devices))} ({days}). The "
        f"versions were {versions}.",
        f"The results were copied into `results/` with commit {by['commit']} and Python {by['python']} on "
        f"{_machine(by)}. The models may have been trained with an earlier commit.",
        *([check_line(entry, entry.check)] if entry.check else []),
    ]


def check_line(entry: Entry, check: dict) -> str:
    """Returns the outcome of `python results/run.py --check` as a line of text."""
    models, by = check["models"], check["checked_by"]
    differences = [model["largest_difference"] for model in models if model["largest_difference"] is not None]
    n_different, n = (sum(model[name] for model in models) for name in ("n_different", "n"))
    outcome = f"{n_different} of {n} predictions by {len(models)} models differ"
    if differences:
        largest = f"The largest difference in probability is {max(differences):.2g}"
        outcome = f"{largest}, and the class differs in {n_different} of {n} predictions by {len(models)} models"
    place = f" on {_machine(by)}" if machine_differs(by, entry.facts["published_by"]) else ""
    details = f"{place} ({_named_seeds(check['seeds'])}, commit {by['commit']})"
    roles = {model["role"] for model in models}
    own = [SELF_TRAINED] if entry.is_self_trained else []
    # Students that were published after the check
    later = [_ROLES.get(role, role) for role in (*entry.methods, *own) if role not in roles]
    missing = f" These students were not trained again: {', '.join(later)}." if later else ""
    return f"The models were trained again on {check['date']}{details}. {outcome}.{missing}"


def _machine(by: dict) -> str:
    threads = f"{by['threads']} thread{'s' if by['threads'] > 1 else ''}"
    return f"{by['cpu']}, {by['cores']} cores, {threads}, {by['instructions']}"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"


def _model(run: SeedResult, role: str, page: Page) -> str:
    """Returns the name of a model on the Hub, and the hash of its weights if it was a local copy."""
    score = getattr(run, role)
    for name, model in page.models.items():
        if model.weights == score.weights:
            return f"{name} (local copy, weights {score.weights})"
    return score.model + (f" ({(score.revision or score.weights)[:12]})" if score.revision or score.weights else "")


def section(group: Group, page: Page) -> str:
    """Returns the section of a table of the page."""
    parts = [f"## {group.table.title}"]
    parts += [group.table.notes.strip()] if group.table.notes else []
    parts += [overview([group], short=False)] if len(group.entries) > 1 else []
    for entry in group.entries:
        parts += [f"### {entry.run.label[0].upper()}{entry.run.label[1:]}"] if entry.run.label else []
        parts += [models_table(entry)]
        parts += [_DIFFERENCES, differences_table(entry)]
        if labels := training_labels(entry.results):
            parts += ["**Training labels**", *labels]
        warnings = warnings_of(entry)
        parts += ["\n".join(f"- {line}" for line in warnings)] if warnings else []
        parts += [group.comparisons[entry.run.name]] if entry.run.name in group.comparisons else []
        for name, write in _SECTIONS.items():
            analyses = [run.analyses[name] for run in entry.results.runs if name in run.analyses]
            if analyses:
                parts += [f"**{ANALYSES[name]}**", write(analyses).strip()]
        parts += [f"```\npython results/run.py {entry.run.name}\n{entry.facts['command']}\n```"]
        parts += ["\n".join(f"- {line}" for line in facts_of(entry, page))]
    return "\n\n".join(parts)


def overview(groups: Sequence[Group], short: bool) -> str:
    """Returns the table with a row for each model and a column for each run."""
    entries = [(group.name(entry, short), entry) for group in groups for entry in group.entries]
    if len(groups) == 1:
        entries = [(entry.run.label or name, entry) for name, entry in entries]
    n_seeds = {len(entry.seeds) for _, entry in entries}
    rows = [] if len(n_seeds) == 1 else [["seeds", *(str(len(entry.seeds)) for _, entry in entries)]]
    for role in _roles_of([entry for _, entry in entries]):
        cells = [_overview_cell(entry, role) for _, entry in entries]
        rows.append([_ROLES.get(role, "zero-shot prompt" if role == _ZERO_SHOT else role), *cells])
    return markdown_table(["model", *(name for name, _ in entries)], rows)


def _roles_of(entries: Sequence[Entry]) -> list[str]:
    """Returns the models of runs in the order of tables and figure."""
    methods = list(dict.fromkeys(method for entry in entries for method in entry.methods))
    prompts = [_ZERO_SHOT] if any(entry.is_prompted for entry in entries) else []
    own = [SELF_TRAINED] if any(entry.is_self_trained for entry in entries) else []
    return ["weak", *prompts, *own, *methods, "ceiling"]


def _overview_cell(entry: Entry, role: str) -> str:
    """Returns the mean accuracy and, for students, the median PGR; or an empty string without the model."""
    accuracies = entry.accuracies(role)
    if role not in entry.methods:
        return rounded(accuracies.mean()) if len(accuracies) else ""
    summary = entry.results.summary_of(role)
    pgr = "no clear gap" if summary.pgr_ci95 is None else pgr_cell(summary)
    return f"{rounded(summary.accuracy_mean)} ({pgr})"


@dataclass(frozen=True)
class Direction:
    """
    A comparison of two values of a run.

    Args:
        name (`str`): The name of the run.
        one (`str`): The first value: a method or prompt, of which the accuracy is compared, or the description of a
            share.
        other (`str`): The second value: a role or method, or the description of a share.
        difference (`str`): The first value minus the second value, with its interval.
        outcome (`str`): `above`, `below` or `not distinguishable`.
        paper (`str`): The direction in the paper, or an empty string.
    """

    name: str
    one: str
    other: str
    difference: str
    outcome: str
    paper: str

    @property
    def cells(self) -> list[str]:
        """The cells of the comparison in the table of the page."""
        values = f"{self.one} and {_ROLES.get(self.other, self.other)}"
        return [self.name, values, self.difference, self.outcome, self.paper]


def directions(entries: Sequence[tuple[str, Entry]]) -> list[Direction]:
    """Returns the comparisons of students with supervisors and naive students, for each run."""
    rows = []
    for name, entry in entries:
        methods, paper = entry.methods, _PAPER.get(entry.results.setting, {})
        pairs = [(method, "weak") for method in methods]
        pairs += [(method, "naive") for method in methods if method != "naive" and "naive" in methods]
        if "naive" in methods:
            pairs += [(_ZERO_SHOT, "naive")] if entry.is_prompted else []
            pairs += [(SELF_TRAINED, "naive")] if entry.is_self_trained else []
        for one, other in pairs:
            difference = entry.difference(one, other)
            rows.append(Direction(name, one, other, *difference, paper.get(f"{one} and {other}", "")))
        is_wrong = entry.correct("weak") == 0
        # If the supervisor is always right or always wrong, one of the two shares is undefined.
        is_both = (is_wrong.any(axis=1) & ~is_wrong.all(axis=1)).all()
        if not (is_both and entry.has_probabilities and "naive" in methods):
            continue
        same = entry.agrees("naive")
        difference = _difference(np.where(is_wrong, same, np.nan), np.where(is_wrong, np.nan, same))
        values = ("agreement of naive where the supervisor is wrong,", "where it is right")
        rows.append(Direction(name, *values, *difference, paper.get("agreement", "")))
        if "confidence" in methods:
            errors = (np.where(is_wrong, entry.agrees(method), np.nan) for method in ("confidence", "naive"))
            values = ("errors that confidence copies,", "that naive copies")
            rows.append(Direction(name, *values, *_difference(*errors), paper.get("agreement", "")))
    return rows


def summary(comparisons: Sequence[Direction]) -> list[str]:
    """Returns the number of comparisons in each direction, one sentence per kind of comparison."""
    subjects = {
        "The naive student": ("its supervisor", "naive", "weak"),
        "The untrained student with a zero-shot prompt": ("the naive student", _ZERO_SHOT, "naive"),
        "The student trained on its zero-shot answers": ("the naive student", SELF_TRAINED, "naive"),
    }
    lines = []
    for subject, (baseline, first, second) in subjects.items():
        above, below, unknown = counts = _count(comparisons, first, second)
        if n := sum(counts):
            lines.append(
                f"{subject} is more accurate than {baseline} in {_share(above, n)} comparisons. "
                f"It is less accurate in {_share(below, n)}, and {_UNKNOWN} in {_share(unknown, n)}."
            )
    return lines


def methods_summary(comparisons: Sequence[Direction]) -> str:
    """Returns a table that counts for each method in how many runs it differs from the naive student."""
    methods = [each.one for each in comparisons if each.one in (*METHODS, BOOTSTRAP) and each.other == "naive"]
    counts = {method: _count(comparisons, method, "naive") for method in dict.fromkeys(methods)}
    rows = [[method, str(sum(of_method)), *map(str, of_method)] for method, of_method in counts.items()]
    return markdown_table(["method", "runs", "above naive", "below naive", _UNKNOWN], rows)


def _count(comparisons: Sequence[Direction], one: str, other: str) -> list[int]:
    """Returns in how many comparisons the first value is above, below, and not distinguishable from the second."""
    outcomes = [each.outcome for each in comparisons if (each.one, each.other) == (one, other)]
    return [outcomes.count(each) for each in ("above", "below", _UNKNOWN)]


def _difference(first: np.ndarray, second: np.ndarray) -> tuple[str, str]:
    """
    Returns the difference of two means with its interval, and whether the first mean is above or below the second
    mean. Both arrays have the shape `(seeds, N)`.
    """
    low, high = difference_interval(first, second)
    mean = (np.nanmean(first, axis=1) - np.nanmean(second, axis=1)).mean()
    outcome = "above" if low > _NOISE else "below" if high < -_NOISE else _UNKNOWN
    return rounded(mean) + _interval((low, high), 3), outcome


def prompts_table(entries: Sequence[dict]) -> str:
    """
    Returns a table that compares the prompts of the tasks with prompts for the answers 0 and 1, with the scores that
    `recipes/benchmarks/prompts.py` wrote.
    """
    names = {"accuracy": "accuracy", **_PROMPT_SCORES}
    forms = {"task": "task's prompt", "01": "0 or 1"}
    rows = []
    for task in dict.fromkeys(entry["task"] for entry in entries):
        of_task = {entry["form"]: entry for entry in entries if entry["task"] == task}
        cells = [" / ".join(f"{of_task[form][key]:.3f}" for key in names) if form in of_task else "" for form in forms]
        rows.append([task, str(next(iter(of_task.values()))["n"]), *cells])
    return markdown_table(["task", "n", *forms.values()], rows)


def prompts_finding(entries: Sequence[dict]) -> str:
    """Returns a text on the tasks for which the accuracy interval of a prompt is above chance."""
    shares = {}
    for form in ("task", "01"):
        of_form = [entry for entry in entries if entry["form"] == form]
        above = [entry["task"] for entry in of_form if entry["ci95"][0] > 0.5]
        shares[form] = f"on {len(above)} of {len(of_form)} tasks" + (f" ({', '.join(above)})" if above else "")
    return (
        f"The 95 % accuracy interval of the task's prompt is above chance {shares['task']}. The interval of the "
        f"prompt for the answers 0 and 1 is above chance {shares['01']}. If a prompt prefers one answer, AUROC is "
        "more informative than accuracy."
    )


_NOTHING = "No run has been published yet: `python results/run.py` trains the models."
_CELLS = (
    "The parentheses contain the median of the seeds' PGR with its 95 % interval. This median is not the PGR of the "
    "mean accuracies."
)
_SUMMARY = (
    "The summary counts comparisons of the runs in the section [Overview](#overview). Two models are not "
    "distinguishable if the 95 % interval of their difference includes 0."
)
_NOT_AS_IN_THE_PAPER = """\
Differences from the paper:

- Supervisor and student belong to two model families: an encoder trained on sentence pairs, and a decoder finetuned on
  instructions. The paper has one family of pretrained models in many sizes, while these runs have one pair of models.
- For texts, supervisors are trained on 100 or 200 rows, and ceilings on 640 rows. The number of rows therefore
  explains a part of the gap. For pairs, supervisor and ceiling are trained on 400 rows.
- Students have LoRA adapters. Texts are inside the task's prompt. The head is initialized with the rows of the answer
  words in the unembedding. For pairs, the head is initialized at random.
- Training runs are short (80 optimizer steps for texts, 50 for pairs). The warm-up of the auxiliary loss takes a fifth
  of the steps, as in the paper. The recipe warns that this warm-up has fewer than 50 steps.
- There is no early stopping."""
_INTRODUCTION = """\
# Results on real models

<!-- Written by `python results/build.py` from the files in results/. Do not edit. -->

This page has the results of pretrained models on real datasets. The section [Metrics and setup](#metrics-and-setup)
defines accuracy, PGR, intervals and baselines. The section [Train the models again](#train-the-models-again) has the
commands."""
_AGAIN = """\
## Train the models again

[`results/`](../results) has the `results.json` of each run. [`tables.yaml`](../results/tables.yaml) has the options
of each run.

`python results/run.py sst2` trains the models of the table `sst2` again and replaces its files in `results/`. Without
a name, it trains the models of all tables, including tables without results. `--add_methods NAME` adds a method and
trains all models again. `--only_methods NAME` adds a method and keeps the published students. With `--check`, it
replaces nothing, and compares the predictions of the test rows with `predictions.parquet`. Predictions by prompts are
not compared. Models and rows come from the Hub. With `--models DIRECTORY --data DIRECTORY`, they come from local
copies. The directory of the models contains `smollm2-135m/`. The directory of the data contains `sst2/` with the
files of each split. `python results/run.py --help` describes both directories. `python results/build.py` writes this
page."""
_METHOD = """\
## Metrics and setup

- Seeds change the initialization and the order of the training rows. All seeds of a run have the same rows.
- Accuracy is the share of test rows that a model classifies correctly. With one seed, the cell has the 95 % Wilson
  interval over test rows. With several seeds, the cell has the mean, smallest and largest accuracy.
- PGR is (student - supervisor) / (ceiling - supervisor). It is 0 for a student as accurate as its supervisor, and 1
  for a student as accurate as its ceiling. It is negative if the student is worse than its supervisor. Its interval is
  a bootstrap interval over test rows, and over seeds if there are several. The interval is unbounded if the ceiling is
  at or below the supervisor in more than 2.5 % of the resamples. The interval of PGR can include 0 although the
  interval of the difference between student and supervisor does not.
- All bootstrap intervals are percentile intervals, of 2,000 resamples for PGR and 20,000 for differences. They cover
  three seeds and one choice of training rows. They are not corrected for the number of comparisons.
- The test rows are balanced, so the accuracy at chance is 0.5.
- Agreement is the share of test rows for which student and supervisor predict the same class. It is computed for the
  rows that the supervisor classifies correctly, and for the rows that it misclassifies. A student that copies errors
  has high agreement in both groups.
- The ceiling is the student model trained on the ground truth of the students' rows. The linear probe is a logistic
  regression on the last hidden states of the student model before finetuning, fitted to this ground truth. A ceiling
  that is not above the linear probe may not have learned the task.
- A student "trained on its zero-shot answers" has the training rows of the other students, without weak labels. Its
  labels are its answers to a zero-shot prompt before finetuning. They are balanced by their median.
- In a 5-shot prompt, the labels of the five examples are weak labels or ground truth.
- A prompt "at the median" predicts class 1 for the half of the test rows with the larger probability of class 1. This
  threshold needs balanced classes, but no labels. "Content-free" subtracts the prompt's preference for one answer,
  which is measured on a row without content.
- Commands with `--bf16 true` train in mixed precision (bfloat16), which is faster on the CPU of these runs. Commands
  without this option train in float32. Prompts are evaluated in the precision of the training. On SciQ in bfloat16, a
  probability of the zero-shot prompt changes by up to 0.04 with the batch. On a CPU without AVX512-BF16 or AMX, pass
  `--bf16 false` to the recipe. `--check` cannot compare runs of different precision.
- Each run names its number of threads (`OMP_NUM_THREADS`). Another number of threads changes the last digits of the
  results.
- Models that several tables share were trained once, but the hours of each table include them. If a training run was
  interrupted and resumed, hours include only the time since it was resumed.
- The models that "were trained again" are the supervisor, ceiling, students and linear probe of the seeds in
  parentheses. Analyses are not repeated. The machine is of the same kind unless another machine is named. Models that
  several runs share are trained again once per command.
- `weights` of a model is a hash of its configuration and of samples of its weights, as in `results.json`."""


def page_text(groups: Sequence[Group], page: Page, prompts: dict | None) -> str:
    """Returns the text of docs/results.md. `prompts` is the content of the file of `recipes/benchmarks/prompts.py`."""
    in_readme = [(group.name(entry, True), entry) for group in groups if group.table.short for entry in group.entries]
    comparisons = directions(in_readme)
    later = {SELF_TRAINED, BOOTSTRAP, *METHODS} - {"naive", "confidence"}  # not compared in the paper's experiments
    parts = [_INTRODUCTION]
    if not groups:
        parts += [_NOTHING]
    if comparisons:
        parts += [
            "## Summary",
            _SUMMARY,
            "\n".join(f"- {line}" for line in summary(comparisons)),
            methods_summary(comparisons),
            "## Overview",
            f"The table has the mean accuracy over {_all_seeds(groups)}. {_CELLS} `no clear gap` means that the "
            "ceiling is not clearly above the supervisor.",
            overview([group for group in groups if group.table.short], short=True),
            "![Test accuracy of supervisors, students and ceilings](figures/results.png)",
            "## The paper's comparisons",
            "Each row compares two values, which are accuracies unless the row names another quantity. The difference "
            "is the mean of the first value minus the mean of the second value. Its interval is a paired 95 % "
            "bootstrap interval over test rows and seeds. The first value is above or below the second value if the "
            "interval excludes 0.",
            markdown_table(
                ["task", "values", "difference [95 %]", "the first value is", "in the paper"],
                [each.cells for each in comparisons if each.one not in later],
            ),
            _NOT_AS_IN_THE_PAPER,
        ]
    parts += [section(group, page) for group in groups]
    if prompts:
        options = " ".join(f"--{name} {prompts[name]}" for name in ("dtype", "max_length", "n_test", "batch_size"))
        parts += [
            "## Prompts without training",
            f"The table shows scores of {prompts['model']} with prompts: accuracy / at the median / content-free / "
            "AUROC. The test rows are balanced, and differ from the test rows of the tables above. "
            f"The command was `python recipes/benchmarks/prompts.py --model {prompts['model']} --data DIRECTORY "
            f"{options}`. Its output with prompts, answers and intervals is `results/prompts/prompts.json`.",
            prompts_finding(prompts["results"]),
            prompts_table(prompts["results"]),
        ]
    parts += [_METHOD + "".join(f"\n{note}" for note in local_notes(groups, page)), _AGAIN]
    return "\n\n".join(parts) + "\n"


def local_notes(groups: Sequence[Group], page: Page) -> list[str]:
    """Returns one line for each difference between local copies and the models and rows on the Hub."""
    results = [entry.results for group in groups for entry in group.entries]
    weights = {score.weights for each in results for run in each.runs for score in (run.weak, run.ceiling)}
    notes = [
        f"- {name} was read from a local copy: {model.local}."
        for name, model in page.models.items()
        if model.weights in weights
    ]
    is_local = any(each.dataset.revision == "local" for each in results)
    return notes + ([f"- {page.local_rows['all'].strip()}"] if is_local else [])


def readme_text(groups: Sequence[Group]) -> str:
    """Returns the part of the README between the markers."""
    groups = [group for group in groups if group.table.short]
    if not groups:
        return _NOTHING
    n_test = [entry.results.dataset.n_test for group in groups for entry in group.entries]
    rows = f"{min(n_test)}" if min(n_test) == max(n_test) else f"{min(n_test)} to {max(n_test)}"
    commands = [
        f"`python results/run.py {group.table.name}` ({_duration(sum(entry.hours for entry in group.entries))})"
        for group in groups
    ]
    return "\n\n".join([
        f"The table has the mean accuracy over {_all_seeds(groups)} on {rows} test rows. {_CELLS}",
        overview(groups, short=True),
        "![Test accuracy of supervisors, students and ceilings](docs/figures/results.png)",
        "An empty cell was not run for this task. Without a clear gap between supervisor and ceiling, PGR is not "
        "meaningful. These commands train the models of all seeds. Their times are for `OMP_NUM_THREADS=1`: "
        f"{', '.join(commands)}. Rows and models were [local copies](docs/results.md#metrics-and-setup). Rows and "
        "models on the Hub may give other numbers.",
    ])  # fmt: skip


# ---- Figure ----


def draw(groups: Sequence[Group], path: Path, key: str) -> None:
    """
    Draws a panel for each run in the README, with a line for each of supervisor, prompt, students and ceiling.

    Args:
        groups (sequence of [`Group`]): Tables with results.
        path (`Path`): A `.png` file.
        key (`str`): Hash of the numbers, which the file keeps.
    """
    entries = [
        (group.name(entry, short=True), entry) for group in groups if group.table.short for entry in group.entries
    ]
    names = _roles_of([entry for _, entry in entries])
    colours = {"weak": "grey", _ZERO_SHOT: "orange", SELF_TRAINED: "orange", "ceiling": "green"}
    n_columns = min(3, len(entries))
    n_rows = -(-len(entries) // n_columns)
    with matplotlib.rc_context(STYLE):
        size = 1.6 + 2.6 * n_columns, 0.5 + (1.1 + 0.3 * len(names)) * n_rows
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(entries) :]:
            axes.set_axis_off()
        for axes, (name, entry) in zip(grid.flat, entries, strict=False):
            if entry.results.chance is not None:
                axes.axvline(entry.results.chance, color="black", lw=0.8, ls=":", zorder=1)
            for role in ("weak", "ceiling"):
                axes.axvline(entry.accuracies(role).mean(), color=PALETTE[colours[role]], lw=1.2, zorder=1)
            for y, label in enumerate(names):
                scores = entry.scores(label)
                if not len(scores):
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # a line may be behind the text
                    axes.text(
                        0.02, y, "not run", va="center", ha="left", fontsize=8, bbox=box,
                        transform=axes.get_yaxis_transform(),
                    )  # fmt: skip
                    continue
                values = scores["accuracy"].to_numpy()
                colour = PALETTE[colours.get(label, "blue")]
                if len(values) == 1:
                    low, high = scores["accuracy_low"].iloc[0], scores["accuracy_high"].iloc[0]
                    axes.plot([low, high], [y, y], color=colour, lw=1.4, zorder=2)
                else:
                    axes.plot(values.mean(), y, "|", ms=15, mew=2.5, color=colour, zorder=3)
                axes.plot(values, [y] * len(values), "o", ms=5, mfc="white", mec=colour, mew=1.2, zorder=4)
            n_seeds = len(entry.seeds)
            over = f"{n_seeds} seeds" if n_seeds > 1 else "1 seed, 95 % intervals"
            title = name.replace(", ", ",\n", 1)  # the label of a run is on a separate line
            axes.set_title(f"{title}\n{over}, {entry.results.dataset.n_test} test rows", loc="left", fontsize=9)
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("test accuracy", fontsize=9)
            axes.grid(axis="x", color="#E6E6E6", lw=0.7)
            axes.set_axisbelow(True)  # otherwise the grid hides lines at the same position
        labels = {**_ROLES, SELF_TRAINED: "trained on its\nzero-shot answers"}
        grid[0, 0].set_yticks(range(len(names)), [labels.get(name, name.replace("_", " ")) for name in names])
        grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
        handles = [Line2D([], [], color="black", marker="o", mfc="white", ms=5, ls="", label="model of one seed")]
        if any(len(entry.seeds) > 1 for _, entry in entries):
            handles.append(Line2D([], [], color="black", marker="|", ms=11, mew=2.5, ls="", label="mean over seeds"))
        handles += [
            Line2D([], [], color=PALETTE["grey"], lw=1.2, label="weak supervisor, mean"),
            Line2D([], [], color=PALETTE["green"], lw=1.2, label="strong ceiling, mean"),
            Line2D([], [], color="black", lw=0.8, ls=":", label="chance"),
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2 if n_columns == 1 else 5, fontsize=8, frameon=False
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Description": key, "Software": None})


def figure_key(groups: Sequence[Group]) -> str:
    """Returns a hash of the numbers in the figure and of the code that draws it."""
    shown = [
        [group.name(entry, short=True), entry.results.to_dict() | {"wall_seconds": None, "versions": None}]
        for group in groups
        if group.table.short
        for entry in group.entries
    ]
    drawing = [inspect.getsource(draw), repr(sorted(STYLE.items())), repr(PALETTE)]
    return hashlib.sha256(json.dumps([shown, drawing], sort_keys=True).encode()).hexdigest()[:16]


# ---- Files ----


def build(root: Path = ROOT, tables: Path = TABLES, check: bool = False) -> list[str]:
    """
    Writes the page, the figure, and the part of the README between the markers.

    Args:
        root (`Path`): The repository.
        tables (`Path`): `tables.yaml`, with the results beside it.
        check (`bool`, *optional*): Write nothing, only compare.

    Returns:
        `list[str]`: The files that were out of date.
    """
    page = read_page(tables)
    groups = read_groups(page, tables.parent)
    readme = (root / "README.md").read_text(encoding="utf-8")
    if readme.count(_BEGIN) != 1 or readme.count(_END) != 1:
        raise ValueError(
            f"README.md: got {readme.count(_BEGIN)} {_BEGIN} and {readme.count(_END)} {_END}, expected each marker "
            "once around the results. Add the missing marker, or remove repeated markers."
        )
    before, after = readme.split(_BEGIN)[0], readme.split(_END)[1]
    prompts_path = tables.parent / "prompts" / "prompts.json"
    prompts = json.loads(prompts_path.read_text()) if prompts_path.is_file() else None
    texts = {
        "docs/results.md": page_text(groups, page, prompts),
        "README.md": f"{before}{_BEGIN}\n\n{readme_text(groups)}\n\n{_END}{after}",
    }
    old = [name for name, text in texts.items() if not (root / name).is_file() or (root / name).read_text() != text]
    figure, key = root / "docs" / "figures" / "results.png", figure_key(groups)
    has_figure = any(group.table.short for group in groups)
    # The description in a PNG file is not compressed, so it can be searched for in the bytes.
    if has_figure and not (figure.is_file() and f"Description\0{key}".encode() in figure.read_bytes()):
        old.append("docs/figures/results.png")
    if not check:
        if has_figure:
            draw(groups, figure, key)
        for name, text in texts.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
    return old


def main() -> None:
    parser = CommandLine(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="Write no file. End with an error if a file is out of date."
    )
    args = parser.parse_args()
    try:
        old = build(check=args.check)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    missing = [run.name for run in read_page().runs if not (TABLES.parent / run.name / "results.json").is_file()]
    print(f"Runs without results: {', '.join(missing) or 'none'}")
    if args.check and old:
        sys.exit(f"error: Got files that are out of date: {', '.join(old)}. Run python results/build.py.")
    print(f"Wrote {', '.join(old)}." if old else "All files were up to date.")


if __name__ == "__main__":
    main()
