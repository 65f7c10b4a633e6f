"""Compares the speed of WeakToStrongTrainer and transformers.Trainer with the same model, rows and optimizer steps.

    python recipes/benchmarks/throughput.py

There are two comparisons, with rows of mixed length:

- With equal micro-batches, both trainers do the same work. The ratio shows the overhead of WeakToStrongTrainer.
- With equal optimizer steps, WeakToStrongTrainer has a budget of tokens per micro-batch, and Trainer has the fastest
  size of --micro_batches.

--torch_compile, --group_by_length and --bf16 each repeat all timings with that argument. The script prints
ratios of speed (WeakToStrongTrainer / Trainer), which are medians over alternating repetitions, and writes them to
--output_file as JSON. Weights are random, because speed does not depend on their values.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch._dynamo
from benchmark_rows import Padding, gpt2_config, token_rows
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    GPT2ForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from w2s_hf import WeakToStrongConfig, WeakToStrongTrainer
from w2s_hf.command_line import CommandLine, HelpFormatter
from w2s_hf.config import hardware
from w2s_hf.experiments.cache import library_versions

# Each key is an option that adds contenders. The value has the arguments that both trainers then get.
VARIANTS = {
    "torch_compile": {"torch_compile": True},
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "bf16": {"bf16": True},
}
VOCAB_SIZE = 5000


@dataclass
class Contender:
    """
    A trainer with its arguments.

    Args:
        trainer (`type`): [`~transformers.Trainer`] or [`WeakToStrongTrainer`].
        micro_batch (`int`, *optional*): Rows per forward pass. With `None`, micro-batches have a budget of tokens.
        variant (`str`, *optional*): One of `VARIANTS`.
        predicts (`bool`): Whether predictions are timed. Their speed does not depend on the micro-batch.
        seconds (`dict[str, list[float]]`): Seconds of `train` and `predict` by repetition.
    """

    trainer: type[Trainer]
    micro_batch: int | None
    variant: str | None = None
    predicts: bool = False
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        cut = "token budget" if self.micro_batch is None else f"micro-batch {self.micro_batch}"
        return ", ".join(part for part in (self.trainer.__name__, cut, self.variant) if part)

    @property
    def is_ours(self) -> bool:
        return self.trainer is WeakToStrongTrainer

    def make(self, options: argparse.Namespace, rows: Dataset, output_dir: str) -> Trainer:
        torch.manual_seed(0)
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = gpt2_config(
            options.width, options.n_layers, VOCAB_SIZE, n_positions=max(1024, options.max_length), **dropout
        )
        rows_at_once = self.micro_batch or options.batch_size
        kwargs = VARIANTS[self.variant] if self.variant else {}
        if self.micro_batch is None:
            kwargs = {**kwargs, "max_tokens_per_micro_batch": options.token_budget}
        args = (WeakToStrongConfig if self.is_ours else TrainingArguments)(
            output_dir=output_dir,
            num_train_epochs=1,
            per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=options.batch_size // rows_at_once,
            per_device_eval_batch_size=options.eval_batch_size,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),  # otherwise, --bf16 requires a GPU
            **kwargs,
        )
        trainer = self.trainer(
            model=GPT2ForSequenceClassification(config),
            args=args,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(Padding()),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def ratio_to(self, other: "Contender", task: str) -> float:
        """Returns the ratio of speeds, as the median over repetitions."""
        pairs = zip(other.seconds[task], self.seconds[task], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def contenders_of(options: argparse.Namespace) -> list[Contender]:
    """
    Returns, for every variant, Trainer with all micro-batches, and WeakToStrongTrainer with `--equal_micro_batches`
    and with a token budget.
    """
    equal, contenders = options.equal_micro_batches, []
    for variant in (None, *(name for name in VARIANTS if getattr(options, name))):
        for size in sorted({*options.micro_batches, *equal}):
            # Contenders that are compared run consecutively, because the speed of a machine changes over time.
            trainers = [Trainer, *([WeakToStrongTrainer] if size in equal else [])]
            predicts = variant is None and size == equal[-1]
            contenders += [Contender(trainer, size, variant, predicts) for trainer in trainers]
        contenders.append(Contender(WeakToStrongTrainer, None, variant))
    return contenders


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_all(contenders: list[Contender], options: argparse.Namespace, rows: Dataset) -> None:
    """Trains all models in each repetition. The first repetition includes compilation and is not timed."""
    with tempfile.TemporaryDirectory() as directory:
        trainers = [contender.make(options, rows, directory) for contender in contenders]
        for repetition in range(options.repetitions + 1):
            for contender, trainer in list(zip(contenders, trainers, strict=True))[:: -1 if repetition % 2 else 1]:
                times = {"train": seconds(trainer.train)}
                if contender.predicts:
                    predict = trainer.predict_proba if contender.is_ours else trainer.predict
                    times["predict"] = seconds(lambda predict=predict: predict(rows))
                if repetition:
                    for task, value in times.items():
                        contender.seconds.setdefault(task, []).append(value)


def summarise(contenders: list[Contender], n_rows: int) -> list[dict]:
    """
    Returns one result per contender and task, with the ratio of its speed to the speed of a baseline. The baseline of
    WeakToStrongTrainer with a fixed micro-batch is Trainer with the same micro-batch. For all other contenders, the
    baseline is the fastest Trainer of the same variant.
    """

    def plain(task: str, variant: str | None) -> list[Contender]:
        return [one for one in contenders if not one.is_ours and one.variant == variant and task in one.seconds]

    results = []
    for task in ("train", "predict"):
        for one in (one for one in contenders if task in one.seconds):
            others = plain(task, one.variant)
            fastest = min(others, key=lambda other: statistics.median(other.seconds[task]))
            same = [other for other in others if other.micro_batch == one.micro_batch]
            baseline = same[0] if one.is_ours and same else fastest
            results.append(
                {
                    "task": task,
                    "trainer": one.name if task == "train" else one.trainer.__name__,
                    "rows_per_second": n_rows / statistics.median(one.seconds[task]),
                    "ratio": one.ratio_to(baseline, task),
                    "compared_with": baseline.name if task == "train" else baseline.trainer.__name__,
                    "is_best_trainer": one is fastest,
                    "seconds": one.seconds[task],
                }
            )
    return results


def print_results(results: list[dict]) -> None:
    print(f"{'':66} rows/s   ratio")
    for row in results:
        name, best = f"{row['task']} {row['trainer']}", " (the best Trainer)" if row["is_best_trainer"] else ""
        beside = "" if row["compared_with"] == row["trainer"] else f" to {row['compared_with']}"
        print(f"{name:66} {row['rows_per_second']:6.1f}   {row['ratio']:.2f}{beside}{best}")


def parse_options() -> argparse.Namespace:
    parser = CommandLine(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="Hidden size of the model.")
    parser.add_argument("--n_layers", type=int, default=4, help="Number of layers of the model.")
    parser.add_argument("--n_rows", type=int, default=320, help="Number of rows in an epoch.")
    parser.add_argument("--batch_size", type=int, default=32, help="Number of rows in an optimizer step.")
    parser.add_argument(
        "--micro_batches",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16, 32],
        help="Micro-batch sizes of Trainer to time, in rows. Its fastest size is compared with WeakToStrongTrainer.",
    )
    parser.add_argument(
        "--equal_micro_batches",
        type=int,
        nargs="+",
        default=[8, 32],
        help="Micro-batch sizes with which both trainers are timed, in rows.",
    )
    parser.add_argument("--eval_batch_size", type=int, default=16, help="Number of rows in a batch of a prediction.")
    parser.add_argument(
        "--mean_length",
        type=int,
        default=145,
        help="Mean length of a row in tokens, as in BoolQ.",
    )
    parser.add_argument("--max_length", type=int, default=512, help="Maximum length of a row in tokens.")
    parser.add_argument(
        "--token_budget",
        type=int,
        default=1024,
        help="Largest number of padded tokens in a micro-batch of WeakToStrongTrainer. The default "
        "is two rows of --max_length.",
    )
    parser.add_argument(
        "--torch_compile", action="store_true", help="Also time trainers whose models are compiled with torch.compile."
    )
    parser.add_argument(
        "--group_by_length", action="store_true", help="Also time trainers whose batches have rows of similar length."
    )
    parser.add_argument("--bf16", action="store_true", help="Also time trainers in bfloat16 autocast.")
    parser.add_argument("--repetitions", type=int, default=5, help="Number of timed epochs of each trainer.")
    parser.add_argument("--output_file", default=None, help="JSON file to which the results are written.")
    options = parser.parse_args()
    sizes = (*options.micro_batches, *options.equal_micro_batches)
    if undivided := [size for size in sizes if options.batch_size % size]:
        parser.error(
            f"Got a micro-batch of {undivided[0]} rows, expected a divisor of --batch_size {options.batch_size}. "
            "Change one of these options."
        )
    return options


def main() -> None:
    options = parse_options()
    if options.torch_compile:
        # All contenders compile the same functions. Above this limit, torch does not compile further versions.
        torch._dynamo.config.recompile_limit = 256
    contenders = contenders_of(options)
    time_all(contenders, options, token_rows(options.n_rows, options.mean_length, options.max_length, VOCAB_SIZE))
    report = {
        "settings": {name: value for name, value in vars(options).items() if name != "output_file"},
        "versions": library_versions(),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "results": summarise(contenders, options.n_rows),
    }
    print_results(report["results"])
    if options.output_file:
        with open(options.output_file, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
