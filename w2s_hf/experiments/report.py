"""What an experiment leaves to read: results.json, report.md, a figure, a page beside each student."""

import json
import os
from pathlib import Path

from ..config import WeakToStrongConfig
from ..plots import plot_accuracies
from ..tasks import Task

__all__ = ["print_table", "write_report"]

_DEMO_TEXT = """
## What this demo shows, and what it does not

The rows are generated, in the columns of {task}: short facts about made-up entities, and the question whether one of
them is alive. No label is ever stated in the text that the student was pretrained on; whether an entity is alive can
be told only from the kind of things that are said about it. The weak supervisor was never pretrained, and learns from
few labelled rows.

- Where the supervisor is better than chance, it shows the effect itself, measured live: the student was taught by
  labels of the accuracy in the first row, and is better than its teacher because of what it had learned before. The
  control, the same architecture taught by the same labels without pretraining, has nothing to add to them.
- It does not show that size helps: pretraining drives the gain here, and the supervisor has none.
- It does not show that one method beats another: which one is ahead changes from seed to seed. Use `--seeds`.
- It does not show a hard task: the same entities occur in training and in test rows, and the ceiling is near 1, so
  that a few hundred true labels would have taught this student everything.
- Each seed is another world with other models, so numbers differ from seed to seed by more than their intervals.
"""


def _interval(ci95: list[float] | None) -> str:
    return "" if ci95 is None else f" [{ci95[0]:.3f}, {ci95[1]:.3f}]"


def _pgr(entry: dict, key: str = "pgr") -> str:
    if entry[key] is None:
        return "undefined"
    interval = entry["pgr_ci95"]
    return f"{entry[key]:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else " [unbounded]")


def _rows(results: dict) -> list[list[str]]:
    """One row a model and seed: seed, role, model, accuracy, PGR, agreement where the supervisor is right / wrong."""
    rows = []
    for run in results["runs"]:
        seed = str(run["seed"])

        def row(role: str, entry: dict, pgr: str = "", agreement: str = "", seed: str = seed) -> list[str]:
            return [seed, role, entry["model"], f"{entry['accuracy']:.3f}{_interval(entry['ci95'])}", pgr, agreement]

        rows.append(row("weak supervisor", run["weak"]))
        rows += [row(f"control, {control['method']}, not pretrained", control) for control in run["controls"]]
        for student in run["students"]:
            shares = [student["agreement"][name] for name in ("supervisor_right", "supervisor_wrong")]
            agreement = " / ".join("-" if share is None else f"{share:.2f}" for share in shares)
            rows.append(row(f"student, {student['method']}", student, _pgr(student), agreement))
        rows.append(row("strong ceiling", run["ceiling"]))
    return rows


_HEADER = ["seed", "role", "model", "accuracy [95 %]", "PGR [95 %]", "agreement right / wrong"]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _summary_rows(results: dict) -> list[list[str]]:
    return [
        [
            entry["method"],
            f"{entry['accuracy_mean']:.3f}",
            _pgr(entry, "pgr_median"),
            f"{entry['n_seeds']}",
            f"{entry['n_undefined']}",
        ]
        for entry in results["summary"]
    ]


def _caveats(results: dict) -> list[str]:
    """What a reader of the tables should know about their PGR, a sentence a seed."""
    lines = []
    for run in results["runs"]:
        seed, students = f"Seed {run['seed']}", run["students"]
        if run["weak"]["ci95"][0] <= 0.5:
            lines.append(
                f"{seed}: the supervisor is not better than chance, so its labels say nothing, and neither does PGR. "
                "Give it more rows (--n_weak), more epochs, or a larger model."
            )
        lines += [f"{seed}: PGR is undefined: {reason}" for reason in {s["pgr_undefined"] for s in students} - {None}]
        if any(student["pgr"] is not None and student["pgr_ci95"] is None for student in students):
            lines.append(
                f"{seed}: PGR is unbounded: on these test rows the ceiling is not clearly better than the supervisor, "
                "so PGR says little. Take more test rows, a stronger student or a weaker supervisor."
            )
    return lines


_SUMMARY_HEADER = ["method", "mean accuracy", "median PGR [95 %]", "seeds", "PGR undefined"]


