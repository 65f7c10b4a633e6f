"""Writes results.json, report.md, a figure and the card of each student."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from transformers import TrainingArguments

from ..cards import FIGURE, ROWS, StudentCard
from ..cards.from_results import ceiling_warning
from ..cards.markdown import markdown_table, render
from ..cards.score import interval
from ..cards.trained_with import subject
from ..config import StudentConfig
from ..metrics import rounded
from ..plots import plot_accuracies, plot_gap, plot_transfer
from ..results import (
    SELF_TRAINED,
    AnyScore,
    DirectResult,
    ExperimentResult,
    RunSettings,
    SeedResult,
    StudentResult,
    StudentSettings,
    TrainingSettings,
)  # fmt: skip
from ..tasks.halves import counted
from ..trainers.whole_step import MIN_WARMUP_STEPS
from ..training_settings import changed_fields, training_settings
from .config import ExperimentArguments, RewardArguments

__all__ = [
    "ceiling_warnings", "print_table", "run_settings", "supervisor_warning", "training_labels",
    "unsure_labels", "write_report",
]  # fmt: skip


def _pgr(pgr: float | None, ci95: list[float] | None) -> str:
    return "undefined" if pgr is None else f"{pgr:.2f}{interval(ci95, 2) or ' [unbounded]'}"


_PLAIN = "PGR against the plain ceiling"


def _table(results: ExperimentResult) -> tuple[list[str], list[list[str]]]:
    """
    Returns the header and a line per model and seed. The columns are seed, role, model, accuracy, PGR, and agreement
    where the supervisor is right / wrong. After generative finetuning, a second PGR column uses the ceiling
    without generative finetuning.
    """
    header = ["seed", "role", "model", "accuracy [95 %]", "PGR [95 %]", "agreement, supervisor right / wrong"]
    has_plain = results.runs[0].ceiling_plain is not None
    if has_plain:
        header.insert(5, _PLAIN)
    rows = []
    for run in results.runs:
        for role, model, score in _roles(run):
            line = [str(run.seed), role, model, f"{rounded(score.accuracy)}{interval(score.ci95, 3)}"]
            if isinstance(score, StudentResult | DirectResult):
                line.append(_pgr(score.pgr, score.pgr_ci95))
            if isinstance(score, StudentResult):
                if score.against_plain_ceiling is not None:
                    line.append(_pgr(score.against_plain_ceiling.pgr, score.against_plain_ceiling.pgr_ci95))
                line += [""] * (len(header) - 1 - len(line))
                shares = (score.agreement.supervisor_right, score.agreement.supervisor_wrong)
                line.append(" / ".join("-" if share is None else f"{share:.2f}" for share in shares))
            rows.append(line + [""] * (len(header) - len(line)))
    return header, rows


def _roles(run: SeedResult) -> Iterator[tuple[str, str, AnyScore]]:
    """Yields the role, the name and the score of each model of a seed."""
    for baseline in run.baselines:
        yield baseline.name, baseline.model, baseline
    n_supervisors = run.weak.n_supervisors or 1
    yield "weak supervisor" + (f", mean of {n_supervisors}" if n_supervisors > 1 else ""), run.weak.model, run.weak
    for control in run.controls:
        yield f"control, {control.method}, not pretrained", control.model, control
    for student in run.students:
        # The last link is the student itself.
        for number, link in enumerate(student.links[:-1], start=1):
            yield f"{student.method}, link {number}", link.model, link
        yield f"student, {student.method}", student.model, student
        if "all_rows" in student.direct:
            yield "student, naive on the rows of all links", student.model, student.direct["all_rows"]
    if run.self_trained is not None:
        yield f"student, {SELF_TRAINED}", run.ceiling.model, run.self_trained
    if run.ceiling_plain is not None:
        yield "plain ceiling", run.ceiling_plain.model, run.ceiling_plain
    yield "strong ceiling", run.ceiling.model, run.ceiling


def _summary(results: ExperimentResult) -> tuple[list[str], list[list[str]]]:
    header = ["method", "mean accuracy", "median PGR [95 %]", "seeds", "PGR undefined"]
    if results.summary[0].against_plain_ceiling is not None:
        header.insert(3, "median " + _PLAIN)
    rows = []
    for summary in results.summary:
        line = [summary.method, rounded(summary.accuracy_mean), _pgr(summary.pgr_median, summary.pgr_ci95)]
        plain = summary.against_plain_ceiling
        if plain is not None:
            line.append(_pgr(plain.pgr_median, plain.pgr_ci95))
        rows.append([*line, str(summary.n_seeds), str(summary.n_undefined)])
    return header, rows


def _transfer(results: ExperimentResult) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Returns the header and a line per model of each other task (`--transfer_tasks`), by task."""
    runs = results.runs
    header = ["role", "accuracy [95 %]", "PGR [95 %]"]
    if len(runs) > 1:
        header = ["role", "mean accuracy", "median PGR [95 %]", "seeds", "PGR undefined"]

    def accuracy_of(scores: Sequence[AnyScore]) -> str:
        ci95 = scores[0].ci95 if len(scores) == 1 else None
        return rounded(sum(score.accuracy for score in scores) / len(scores)) + interval(ci95, 3)

    tables = {}
    for task in runs[0].transfer:
        of_seeds = [run.transfer[task] for run in runs]
        lines = [["weak supervisor", accuracy_of([of_seed.weak for of_seed in of_seeds])]]
        for position, summary in enumerate(results.summary):
            of_task = summary.transfer[task]
            line = [f"student, {summary.method}", accuracy_of([of_seed.students[position] for of_seed in of_seeds])]
            line.append(_pgr(of_task.pgr_median, of_task.pgr_ci95))
            lines.append(line + [str(of_task.n_seeds), str(of_task.n_undefined)] * (len(runs) > 1))
        lines.append(["strong ceiling", accuracy_of([of_seed.ceiling for of_seed in of_seeds])])
        tables[task] = header, [line + [""] * (len(header) - len(line)) for line in lines]
    return tables


