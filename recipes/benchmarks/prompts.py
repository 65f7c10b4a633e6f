"""Scores a language model on real rows without training, with the prompt of each task and a prompt for 0 and 1.

    python recipes/benchmarks/prompts.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data DIRECTORY

DIRECTORY has a folder for each task, in the schema of its dataset. Tasks without a folder are left out. Each class has
half of the test rows. Contexts are truncated so that prompts have at most --max_length tokens. Rows that do not fit
without their context are left out. Both prompts are evaluated on the same rows, without examples (zero-shot). Columns:

- accuracy: the accuracy of the more probable answer;
- at the median, content-free: accuracies without the preference for one of the answers, see
  `w2s_hf.analysis.balanced_scores`;
- AUROC: the area under the ROC curve, which does not depend on a preference for one answer.

Prints a table, and writes it to --output_file as JSON after each task. Repeat the command to resume: scores in the
file are not computed again, unless prompt or rows have changed. For another model or
other settings, pass another --output_file.
"""

import hashlib
import json
import os
from argparse import Namespace
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from w2s_hf import Task, load_student, load_task, metrics
from w2s_hf.analysis import PromptFormat, answer_probabilities, balanced_scores
from w2s_hf.cards.markdown import markdown_table
from w2s_hf.command_line import CommandLine, HelpFormatter
from w2s_hf.config import hardware
from w2s_hf.experiments.cache import library_versions
from w2s_hf.experiments.generative_finetuning import check_decoder
from w2s_hf.modeling import load_tokenizer
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.tasks import TASKS
from w2s_hf.tasks.tokenizing import shortened

# The folder of these tasks has the name of the dataset, which differs from the name of the task.
FOLDERS = {"anthropic_hh_single": "hh_rlhf", "sciq_with_support": "sciq"}
SCORES = {
    "accuracy": "accuracy",
    "accuracy_at_median": "at the median",
    "accuracy_content_free": "content-free",
    "auroc": "AUROC",
}


def forms_of(task: Task) -> dict[str, PromptFormat]:
    """Returns the prompts of a task by form: its own prompt, if it has one, and the prompt for the answers 0 and 1."""
    own = {} if task.prompt is None else {"task": task.prompt}
    return {**own, "01": PromptFormat.for_classes(task.class_names)}


def prompt_of(row: dict, form: PromptFormat, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """
    Returns the prompt of a row, with its context truncated so that it has `max_length` tokens.

    Raises:
        ValueError: The prompt is longer even without the context.
    """
    n_before = len(form.instruction + form.prefix)
    spans = {name: row[name] + n_before for name in ("context_start", "context_end")}
    return shortened({**row, "text": form.prompt(row["text"]), **spans}, tokenizer, max_length)


def rows_of(task: Task, folder: Path, tokenizer: PreTrainedTokenizerBase, options: Namespace) -> Dataset:
    """Returns at most `n_test` test rows: the first rows of each class whose two prompts are short enough."""
    rows = load_task(task, dataset_path=str(folder)).test
    truth, positions, n_too_long = np.array(rows["ground_truth"]), [], 0
    for label in (0, 1):
        of_label: list[int] = []
        for position in np.flatnonzero(truth == label):
            if len(of_label) == options.n_test // 2:
                break
            try:
                for form in forms_of(task).values():
                    prompt_of(rows[int(position)], form, tokenizer, options.max_length)
            except ValueError:
                n_too_long += 1
                continue
            of_label.append(int(position))
        positions += of_label
    if n_too_long:
        print(f"{task.name}: skipped {n_too_long} rows that do not fit into {options.max_length} tokens")
    return rows.select(sorted(positions))


def fingerprint_of(rows: Dataset) -> str:
    """Returns a hash of the texts and labels."""
    content = json.dumps([rows["text"][:], rows["ground_truth"][:]])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    form: PromptFormat,
    rows: Dataset,
    options: Namespace,
) -> dict:
    """Returns the scores of a prompt on rows."""
    prompts = [prompt_of(row, form, tokenizer, options.max_length) for row in rows]
    n_shortened = sum(prompt != form.prompt(text) for prompt, text in zip(prompts, rows["text"], strict=True))
    prompts.append(form.prompt(task.content_free))
    answers = answer_probabilities(model, tokenizer, prompts, form, batch_size=options.batch_size)
    probabilities, prior, truth = answers[:-1], answers[-1:], np.array(rows["ground_truth"])
    correct = metrics.is_correct(probabilities, truth)
    return {
        "n": len(rows),
        "n_shortened": n_shortened,
        "accuracy": float(correct.mean()),
        "ci95": list(metrics.accuracy_interval(correct)),
        **balanced_scores(probabilities, prior, truth),
        "auroc": metrics.auroc(probabilities[:, 1], truth),
    }