def print_table(results: dict, output_dir: str) -> None:
    """The final table of a recipe."""
    for header, rows in ((_HEADER, _rows(results)), (_SUMMARY_HEADER, _summary_rows(results))):
        widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
        print()
        for line in (header, ["-" * width for width in widths], *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for line in _caveats(results):
        print(f"\n{line}")
    print(
        f"\nAccuracy on {results['runs'][0]['weak']['n']} test rows. {output_dir}: results.json, report.md, figures/,"
    )
    print("weak_labels/, students/", flush=True)


def write_report(results: dict, output_dir: Path, task: Task, training_args: WeakToStrongConfig) -> None:
    """Writes `results.json`, `report.md`, `figures/accuracy.png` and a README beside each student."""
    output_dir.mkdir(parents=True, exist_ok=True)
    plot_accuracies(results, output_dir / "figures" / "accuracy.png")
    dataset = results["dataset"]
    settings = {
        "learning_rate": training_args.learning_rate,
        "num_train_epochs": training_args.num_train_epochs,
        "rows per optimizer step": training_args.train_batch_size
        * training_args.gradient_accumulation_steps
        * training_args.world_size,
        "aux_coef": training_args.aux_coef,
        "aux_warmup_ratio": training_args.resolved_aux_warmup_ratio,
        "early stopping": "on weak validation labels" if training_args.load_best_model_at_end else "none (last step)",
    }
    text = [
        f"# Weak-to-strong generalization: {results['task']}",
        f"{task.description or task.name}. Rows of {dataset['id']} ({dataset['revision']}): "
        f"{dataset['n_weak_half']} for the weak supervisor, {dataset['n_student_half']} for students and "
        f"ceiling, {dataset['n_validation']} for early stopping, {dataset['n_test']} for testing; half of each are "
        f"{task.class_names[1]!r}.",
        "![Test accuracy of supervisor, students and ceiling](figures/accuracy.png)",
        "## Over the seeds",
        _markdown(_SUMMARY_HEADER, _summary_rows(results)),
        "## Every model",
        _markdown(_HEADER, _rows(results)),
        *(f"- {line}" for line in _caveats(results)),
        "PGR = (student - weak) / (ceiling - weak): 0 is no better than the supervisor, 1 is as good as with ground "
        "truth. Its interval is a paired bootstrap over test rows, and over seeds if there are several; unbounded "
        "means that in more than one resample of 40 the ceiling is no better than the supervisor.",
        "Agreement is the share of test rows on which the student answers as its supervisor, where that one is right "
        "and where it is wrong: a student that copies errors agrees on both.",
    ]
    if results["preset"] == "demo":
        text.append(_DEMO_TEXT.strip().format(task=results["task"]))
    text += [
        "## Settings",
        _markdown(["setting", "value"], [[name, str(value)] for name, value in settings.items()]),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
    ]
    _write(output_dir / "report.md", "\n\n".join(text) + "\n")
    for run in results["runs"]:
        for student in run["students"]:
            directory = output_dir / student["output"]
            library = "peft" if (directory / "adapter_config.json").is_file() else "transformers"
            _write(directory / "README.md", _student_page(results, run, student, library))
    _write(output_dir / "results.json", json.dumps(results, indent=2) + "\n")  # last: it says that all is there


def _student_page(results: dict, run: dict, student: dict, library: str) -> str:
    pgr = student["pgr_undefined"] or _pgr(student)
    return f"""---
library_name: {library}
tags:
- weak-to-strong
- {results["task"]}
- {student["method"]}
---

# {student["model"]}, taught {results["task"]} by {run["weak"]["model"]}

A strong student finetuned on the labels of a weaker model (weak-to-strong generalization, Burns et al. 2023), method
`{student["method"]}`, seed {run["seed"]}. No ground-truth label reached it.

| | accuracy on {student["n"]} test rows [95 %] |
| --- | --- |
| weak supervisor, {run["weak"]["model"]} | {run["weak"]["accuracy"]:.3f}{_interval(run["weak"]["ci95"])} |
| this student | {student["accuracy"]:.3f}{_interval(student["ci95"])} |
| ceiling: the same model on ground truth | {run["ceiling"]["accuracy"]:.3f}{_interval(run["ceiling"]["ci95"])} |

Performance gap recovered: {pgr}

```python
from transformers import AutoTokenizer
from w2s_hf import load_student

student = load_student(".", dtype="float32")  # from this directory
tokenizer = AutoTokenizer.from_pretrained(".")
```
"""


def _write(path: Path, text: str) -> None:
    """A whole file or none: written aside and renamed."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text)
    os.replace(aside, path)
