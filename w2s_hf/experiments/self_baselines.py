"""Baselines of the student's own knowledge: its prompted answers, and a student trained on its zero-shot answers."""

import logging
from dataclasses import dataclass

import numpy as np

from .._compat import parse_flag_from_env
from ..analysis.prompting import few_shot_prompts
from ..methods import BOOTSTRAP, METHODS
from ..metrics import difference_interval
from ..modeling import load_config, load_tokenizer
from ..modeling.spec import ModelSpec
from ..results import SELF_TRAINED, BaselineResult, DirectResult, SelfTrainedSummary
from ..tasks import TaskSplits
from ..tasks.prompt import answer_tokens
from ..transforms import balanced
from .analysis_context import AnalysisContext
from .config import Own
from .finetuner import Finetuned
from .generative_finetuning import check_decoder
from .prompts import check_prompt_lengths, prompts_of

__all__ = [
    "SELF_BASELINES", "SELF_TRAINED", "SelfBaselines", "has_self_baselines", "self_baseline_results",
    "self_baselines", "self_trained_summary", "sharding_engine",
]  # fmt: skip

logger = logging.getLogger(__name__)

SELF_BASELINES = "baselines of the student's own answers"  # the title of the step


@dataclass(frozen=True)
class SelfBaselines:
    """
    The baselines of one seed.

    Args:
        prompted (`dict[str, np.ndarray]`): The predictions of the test rows by prompts, `(N, 2)`, by name. They are
            balanced: each class gets half of the rows.
        student ([`Finetuned`]): The student that is trained on its own zero-shot answers.
    """

    prompted: dict[str, np.ndarray]
    student: Finetuned


def has_self_baselines(
    task: Own, splits: TaskSplits, args: Own, student: ModelSpec, seed: int, world: Own = None
) -> bool:
    """
    Returns whether the baselines are computed; see `--self_baselines`. They need a decoder that knows the answer words
    of the task, and prompts that fit its context. If one of these conditions is not met, the reason is logged.

    Raises:
        ValueError: The baselines are requested, and a condition is not met.
    """
    wanted, prompts = getattr(args, "self_baselines", False), prompts_of(task, args, world)
    if prompts is None or wanted is False or (wanted is None and args.demo):
        return False
    if wanted is None and (sharding := sharding_engine()):
        logger.info(
            f"The {SELF_BASELINES} are skipped with {sharding}, because each process would load the whole student. To "
            "compute them, set --self_baselines true."
        )
        return False
    try:
        check_decoder(student, "--self_baselines")
        tokenizer = load_tokenizer(student.path, revision=student.revision)
        answer_tokens(tokenizer, prompts.format)
        config = load_config(student.path, revision=student.revision)
        tests, (train, validation) = splits.test["text"][:], (part["text"][:] for part in splits.student)
        for texts, n_shots in (([*tests, *train, *validation], 0), (tests, args.prompt_shots)):
            check_prompt_lengths(tokenizer, config, prompts, texts, train, n_shots, seed)
    except ValueError as error:
        if wanted:
            raise ValueError(f"--self_baselines: {student.name}, {task.name}: {error}") from error
        logger.info(f"The {SELF_BASELINES} are skipped. {error}")
        return False
    return True


def sharding_engine() -> str | None:
    """Returns the engine that shards models over processes, as `accelerate launch` has set it, or `None`."""
    return next((name for name in ("FSDP", "DEEPSPEED") if parse_flag_from_env(f"ACCELERATE_USE_{name}")), None)


def self_baselines(context: AnalysisContext) -> SelfBaselines:
    """
    Prompts the student before finetuning, without examples and with examples that have weak labels. Trains a student
    on its own zero-shot answers (the method `self_labels`). Every stage is cached. Every rank calls this function.
    """
    prompts, n_shots, splits = context.prompts, context.args.prompt_shots, context.splits
    assert prompts is not None  # see `has_self_baselines`
    texts, examples = (prompts.texts_of(part["text"][:]) for part in (context.test, splits.student_half))
    weak = context.weak_labels.of(list(splits.student_half["id"])).argmax(axis=1)
    predictions = {}
    for name, n in {"zero-shot, balanced": 0, f"{n_shots}-shot with weak labels, balanced": n_shots}.items():
        of_texts = few_shot_prompts(texts, examples, weak, n, prompts.format, seed=context.seed)
        answers = context.ask(of_texts, prompts.format)
        predictions[name] = balanced(answers).astype(np.float32)
    method = METHODS["self_labels"]
    labels = context.transformed_labels(method)
    student = context.finetune(
        f"student-{method.name}", labels, [context.test], rows=splits.student, title="student on its zero-shot answers"
    )
    return SelfBaselines(predictions, student)


def self_baseline_results(context: AnalysisContext, baselines: SelfBaselines) -> dict:
    """Returns the fields `baselines` and `self_trained` of the [`SeedResult`]."""
    student, setting = context.models.student, context.finetuner.setting
    named = {"model": student.name, "revision": student.revision}
    entries = [
        BaselineResult.from_dict({"name": name, **named, **setting.scores(predictions, context.test)})
        for name, predictions in baselines.prompted.items()
    ]
    own = baselines.student.predictions.of(list(context.test["id"]))
    scores = context.scores(own)
    pgr = {name: scores[name] for name in ("pgr", "pgr_ci95", "pgr_undefined")}
    self_trained = DirectResult.from_dict({**setting.scores(own, context.test), **pgr})
    return {"baselines": entries, "self_trained": self_trained}


def self_trained_summary(contexts: list[AnalysisContext]) -> SelfTrainedSummary | None:
    """
    Compares the student trained on its own zero-shot answers with a student trained on the weak labels, over seeds.
    Returns `None` if the baselines were not computed, or if no student is trained on the weak labels themselves. Every
    rank calls this function.
    """
    if any(context.result.self_trained is None for context in contexts):
        return None
    # Methods with a transform may be trained on other labels than those of the supervisor.
    direct = [name for name, method in contexts[0].methods.items() if method.transform is None and name != BOOTSTRAP]
    if not direct:
        return None
    method = "naive" if "naive" in direct else direct[0]
    own = []
    for context in contexts:
        predictions = self_baselines(context).student.predictions.of(list(context.test["id"]))  # cached
        own.append(context.finetuner.setting.is_correct(predictions, context.test))
    first, second = (np.array(values, dtype=float) for values in ([c.scorer.correct[method] for c in contexts], own))
    return SelfTrainedSummary(
        method=method,
        accuracy_mean=float(second.mean()),
        difference=float(first.mean() - second.mean()),
        difference_ci95=list(difference_interval(first, second)),
        n_better=int((first.mean(axis=1) > second.mean(axis=1)).sum()),
        n_seeds=len(contexts),
    )
