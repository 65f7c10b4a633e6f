"""Weak-to-strong generalization of reward models on pairs of responses, from pairs to PGR."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import DatasetDict

from ..config import RewardPairConfig, StudentConfig
from ..modeling import load_tokenizer
from ..tasks import PreferenceTask, TaskSplits, load_pairs
from ..tasks.demo import PAIR_SITUATIONS, DemoWorld
from ..tasks.demo_rows import demo_pairs
from .finetuning import Model, Workbench
from .generative import generative_finetune
from .options import RewardArguments
from .protocol import (
    Materials,
    SeedRun,
    collect_results,
    find_demo_models,
    find_models,
    ladder_stages,
    run_seed,
    split_options,
)
from .report import markdown_table, write_report
from .settings import REWARD
from .stages import Stages

__all__ = ["run_reward"]

_DEMO_TEXT = """
## What this demo shows, and what it does not

The pairs are generated, as transcripts in the columns of {task}: a reply is a word of style, `yes` or
`no`, and a fact about a made-up entity. The better reply is the one about something alive; where both or neither are,
the one that begins with `yes`. One preference in twenty is reported the wrong way, so that about 0.95 is the best
there is. Which entities are alive can be told from the text that the student was pretrained on, and never stands in
it. All test pairs are about entities that no training pair is about: what a student knows of them it has from
pretraining.

- Where a student is better than the supervisor that taught it, it shows the effect itself, measured live. The control,
  the same architecture taught by the same labels without pretraining, has only the style to go by.
- It does not show that size helps: pretraining drives the gain here, and the supervisor has none.
- It does not show that the generative stage helps: the student has read about all entities before.
- Each seed is another world with other models, so numbers differ from seed to seed by more than their intervals.
"""

_SITUATION_TEXT = """
## Why PGR is low here

Accuracy by what tells the better reply: the style alone, the entities alone, both, or both in contradiction, where the
entities count; a mean over the seeds.

{table}

A supervisor that goes by the style is right where the style decides, and has to guess where only the entities differ,
since it has never met them. There the student's own knowledge shows. Where both are in conflict, such a supervisor is
wrong not at random but nearly always. To a student these are labels like any others; as far as it learns this error
with them, it does not recover that part of the gap. That it could, the ceiling tells: the same student, taught the
truth about the same pairs.
"""


def run_reward(
    task: PreferenceTask, args: RewardArguments, training_args: RewardPairConfig, student_config: StudentConfig
) -> dict:
    """
    Runs the experiment for every seed and writes everything below `training_args.output_dir`.

    Args:
        task ([`PreferenceTask`]): What is compared.
        args ([`RewardArguments`]): Models, methods, pairs, seeds, generative finetuning.
        training_args ([`RewardPairConfig`]): Training of the students and the ceiling; of the weak supervisor, too,
            where `args` says nothing else.
        student_config ([`StudentConfig`]): Adapters and precision of the students and the ceiling.

    Returns:
        `dict`: The content of `results.json` (schema 1).

    Raises:
        ValueError, FileNotFoundError, ConnectionError: before anything is trained, see [`w2s_hf.tasks.load_pairs`] and
            [`w2s_hf.hub.ensure_available`].
    """
    started = time.monotonic()
    output_dir = Path(training_args.output_dir)
    bench = Workbench(Stages(output_dir / "_stages"), training_args, REWARD)
    ladder = ladder_stages()
    if args.demo:
        every = [gather_demo(task, args, student_config, seed, ladder) for seed in args.seeds]
    else:
        weak, student = find_models(args, student_config)
        splits = load_real_pairs(task, args, training_args, (weak, student))
        every = [Materials(splits, weak, student)] * len(args.seeds)
    runs = []
    for seed, materials in zip(args.seeds, every, strict=True):
        if args.generative_finetuning:
            tuned = generative_finetune(
                bench,
                materials.student,
                materials.splits.student_half,
                seed=seed,
                learning_rate=args.generative_learning_rate,
                num_train_epochs=args.generative_num_train_epochs,
            )
            materials = replace(materials, student=tuned, plain_student=materials.student)
        run = run_seed(materials, args, seed, bench, output_dir)
        if args.demo:
            run.entry["by_situation"] = accuracy_by_situation(run, materials.splits, DemoWorld(seed=seed))
        runs.append(run)
    results = collect_results(task.name, args, every[0].splits, runs, bench, ladder, started)
    results["generative_finetuning"] = args.generative_finetuning
    if PartialState().is_main_process:
        notes = []
        if args.demo:
            table = situation_table(results)
            notes = [_DEMO_TEXT.strip().format(task=task.name), _SITUATION_TEXT.strip().format(table=table)]
        write_report(results, output_dir, training_args, introduction=task.description or f"{task.name}.", notes=notes)
    PartialState().wait_for_everyone()
    return results


def load_real_pairs(
    task: PreferenceTask, args: RewardArguments, training_args: RewardPairConfig, models: tuple[Model, ...]
) -> TaskSplits:
    """Pairs that fit all models."""
    return load_pairs(
        task,
        dataset_path=args.dataset_path,
        tokenizers=[load_tokenizer(model.path, revision=model.revision) for model in models],
        max_length=training_args.max_length,
        **split_options(args),
    )


def gather_demo(
    task: PreferenceTask, args: RewardArguments, student_config: StudentConfig, seed: int, ladder: Stages
) -> Materials:
    """Pairs and models of one seed of the demo, which has a world a seed."""
    world = DemoWorld(seed=seed)
    # Some more than asked for: equal pairs count once.
    n_pool = 5 * (args.n_train + args.n_weak + args.n_validation) // 4
    raw = DatasetDict(
        {
            task.train_split[0]: demo_pairs(world, n_pool, "train pairs"),
            task.test_split[0]: demo_pairs(world, 5 * args.n_test // 4, "test pairs", held_out=True),
        }
    )
    # There is one prompt, so it groups nothing.
    splits = load_pairs(replace(task, group_by_prompt=False), raw=raw, **split_options(args))
    splits = replace(splits, source={"id": "w2s_hf demo", "revision": f"world {seed}"})
    return Materials(splits, *find_demo_models(args, student_config, world, ladder))


def accuracy_by_situation(run: SeedRun, splits: TaskSplits, world: DemoWorld) -> dict[str, dict[str, float]]:
    """The share of test pairs in each of `PAIR_SITUATIONS`, and each model's accuracy on them."""
    test = splits.test
    situations = np.array([world.pair_situation(*sides) for sides in zip(test["first"], test["second"], strict=True)])
    table = {}
    for name in PAIR_SITUATIONS:
        here = situations == name
        accuracies = {model: float(correct[here].mean()) for model, correct in run.correct.items() if here.any()}
        table[name] = {"share": float(here.mean()), **accuracies}
    return table


def situation_table(results: dict) -> str:
    """`by_situation`, a mean over the seeds, for the report."""
    runs = [run["by_situation"] for run in results["runs"]]
    roles = {"share": "share of test pairs", "weak": "weak supervisor", "control": "control, not pretrained"}
    roles |= {entry["method"]: f"student, {entry['method']}" for entry in results["summary"]}
    roles |= {"ceiling_plain": "plain ceiling", "ceiling": "strong ceiling"}
    lines = []
    for name, role in roles.items():
        cells = [[run[situation][name] for run in runs if name in run[situation]] for situation in PAIR_SITUATIONS]
        if any(cells):
            lines.append([role, *(f"{np.mean(cell):.2f}" if cell else "-" for cell in cells)])
    return markdown_table(["", *PAIR_SITUATIONS], lines)
