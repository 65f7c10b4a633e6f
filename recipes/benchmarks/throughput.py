"""Rows per second of WeakToStrongTrainer beside transformers.Trainer: same model, same rows, same batches, one run.

    python recipes/benchmarks/throughput.py

Prints ratios (ours / Trainer), medians over alternating repetitions, and writes them to --output_file as JSON. Random
weights: speed does not depend on what a model knows. Eight minutes on two CPU cores with the defaults.
"""

import argparse
import json
import statistics
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    GPT2Config,
    GPT2ForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from w2s_hf import WeakToStrongConfig, WeakToStrongTrainer
from w2s_hf.experiments.stages import library_versions


class Padding:
    """What DataCollatorWithPadding needs of a tokenizer: the rows are token ids already."""

    def pad(self, features, **kwargs):
        longest = max(len(row["input_ids"]) for row in features)
        batch = {
            key: [row[key] for row in features] for key in features[0] if key not in ("input_ids", "attention_mask")
        }
        for key in ("input_ids", "attention_mask"):
            batch[key] = [row[key] + [0] * (longest - len(row[key])) for row in features]
        return {key: torch.tensor(values) for key, values in batch.items()}


def make_rows(n: int, mean_length: int, max_length: int, vocab_size: int) -> Dataset:
    """Rows of log-normal length, as passages have (BoolQ: mean 145 GPT-2 tokens, deviation of the log 0.5)."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(mean_length) - 0.125, 0.5, n), 8, max_length).astype(int)
    ids = [rng.integers(1, vocab_size, length).tolist() for length in lengths]
    masks = [[1] * length for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": rng.integers(0, 2, n).tolist()})


def make_trainer(ours: bool, options: argparse.Namespace, rows: Dataset, output_dir: str, **kwargs):
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=options.width, n_layer=options.n_layers, n_head=options.width // 64, vocab_size=5000, pad_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    args = (WeakToStrongConfig if ours else TrainingArguments)(
        output_dir=output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **kwargs,
    )
    trainer = (WeakToStrongTrainer if ours else Trainer)(
        model=GPT2ForSequenceClassification(config),
        args=args,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(Padding()),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def seconds(run) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--n_layers", type=int, default=4)
    parser.add_argument("--n_rows", type=int, default=320)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--mean_length", type=int, default=145)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument(
        "--token_budget", type=int, default=1024, help="max_tokens_per_micro_batch of the third trainer"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output_file", default=None)
    options = parser.parse_args()

    rows = make_rows(options.n_rows, options.mean_length, options.max_length, 5000)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for repetition in range(options.repetitions + 1):
            contenders = {
                "Trainer": make_trainer(False, options, rows, directory),
                "WeakToStrongTrainer": make_trainer(True, options, rows, directory),
                "WeakToStrongTrainer, token budget": make_trainer(
                    True, options, rows, directory, max_tokens_per_micro_batch=options.token_budget
                ),
            }
            for name, trainer in contenders.items():
                train, predict = seconds(trainer.train), seconds(lambda trainer=trainer: trainer.predict(rows))
                if repetition:  # the first one warms up
                    times.setdefault(f"train {name}", []).append(train)
                    times.setdefault(f"predict {name}", []).append(predict)

    report = {
        "settings": vars(options),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
        "results": [],
    }
    print(f"{'':50} rows/s   ratio to Trainer (median of pairs)")
    for name, values in times.items():
        task, contender = name.split(" ", 1)
        ratio = statistics.median(a / b for a, b in zip(times[f"{task} Trainer"], values, strict=True))
        rate = options.n_rows / statistics.median(values)
        report["results"].append({"task": task, "trainer": contender, "rows_per_second": rate, "ratio": ratio})
        print(f"{name:50} {rate:6.1f}   {ratio:.2f}")
    if options.output_file:
        with open(options.output_file, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
