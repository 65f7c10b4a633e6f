"""What an experiment leaves to read: results.json, report.md, a figure, a page beside each student."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from ..cards import FIGURE, ROWS, StudentCard
from ..cards.markdown import markdown_table
from ..cards.trained_with import subject
from ..config import METHODS, LossArguments, StudentConfig
from ..plots import plot_accuracies, plot_gap
from ..tasks.halves import counted
from ..training_settings import changed_fields, training_settings
from .config import ExperimentArguments

__all__ = ["interval", "print_table", "settings_of", "write_report"]


def interval(ci95: list[float] | None) -> str:
    """` [0.123, 0.456]`, or nothing."""
    return "" if ci95 is None else f" [{ci95[0]:.3f}, {ci95[1]:.3f}]"


def _pgr(entry: dict, key: str = "pgr") -> str:
    if entry[key] is None:
        return "undefined"
    interval = entry["pgr_ci95"]
    return f"{entry[key]:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else " [unbounded]")


_KEPT = "weak labels that students learn, the most confident"
_PLAIN = "PGR against the plain ceiling"


def _table(results: dict) -> tuple[list[str], list[list[str]]]:
    """
    Header, and a line a model and seed: seed, role, model, accuracy, PGR, agreement where the supervisor is right /
    wrong; after generative finetuning, PGR against the ceiling without it, too.
    """
    header = ["seed", "role", "model", "accuracy [95 %]", "PGR [95 %]", "agreement right / wrong"]
    has_plain = "ceiling_plain" in results["runs"][0]
    if has_plain:
        header.insert(5, _PLAIN)
    rows = []
    for run in results["runs"]:
        for role, entry in _roles(run):
            line = [str(run["seed"]), role, entry["model"], f"{entry['accuracy']:.3f}{interval(entry['ci95'])}"]
            if "pgr" in entry:
                line.append(_pgr(entry))
            if "against_plain_ceiling" in entry:
                line.append(_pgr(entry["against_plain_ceiling"]))
            if "agreement" in entry:
                line += [""] * (len(header) - 1 - len(line))
                shares = [entry["agreement"][name] for name in ("supervisor_right", "supervisor_wrong")]
                line.append(" / ".join("-" if share is None else f"{share:.2f}" for share in shares))
            rows.append(line + [""] * (len(header) - len(line)))
    return header, rows


def _roles(run: dict) -> Iterator[tuple[str, dict]]:
    for baseline in run.get("baselines", ()):
        yield baseline["name"], baseline
    n_supervisors = run["weak"].get("n_supervisors", 1)
    yield "weak supervisor" + (f", mean of {n_supervisors}" if n_supervisors > 1 else ""), run["weak"]
    for control in run["controls"]:
        yield f"control, {control['method']}, not pretrained", control
    for student in run["students"]:
        # The last link is the student itself.
        for number, link in enumerate(student.get("links", [])[:-1], start=1):
            yield f"{student['method']}, link {number}", {name: link[name] for name in ("model", "accuracy", "ci95")}
        yield f"student, {student['method']}", student
        if "all_rows" in student.get("direct", {}):
            direct = {"model": student["model"], **student["direct"]["all_rows"]}
            yield "student, naive on the rows of all links", direct
    if "ceiling_plain" in run:
        yield "plain ceiling", run["ceiling_plain"]
    yield "strong ceiling", run["ceiling"]


def _summary(results: dict) -> tuple[list[str], list[list[str]]]:
    header = ["method", "mean accuracy", "median PGR [95 %]", "seeds", "PGR undefined"]
    has_plain = "against_plain_ceiling" in results["summary"][0]
    if has_plain:
        header.insert(3, "median " + _PLAIN)
    rows = []
    for entry in results["summary"]:
        line = [entry["method"], f"{entry['accuracy_mean']:.3f}", _pgr(entry, "pgr_median")]
        if has_plain:
            line.append(_pgr(entry["against_plain_ceiling"], "pgr_median"))
        rows.append([*line, str(entry["n_seeds"]), str(entry["n_undefined"])])
    return header, rows


def _caveats(results: dict) -> list[str]:
    """What a reader of the tables should know about their PGR, a sentence a seed."""
    lines = []
    for run in results["runs"]:
        seed, students = f"Seed {run['seed']}", run["students"]
        chance = results["chance"]
        if chance is None:
            chance = min(baseline["accuracy"] for baseline in run["baselines"] if not baseline["model"])
        if run["weak"]["ci95"][0] <= chance:
            lines.append(
                f"{seed}: the supervisor is not better than chance ({chance:.3f}), so its labels say nothing, and "
                "neither does PGR. Give it more rows (--n_weak), more epochs, or a larger model."
            )
        lines += [f"{seed}: PGR is undefined: {reason}" for reason in {s["pgr_undefined"] for s in students} - {None}]
        if any(student["pgr"] is not None and student["pgr_ci95"] is None for student in students):
            lines.append(
                f"{seed}: PGR is unbounded: on these test rows the ceiling is not clearly better than the supervisor, "
                "so PGR says little. Take more test rows, a stronger student or a weaker supervisor."
            )
    return lines


_DIRECT = {
    "same_rows": "the rows of its last link (method naive)",
    "all_rows": "the rows of all its links, as many as the chain has seen",
}


def _comparisons(results: dict) -> list[str]:
    """How a chain compares with the same student taught directly, a sentence a comparison."""
    lines = []
    for entry in results["summary"]:
        for rows, direct in entry.get("direct", {}).items():
            n = entry["n_seeds"]
            lines.append(
                f"{entry['method'].capitalize()}, {entry['accuracy_mean']:.3f}, beside the same student taught by the "
                f"supervisor itself on {_DIRECT[rows]}, {direct['accuracy_mean']:.3f}: the chain is better in "
                f"{direct['n_chain_is_better']} of {n} seed{'s' if n > 1 else ''}."
            )
    return lines


def print_table(results: dict, output_dir: str) -> None:
    """The final table of a recipe."""
    name = f", run {results['run_name']}" if results.get("run_name") else ""
    print(f"\n{subject(results['task'], results['preset'] == 'demo')}{name}")
    for header, rows in (_table(results), _summary(results)):
        widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
        print()
        for line in (header, ["-" * width for width in widths], *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for line in (*_comparisons(results), *_caveats(results)):
        print(f"\n{line}")
    tested = f"{results['runs'][0]['weak']['n']} test {ROWS[results['setting']]}"
    print(f"\nAccuracy on {tested}. {output_dir}: results.json, report.md, figures/,")
    print("weak_labels/, students/", flush=True)


def settings_of(args: ExperimentArguments, training_args: TrainingArguments, config: StudentConfig) -> dict:
    """
    What a reader of the results should know of how they were made, as JSON values: of the `training` of students and
    ceiling (and where it differs, of the supervisor), of the `student`, of the `losses` by method; and the keyword
    arguments of [`load_student`], `loading`, that load a student as it was trained.
    """
    training = training_settings(training_args)
    stops = training_args.load_best_model_at_end
    training["early stopping"] = "on weak validation labels" if stops else "none (last step)"
    if getattr(args, "generative_finetuning", None) is not None:
        training["generative finetuning"] = "students and ceiling" if args.generative_finetuning else "none"
        if args.generative_finetuning:
            rate = args.generative_learning_rate
            training["generative finetuning, learning_rate"] = training_args.learning_rate if rate is None else rate
            training["generative finetuning, num_train_epochs"] = args.generative_num_train_epochs
    for name in ("learning_rate", "num_train_epochs", "weight_decay"):
        if getattr(args, f"weak_{name}") is not None:
            training[f"weak supervisor, {name}"] = getattr(args, f"weak_{name}")
    if args.n_supervisors > 1:
        training["weak supervisors, of which the labels are the mean"] = args.n_supervisors
    if args.keep_confident is not None:
        training[_KEPT] = args.keep_confident
    student: dict = {"use_peft": config.use_peft, "dtype": config.dtype if config.use_peft else "float32"}
    loading = {"dtype": student["dtype"]}
    if config.attn_implementation is not None:
        loading["attn_implementation"] = config.attn_implementation
    if config.use_peft:
        student |= {name: getattr(config, name) for name in ("lora_r", "lora_alpha", "lora_target_modules")}
        if config.load_in_4bit:
            options = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": config.bnb_4bit_quant_type,
                "bnb_4bit_use_double_quant": config.use_bnb_nested_quant,
            }
            student["quantization"] = ", ".join(f"{name} {value}" for name, value in options.items())
            options |= {"bnb_4bit_compute_dtype": config.dtype}
            is_usual = config.bnb_4bit_quant_type == "nf4" and config.use_bnb_nested_quant
            loading |= {"load_in_4bit": True} if is_usual else {"quantization_config": options}
        elif config.load_in_8bit:
            student["quantization"] = "load_in_8bit"
            loading["quantization_config"] = {"load_in_8bit": True}
    student["head_init"] = config.head_init
    student |= changed_fields(config, _NOT_OF_THE_STUDENT if config.use_peft else set(vars(config)))
    losses = {}
    if isinstance(training_args, LossArguments):
        # A chain is naive finetuning, link by link.
        losses = {name: training_args.loss_settings(METHODS.get(name, METHODS["naive"])) for name in args.methods}
    return {"training": training, "student": student, "losses": losses, "loading": loading}


# Fields of [`StudentConfig`] that are among the settings in any case, or that change no number of a student.
_NOT_OF_THE_STUDENT = {
    "use_peft", "dtype", "torch_dtype", "head_init", "lora_r", "lora_alpha", "lora_target_modules", "lora_task_type",
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant",
    "attn_implementation", "model_name_or_path", "model_revision", "trust_remote_code",
}  # fmt: skip


def write_report(results: dict, output_dir: Path, *, notes: list[str]) -> None:
    """
    Writes `results.json`, `report.md`, `figures/accuracy.png`, and beside each student its card and its figure.

    Args:
        results (`dict`): Content of `results.json`.
        output_dir (`Path`): Where to.
        notes (`list[str]`): Sections in Markdown to put after the results.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    plot_accuracies(results, output_dir / "figures" / "accuracy.png")
    dataset, rows = results["dataset"], ROWS[results["setting"]]
    settings = results["settings"]
    told = settings["training"] | settings["student"]
    for method, loss in settings["losses"].items():
        told |= {f"{method}, {name}": value for name, value in loss.items() if name != "loss_type"}
    dropped = counted(dataset["n_dropped"])
    kept = settings["training"].get(_KEPT)
    text = [
        f"# Weak-to-strong generalization: {subject(results['task'], results['preset'] == 'demo')}",
        *([f"Run: {' '.join(results['run_name'].split())}."] if results.get("run_name") else []),
        f"{results['description']} {rows.capitalize()} of {dataset['id']} ({dataset['revision']}): "
        f"{dataset['n_weak_half']} for the weak supervisor, {dataset['n_student_half']} for students and "
        f"ceiling, {dataset['n_validation']} for validation, {dataset['n_test']} for testing."
        + (f" Students learned a share of {kept} of their weak labels, the most confident." if kept else "")
        + (f" Left out, because nothing can be made of them: {dropped}." if dropped else ""),
        "![Test accuracy of supervisor, students and ceiling](figures/accuracy.png)",
        "## Over the seeds",
        markdown_table(*_summary(results)),
        "## Every model",
        markdown_table(*_table(results)),
        *(f"- {line}" for line in (*_comparisons(results), *_caveats(results))),
        "PGR = (student - weak) / (ceiling - weak): 0 is no better than the supervisor, 1 is as good as with ground "
        f"truth. Its interval is a paired bootstrap over test {rows}, and over seeds if there are several; unbounded "
        "means that in more than one resample of 40 the ceiling is no better than the supervisor.",
        f"Agreement is the share of test {rows} on which the student answers as its supervisor, where that one is "
        "right and where it is wrong: a student that copies errors agrees on both.",
    ]
    if "ceiling_plain" in results["runs"][0]:
        text.append(
            "Students and ceiling were first trained to write the responses of the same pairs, whatever was "
            "preferred; PGR is against that ceiling. The plain ceiling was not: against it PGR counts what the "
            "generative stage itself adds as if the student had recovered it."
        )
    text += notes
    text += [
        "## Settings",
        markdown_table(["setting", "value"], [[name, str(value)] for name, value in told.items()]),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
    ]
    _write(output_dir / "report.md", "\n\n".join(text) + "\n")
    for run in results["runs"]:
        for student in run["students"]:
            for made in (student, *student.get("links", [])[:-1]):
                directory = output_dir / made["output"]
                card = StudentCard.from_results(results, run, {"method": student["method"], **made})
                if card.ceiling is not None:
                    plot_gap(card.weak, card.student, card.ceiling, card.pgr, directory / FIGURE, title=card.subject)
                    card.has_figure = True
                _write(directory / "README.md", card.render())
    _write(output_dir / "results.json", json.dumps(results, indent=2) + "\n")  # last: it says that all is there


def _write(path: Path, text: str) -> None:
    """A whole file or none: written aside and renamed."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text)
    os.replace(aside, path)
