"""Runs one task with its settings over seeds. Every recipe and every cell of a sweep runs an experiment."""

import logging
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from accelerate import PartialState

from ..cards import ROWS, StudentCard
from ..cards.trained_with import DEMO_DATASET, subject
from ..command_line import did_you_mean
from ..config import AnyConfig, StudentConfig
from ..demo.models import World, build_demo_model, one_thread
from ..memory.check import check_fits
from ..methods import Method
from ..modeling import load_config, load_tokenizer
from ..modeling.heads import unembedding_file
from ..modeling.spec import ModelSpec
from ..results import DatasetInfo, ExperimentResult
from ..results.predictions import PREDICTIONS, predictions_table, write_predictions
from ..tasks import GenerationTask, PreferenceTask, PromptFormat, Task, TaskSplits, find_task
from ..tasks.prompt import answer_tokens, head_tokens
from ..tasks.splits import TransferRows
from ..trainers.row_loss import try_row_loss
from .analyses import analyse, analysis_notes, analysis_title, prompted
from .analysis_context import AnalysisContext
from .cache import DEMO_SOURCES, StageCache, library_versions
from .config import ClassificationArguments, ExperimentArguments, GenerationArguments, RewardArguments
from .console import Progress
from .finetuner import Finetuner
from .generative_finetuning import check_decoder, generative_kind
from .output_directory import Manifest, check_output_dir, clear, identity_of, is_still_true, name_of, release
from .prompts import check_prompt_lengths, prompt_format_of, prompts_of
from .report import ceiling_warnings, run_settings, write_report
from .scores import Scorer, keep_outputs, score_seed, summarise
from .seed import Models, planned_models, probabilities_of, run_seed
from .self_baselines import (
    SELF_BASELINES,
    SELF_TRAINED,
    has_self_baselines,
    self_baselines,
    self_trained_summary,
)  # fmt: skip
from .settings.base import Setting
from .settings.classification import CLASSIFICATION, LINEAR_PROBE, ProbabilitySetting
from .settings.generation import GenerationSetting
from .settings.reward import REWARD
from .transfer import TRANSFER_TITLE, find_transfer_tasks, load_transfer_rows, summarise_transfer, with_transfer

__all__ = ["Experiment", "run_experiment"]

logger = logging.getLogger(__name__)

ExperimentTask = Task | PreferenceTask | GenerationTask


def run_experiment(
    task: str | ExperimentTask, args: ExperimentArguments, training_args: AnyConfig, student_config: StudentConfig
) -> ExperimentResult:
    """
    Runs the experiment of a task over all seeds, and writes all results to `training_args.output_dir`.

    Args:
        task (`str`, [`Task`], [`PreferenceTask`] or [`GenerationTask`]): The task, or its name as in [`find_task`].
        args ([`ExperimentArguments`]): Models, methods, rows, seeds.
        training_args ([`~transformers.TrainingArguments`]): Training arguments of the students.
        student_config ([`StudentConfig`]): Adapters and precision of the students.

    Returns:
        [`ExperimentResult`]: The content of `results.json` (schema 1). `to_dict()` returns it as JSON values.
    """
    kinds: dict[type, type] = {RewardArguments: PreferenceTask, GenerationArguments: GenerationTask}
    kind = next((kinds[arguments] for arguments in kinds if isinstance(args, arguments)), Task)
    task = find_task(task, kind) if isinstance(task, str) else task
    return Experiment(task, setting_of(task), args, training_args, student_config).run()


def setting_of(task: ExperimentTask) -> Setting:
    """Returns the setting of a task."""
    if isinstance(task, Task):
        return CLASSIFICATION
    if isinstance(task, PreferenceTask):
        return REWARD
    if task.setting == "chess":
        from .settings.chess import ChessSetting  # imported only here, because it needs python-chess

        return ChessSetting(task)
    if task.setting != GenerationTask.setting:
        raise ValueError(
            f"{task.name}: got the setting {task.setting!r}, expected {GenerationTask.setting!r}. Remove `setting` "
            "from the class of the task."
        )
    return GenerationSetting(task)