def training_labels(results: ExperimentResult) -> list[str]:
    """Returns a text and a table of the labels that methods have changed; an empty list without such methods."""
    students = [student for run in results.runs for student in run.students]
    changed = dict.fromkeys(student.method for student in students if student.labels is not None)
    if not changed:
        return []

    def mean(values: Iterable[float | None], digits: int = 3) -> str:
        known = [value for value in values if value is not None]
        return rounded(sum(known) / len(known), digits) if known else ""

    weak = [run.weak for run in results.runs]
    of_supervisor = mean(each.label_accuracy for each in weak), mean(each.label_confidence for each in weak)
    # The number of rows that `keep_confident` leaves is not recorded.
    n_rows = "" if results.settings.training.keep_confident is not None else str(results.dataset.n_student_half)
    lines = [["weak labels", n_rows, *of_supervisor, "", "", ""]]
    for method in changed:
        of_method = [student for student in students if student.method == method]
        labels = [student.labels for student in of_method if student.labels is not None]
        learned = [student.supervisor_weights for student in of_method if student.supervisor_weights is not None]
        line = [method, mean((each.n_train for each in labels), 0)]
        line += [mean(each.accuracy for each in labels), mean(each.confidence for each in labels)]
        weights_of_rows = [each.weights for each in labels if each.weights is not None]
        line += [mean(each["mean"] for each in weights_of_rows), mean((each["n_zero"] for each in weights_of_rows), 0)]
        lines.append([*line, " / ".join(mean(weights, 2) for weights in zip(*learned, strict=True))])
    header = ["labels", "training rows", "correct", "confidence", "mean weight", "rows with weight 0"]
    header.append("learned weights of supervisors")
    kept = [column for column in range(len(header)) if any(line[column] for line in lines)]
    both = " Both include rows with weight 0." if any(line[5] for line in lines) else ""
    return [
        "These methods change the weak labels, leave out rows, or weight rows. Values are means over the seeds. "
        "`correct` is the share of training rows whose label has the true class. `confidence` is the mean "
        "of the larger probability of a label." + both + " No method was told which labels are correct.",
        markdown_table([header[column] for column in kept], [[line[column] for column in kept] for line in lines]),
    ]


_SAME_WORLD = " In the demo, the rows of all tasks are about the same entities. They differ only in their format."


