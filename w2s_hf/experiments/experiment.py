"""One task with its settings, over seeds: what every recipe runs, and a sweep runs cell by cell."""

import logging
import os
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from transformers import TrainingArguments

from ..cards import ROWS, StudentCard
from ..cards.trained_with import DEMO_DATASET
from ..command_line import did_you_mean
from ..config import StudentConfig
from ..demo.models import DEMO_MODELS, DemoModel, World, build_demo_model, one_thread
from ..memory.check import check_fits
from ..modeling import load_tokenizer
from ..tasks import TaskSplits
from ..tasks.task import AnyTask
from .analyses import analyse, analysis_notes
from .cache import Stages, library_versions
from .config import ExperimentArguments
from .finetuner import Model, Workbench
from .generative import check_decoder
from .output_directory import Manifest, check_output_dir, clear, identity_of, is_still_true, release
from .report import settings_of, write_report
from .seed import Materials, SeedRun, keep_outputs, run_seed, summarise
from .settings.base import Setting
from .study import Study

__all__ = ["Experiment"]

logger = logging.getLogger(__name__)


class Experiment(ABC):
    """
    A task, the models and the settings of an experiment. A subclass for each setting.

    Args:
        task: What is learned.
        args ([`ExperimentArguments`]): Models, methods, rows, seeds.
        training_args ([`~transformers.TrainingArguments`]): Training of the students and the ceiling; of the weak
            supervisor, too, where `args` says nothing else. Everything is written below its `output_dir`.
        student_config ([`StudentConfig`]): Adapters and precision of the students and the ceiling.
        like ([`Experiment`], *optional*): Another of the same setting, to share its stages, its loaded base and the
            rows and models that it has found.
    """

    setting: Setting
    demo_models: dict[str, DemoModel] = DEMO_MODELS

    def __init__(
        self,
        task: AnyTask,
        args: ExperimentArguments,
        training_args: TrainingArguments,
        student_config: StudentConfig,
        *,
        like: "Experiment | None" = None,
    ):
        self.task, self.args, self.training_args, self.student_config = task, args, training_args, student_config
        self.output_dir = Path(training_args.output_dir)
        self._materials: dict[int, Materials] = {}
        if like is None:
            around = one_thread if args.demo and not has_chosen_threads() else nullcontext
            self.bench = Workbench(Stages(self.output_dir / "_stages", around), training_args, self.setting)
            self.ladder = ladder_stages()
            self._splits: dict[tuple, TaskSplits] = {}
            self._models: dict[str, Model] = {}
            self._checked: list[Model] = []
        else:
            self.bench, self.ladder, self._splits, self._models = like.bench, like.ladder, like._splits, like._models
            self._checked = like._checked

    # ---- What a setting says ----

    @abstractmethod
    def world(self, seed: int) -> World:
        """What the demo of a seed is about."""

    @abstractmethod
    def load_real(self) -> TaskSplits:
        """Rows of the task."""

    @abstractmethod
    def load_demo(self, world: World) -> TaskSplits:
        """Generated rows."""

    @abstractmethod
    def describe(self, results: dict, runs: list[SeedRun]) -> tuple[str, list[str]]:
        """Introduction and notes of the report; may add to the results. On rank 0 alone."""

    def prepare(self, materials: Materials, seed: int) -> Materials:
        """Of the materials of a seed, what has to be trained before the experiment."""
        return materials

    def more_of(self, run: SeedRun, materials: Materials, seed: int) -> dict:
        """What the entry of a seed says in this setting alone."""
        return {}

    # ---- The same for all ----

    def materials(self, seed: int) -> Materials:
        """Rows and models of a seed, on all ranks at first; the demo has a world a seed, real rows are the same."""
        if seed not in self._materials:
            self._materials[seed] = self._gather(seed)
        return self._materials[seed]

    def _gather(self, seed: int) -> Materials:
        args, world = self.args, self.world(seed) if self.args.demo else None
        readers = sorted({*args.rows_fit, *args.chain, *args.sizes})
        key = (self.task.name, seed if args.demo else None, args.n_links, *readers)
        weak = self.model(args.weak_model, "--weak_model", world, is_weak=True)
        student = self.model(args.student_model, "--student_model", world)
        chain = tuple(self.model(name, "--ladder", world) for name in args.chain)
        too_narrow = [name for name in args.sizes if self._is_too_narrow(name) and name != args.student_model]
        if too_narrow:
            logger.warning(f"Not compared, too narrow for --load_in_4bit: {', '.join(too_narrow)}")
        sizes = tuple(self.model(name, "--ladder", world) for name in args.sizes if name not in too_narrow)
        names = [model.name for model in sizes]
        if len(set(names)) < len(names):
            raise ValueError(
                f"--ladder: got models called {', '.join(names)}; results tell them apart by their names."
            )
        if "prompting" in args.analyses:
            check_decoder(student, "--analyses prompting")
        for model in (student, *sizes) if getattr(args, "generative_finetuning", False) else ():
            check_decoder(model, "--generative_finetuning")
        twin = args.student_model.replace("pretrained-", "scratch-")
        has_twin = args.demo and twin in self.demo_models and twin != args.student_model
        unpretrained = self.model(twin, "", world, is_weak=True) if has_twin else None
        if key not in self._splits:
            self._splits[key] = self._load(world)
        if world is None and args.check_memory:
            self._check_memory(weak, student, *chain, *sizes)
        return Materials(self._splits[key], weak, student, chain, unpretrained, sizes)

    def _check_memory(self, weak: Model, student: Model, *ladder: Model) -> None:
        """Before their weights are downloaded; each once, whatever the seeds."""
        options = [("--weak_model", weak), *(("--ladder", model) for model in ladder), ("--student_model", student)]
        for option, model in options:
            if model not in self._checked:
                check_fits(model, option, self.training_args, self.setting.task_type)
                self._checked.append(model)

    def _load(self, world: World | None) -> TaskSplits:
        if world is None:
            return self.load_real()
        splits = self.load_demo(world)
        return replace(splits, source={"id": DEMO_DATASET, "revision": f"world {world.seed}"})

    def model(self, name: str, option: str, world: World | None, is_weak: bool = False) -> Model:
        """
        A model that the command line names: on the Hub, in a directory, or of the demo, made for a world or found in
        the cache. Of a weak one all weights are trained.

        Raises:
            ValueError, FileNotFoundError, ConnectionError: as [`Model.find`]; or the demo has no such model.
        """
        config = None if is_weak else self.student_config
        if world is None:
            key = f"{name} {is_weak}"
            if key not in self._models:
                self._models[key] = Model.find(name, option, config)
            return self._models[key]
        if name not in self.demo_models:
            raise ValueError(
                f"{option}: the demo has no model {name!r}; its models are {', '.join(self.demo_models)}."
                + did_you_mean(name, self.demo_models)
            )
        demo = self.demo_models[name]
        if config is not None and self._is_too_narrow(name):
            raise ValueError(
                f"Got --load_in_4bit and {name}, which is narrower than the blocks of 64 that bitsandbytes quantizes."
            )
        # Only a pretrained model depends on how much it reads.
        n_documents = self.args.demo_documents if demo.n_documents else None
        settings = {"model": repr(demo), "world": repr(world.config), "seed": world.seed, "n": n_documents}
        directory = self.ladder.run(
            name, settings, lambda path: build_demo_model(demo, world, path, n_documents=n_documents)
        )
        return Model(f"demo/{name}", str(directory), directory.name, config)

    def _is_too_narrow(self, name: str) -> bool:
        """Is it a model of the demo that is narrower than the blocks that 4 bits are quantized in?"""
        demo = self.demo_models.get(name) if self.args.demo and self.student_config.load_in_4bit else None
        return demo is not None and bool(demo.width % 64 or demo.mlp_width % 64)

    def readers(self) -> list[Model]:
        """All models that the rows have to fit, real ones."""
        args = self.args
        options = dict.fromkeys(args.rows_fit, "--rows_fit") | dict.fromkeys([*args.chain, *args.sizes], "--ladder")
        options[args.student_model] = "--student_model"
        weak = self.model(args.weak_model, "--weak_model", None, is_weak=True)
        return [weak, *(self.model(name, option, None) for name, option in options.items())]

    def tokenizers(self, world: World | None = None) -> list:
        """Of all models that the rows have to fit."""
        if world is not None:
            return [world.tokenizer()]
        return [load_tokenizer(model.path, revision=model.revision) for model in self.readers()]

    def split_options(self) -> dict:
        """What the command line says of the rows of each part, as the loaders of `w2s_hf.tasks` take it."""
        names = ("n_train", "n_weak", "n_validation", "n_test", "n_links")
        return {name: getattr(self.args, name) for name in names} | {"seed": self.args.split_seed}

    def run_seed(self, seed: int) -> SeedRun:
        """The experiment of one seed."""
        materials = self.prepare(self.materials(seed), seed)
        run = run_seed(materials, self.args, seed, self.bench)
        run.entry.update(self.more_of(run, materials, seed))
        return run

    def run(self) -> dict:
        """
        Runs all seeds and writes everything below the output directory.

        Returns:
            `dict`: The content of `results.json` (schema 1).

        Raises:
            ValueError, FileNotFoundError, ConnectionError: before anything is trained, see the loaders of
                `w2s_hf.tasks`, [`w2s_hf.hub.ensure_available`] and
                [`w2s_hf.experiments.output_directory.check_output_dir`].
        """
        started = time.monotonic()
        manifest = self._claim_output_dir()
        try:
            return self._run(manifest, started)
        except Exception:  # not a stop by the user, who goes on with the same command
            if PartialState().is_main_process:
                release(self.output_dir)
            raise

    def _run(self, manifest: Manifest, started: float) -> dict:
        runs = []
        for seed in self.args.seeds:
            runs.append(self.run_seed(seed))
            if PartialState().is_main_process:
                if not is_still_true(self.output_dir / "results.json", runs[-1].entry):
                    # It belongs to the students that are now replaced.
                    (self.output_dir / "results.json").unlink(missing_ok=True)
                keep_outputs(runs[-1], self.output_dir)
                manifest.seeds = list(dict.fromkeys([*manifest.seeds, seed]))
                manifest.methods |= self.identity.methods
                manifest.write(self.output_dir)
        results = self._report(runs, started)
        if self.args.analyses:
            # All the rest is on disk before: an analysis that fails takes nothing with it.
            for seed, run in zip(self.args.seeds, runs, strict=True):
                world = self.world(seed) if self.args.demo else None
                analyse(Study(self.args, self.setting, run, world))
            results = self._report(runs, started)
        if PartialState().is_main_process:
            manifest.analyses |= self.identity.analyses
            manifest.write(self.output_dir)
        n_built = self.bench.stages.n_built + self.ladder.n_built
        n_reused = self.bench.stages.n_reused + self.ladder.n_reused
        logger.info(
            f"Nothing was trained: all {n_reused} stages were finished by an earlier run."
            if n_built == 0
            else f"{n_built} stages built, {n_reused} reused."
        )
        return results

    @property
    def identity(self) -> Manifest:
        """The manifest of this experiment, to tell it from another one in the same output directory."""
        return identity_of(self.task.name, self.setting.name, self.args, self.training_args, self.student_config)

    def _claim_output_dir(self) -> Manifest:
        """
        Looks up models and rows, and writes the manifest of the output directory. Returns it, with the seeds, methods
        and analyses that have results there already.

        Raises:
            ValueError: the directory belongs to another experiment.
        """
        identity, overwrite = self.identity, self.args.overwrite_output_dir
        # Before the demo pretrains its models, and again when models and rows are known.
        check_output_dir(self.output_dir, identity, overwrite=overwrite)
        for seed in self.args.seeds:
            materials = self.materials(seed)
            identity.found[f"rows of seed {seed}"] = materials.splits.fingerprint
            if not self.args.demo:
                for option, model in {"weak_model": materials.weak, "student_model": materials.student}.items():
                    identity.found[option] = model.revision or model.weights
        there = check_output_dir(self.output_dir, identity, overwrite=overwrite) or Manifest("experiment", "", {})
        PartialState().wait_for_everyone()  # all ranks have looked before one of them writes
        held = replace(
            identity,
            found=there.found | identity.found,
            **{name: getattr(there, name) for name in ("seeds", "methods", "analyses")},
        )
        if PartialState().is_main_process:
            if overwrite:
                clear(self.output_dir)
            held.write(self.output_dir)
        return held

    def _report(self, runs: list[SeedRun], started: float) -> dict:
        results = self.collect(runs, started)
        if PartialState().is_main_process:
            results["description"], notes = self.describe(results, runs)
            if self.args.demo:
                results["description"] = demo_description(results)
            notes += analysis_notes(results, self.output_dir)
            write_report(results, self.output_dir, notes=notes)
        PartialState().wait_for_everyone()
        return results

    def collect(self, runs: list[SeedRun], started: float) -> dict:
        """The content of `results.json` (schema 1); `started` is `time.monotonic()` of the beginning."""
        args, stages, splits = self.args, self.bench.stages, self.materials(self.args.seeds[0]).splits
        of_demo = {name: getattr(args, name) for name in ("demo_world", "demo_documents") if hasattr(args, name)}
        results = {
            "schema": 1,
            "run_name": self.training_args.run_name,
            "task": self.task.name,
            "setting": self.setting.name,
            "preset": "demo" if self.args.demo else "custom",
            "chance": self.setting.chance,
            "dataset": {
                **splits.source,
                "n_weak_half": len(splits.weak_half),
                "n_student_half": len(splits.student_half),
                "n_validation": len(splits.weak_validation) + len(splits.student_validation),
                "n_test": len(splits.test),
                "n_links": self.args.n_links,
                "n_dropped": splits.n_dropped,
                "split_seed": args.split_seed,
                **(of_demo if args.demo else {}),
            },
            "runs": [run.entry for run in runs],
            "summary": [summarise(runs, method) for method in self.args.methods],
            "settings": settings_of(self.args, self.training_args, self.student_config),
            "versions": library_versions(),
            "wall_seconds": {
                **stages.seconds,
                **self.ladder.seconds,
                **{
                    f"students/{name}": stages.record(path)["seconds"]
                    for run in runs
                    for name, path in run.students.items()
                },
                "total": round(time.monotonic() - started, 1),
            },
        }
        if hasattr(args, "conversion"):
            results["dataset"]["conversion"] = args.conversion
        for run in results["runs"]:
            for student in run["students"]:
                student["fingerprint"] = StudentCard.from_results(results, run, student).fingerprint
        return results


def demo_description(results: dict) -> str:
    """Returns the description of the task, after a sentence that says that its rows are generated."""
    rows = ROWS[results["setting"]]
    return (
        f"Demo: generated {rows} in the columns of {results['task']}, none of which is from its dataset. "
        f"{results['description']}"
    )


def has_chosen_threads() -> bool:
    """
    Whether the user has set the number of CPU threads. `accelerate launch` sets the variable of every process, with
    `--cpu` to the number of cores, so that nothing is known there; it alone sets the second variable (checked with
    accelerate 1.10 and 1.15).
    """
    return "OMP_NUM_THREADS" in os.environ and "ACCELERATE_DYNAMO_MODE" not in os.environ


def ladder_stages() -> Stages:
    """Where the demo's models are kept: `$W2S_HF_CACHE`, else `w2s_hf` in the user's cache directory."""
    if "W2S_HF_CACHE" in os.environ:
        directory = Path(os.environ["W2S_HF_CACHE"])
    else:
        directory = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "w2s_hf"
    return Stages(directory / "demo_ladder")