class Experiment:
    """
    A task, the models and the options of an experiment.

    Args:
        task ([`Task`], [`PreferenceTask`] or [`GenerationTask`]): The task.
        setting ([`Setting`]): Loads and scores the rows, and trains models on them.
        args ([`ExperimentArguments`]): Models, methods, rows, seeds.
        training_args ([`~transformers.TrainingArguments`]): Training arguments of the students and the ceiling. The
            weak supervisor has the same arguments, unless `args` sets other values for it. All results are written to
            their `output_dir`.
        student_config ([`StudentConfig`]): Adapters and precision of the students and the ceiling.
        like ([`Experiment`], *optional*): Another experiment of the same setting. The two experiments
            share cache, loaded base model, rows and models.
    """

    def __init__(
        self,
        task: ExperimentTask,
        setting: Setting,
        args: ExperimentArguments,
        training_args: AnyConfig,
        student_config: StudentConfig,
        *,
        like: "Experiment | None" = None,
    ):
        for name, value, kind in (
            ("args", args, setting.arguments),
            ("training_args", training_args, setting.training),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name}: got {type(value).__name__}, expected {kind.__name__} for {task.name}.")
        self.task, self.setting, self.args = task, setting, args
        self.training_args, self.student_config = training_args, student_config.resolved(training_args.use_cpu)
        self.output_dir = Path(training_args.output_dir)
        self.transfer_tasks = find_transfer_tasks(task, args.transfer_tasks) if args.transfer_tasks else []
        for method in args.methods_by_name.values():
            _check_method(method, setting, training_args)
        self._wanted_self_baselines = getattr(args, "self_baselines", None)
        self._inputs: dict[int, tuple[Models, TaskSplits]] = {}
        self._transfer_rows: dict[tuple, dict[str, TransferRows]] = {}
        if like is None:
            around = one_thread if args.demo and not has_chosen_threads() else nullcontext
            progress = Progress()
            stages = StageCache(self.output_dir / "_stages", around, progress=progress)
            self.finetuner = Finetuner(stages, setting, training_args)
            self.demo_cache = demo_cache(progress)
            self._splits: dict[tuple, TaskSplits] = {}
            self._specs: dict[str, ModelSpec] = {}
            self._checked: list[ModelSpec] = []
        else:
            self.finetuner, self.demo_cache = like.finetuner, like.demo_cache
            self._splits, self._specs, self._checked = like._splits, like._specs, like._checked

    @property
    def progress(self) -> Progress:
        """Announces the steps of the experiment."""
        return self.finetuner.cache.progress

    # ---- Rows and models ----

    def world(self, seed: int) -> World | None:
        """Returns the world of the demo of a seed; `None` for real rows."""
        return self.setting.demo_world(self.args, seed) if self.args.demo else None

    def inputs(self, seed: int) -> tuple[Models, TaskSplits]:
        """
        Returns the models and rows of a seed, and checks that they can be used. Real rows are the same for all seeds;
        in the demo each seed has its own world. The first call for a seed must be on all ranks.
        """
        if seed not in self._inputs:
            self._begin_seed(seed)
            # The demo refuses a task without generated rows before it pretrains models.
            models = None if self.args.demo else self._find_models(seed)
            readers = sorted({*self.args.rows_fit, *self.args.chain, *self.args.sizes})
            key = (self.task.name, seed if self.args.demo else None, self.args.n_links, *readers)
            if key not in self._splits:
                self._splits[key] = self._load_splits(seed)
            self.transfer_rows(seed, self._splits[key])
            models = models or self._find_models(seed)
            n_examples, n_shots = len(self._splits[key].student_half), self.args.prompt_shots
            is_prompted = "prompting" in self.args.analyses or getattr(self.args, "self_baselines", False)
            if is_prompted and n_shots > n_examples:
                raise ValueError(
                    f"--prompt_shots: got {n_shots}, expected at most {n_examples}, the number of training rows of "
                    "students. Use fewer examples."
                )
            self._check_prompt_lengths(self._splits[key], models.student, seed)
            if isinstance(self.args, ClassificationArguments):
                self._decide_self_baselines(self.args, self._splits[key], models.student, seed)
            self._check_memory(models)
            if self.student_config.head_init == "answers":
                for model in (*models.chain, *models.sizes, models.student):
                    unembedding_file(model.path, load_config(model.path, revision=model.revision), model.revision)
            self._inputs[seed] = models, self._splits[key]
        return self._inputs[seed]

    def _decide_self_baselines(
        self, args: ClassificationArguments, splits: TaskSplits, student: ModelSpec, seed: int
    ) -> None:
        """
        Sets `--self_baselines`, if it is unset, according to the student and its prompts. The baselines are computed
        for all seeds or for none, and all seeds are checked before anything is trained.
        """
        if args.self_baselines is False:
            return
        wanted = replace(args, self_baselines=self._wanted_self_baselines)
        is_possible = has_self_baselines(self.task, splits, wanted, student, seed, self.world(seed))
        if not is_possible and self.setting.further_steps(replace(wanted, linear_probe=False)):
            for _ in args.seeds:
                self.progress.cancel(SELF_BASELINES)
        self.args = replace(args, self_baselines=is_possible)

    def _find_models(self, seed: int) -> Models:
        args, world = self.args, self.world(seed)
        head_prompt = self._answers_of_heads()
        weak_name, student_name = args.models
        weak = self.spec(weak_name, "--weak_model", world, all_weights=True)
        student = self.spec(student_name, "--student_model", world)
        chain = tuple(self.spec(name, "--ladder", world) for name in args.chain)
        too_narrow = [name for name in args.sizes if self._is_too_narrow(name) and name != student_name]
        if too_narrow and PartialState().is_main_process:
            logger.warning(
                f"--load_in_4bit: got the models {', '.join(too_narrow)} to compare, which are too narrow for "
                "4-bit quantization. They are left out."
            )
        sizes = tuple(self.spec(name, "--ladder", world) for name in args.sizes if name not in too_narrow)
        names = [model.name for model in sizes]
        if len(set(names)) < len(names):
            raise ValueError(
                f"--ladder: got models with the names {', '.join(names)}, expected different names, since results "
                "identify models by name. Rename their directories."
            )
        prompting = [f"--methods {name}" for name, method in args.methods_by_name.items() if method.needs_prompts]
        prompting += ["--analyses prompting"] * ("prompting" in args.analyses)
        for option in prompting:
            if not isinstance(self.task, Task):
                raise ValueError(
                    f"{option}: got the setting {self.setting.name}, whose rows have no prompt with two answers, "
                    "expected text classification. Leave it out."
                )
            check_decoder(student, option)
            if world is None:  # in the demo, the world defines the answer words
                self._check_answers(prompt_format_of(self.task, args), [student], option)
        for model in (student, *sizes) if getattr(args, "generative_finetuning", False) else ():
            check_decoder(model, "--generative_finetuning")
        if head_prompt is not None:
            self._check_answers(head_prompt, [*chain, *sizes, student], "--head_init answers")
        name = self._control_name()
        control = None if name is None else self.spec(name, "", world, all_weights=True)
        return Models(weak, student, chain, control, sizes)

    def _control_name(self) -> str | None:
        """Returns the demo's model with the architecture of the student and without pretraining, or `None`."""
        _, student_name = self.args.models
        name = student_name.replace("pretrained-", "scratch-")
        return name if self.args.demo and name in self.setting.demo_models and name != student_name else None

    def _answers_of_heads(self) -> PromptFormat | None:
        """Returns the prompt whose answer words initialize the heads, or `None` without `--head_init answers`."""
        if self.student_config.head_init != "answers":
            return None
        if self.args.demo or not isinstance(self.task, Task):
            raise ValueError(
                f"--head_init answers: got {subject(self.task.name, self.args.demo)}, expected real models and a "
                "classification task, whose answer words the models know. Use --head_init normal."
            )
        return self.task.prompt_format

    def _check_answers(self, prompt_format: PromptFormat, models: list[ModelSpec], option: str) -> None:
        """Raises `ValueError` if a model cannot predict the answers of a prompt, or initialize its head with them."""
        tokens_of, alternative = (
            (head_tokens, "--head_init normal")
            if option == "--head_init answers"
            else (answer_tokens, "another --prompt_form")
        )
        for model in models:
            check_decoder(model, option)
            tokenizer = load_tokenizer(model.path, revision=model.revision)
            try:
                tokens_of(tokenizer, prompt_format)
            except ValueError as error:
                raise ValueError(
                    f"{option}: {model.name}, {self.task.name}: {error} Change the `prompt` of the task, or use "
                    f"{alternative}."
                ) from error

    def _check_prompt_lengths(self, splits: TaskSplits, student: ModelSpec, seed: int) -> None:
        """
        Checks the prompts of analyses and methods before anything is trained. Prompts of the demo are always short.

        Raises:
            ValueError: A prompt is longer than the context of the student.
        """
        prompts = prompts_of(self.task, self.args, self.world(seed))
        if prompts is None or self.args.demo:
            return
        assert isinstance(self.task, Task)  # only texts have prompts
        tests, examples = splits.test["text"][:], splits.student_half["text"][:]
        rows = [text for part in splits.student for text in part["text"][:]]
        asked = {
            f"--methods {name}": ([rows], 0)
            for name, method in self.args.methods_by_name.items()
            if method.needs_prompts
        }
        if "prompting" in self.args.analyses:
            contents = [tests, [self.task.content_free] * len(tests)]
            asked["--analyses prompting"] = (contents, self.args.prompt_shots)
        if not asked:
            return
        tokenizer = load_tokenizer(student.path, revision=student.revision)
        config = load_config(student.path, revision=student.revision)
        for option, (several, n_shots) in asked.items():
            try:
                for texts in several:
                    check_prompt_lengths(tokenizer, config, prompts, texts, examples, n_shots, seed)
            except ValueError as error:
                raise ValueError(f"{option}: {student.name}, {self.task.name}: {error}") from error

    def _load_splits(self, seed: int) -> TaskSplits:
        world = self.world(seed)
        if world is None:
            return self.setting.load_rows(self.task, self.args, self.training_args, self.readers())
        splits = self.setting.load_demo_rows(self.task, self.args, self.training_args, world)
        return replace(splits, source={"id": DEMO_DATASET, "revision": f"world {world.seed}"})

    def transfer_rows(self, seed: int, splits: TaskSplits) -> dict[str, TransferRows]:
        """Returns the test rows of `--transfer_tasks` by task. `splits` are the rows of the seed."""
        if not self.transfer_tasks:
            return {}
        key = (splits.fingerprint, seed if self.args.demo else None)
        if key not in self._transfer_rows:
            assert isinstance(self.setting, ProbabilitySetting)  # the arguments of other settings refuse the option
            world, readers = self.world(seed), [] if self.args.demo else self.readers()
            self._transfer_rows[key] = load_transfer_rows(
                self.transfer_tasks, self.setting, self.args, self.training_args, readers, world, splits
            )
        return self._transfer_rows[key]

    def _check_memory(self, models: Models) -> None:
        """Refuses models that do not fit in memory, before their weights are downloaded. Checks each model once."""
        if self.args.demo or not self.args.check_memory:
            return
        ladder = [("--ladder", model) for model in (*models.chain, *models.sizes)]
        for option, model in [("--weak_model", models.weak), *ladder, ("--student_model", models.student)]:
            if model not in self._checked:
                check_fits(model, option, self.training_args, self.setting.task_type)
                self._checked.append(model)

    def spec(self, name: str, option: str, world: World | None, all_weights: bool = False) -> ModelSpec:
        """
        Returns a model that the command line names: a model on the Hub, in a directory, or of the demo.

        Args:
            name (`str`): The name, or the directory.
            option (`str`): The option that names it, for error messages.
            world (`World`, *optional*): The world for which a model of the demo is built.
            all_weights (`bool`): Whether the model is trained without adapters, as weak supervisors are.

        Raises:
            ValueError, FileNotFoundError, ConnectionError: See [`ModelSpec.find`]. The demo has no model of this name.
        """
        config = None if all_weights else self.student_config
        if world is None:
            key = f"{name} {all_weights}"
            if key not in self._specs:
                self._specs[key] = ModelSpec.find(name, option, config)
            return self._specs[key]
        demo_models = self.setting.demo_models
        if name not in demo_models:
            raise ValueError(
                f"{option}: got {name!r} in the demo, expected one of its models: {', '.join(demo_models)}."
                + did_you_mean(name, demo_models)
            )
        demo = demo_models[name]
        if not all_weights and self._is_too_narrow(name):
            raise ValueError(
                f"--load_in_4bit: got {name}, which is narrower than the blocks of 64 that bitsandbytes quantizes. "
                "Name a larger model of the demo, or remove --load_in_4bit."
            )
        # Only a pretrained model depends on the size of the corpus.
        n_documents = self.args.demo_documents if demo.n_documents else None
        n_read = n_documents or demo.n_documents
        settings = {"model": repr(demo), "world": repr(world.config), "seed": world.seed, "n": n_documents}
        directory = self.demo_cache.run(
            name,
            settings,
            lambda path: build_demo_model(demo, world, path, n_documents=n_documents),
            # Models without pretraining are built quickly, so they have no title.
            title="" if n_read is None else f"pretraining of demo/{name} on {n_read} documents",
            kind=_pretraining_of(name),
        )
        return ModelSpec(f"demo/{name}", str(directory), directory.name, config)

    def _is_too_narrow(self, name: str) -> bool:
        """Returns whether a model of the demo is narrower than the blocks of the 4-bit quantization."""
        demo = self.setting.demo_models.get(name) if self.args.demo and self.student_config.load_in_4bit else None
        return demo is not None and bool(demo.width % 64 or demo.mlp_width % 64)

    def readers(self) -> list[ModelSpec]:
        """Returns all models whose context real rows must fit."""
        args = self.args
        weak_name, student_name = args.models
        options = dict.fromkeys(args.rows_fit, "--rows_fit") | dict.fromkeys([*args.chain, *args.sizes], "--ladder")
        options[student_name] = "--student_model"
        weak = self.spec(weak_name, "--weak_model", None, all_weights=True)
        return [weak, *(self.spec(name, option, None) for name, option in options.items())]

    # ---- The experiment ----

    def seed_context(self, seed: int) -> AnalysisContext:
        """Runs the experiment of one seed; see [`w2s_hf.experiments.seed.run_seed`]."""
        models, splits = self.inputs(seed)
        self._begin_seed(seed)
        args, finetuner = self.args, self.finetuner
        models = self.setting.prepare_models(models, splits, args, seed, finetuner)
        prompts = prompts_of(self.task, args, self.world(seed))
        trained = run_seed(models, splits, args, seed, finetuner, prompts)
        scorer = Scorer(self.setting, splits, trained)
        result = score_seed(models, splits, args, seed, trained, scorer)
        world = self.world(seed)
        context = AnalysisContext(args, models, splits, seed, finetuner, trained, result, scorer, world)
        context = replace(context, result=replace(result, **self.setting.further_results(context)))
        return with_transfer(context, self.transfer_rows(seed, splits))

    def run(self) -> ExperimentResult:
        """
        Runs all seeds and writes all results to the output directory.

        Returns:
            [`ExperimentResult`]: The content of `results.json`.

        Raises:
            ValueError, FileNotFoundError, ConnectionError: Raised before anything is trained. See the loaders of
                `w2s_hf.tasks`, [`w2s_hf.hub.ensure_available`] and
                [`w2s_hf.experiments.output_directory.check_output_dir`].
        """
        started = time.monotonic()
        self.progress.plan(self._planned_steps())
        manifest = self._claim_output_dir()
        try:
            return self._run(manifest, started)
        except Exception as error:
            # After an interrupt by the user, the manifest is kept, so that the run can be resumed.
            if PartialState().is_main_process:
                release(self.output_dir)
            if n_built := self.finetuner.cache.n_built:
                error.add_note(
                    f"Finished stages of this run are kept ({n_built}). Repeat the command to continue, also with "
                    "other --methods."
                )
            raise

    def _run(self, manifest: Manifest, started: float) -> ExperimentResult:
        contexts = []
        for seed in self.args.seeds:
            context = self.seed_context(seed)
            contexts.append(context)
            if PartialState().is_main_process:
                if not is_still_true(self.output_dir / "results.json", context.result):
                    # These files describe the students that are now replaced.
                    for name in ("results.json", PREDICTIONS):
                        (self.output_dir / name).unlink(missing_ok=True)
                keep_outputs(self.args.methods_by_name, seed, context.trained, self.output_dir)
                manifest.seeds = list(dict.fromkeys([*manifest.seeds, seed]))
                manifest.methods |= self.identity.methods
                manifest.write(self.output_dir)
        results = self._report(contexts, started)
        if self.args.analyses:
            # All other results have been written, so that they are kept if an analysis fails.
            contexts = [self._analysed(context) for context in contexts]
            results = self._report(contexts, started)
        if PartialState().is_main_process:
            for warning in ceiling_warnings(results):
                logger.warning(warning)
            manifest.analyses |= self.identity.analyses
            manifest.write(self.output_dir)
        caches = (self.finetuner.cache, self.demo_cache)
        n_built, n_reused = (sum(getattr(cache, name) for cache in caches) for name in ("n_built", "n_reused"))
        logger.info(
            f"Nothing was trained: all {n_reused} stages were cached."
            if n_built == 0
            else f"Stages: {n_built} computed, {n_reused} cached."
        )
        return results

    def _analysed(self, context: AnalysisContext) -> AnalysisContext:
        self._begin_seed(context.seed)
        return replace(context, result=analyse(context))

    def _begin_seed(self, seed: int) -> None:
        """Prefixes the titles of steps with the seed, if there are several seeds."""
        self.progress.prefix = f"seed {seed}, " if len(self.args.seeds) > 1 else ""

    def _planned_steps(self) -> list[str]:
        """Returns the kinds of the steps of all seeds, for [`Progress.plan`]."""
        args, control = self.args, self._control_name()
        weak, student = args.models
        sizes = [name for name in args.sizes if not self._is_too_narrow(name)]
        steps = []
        if args.demo:
            names = dict.fromkeys([weak, student, *args.chain, *sizes])
            demo_models = self.setting.demo_models
            steps += [_pretraining_of(name) for name in names if name in demo_models and demo_models[name].n_documents]
        if getattr(args, "generative_finetuning", False):
            steps += [generative_kind(name_of(name, args.demo)) for name in dict.fromkeys([*sizes, student])]
        weak, student, *chain = (name_of(name, args.demo) for name in (weak, student, *args.chain))
        steps += planned_models(args, weak, student, chain, control is not None)
        steps += self.setting.further_steps(args)
        steps += [TRANSFER_TITLE] * bool(self.transfer_tasks)
        steps += [analysis_title(name) for name in args.analyses]
        return steps * len(args.seeds)

    @property
    def identity(self) -> Manifest:
        """The manifest that distinguishes this experiment from other experiments in the same output directory."""
        manifest = identity_of(self.task.name, self.setting.name, self.args, self.training_args, self.student_config)
        manifest.analyses |= {f"--transfer_tasks {task.name}": {} for task in self.transfer_tasks}
        return manifest

    def _claim_output_dir(self) -> Manifest:
        """
        Loads models and rows, and writes the manifest of the output directory. Returns the manifest, with the seeds,
        methods and analyses that already have results in the directory.

        Raises:
            ValueError: The directory belongs to another experiment.
        """
        if not self.args.demo:
            logger.info(f"Loading the rows of {self.task.name} and the configurations of the models")
        identity, overwrite = self.identity, self.args.overwrite_output_dir
        # The directory is checked before the demo pretrains its models, and again when models and rows are known.
        check_output_dir(self.output_dir, identity, overwrite=overwrite)
        for seed in self.args.seeds:
            models, splits = self.inputs(seed)
            identity.found[f"rows of seed {seed}"] = splits.fingerprint
            if not self.args.demo:
                for option, model in {"weak_model": models.weak, "student_model": models.student}.items():
                    identity.found[option] = model.revision or model.weights
        earlier = check_output_dir(self.output_dir, identity, overwrite=overwrite) or Manifest("experiment", "", {})
        PartialState().wait_for_everyone()  # all ranks have read the directory before one of them writes
        manifest = replace(
            identity,
            found=earlier.found | identity.found,
            **{name: getattr(earlier, name) for name in ("seeds", "methods", "analyses")},
        )
        if PartialState().is_main_process:
            if overwrite:
                clear(self.output_dir)
            manifest.write(self.output_dir)
        return manifest

    def _report(self, contexts: list[AnalysisContext], started: float) -> ExperimentResult:
        logger.info("Writing results, figures and model cards")
        predictions = [scored_predictions(context) for context in contexts]
        results = self.collect(contexts, started)
        if PartialState().is_main_process:
            write_predictions(predictions, self.output_dir / PREDICTIONS)
            facts, description, notes = self.setting.describe(results, contexts, self.output_dir)
            results = replace(results, **facts, description=description)
            if self.args.demo:
                results.description = demo_description(results)
            notes += analysis_notes(results, self.output_dir)
            write_report(results, self.output_dir, notes=notes)
        PartialState().wait_for_everyone()
        return results

    def collect(self, contexts: list[AnalysisContext], started: float) -> ExperimentResult:
        """Returns the results of seeds; `started` is the value of `time.monotonic()` at the start of the run."""
        args, cache, splits = self.args, self.finetuner.cache, contexts[0].splits
        names = [*(("demo_world", "demo_documents") if args.demo else ()), "conversion"]
        options = {name: getattr(args, name) for name in names if hasattr(args, name)}
        if getattr(args, "use_prompts", False):
            options["use_prompts"] = True
        students = [student for context in contexts for student in context.student_directories.items()]
        correct = [context.scorer.correct for context in contexts]
        same_rows = len({context.splits.fingerprint for context in contexts}) == 1
        results = ExperimentResult(
            run_name=self.training_args.run_name,
            task=self.task.name,
            setting=self.setting.name,
            preset="demo" if args.demo else "custom",
            chance=self.setting.chance,
            dataset=DatasetInfo(
                **splits.source,
                n_weak_half=len(splits.weak_half),
                n_student_half=len(splits.student_half),
                n_validation=len(splits.weak_validation) + len(splits.student_validation),
                n_test=len(splits.test),
                n_links=args.n_links,
                n_dropped=splits.n_dropped,
                split_seed=args.split_seed,
                options=options,
            ),
            runs=[context.result for context in contexts],
            self_trained=self_trained_summary(contexts),
            summary=[
                replace(summarise(correct, name, same_rows), transfer=summarise_transfer(contexts, name, same_rows))
                for name in args.methods_by_name
            ],
            settings=run_settings(args, self.training_args, self.student_config),
            versions=library_versions(),
            wall_seconds={
                **cache.seconds,
                **self.demo_cache.seconds,
                **{output: cache.record(directory)["seconds"] for output, directory in students},
                "total": round(time.monotonic() - started, 1),
            },
        )
        for run in results.runs:
            for student in run.students:
                student.fingerprint = StudentCard.from_results(results, run, student).fingerprint
        return results