def _transfer_notes(results: ExperimentResult) -> list[str]:
    """Returns the section of the report about other tasks; an empty list without `--transfer_tasks`."""
    tables, rows = _transfer(results), ROWS[results.setting]
    if not tables:
        return []
    notes = [
        "## Other tasks",
        f"The models were trained on {results.task} only. They are scored on test {rows} of other tasks, without "
        "further training. PGR compares the students with the supervisor and the ceiling on the same "
        f"{rows}." + _SAME_WORLD * results.is_demo,
        "![Accuracy on other tasks](figures/transfer.png)",
    ]
    for task, table in tables.items():
        of_seeds = [run.transfer[task] for run in results.runs]
        first = of_seeds[0]
        shared = " or ".join(str(n) for n in sorted({of_seed.n_shared for of_seed in of_seeds}))
        revision = " and ".join(dict.fromkeys(of_seed.revision for of_seed in of_seeds))  # the demo has several worlds
        text = f"The accuracies are measured on {first.weak.n} test {rows} from {first.dataset} ({revision})."
        if shared != "0":
            text += f" Another {shared} {rows} share their text or a group with training {rows} and are left out."
        notes += [f"### {task}", text, markdown_table(*table)]
        notes += [f"- {sentence}" for sentence in _transfer_caveats(results, task)]
    return notes


def _transfer_caveats(results: ExperimentResult, task: str) -> list[str]:
    """Returns a sentence for each seed in which the ceiling is at chance on another task, or PGR is undefined."""
    lines = []
    for run in results.runs:
        of_task = run.transfer[task]
        ceiling, chance = of_task.ceiling, results.chance or 0.0
        if ceiling.ci95 is not None and ceiling.ci95[0] <= chance:
            lines.append(
                f"Seed {run.seed}: on {task}, the ceiling has accuracy {rounded(ceiling.accuracy)}"
                f"{interval(ceiling.ci95, 3)}, which is not better than guessing. PGR on this task is meaningless."
            )
            continue
        reasons = {student.pgr_undefined for student in of_task.students} - {None}
        lines += [f"Seed {run.seed}: PGR on {task} is undefined: {reason}." for reason in reasons]
    return lines


def _caveats(results: ExperimentResult) -> list[str]:
    """Returns warnings about PGR, such as a supervisor no better than chance, or a ceiling that did not learn."""
    lines = ceiling_warnings(results)
    for run in results.runs:
        seed = f"Seed {run.seed}"
        if run.is_supervisor_at_chance(results.chance):
            chance = run.accuracy_of_guessing(results.chance) or 0.0
            lines += [f"{seed}: {sentence}" for sentence in supervisor_warning(run.weak.ci95, chance)]
        losses = {
            student.method: results.settings.losses.get(student.method, {}).get("loss_type", "")
            for student in run.students
        }
        unsure = unsure_labels(losses, run.weak.label_confidence)
        lines += [f"{seed}: {sentence}" for sentence in (*unsure, *_warmups(results, run))]
        reasons = {student.pgr_undefined for student in run.students} - {None}
        lines += [f"{seed}: PGR is undefined: {reason}" for reason in reasons]
        if any(student.pgr is not None and student.pgr_ci95 is None for student in run.students):
            lines.append(
                f"{seed}: the interval of PGR is unbounded: on these test rows the ceiling is not clearly better than "
                "the supervisor. Use more test rows (--n_test), a stronger student or a weaker supervisor."
            )
    return lines


def supervisor_warning(ci95: list[float] | None, chance: float, loss: float | None = None) -> list[str]:
    """
    Returns a warning, with advice, if a supervisor is not better than chance; see
    [`SeedResult.is_supervisor_at_chance`].

    Args:
        ci95 (`list[float]`, *optional*): The 95 % interval of its accuracy on the test rows.
        chance (`float`): The accuracy of guessing.
        loss (`float`, *optional*): The mean loss of its training.
    """
    if ci95 is None or ci95[0] > chance:
        return []
    shown_loss = "" if loss is None else f" The mean training loss was {loss:.3f}."
    return [
        f"the weak supervisor is not better than chance: the 95 % interval of its accuracy begins at {ci95[0]:.3f}, "
        f"and guessing has {chance:.3f}.{shown_loss} Its labels carry no information, and PGR is meaningless. "
        "Train it on more rows (--n_weak), for more epochs (--weak_num_train_epochs, which "
        "--max_steps overrides) or with another "
        "--weak_learning_rate, or use a larger model."
    ]


