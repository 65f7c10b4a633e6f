"""Writes docs/results_format.md from its introduction and the records of `results.json` in the package.

python docs/generate_schema.py           # writes the page
python docs/generate_schema.py --check   # fails if the page is not up to date
"""

import dataclasses
import inspect
import re
import sys
import types
import typing
from pathlib import Path

from w2s_hf.results import schema, settings
from w2s_hf.results.record import Record

PAGE = Path(__file__).with_name("results_format.md")
INTRODUCTION = Path(__file__).with_name("results_format.intro.md")
RECORDS = (
    schema.ExperimentResult, schema.SeedResult, schema.ModelScore, schema.StudentResult, schema.LabelsResult,
    schema.Agreement,
    schema.Pgr, schema.LinkResult, schema.DirectResult, schema.BaselineResult, schema.ControlResult,
    schema.TransferResult, schema.TransferStudent, schema.MethodSummary, schema.PgrSummary, schema.DirectSummary,
    schema.TransferSummary, schema.SelfTrainedSummary, schema.DatasetInfo, settings.RunSettings,
    settings.TrainingSettings, settings.StudentSettings,
)  # fmt: skip
NAMES = {record.__name__ for record in RECORDS}
_LINK = re.compile(r"\[`~?([\w.]+)`\]")


def text_of(kind: object) -> str:
    """Returns the name of a type in JSON, with links to records."""
    if kind is types.NoneType:
        return "null"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType) or origin is typing.Union:
        return " or ".join(map(text_of, arguments))
    if origin is list:
        return f"list of {text_of(arguments[0])}"
    if origin is dict:
        return f"object of {text_of(arguments[1])}"
    if isinstance(kind, type) and issubclass(kind, Record):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "list"}[kind]


def linked(text: str) -> str:
    """Returns a docstring with links to the records of this page, and other names as code."""

    def link(match: re.Match) -> str:
        name = match[1].rpartition(".")[2]
        return f"[{name}](#{name.lower()})" if name in NAMES else f"`{match[1]}`"

    return _LINK.sub(link, text)


def descriptions(record: type[Record]) -> tuple[str, dict[str, str]]:
    """Returns the first part of the docstring of a record, and the descriptions of its fields."""
    summary, _, body = inspect.cleandoc(record.__doc__ or "").partition("Args:\n")
    fields: dict[str, str] = {}
    entries = re.split(r"\n(?=    \S)", "\n" + body.partition("\n\n")[0])
    for entry in entries:
        # The colon after the names is the first colon outside of brackets: `weak, ceiling ([`ModelScore`]): ...`
        match = re.match(r"\s*((?:[\w, ]|\((?:[^()]|\([^()]*\))*\))+):\s*(.*)", entry, flags=re.DOTALL)
        if match:
            names = re.findall(r"\w+", re.sub(r"\((?:[^()]|\([^()]*\))*\)", "", match[1]))
            fields |= dict.fromkeys(names, " ".join(match[2].split()))
    return " ".join(summary.split()), fields


def section(record: type[Record]) -> str:
    """Returns the section of a record: its description and a table of its keys."""
    summary, texts = descriptions(record)
    texts = descriptions(schema.ModelScore)[1] | texts | TEXTS
    kinds = typing.get_type_hints(record)
    lines = [
        f"### {record.__name__}",
        "",
        linked(summary).replace("`None`", "null"),
        "",
        "| key | value | meaning |",
        "| --- | --- | --- |",
    ]
    last: list[str] = []
    for part in dataclasses.fields(record):
        is_required = part.default is part.default_factory is dataclasses.MISSING
        meaning = linked(texts.get(f"{record.__name__}.{part.name}") or texts.get(part.name, ""))
        if part.metadata.get("rest"):
            last.append(f"| further keys | | {meaning or 'Keys of other versions are kept.'} |")
            continue
        key = part.metadata.get("key", part.name)
        presence = "" if is_required or part.metadata.get("always") else ", optional"
        lines.append(f"| `{key}` | {text_of(kinds[part.name])}{presence} | {meaning} |".replace("|  |", "| |"))
    return "\n".join(lines + last)