def _check_method(method: Method, setting: Setting, training_args: AnyConfig) -> None:
    """Raises `ValueError` if the loss of a method fails, or the trainer refuses its training arguments."""
    if method.loss_function is not None:
        try_row_loss(method.loss_function, training_args.device)
    if not method.training_args:
        return
    method.settings(training_args)  # refuses unknown arguments
    try:
        replace(training_args, **setting.arguments_of(method))
    except (ValueError, TypeError) as error:
        raise ValueError(f"Method {method.name}: training_args: {error}") from error


def scored_predictions(context: AnalysisContext) -> pa.Table:
    """
    Returns the predictions of the test rows by the models of a seed and by its baselines. These are the linear probe,
    the prompts, and the student trained on its own answers. Every rank calls this function.
    """
    scorer, baselines = context.scorer, {}
    if any(baseline.name == LINEAR_PROBE for baseline in context.result.baselines):
        baselines[LINEAR_PROBE] = context.linear_probe()  # cached
    if context.result.self_trained is not None:
        own = self_baselines(context)  # cached
        baselines |= {**own.prompted, SELF_TRAINED: probabilities_of(own.student).of(list(scorer.test["id"]))}
    if "prompting" in context.result.analyses:
        baselines |= {name: probabilities for name, (probabilities, _) in prompted(context).items()}  # cached
    correct = {name: scorer.setting.is_correct(values, scorer.test) for name, values in baselines.items()}
    ids = list(scorer.test["id"])
    return predictions_table(context.seed, ids, {**scorer.predictions, **baselines}, {**scorer.correct, **correct})