def ceiling_warnings(results: ExperimentResult) -> list[str]:
    """Returns a warning, with advice, for each seed whose ceiling is less accurate than before finetuning."""
    return [
        f"Seed {run.seed}: {warning} Train on more rows (--n_train), for more epochs (--num_train_epochs, which "
        "--max_steps overrides), on fewer rows per step (--per_device_train_batch_size), or with a higher "
        "--learning_rate."
        for run in results.runs
        if (warning := ceiling_warning(run)) is not None
    ]


# These losses have a term for the student's own hard predictions, whose gradient does not shrink for unsure labels.
_OWN_HARD_PREDICTIONS = {"confidence", "openai", "adaptive_confidence"}
# The gradient of cross-entropy with respect to a logit is prediction minus label. For a student that predicts 0.5,
# labels of 0.6 have a gradient of 0.1, a fifth of the gradient of a hard label.
_MIN_LABEL_CONFIDENCE = 0.6


def unsure_labels(losses: Mapping[str, str], confidence: float | None) -> list[str]:
    """
    Returns a warning if the hard predictions of the student outweigh unsure weak labels in the loss of a method.

    Args:
        losses (`dict[str, str]`): The loss of each method, by the name of the method.
        confidence (`float`, *optional*): The mean larger probability of the weak labels.
    """
    outweighing = [method for method, loss in losses.items() if loss in _OWN_HARD_PREDICTIONS]
    if confidence is None or confidence >= _MIN_LABEL_CONFIDENCE or not outweighing:
        return []
    return [
        f"the weak labels are unsure: their larger probability is {confidence:.2f} on average. For a student that "
        f"predicts 0.5, the gradient of such a label is {confidence - 0.5:.2f}. The gradient of its own hard "
        f"prediction, which {' and '.join(outweighing)} also trains on, is 0.50. Train the supervisor for longer "
        "(--weak_num_train_epochs, which --max_steps overrides) or with a higher --weak_learning_rate, or "
        "compare with the methods naive and product."
    ]


def _warmups(results: ExperimentResult, run: SeedResult) -> list[str]:
    """Returns a warning for each method whose auxiliary weight rises over few steps, at a late step, or never."""
    lines = []
    for student in run.students:
        loss = results.settings.losses.get(student.method, {})
        if not loss.get("aux_coef"):
            continue
        if "aux_start" in loss:
            lines.append(
                f"the auxiliary weight of {student.method} stayed 0, because the student did not agree with its weak "
                "labels beyond chance on 128 rows (--aux_start agreement). It was trained as with the method naive."
                if student.aux_start_step is None
                else f"the auxiliary weight of {student.method} rises after step {student.aux_start_step}, when the "
                "student first agreed with its weak labels beyond chance (--aux_start agreement)."
            )
            continue
        if student.optimizer_steps is not None:
            n_steps = round(loss["aux_warmup_ratio"] * student.optimizer_steps)
            if n_steps < MIN_WARMUP_STEPS:
                lines.append(
                    f"the auxiliary weight of {student.method} rises over {n_steps} of {student.optimizer_steps} "
                    f"optimizer steps, fewer than {MIN_WARMUP_STEPS}. A student that has not learned the task by then "
                    "is trained on its own errors. Compare with --aux_start agreement."
                )
    return lines


_DIRECT = {
    "same_rows": "the rows of its last link (method naive)",
    "all_rows": "the rows of all its links",
}


def _self_comparison(results: ExperimentResult) -> list[str]:
    """
    Returns a list of one text, which says whether the weak labels are better than the student's own zero-shot answers.
    The list is empty if the baselines were not computed.
    """
    summary = results.self_trained
    if summary is None:
        return []
    low, high = summary.difference_ci95
    verdict = "are better than" if low > 0 else "are worse than" if high < 0 else "do not differ measurably from"
    accuracy = rounded(summary.accuracy_mean + summary.difference)
    return [
        f"As training labels, the weak labels {verdict} the student's own zero-shot answers. The accuracies are "
        f"{accuracy} (method {summary.method}) and {rounded(summary.accuracy_mean)}. The difference is "
        f"{summary.difference:+.3f}{interval(summary.difference_ci95, 3)}."
    ]


