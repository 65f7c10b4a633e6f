"""Compares the speed of the whole experiment with a plain loop that has the published settings.

    python recipes/benchmarks/pipeline.py

Both programs train a supervisor, a ceiling, a naive student and a student with the confidence loss of the published
code. Time is measured from rows and models on disk to the scores. The contenders run alternately:

- published: a plain loop with the settings of openai/weak-to-strong, see published_loop.py.
- ours: the experiment of `recipes/boolq.py`, with options that make it mathematically equivalent. The probabilities of
  all four models are compared row by row. If they differ, the speeds are not comparable, and the exit status is 1.
- ours, LoRA: the same experiment with adapters on all linear layers, the default of students. Its results differ.

Our experiment also saves stages, students, figures and a report, while the plain loop saves nothing. The script prints
ratios of speed to `published` (medians over repetitions), and writes them to --output_file as JSON. Models have random
weights. Rows have random words that indicate the answer. Use --dataset_path and --tokenizer for real rows. Options
that are not listed below are passed to both variants of our experiment, for example `--optim adamw_torch`.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from benchmark_rows import save_boolq_rows, save_language_model, word_tokenizer
from published_loop import BATCH_SIZE, PublishedLoop, Run

from w2s_hf import WeakLabels
from w2s_hf.command_line import CommandLine, HelpFormatter
from w2s_hf.config import hardware
from w2s_hf.experiments.cache import library_versions
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.experiment import run_experiment
from w2s_hf.launch import CONFIGS
from w2s_hf.modeling import load_tokenizer

DEMO_CONFIG = CONFIGS / "demo.yaml"
STAGES = {"weak": "weak", "ceiling": "ceiling", "naive": "student-naive", "openai": "student-openai"}
# Our experiment requires validation rows, although these settings do not use them.
N_VALIDATION = 8
# Probabilities that are computed in another order may differ by this number. With autocast, only the head of our
# model is in float32.
TOLERANCE, BF16_TOLERANCE = 0.001, 0.05


def run_published(options: argparse.Namespace, directory: Path) -> Run:
    loop = PublishedLoop(options.bf16, options.num_train_epochs, options.max_length)
    return loop.run(
        directory / "weak",
        directory / "strong",
        options.weak_learning_rate,
        options.learning_rate,
        options.dataset_path,
        n_weak=options.n_weak,
        n_train=options.n_train,
        n_test=options.n_test,
        n_validation=N_VALIDATION,
    )


def run_ours(options: argparse.Namespace, directory: Path, lora: bool = False) -> Run:
    command = {
        "weak_model": directory / "weak",
        "student_model": directory / "strong",
        "dataset_path": options.dataset_path,
        "n_validation": N_VALIDATION,
        **{name: getattr(options, name) for name in ("n_weak", "n_train", "n_test", "num_train_epochs", "bf16")},
        **{name: getattr(options, name) for name in ("weak_learning_rate", "max_length")},
        "learning_rate": options.lora_learning_rate if lora else options.learning_rate,
        "max_tokens_per_micro_batch": options.max_tokens_per_micro_batch,
        "use_peft": lora,
        "dtype": "float32",
        "head_init": "zeros",
        "per_device_train_batch_size": BATCH_SIZE,
        "per_device_eval_batch_size": BATCH_SIZE,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0,
        "max_grad_norm": 0,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.accelerator.is_available(),  # otherwise, --bf16 requires a GPU
    }
    words = [word for name, value in command.items() for word in (f"--{name}", str(value))]
    # In a new directory, no step of an earlier repetition is cached.
    with tempfile.TemporaryDirectory(dir=directory) as output_dir, redirect_stdout(sys.stderr):
        words += ["--methods", "naive", "openai", *options.for_ours, "--output_dir", output_dir]
        start = time.perf_counter()
        results = run_experiment("boolq", *parse_arguments("", DEMO_CONFIG, words))
        run = Run(time.perf_counter() - start)
        (entry,) = results.runs
        accuracies = {"weak": entry.weak.accuracy, "ceiling": entry.ceiling.accuracy}
        accuracies |= {student.method: student.accuracy for student in entry.students}
        for name, stage in STAGES.items():
            (predictions,) = Path(output_dir).glob(f"_stages/{stage}-*/predictions")
            run.answers[name] = WeakLabels.load(predictions)
            run.seconds[name] = results.wall_seconds[stage]
            run.accuracy[name] = accuracies[name]
    return run


CONTENDERS = {
    "ours": run_ours,
    "published": run_published,
    "ours, LoRA": lambda options, directory: run_ours(options, directory, lora=True),
}


def largest_differences(run: Run, other: Run) -> dict[str, float]:
    """Returns the largest difference of the probabilities of the same row in two runs, by model."""
    return {
        name: float(np.abs(run.answers[name].of(theirs.ids) - theirs.probabilities).max())
        for name, theirs in other.answers.items()
    }


def is_equal(differences: dict[str, float], tolerance: float) -> bool:
    return all(difference <= tolerance for difference in differences.values())  # False for NaN


def count_rows(options: argparse.Namespace) -> dict[str, int]:
    """
    Returns the number of rows of all four training runs, and of all predictions. All models predict the test rows, and
    the supervisor also predicts the student half.
    """
    return {
        "trained": options.num_train_epochs * (options.n_weak + 3 * options.n_train),
        "predicted": options.n_train + 4 * options.n_test,
    }


def summarise(name: str, runs: dict[str, list[Run]], n_rows: int) -> dict:
    """Returns medians over the repetitions. Ratios are computed between runs of the same repetition."""
    ours = runs[name]
    pairs = zip(runs["published"], ours, strict=True)
    by_stage = {stage: statistics.median(run.seconds[stage] for run in ours) for stage in STAGES}
    by_stage["rest"] = statistics.median(run.total_seconds - sum(run.seconds.values()) for run in ours)
    return {
        "contender": name,
        "ratio": statistics.median(theirs.total_seconds / run.total_seconds for theirs, run in pairs),
        "same_mathematics": name != "ours, LoRA",
        "rows_per_second": n_rows / statistics.median(run.total_seconds for run in ours),
        "seconds": statistics.median(run.total_seconds for run in ours),
        "seconds_by_stage": by_stage,
        "seconds_of_repetitions": [run.total_seconds for run in ours],
        "accuracy": ours[-1].accuracy,
    }


def print_results(results: list[dict]) -> None:
    print(f"{'':12} {'ratio':>6} {'rows/s':>8} {'seconds':>8}   seconds of each stage, and accuracy")
    for row in results:
        parts = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["seconds_by_stage"].items())
        scores = ", ".join(f"{stage} {accuracy:.3f}" for stage, accuracy in row["accuracy"].items())
        print(
            f"{row['contender']:12} {row['ratio']:6.2f} {row['rows_per_second']:8.1f} {row['seconds']:8.1f}   {parts}"
        )
        print(f"{'':39}{scores}{'' if row['same_mathematics'] else ' (not the same mathematics)'}")


def parse_options() -> argparse.Namespace:
    parser = CommandLine(description=__doc__, formatter_class=HelpFormatter, lets_pass=True)
    parser.add_argument(
        "--weak", default="128x2", metavar="WIDTHxLAYERS", help="Hidden size and number of layers of the supervisor."
    )
    parser.add_argument(
        "--strong",
        default="384x6",
        metavar="WIDTHxLAYERS",
        help="Hidden size and number of layers of students and ceiling.",
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=50257,
        help="Vocabulary size of both models, as in GPT-2. Not used with --tokenizer.",
    )
    parser.add_argument(
        "--n_weak", type=int, default=192, help="Number of training rows of the supervisor (the weak half)."
    )
    parser.add_argument(
        "--n_train", type=int, default=192, help="Number of training rows of students and ceiling (the student half)."
    )
    parser.add_argument("--n_test", type=int, default=192, help="Number of test rows.")
    parser.add_argument(
        "--mean_length",
        type=int,
        default=145,
        help="Mean number of words of a generated passage, as in BoolQ.",
    )
    parser.add_argument(
        "--max_length", type=int, default=512, help="Maximum length of a row in tokens. Longer passages are truncated."
    )
    parser.add_argument("--num_train_epochs", type=int, default=2, help="Number of epochs of each training run.")
    parser.add_argument("--weak_learning_rate", type=float, default=3e-4, help="Peak learning rate of the supervisor.")
    parser.add_argument(
        "--learning_rate",
        type=float,
        default=1e-4,
        help="Peak learning rate of students and ceiling, without adapters.",
    )
    parser.add_argument(
        "--lora_learning_rate",
        type=float,
        default=2e-3,
        help="Peak learning rate of students and ceiling with LoRA adapters, which need a higher rate.",
    )
    parser.add_argument(
        "--max_tokens_per_micro_batch",
        type=int,
        default=1024,
        help="Largest number of padded tokens in a micro-batch of our experiment. The default "
        "is two rows of --max_length.",
    )
    parser.add_argument("--bf16", action="store_true", help="Run all forward passes in bfloat16 autocast.")
    parser.add_argument("--no_lora", action="store_true", help="Leave out the contender with LoRA.")
    parser.add_argument("--repetitions", type=int, default=3, help="Number of timed runs of each contender.")
    parser.add_argument(
        "--no_warm_up",
        action="store_true",
        help="Leave out the untimed warm-up run, so that the first run of each contender is timed.",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="Largest allowed difference between our and the published probabilities (default: 0.001, or 0.05 with "
        "--bf16).",
    )
    parser.add_argument("--dataset_path", help="Local copy of google/boolq with real rows. Requires --tokenizer.")
    parser.add_argument("--tokenizer", help="Local directory of the tokenizer for --dataset_path.")
    parser.add_argument("--pad_token", help="Padding token to set, if the tokenizer has none.")
    parser.add_argument("--output_file", type=Path, help="JSON file to which the results are written.")
    options, options.for_ours = parser.parse_known_args()
    if (options.dataset_path is None) != (options.tokenizer is None):
        parser.error(
            "Got only one of --dataset_path and --tokenizer, expected both or neither. Add the missing option."
        )
    if options.tolerance is None:
        options.tolerance = BF16_TOLERANCE if options.bf16 else TOLERANCE
    return options


def make_materials(options: argparse.Namespace, directory: Path) -> None:
    """Saves models and, without `--dataset_path`, rows in a directory."""
    if options.dataset_path is None:
        options.dataset_path = str(directory / "rows")
        n_train = options.n_weak + options.n_train + N_VALIDATION
        save_boolq_rows(directory / "rows", n_train, options.n_test, options.mean_length, options.vocab_size)
    if options.tokenizer is None:
        tokenizer = word_tokenizer(options.vocab_size)
    else:
        # A tokenizer that is only a vocabulary, without a configuration, has no padding token.
        padding = {} if options.pad_token is None else {"pad_token": options.pad_token}
        tokenizer = load_tokenizer(options.tokenizer, **padding)
    for seed, name in enumerate(("weak", "strong")):
        shape = getattr(options, name)
        save_language_model(directory / name, shape, tokenizer, max(1024, options.max_length), seed)


def main() -> None:
    options = parse_options()
    settings = {
        # The report says whether rows are real, but contains no paths.
        **{name: value for name, value in vars(options).items() if name not in ("dataset_path", "output_file")},
        "tokenizer": options.tokenizer and Path(options.tokenizer).name,
        "rows": "made" if options.dataset_path is None else "given",
    }
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    gc.freeze()  # recipes also call this function
    contenders = [name for name in CONTENDERS if not (options.no_lora and name == "ours, LoRA")]
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as directory:
        make_materials(options, Path(directory))
        few = {"n_weak": 32, "n_train": 32, "n_test": 32, "num_train_epochs": 1}
        for name in [] if options.no_warm_up else contenders:  # the first run of a contender is slower
            CONTENDERS[name](argparse.Namespace(**{**vars(options), **few}), Path(directory))
        for repetition in range(options.repetitions):
            for name in contenders[:: -1 if repetition % 2 else 1]:
                gc.collect()
                runs[name].append(CONTENDERS[name](options, Path(directory)))

    n_rows = count_rows(options)
    results = [summarise(name, runs, sum(n_rows.values())) for name in contenders]
    pairs = [largest_differences(*pair) for pair in zip(runs["ours"], runs["published"], strict=True)]
    differences = {name: max(pair[name] for pair in pairs) for name in STAGES}
    equal = is_equal(differences, options.tolerance)
    report = {
        "ratio": next(row["ratio"] for row in results if row["contender"] == "ours"),
        "results": results,
        "counted_rows": n_rows,
        "equality": {"is_equal": equal, "tolerance": options.tolerance, "largest_difference": differences},
        "settings": settings,
        "versions": library_versions(),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
    }
    if options.output_file:
        options.output_file.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Our experiment is {report['ratio']:.2f} times as fast as the plain loop (median).")
    print(f"Number of rows: {n_rows['trained']} for training (per epoch), {n_rows['predicted']} for prediction.\n")
    print_results(results)
    largest = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    print(
        f"\nLargest difference of a probability between our settings and the published settings: {largest}. "
        f"Tolerance: {options.tolerance:g}."
    )
    if not equal:
        sys.exit(
            "error: Got different probabilities from our settings and the published settings, expected equal "
            "probabilities within the tolerance. The speeds are not comparable. "
            "Leave out options that change the mathematics."
        )


if __name__ == "__main__":
    main()
