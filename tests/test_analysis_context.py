"""Tests parts of analyses: which models they train, on which labels and rows, and never on ground truth."""

import logging
import re
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from helpers.finetuners import finetuner_of, splits_of
from helpers.models import make_character_tokenizer
from helpers.running import ROOT, TINY
from transformers import Trainer

from w2s_hf.analysis import few_shot_prompts, logistic_probe
from w2s_hf.config import StudentConfig
from w2s_hf.experiments import analyses as experiment_analyses
from w2s_hf.experiments import analysis_context
from w2s_hf.experiments.analyses import agreement, overfitting, probes, prompting, saliency, weak_errors
from w2s_hf.experiments.analysis_context import AnalysisContext
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.experiment import Experiment, scored_predictions
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.experiments.settings.classification import CLASSIFICATION
from w2s_hf.labels import Completion, WeakLabels
from w2s_hf.methods import METHODS
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.tasks import Half, find_task

MARKER = 777


@pytest.fixture(scope="module")
def context(cache, tmp_path_factory):
    """A finished experiment, and an empty cache for further steps."""
    output = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("W2S_HF_CACHE", str(cache))
        patch.setattr("sys.argv", ["recipes/boolq.py"])
        options = [*TINY, "--output_dir", str(output / "first")]
        args, *others = parse_arguments("", ROOT / "w2s_hf" / "configs" / "demo.yaml", options, announce=False)
        experiment = Experiment(find_task("boolq"), CLASSIFICATION, args, *others)
        args.analyses = ["agreement"]  # for its models, which are loaded
        context = experiment.seed_context(0)
    finetuner = Finetuner(StageCache(output / "more"), experiment.setting, experiment.training_args)
    return replace(context, finetuner=finetuner)


def test_a_watched_training_ends_as_one_without_early_stopping(context):
    plain = {"load_best_model_at_end": False, "metric_for_best_model": None, "eval_strategy": "no"}
    rows = [context.splits.student_validation, context.test]
    plain["method"] = METHODS["confidence"]
    unwatched, watched = (
        context.finetune("s", context.weak_labels, rows, n_snapshots=n_snapshots, **plain) for n_snapshots in (0, 2)
    )
    expected = unwatched.predictions
    assert watched.predictions.fingerprint == expected.fingerprint
    snapshots = (watched.directory / "snapshots").iterdir()
    by_step = {path.name: WeakLabels.load(path / "predictions") for path in snapshots}
    assert set(by_step) == {"step-2", "step-3"} and by_step["step-3"].fingerprint == expected.fingerprint
    assert by_step["step-2"].fingerprint != expected.fingerprint and by_step["step-2"].provenance["step"] == 2