def _comparisons(results: ExperimentResult) -> list[str]:
    """
    Returns the comparison with the student's own answers. For each chain, it is followed by a comparison with the
    same student trained without the chain.
    """
    lines = _self_comparison(results)
    for summary in results.summary:
        for rows, direct in summary.direct.items():
            n = summary.n_seeds
            lines.append(
                f"{summary.method.capitalize()} has accuracy {rounded(summary.accuracy_mean)}. The same student "
                f"trained on labels of the weak supervisor, on {_DIRECT[rows]}, has {rounded(direct.accuracy_mean)}. "
                f"The chain is better in {direct.n_chain_is_better} of {n} seed{'s' if n > 1 else ''}."
            )
    return lines


def print_table(results: ExperimentResult | dict, output_dir: str) -> None:
    """Prints the final table of a recipe."""
    results = results if isinstance(results, ExperimentResult) else ExperimentResult.from_dict(results)
    name = f", run {results.run_name}" if results.run_name else ""
    print(f"\n{subject(results.task, results.is_demo)}{name}")
    transfer = [
        (["test rows", *header], [[f"{task}, n = {results.runs[0].transfer[task].weak.n}", *line] for line in rows])
        for task, (header, rows) in _transfer(results).items()
    ]
    if transfer:  # one table for all other tasks
        transfer = [(transfer[0][0], [line for _, rows in transfer for line in rows])]
    for header, rows in (_table(results), _summary(results), *transfer):
        widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
        print()
        for line in (header, ["-" * width for width in widths], *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    on_others = [sentence for task in results.runs[0].transfer for sentence in _transfer_caveats(results, task)]
    for sentence in (*_comparisons(results), *_caveats(results), *on_others):
        print(f"\n{sentence}")
    tested = f"{results.runs[0].weak.n} test {ROWS[results.setting]}" + (f" of {results.task}" if transfer else "")
    print(f"\nAccuracies are measured on {tested}. The directory {output_dir} contains results.json,")
    print("predictions.parquet, report.md, figures/, weak_labels/ and students/.", flush=True)


def run_settings(args: ExperimentArguments, training_args: TrainingArguments, config: StudentConfig) -> RunSettings:
    """Returns the settings of training, student, losses and loading, for readers of the results."""
    training = TrainingSettings(
        arguments=training_settings(training_args),
        early_stopping="on weak validation labels" if training_args.load_best_model_at_end else "none (last step)",
        weak_learning_rate=args.weak_learning_rate,
        weak_num_train_epochs=args.weak_num_train_epochs,
        weak_weight_decay=args.weak_weight_decay,
        n_supervisors=args.n_supervisors if args.n_supervisors > 1 else None,
        keep_confident=args.keep_confident,
    )
    if isinstance(args, RewardArguments):
        training.generative_finetuning = "students and ceiling" if args.generative_finetuning else "none"
    if isinstance(args, RewardArguments) and args.generative_finetuning:
        rate = args.generative_learning_rate
        training.generative_learning_rate = training_args.learning_rate if rate is None else rate
        training.generative_num_train_epochs = args.generative_num_train_epochs
    losses = {name: method.settings(training_args) for name, method in args.methods_by_name.items()}
    losses = {name: settings for name, settings in losses.items() if settings}  # none for plain text generation
    return RunSettings(
        training=training, student=_student_settings(config), losses=losses, loading=_loading_options(config)
    )


def _student_settings(config: StudentConfig) -> StudentSettings:
    """Returns the settings of adapters and precision that can change a result."""
    options: dict = {}
    if config.use_peft:
        options |= {name: getattr(config, name) for name in ("lora_r", "lora_alpha", "lora_target_modules")}
        if config.load_in_4bit:
            options["quantization"] = ", ".join(f"{name} {value}" for name, value in _quantization(config).items())
        elif config.load_in_8bit:
            options["quantization"] = "load_in_8bit"
    options["head_init"] = config.head_init
    options |= changed_fields(config, _NOT_OF_THE_STUDENT if config.use_peft else set(vars(config)))
    return StudentSettings(use_peft=config.use_peft, dtype=_dtype(config), options=options)


def _dtype(config: StudentConfig) -> str:
    return cast(str, config.dtype) if config.use_peft else "float32"  # a resolved configuration has a dtype


def _quantization(config: StudentConfig) -> dict:
    """Returns the options of bitsandbytes that can change a result, and no options if nothing is quantized."""
    if config.load_in_4bit:
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": config.bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": config.use_bnb_nested_quant,
        }
    return {"load_in_8bit": True} if config.load_in_8bit else {}