# Several records share these keys, or a docstring describes them together.
TEXTS = {
    "accuracy": "Accuracy on the test rows, in [0, 1].",
    "ci95": "95 % interval of the accuracy (Wilson).",
    "n": "Number of test rows.",
    "TransferResult.dataset": "Dataset of the test rows, on the Hub.",
    "TransferResult.weak": "The weak supervisor.",
    "TransferResult.ceiling": "The strong ceiling.",
    "MethodSummary.transfer": "Results on the test rows of other tasks, by the name of the task.",
    "LabelsResult.accuracy": "Share of the training rows with a correct label. For the loss `learned_supervisors`, "
    "the label is the mean of the labels of all supervisors.",
    "SelfTrainedSummary.method": "Method of the student that is trained on the weak labels.",
    "SelfTrainedSummary.accuracy_mean": "Mean accuracy of the student that is trained on its own zero-shot answers.",
    "SeedResult.weak": "The weak supervisor.",
    "SeedResult.ceiling": "The strong ceiling.",
    "output": "Directory of the model, below the output directory.",
    "weak_labels": "Directory of the training labels of the model, below the output directory.",
    "hardware": "Device of the training.",
    "ExperimentResult.task": "Name of the task.",
    "run_name": "Name of the run, from `--run_name`.",
    "preset": "`demo` or `custom`.",
    "dataset": "The rows.",
    "settings": "Settings of the training runs.",
    "versions": "Versions of libraries.",
    "text_form": "Format of the text of a row, for cards.",
    "class_names": "Names of the classes.",
    "example_prompt": "A prompt with a row, for cards.",
    "description": "Description of the task in one line.",
    "summary": "One entry per method, over the seeds.",
    "runs": "One entry per seed.",
    "pgr": "Performance gap recovered (never clipped), or null if the ceiling is not better than the supervisor.",
    "pgr_ci95": "95 % interval of PGR, or null if it is unbounded.",
    "pgr_undefined": "The reason why `pgr` is null.",
    "pgr_median": "Median of PGR over the seeds in which it is defined.",
    "n_seeds": "Number of seeds.",
    "n_undefined": "Number of seeds in which PGR is undefined.",
    "accuracy_mean": "Mean accuracy over the seeds.",
    "n_chain_is_better": "Number of seeds in which the chain has the higher accuracy.",
    "method": "Method that trained the student on the weak labels.",
    "schema": "Version of this format: 1.",
    "name": "Name of the baseline.",
    "links": "The intermediate models of the chain.",
    "direct": "The same student without the chain: `same_rows` and `all_rows`.",
    "against_plain_ceiling": "PGR relative to the ceiling without generative finetuning.",
    "use_peft": "True if students are adapters.",
    "dtype": "Precision of the base model.",
    "TrainingSettings.early_stopping": "Metric by which the best checkpoint was chosen.",
    "TrainingSettings.generative_finetuning": "Reward models: generative finetuning before the training, if any.",
    "generative_learning_rate": "Learning rate of the generative finetuning.",
    "generative_num_train_epochs": "Epochs of the generative finetuning.",
    "weak_learning_rate": "Learning rate of the supervisor, if students have another learning rate.",
    "weak_num_train_epochs": "Epochs of the supervisor, if students have another number of epochs.",
    "weak_weight_decay": "Weight decay of the supervisor, if students have another weight decay.",
    "TrainingSettings.n_supervisors": "Number of supervisors whose labels were averaged.",
    "keep_confident": "Share of the most confident weak labels used to train students.",
    "training": "Training of students and ceiling.",
    "student": "Adapters and precision of students and ceiling.",
    "seed": "Seed of heads, adapters and row order. In the demo, it is also the seed of the generated rows.",
    "split_seed": "Seed of the split.",
    "overall": "Agreement on all test rows.",
    "supervisor_right": "Agreement on the test rows that the supervisor classifies correctly.",
    "supervisor_wrong": "Agreement on the test rows that the supervisor classifies incorrectly.",
    "by_situation": "Demo of pairs only: accuracy by the feature that distinguishes the better response.",
    "easy_to_hard": "Chess with `--max_train_rating` only: scores of the easy-to-hard students.",
    "ExperimentResult.generative_finetuning": "Pairs only: true if students were first trained on the responses.",
    "wall_seconds": "Seconds by stage, and by the directory of a student. `total` is the time of the last command, "
    "which may have used cached stages.",
    "baselines": "Baselines that need no finetuning.",
    "setting": "`classification`, `reward`, `chess` or `generation`.",
}


def render() -> str:
    """Returns the whole page."""
    return "\n\n".join([INTRODUCTION.read_text(encoding="utf-8").rstrip(), *map(section, RECORDS)]) + "\n"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(render(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != render():
        sys.exit(f"Got an outdated {PAGE.name}. Run python docs/generate_schema.py.")