def table(entries: list[dict]) -> str:
    """Returns a table with one row per task and the scores of both prompts."""
    header = ["task", "n", *(f"{name}, {form}" for form in ("task", "01") for name in SCORES.values())]
    lines = []
    for name in sorted({entry["task"] for entry in entries}):
        of_task = {entry["form"]: entry for entry in entries if entry["task"] == name}
        n = next(iter(of_task.values()))["n"]
        cells = [
            f"{of_task[form][score]:.3f}" if form in of_task else "-" for form in ("task", "01") for score in SCORES
        ]
        lines.append([name, str(n), *cells])
    return markdown_table(header, lines)


def main() -> None:
    parser = CommandLine(description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter)
    parser.add_argument("--model", required=True, help="Language model to score: name on the Hub, or local directory.")
    parser.add_argument("--model_name", help="Name of the model in the output file (default: --model).")
    parser.add_argument("--data", type=Path, required=True, help="Directory with a folder of rows for each task.")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS),
        choices=list(TASKS),
        help="Names of the tasks to score (default: all).",
    )
    parser.add_argument("--n_test", type=int, default=200, help="Number of test rows per task.")
    parser.add_argument(
        "--max_length",
        type=int,
        default=256,
        help="Maximum length of a prompt in tokens. Longer contexts are truncated.",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="Number of prompts in a batch.")
    parser.add_argument("--dtype", default="float32", help="Data type of the weights.")
    parser.add_argument(
        "--output_file", type=Path, default=Path("prompts.json"), help="JSON file to which the scores are written."
    )
    options = parser.parse_args()
    for name, least in {"n_test": 2, "batch_size": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name}: got {getattr(options, name)}, expected at least {least}.")
    folders = {task: options.data / FOLDERS.get(task, task) for task in options.tasks}
    missing = [task for task, folder in folders.items() if not folder.is_dir()]
    if len(missing) == len(folders):
        parser.error(
            f"--data: got {options.data}, expected one of the folders {', '.join(missing)} in this directory. "
            "Add rows of a task."
        )

    try:
        spec = ModelSpec.find(options.model, "--model")
        check_decoder(spec, "--model")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    identity = spec.named
    weights = identity["weights"] or identity["revision"]
    settings = {name: getattr(options, name) for name in ("dtype", "max_length", "n_test", "batch_size")}
    settings = {"model": options.model_name or identity["model"], "weights": weights, **settings, "split": "test"}
    options.output_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = json.loads(options.output_file.read_text()) if options.output_file.is_file() else settings
    except ValueError as error:
        parser.error(
            f"--output_file: got {options.output_file}, expected JSON ({error}). Remove this file, or name a new file."
        )
    if {name: value for name, value in report.items() if name != "results"} != settings:
        parser.error(
            f"--output_file: got {options.output_file}, which has results of other settings, expected {settings}. "
            "Name another file."
        )
    entries = report.get("results", [])
    if missing:
        print(f"Tasks without a folder in {options.data}: {', '.join(missing)}")

    tokenizer = load_tokenizer(options.model)
    model = load_student(options.model, task_type="CAUSAL_LM", dtype=options.dtype)
    for task in [TASKS[task] for task in folders if task not in missing]:
        rows = rows_of(task, folders[task.name], tokenizer, options)
        new = {}
        for form, prompt in forms_of(task).items():
            # The entry is converted to JSON, because the file has lists instead of tuples.
            entry = {"task": task.name, "form": form, "prompt": asdict(prompt), "content_free": task.content_free}
            entry = json.loads(json.dumps(entry | {"rows": fingerprint_of(rows)}))
            if not any(entry == {key: old.get(key) for key in entry} for old in entries):
                new[form] = entry
        if not new:
            continue
        for form, entry in new.items():
            entries = [old for old in entries if (old["task"], old["form"]) != (task.name, form)]
            entry |= {"date": date.today().isoformat(), "hardware": hardware(), "versions": library_versions()}
            entries.append(entry | ask(model, tokenizer, task, forms_of(task)[form], rows, options))
        partial = options.output_file.with_name(options.output_file.name + ".partial")
        partial.write_text(json.dumps({**settings, "results": entries}, indent=1) + "\n")
        os.replace(partial, options.output_file)
        print(f"{task.name}: {', '.join(new)}", flush=True)
    print(table(entries))


if __name__ == "__main__":
    main()