def _loading_options(config: StudentConfig) -> dict:
    """Returns the keyword arguments of [`load_student`] that load a student in the precision of its training."""
    loading: dict = {"dtype": _dtype(config)}
    if config.attn_implementation is not None:
        loading["attn_implementation"] = config.attn_implementation
    quantization = _quantization(config) if config.use_peft else {}
    if config.load_in_4bit and quantization:
        is_usual = config.bnb_4bit_quant_type == "nf4" and config.use_bnb_nested_quant
        options = quantization | {"bnb_4bit_compute_dtype": config.dtype}
        return loading | ({"load_in_4bit": True} if is_usual else {"quantization_config": options})
    return loading | ({"quantization_config": quantization} if quantization else {})


# These fields of [`StudentConfig`] are always among the settings, or change no result of a student.
_NOT_OF_THE_STUDENT = {
    "use_peft", "dtype", "torch_dtype", "head_init", "lora_r", "lora_alpha", "lora_target_modules", "lora_task_type",
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant",
    "attn_implementation", "model_name_or_path", "model_revision", "trust_remote_code",
}  # fmt: skip


def write_report(results: ExperimentResult | dict, output_dir: Path, *, notes: list[str]) -> None:
    """
    Writes `results.json`, `report.md`, `figures/accuracy.png`, and next to each student its card and its figure.

    Args:
        results ([`ExperimentResult`]): The content of `results.json`.
        output_dir (`Path`): The directory of the results.
        notes (`list[str]`): Sections in Markdown that follow the results.
    """
    results = results if isinstance(results, ExperimentResult) else ExperimentResult.from_dict(results)
    output_dir.mkdir(parents=True, exist_ok=True)
    plot_accuracies(results, output_dir / "figures" / "accuracy.png")
    if results.runs[0].transfer:
        plot_transfer(results, output_dir / "figures" / "transfer.png")
    labels = training_labels(results)
    labels = ["## Training labels", *labels] if labels else []
    _write(output_dir / "report.md", _report(results, [*labels, *_transfer_notes(results), *notes]))
    for run in results.runs:
        for student in run.students:
            for link in (None, *student.links[:-1]):  # the last link is the student
                directory = output_dir / (link or student).output
                card = StudentCard.from_results(results, run, student, link)
                if card.weak and card.student and card.ceiling:
                    plot_gap(card.weak, card.student, card.ceiling, card.pgr, directory / FIGURE, title=card.subject)
                    card.has_figure = True
                _write(directory / "README.md", card.render())
    results.write(output_dir / "results.json")  # written last, when all other files are complete


def _report(results: ExperimentResult, notes: list[str]) -> str:
    settings, revision = results.settings, results.dataset.revision
    if results.is_demo and len(results.runs) > 1:  # each seed has a different world
        revision = f"worlds {', '.join(str(run.seed) for run in results.runs)}"
    shown = settings.training.to_dict() | settings.student.to_dict()
    for method, loss in settings.losses.items():
        shown |= {f"{method}, {name}": value for name, value in loss.items() if name != "loss_type"}
    return render(
        "report.md",
        results=results,
        dataset=results.dataset,
        revision=revision,
        subject=subject(results.task, results.is_demo),
        rows=ROWS[results.setting],
        kept=settings.training.keep_confident,
        dropped=counted(results.dataset.n_dropped),
        summary=markdown_table(*_summary(results)),
        models=markdown_table(*_table(results)),
        remarks=[*_comparisons(results), *_caveats(results)],
        notes=notes,
        settings=markdown_table(["setting", "value"], [[name, str(value)] for name, value in shown.items()]),
    )


def _write(path: Path, text: str) -> None:
    """Writes a file atomically."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text)
    os.replace(aside, path)