def test_a_watched_training_that_is_stopped_goes_on(context, monkeypatch):
    setting, calls = type(context.finetuner.setting), []
    predict = setting.predict

    def stopped(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(self, *args)

    def train(name):
        options = {"n_snapshots": 3, "eval_strategy": "no", "load_best_model_at_end": False, "save_steps": 1}
        return context.finetune(name, context.weak_labels, [context.test], **options).directory

    expected = train("uninterrupted")
    with monkeypatch.context() as patch:
        patch.setattr(setting, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            train("interrupted")
    found = train("interrupted")
    for step in (1, 2, 3):
        places = (stage / "snapshots" / f"step-{step}" / "predictions" for stage in (expected, found))
        one, two = map(WeakLabels.load, places)
        assert one.fingerprint == two.fingerprint, step


def test_prompts_and_probes_are_given_the_labels_that_they_say(context, monkeypatch):
    shown, learned = [], []

    def prompts(texts, examples, labels, n_shots, *args, **options):
        shown.append((n_shots, list(labels)))
        return few_shot_prompts(texts, examples, labels, n_shots, *args, **options)

    def probe(features, probabilities, *args, **options):
        learned.append(probabilities)
        return logistic_probe(features, probabilities, *args, **options)

    monkeypatch.setattr(experiment_analyses, "few_shot_prompts", prompts)
    for module in (experiment_analyses, analysis_context):
        monkeypatch.setattr(module, "logistic_probe", probe)
    ids = list(context.splits.student_half["id"])
    weak, truth = context.weak_labels.of(ids), context.truth("student_half")
    context = replace(context, args=replace(context.args, prompt_shots=2))
    assert list(prompting(context)["prompted"]) == ["zero-shot", "2-shot, weak labels", "2-shot, ground truth"]
    assert [n_shots for n_shots, _ in shown] == [0, 0, 2, 2, 2, 2]
    assert shown[2][1] == shown[3][1] == weak.argmax(axis=1).tolist() != shown[4][1] == shown[5][1] == truth.tolist()
    saliency(context)
    of_weak, of_truth, of_tuned = learned  # lp(weak), lp(gt), ft(weak)+lp(gt)
    np.testing.assert_array_equal(of_weak, weak)
    for labels in (of_truth, of_tuned):
        np.testing.assert_array_equal(labels, np.eye(2)[truth])


def test_the_linear_probe_of_the_base_is_a_baseline_and_shares_its_hidden_states_with_saliency(context, tmp_path):
    root = tmp_path / "stages"
    context = replace(context, finetuner=replace(context.finetuner, cache=StageCache(root)))

    def built() -> list[str]:
        return sorted(path.name.rsplit("-", 1)[0] for path in root.iterdir() if path.is_dir())

    assert CLASSIFICATION.further_results(context) == {}, "the demo has no linear probe by default"
    wanted = replace(context, args=replace(context.args, linear_probe=True))
    (baseline,) = CLASSIFICATION.further_results(wanted)["baselines"]
    assert (baseline.name, baseline.model) == ("linear probe, ground truth", context.models.student.name)
    probed = replace(context, result=replace(context.result, baselines=[baseline]))
    by_role = scored_predictions(probed).to_pandas().groupby("role")["correct"].mean()
    assert by_role[baseline.name] == baseline.accuracy and by_role["weak"] == context.result.weak.accuracy
    assert baseline.name not in set(scored_predictions(context).to_pandas()["role"])
    assert built() == ["hidden-states", "linear-probe"]
    assert saliency(context)["accuracies"]["lp(gt)"]["accuracy"] == baseline.accuracy
    assert built() == ["hidden-states"] * 2 + ["linear-probe"] * 2 + ["student-naive"], (
        "the finetuned model has a probe, too"
    )
    states = context.hidden_states()
    assert "weak_half" not in states
    truth = [np.eye(2)[context.truth(part)] for part in ("student_half", "student_validation")]
    probe = logistic_probe(states["student_half"], truth[0], (states["student_validation"], truth[1]))
    assert (probe.predict(states["test"]) == context.truth()).mean() == pytest.approx(baseline.accuracy)


@pytest.mark.parametrize("flag", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_model_that_is_sharded_is_probed_only_on_request(flag, context, monkeypatch, caplog):
    args = replace(context.args, demo=False)
    real = replace(context, args=args)
    assert "baselines" in CLASSIFICATION.further_results(real)
    monkeypatch.setenv(flag, "true")
    with caplog.at_level(logging.INFO, "w2s_hf"):
        assert CLASSIFICATION.further_results(real) == {}
    assert "The linear probe of the student is skipped with " in caplog.text
    real = replace(context, args=replace(args, linear_probe=True))
    assert "baselines" in CLASSIFICATION.further_results(real)


def test_students_of_simulated_supervisors_are_scored_against_these(context, monkeypatch):
    supervisors, scores = [], AnalysisContext.scores

    def watched(self, answers, supervisor=None):
        supervisors.append(supervisor)
        return scores(self, answers, supervisor)

    monkeypatch.setattr(AnalysisContext, "scores", watched)
    weak_errors(context)
    *simulated, told, told_again = [supervisor.argmax(axis=1) for supervisor in supervisors]
    assert len({tuple(labels) for labels in simulated}) == 6
    np.testing.assert_array_equal(simulated[0], context.scorer.predictions["weak"].argmax(axis=1))
    np.testing.assert_array_equal(simulated[0], told)
    np.testing.assert_array_equal(told, told_again)


def test_a_copied_supervisor_recovers_nothing_and_a_perfect_student_everything(context):
    weak, truth = context.scorer.predictions["weak"], np.eye(2)[context.truth()]
    # This demo is too small for a ceiling above its supervisor.
    scorer = copy(context.scorer)
    scorer.correct = {**scorer.correct, "ceiling": np.ones(len(truth), dtype=bool)}
    known = replace(context, scorer=scorer)
    copied, perfect = known.scores(weak), known.scores(truth)
    assert copied["pgr"] == 0 and set(copied["agreement"].values()) == {1.0}
    assert perfect["pgr"] == 1 and perfect["agreement"]["supervisor_wrong"] == 0 and perfect["accuracy"] == 1
    # Scores against another supervisor use its accuracy: a perfect supervisor leaves no gap.
    assert known.scores(weak, truth)["pgr"] is None
    assert known.scores(weak, truth)["agreement"]["overall"] == copied["accuracy"]


@pytest.fixture
def collated(monkeypatch):
    """Collects the inputs of all collators in training, validation and prediction, as text."""
    seen = []

    def recording(method):
        original = getattr(Trainer, method)

        def dataloader(self, *args, **kwargs):
            inner = self.data_collator

            def collate(features):
                seen.append(repr(features))
                return inner(features)

            self.data_collator = collate
            try:
                return original(self, *args, **kwargs)
            finally:
                self.data_collator = inner

        monkeypatch.setattr(Trainer, method, dataloader)

    for method in ("get_train_dataloader", "get_eval_dataloader", "get_test_dataloader"):
        recording(method)
    return seen


def marked(batch: str) -> bool:
    """Returns whether the marker is a number of its own in a text. (Probabilities may have it among their digits.)"""
    return re.search(rf"(?<![\d.]){MARKER}(?!\d)", batch) is not None


@pytest.mark.slow
def test_ground_truth_is_seen_by_no_collator_of_a_student(context, collated):
    """Puts a marker instead of ground truth into all rows that students of any method are trained or validated on."""
    parts = {name: rows for name, rows in context.splits.parts.items() if name.startswith("student")}
    planted = {
        name: rows.remove_columns("ground_truth").add_column("ground_truth", [MARKER] * len(rows))
        for name, rows in parts.items()
    }
    planted_context = replace(context)
    planted_context.__dict__["student_rows"] = Half(planted["student_half"], planted["student_validation"])
    assert set(planted_context.student_rows.train["ground_truth"]) == {MARKER}
    for analysis in (overfitting, agreement, probes):
        analysis(planted_context)
    stages = context.finetuner.cache.root.iterdir()
    trained = {path.name.rsplit("-", 1)[0] for path in stages if path.is_dir()}
    assert trained >= {"watched-naive", "watched-confidence", "student-naive", "student-mended", "hidden-states"}
    assert len(collated) > 50 and any("labels" in batch for batch in collated)
    assert not [batch for batch in collated if marked(batch) or "ground_truth" in batch]
    # The marker would be detected: a model trained on the ground truth of these rows would get it.
    assert marked(repr([{"labels": MARKER}])) and marked(repr([{"labels": [float(MARKER), 0.0]}]))
    with pytest.raises(ValueError, match=str(MARKER)):
        rows = planted_context.student_rows.map(context.finetuner.setting.with_ground_truth)
        options = {"splits": context.splits, "seed": 0}
        context.finetuner.finetune("ceiling", context.models.student, rows, [context.test], **options)


@pytest.mark.parametrize("kind", ["reward", "chess"])
def test_ground_truth_is_seen_by_no_collator_of_other_students(kind, tmp_path, collated):
    finetuner, rows = finetuner_of(kind, tmp_path, tmp_path / "model")
    setting, ids = finetuner.setting, list(rows["id"])
    if kind == "chess":
        marker, answers = " Zz9", [Completion(" e4", is_cut=False)] * len(rows)
        tokens = make_character_tokenizer()(marker.strip(), add_special_tokens=False)["input_ids"]
        seen_as = ", ".join(map(str, tokens))
        assert len(set(tokens)) == 3, "the tokenizer does not know the marker"
    else:
        marker, answers, seen_as = MARKER, np.tile([0.25, 0.75], (len(rows), 1)), str(MARKER)
    planted = rows.remove_columns("ground_truth").add_column("ground_truth", [marker] * len(rows))
    labels = setting.labels(ids, answers, {"stage": "weak", "model": "weak"})
    labelled = labels.join(planted)
    model = ModelSpec("m", str(tmp_path / "model"), "1", StudentConfig(dtype="float32", lora_r=4))
    options = {"splits": splits_of(), "seed": 0, "n_snapshots": 2}
    finetuner.finetune("student", model, Half(labelled, labelled), [planted], labels={"student": labels}, **options)
    batches = [str(batch) for batch in collated]
    assert batches and not [batch for batch in batches if seen_as in batch or "ground_truth" in batch]
    if kind == "chess":
        truth = setting.with_ground_truth(planted)
        finetuner.finetune("ceiling", model, Half(truth, truth), [planted], **options)
        assert any(seen_as in batch for batch in collated), "the marker could not be detected"
