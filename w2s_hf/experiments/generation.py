"""Weak-to-strong generalization on a generative task, from rows to PGR: the answers are text."""

import shutil
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset

from ..config import CompletionConfig, StudentConfig
from ..demo.models import World
from ..generation import complete
from ..labels import Completion, WeakCompletions
from ..modeling import load_config, load_tokenizer
from ..tasks import GenerationTask, TaskSplits
from ..trainers.completion import autocast
from .cache import library_versions
from .config import GenerationArguments
from .experiment import Experiment
from .finetuner import Model, Workbench
from .seed import Materials, SeedRun
from .settings.generation import GenerationSetting

__all__ = ["GenerationExperiment", "answer_untrained", "run_generation"]


class GenerationExperiment(Experiment):
    """An experiment on prompts and completions. Only a subclass has a demo."""

    def __init__(self, task: GenerationTask, *others, **shared):
        self.setting = GenerationSetting(task)
        super().__init__(task, *others, **shared)

    def world(self, seed: int) -> World:
        raise ValueError(f"--demo: got the task {self.task.name}, which has no demo. Name models and data.")

    def load_demo(self, world: World) -> TaskSplits:
        raise NotImplementedError

    def load_real(self) -> TaskSplits:
        for model in self.readers():
            config = load_config(model.path, model.revision).get_text_config()
            self.check_length(model.name, getattr(config, "max_position_embeddings", None))
        return self.load_rows(None, dataset_path=self.args.dataset_path)

    def check_length(self, name: str, n_positions: int | None) -> None:
        """Raises `ValueError` where rows of `--max_length` do not fit a model."""
        max_length = self.training_args.max_length
        if n_positions is not None and (max_length or n_positions + 1) > n_positions:
            raise ValueError(
                f"--max_length: got {max_length}, expected at most {n_positions}, which is what {name} reads."
            )

    def load_rows(self, world: World | None, **source) -> TaskSplits:
        """Loads the rows of `source`, which all models can read."""
        return self.task.load(
            tokenizers=self.tokenizers(world),
            max_length=self.training_args.max_length,
            max_new_tokens=self.training_args.max_new_tokens,
            **source,
            **self.split_options(),
        )

    def more_of(self, run: SeedRun, materials: Materials, seed: int) -> dict:
        test = materials.splits.test
        zero_shot = self.zero_shot(materials) if self.args.zero_shot else []
        return {"baselines": [*zero_shot, *self.task.baselines(test)]}

    def zero_shot(self, materials: Materials) -> list[dict]:
        """The scores of the student before any finetuning, on the test rows."""
        splits, student = materials.splits, materials.student
        source = {"task": splits.task.name, "dataset": splits.source}
        entries = []
        for name, rows in self.zero_shot_rows(splits.test).items():
            answers = answer_untrained(self.bench, "zero-shot", student, rows, source)
            entries.append({"name": name, "model": student.name, **self.setting.scores(answers, rows)})
        return entries

    def zero_shot_rows(self, test: Dataset) -> dict[str, Dataset]:
        """The test rows for each zero-shot baseline, which may ask differently."""
        return {"zero-shot": test}

    def describe(self, results: dict, runs: list[SeedRun]) -> tuple[str, list[str]]:
        test = self.materials(self.args.seeds[0]).splits.test
        results["example_prompt"] = test["prompt"][0]
        sections = self.task.report_sections(results, test, runs[0].answers, self.output_dir)
        return self.task.description or f"{self.task.name}.", sections


def run_generation(
    task: GenerationTask, args: GenerationArguments, training_args: CompletionConfig, student_config: StudentConfig
) -> dict:
    """[`Experiment.run`] on a generative task."""
    return GenerationExperiment(task, args, training_args, student_config).run()


def answer_untrained(bench: Workbench, name: str, model: Model, rows: Dataset, source: dict) -> list[Completion]:
    """
    Returns the completions of a model that was not finetuned: the zero-shot baseline (paper, figure 15).

    Args:
        bench ([`Workbench`]): A workbench of a [`GenerationSetting`].
        name (`str`): Name of the stage.
        model ([`Model`]): The model, before any adapter.
        rows ([`~datasets.Dataset`]): Rows with `id` and `prompt`.
        source (`dict`): Provenance of the rows.
    """
    args = bench.args
    settings = {
        "model": model.identity,
        "rows": bench.fingerprint(rows),
        "max_new_tokens": args.max_new_tokens,
        "mixed_precision": [args.bf16, args.fp16],
        "n_processes": PartialState().num_processes,
    }

    def build(directory: Path) -> None:
        tokenizer = load_tokenizer(model.path, revision=model.revision)
        # With new adapters, which change nothing: so the base that is loaded serves here, too.
        network = bench.in_place(bench.untrained(model, tokenizer, seed=0))
        with autocast(args):
            answers = complete(
                network,
                tokenizer,
                rows["prompt"],
                max_new_tokens=args.max_new_tokens,
                batch_size=args.per_device_eval_batch_size,
                keep=directory / "completions",
            )
        if PartialState().is_main_process:
            provenance = {**source, "model": model.name, "versions": library_versions()}
            WeakCompletions(list(rows["id"]), answers, provenance).save(directory / "predictions")
            shutil.rmtree(directory / "completions")

    path = bench.stages.run(name, settings, build)
    return WeakCompletions.load(path / "predictions").of(list(rows["id"]))