def demo_description(results: ExperimentResult) -> str:
    """Returns the description of a demo's task. Its first sentence says that the rows are generated."""
    rows = ROWS[results.setting]
    return (
        f"The {rows} of this demo are generated, without data of {results.task}. The {rows} imitate this task: "
        f"{results.description}"
    )


def has_chosen_threads() -> bool:
    """
    Returns whether the user has set the number of CPU threads. `accelerate launch` always sets `OMP_NUM_THREADS`, so
    this variable alone does not show a choice of the user. Only `accelerate launch` sets `ACCELERATE_DYNAMO_MODE`
    (checked with accelerate 1.10 and 1.15).
    """
    return "OMP_NUM_THREADS" in os.environ and "ACCELERATE_DYNAMO_MODE" not in os.environ


def _pretraining_of(name: str) -> str:
    """Returns the kind of the pretraining of a model of the demo, for [`Progress.plan`]."""
    return f"pretraining of {name}"


def demo_cache(progress: Progress) -> StageCache:
    """Returns the cache of the demo's models: `$W2S_HF_CACHE`, or else `w2s_hf` in the user's cache directory."""
    if "W2S_HF_CACHE" in os.environ:
        directory = Path(os.environ["W2S_HF_CACHE"])
    else:
        directory = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "w2s_hf"
    return StageCache(directory / "demo_ladder", sources=DEMO_SOURCES, progress=progress)
