"""Tests of warnings: ceiling below its base model, supervisor at chance, short warm-up, and uncertain labels."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from helpers.cards import card_of, results

from w2s_hf import METHODS, WeakLabels
from w2s_hf.experiments.report import ceiling_warnings, unsure_labels, write_report
from w2s_hf.experiments.seed import _supervisor_warnings
from w2s_hf.results import ExperimentResult
from w2s_hf.tasks import Half

PROBE = {"name": "linear probe, ground truth", "model": "boolq", "revision": None}
PROMPT = {"name": "zero-shot", "model": "boolq", "revision": None}


def of(ceiling: dict, *baselines: dict, **changes) -> ExperimentResult:
    result = results(**changes)
    (run,) = result["runs"]
    run["ceiling"] |= ceiling
    run["baselines"] = [baseline | {"n": 100, "ci95": None} for baseline in baselines]
    return ExperimentResult.from_dict(result)


NOT_LEARNED = {"accuracy": 0.5, "ci95": [0.404, 0.596], "optimizer_steps": 8}


def test_a_ceiling_below_the_linear_probe_is_told_in_report_and_card(tmp_path):
    result = of(NOT_LEARNED, PROBE | {"accuracy": 0.75})
    (warning,) = ceiling_warnings(result)
    assert "on 100 test rows the ceiling has an accuracy of 0.500 [0.404, 0.596] after 8 optimizer steps" in warning
    assert "linear probe, ground truth 0.750 [0.657, 0.825]. PGR against this ceiling is not meaningful" in warning
    assert all(
        option in warning
        for option in ("--n_train", "--num_train_epochs, which --max_steps overrides", "--learning_rate")
    )
    assert "overlap" not in warning
    write_report(result, tmp_path, notes=[])
    assert warning in (tmp_path / "report.md").read_text()
    card = (tmp_path / "students" / "naive-seed0" / "README.md").read_text()
    assert "- Warning: " + warning[len("Seed 0: ") : warning.index(" Train on")] in card
    assert "for comparison: linear probe, ground truth" in card
    assert ExperimentResult.read(tmp_path / "results.json").runs[0].ceiling.optimizer_steps == 8


@pytest.mark.parametrize(
    ("ceiling", "sentence"),
    [
        ({}, "intervals overlap, so the difference may be random. If it is not, PGR against this ceiling is not"),
        ({"ci95": None}, "[0.452, 0.644]. Unless this difference is random, PGR against this ceiling is not"),
    ],
    ids=["overlap", "no interval"],
)
def test_report_and_card_say_alike_that_it_may_be_chance(ceiling, sentence):
    unsure = of(NOT_LEARNED | ceiling, PROBE | {"accuracy": 0.55})
    (warning,) = ceiling_warnings(unsure)
    assert sentence in warning and sentence in card_of(unsure.to_dict()).render()
    assert ("overlap" in warning) == (not ceiling)


GUESSES = [{"name": name, "model": "", "accuracy": accuracy} for name, accuracy in (("a", 0.3), ("b", 0.2))]


@pytest.mark.parametrize(
    ("chance", "baselines", "guessing", "low", "is_at_chance"),
    [
        (0.5, GUESSES, 0.5, 0.5, True),
        (0.5, GUESSES, 0.5, 0.501, False),
        (None, [*GUESSES, PROBE | {"accuracy": 0.1}], 0.2, 0.2, True),  # not at chance
        (None, GUESSES, 0.2, 0.201, False),
        (None, [], None, 0.0, True),
        (None, [], None, 0.01, False),
        (0.5, [], 0.5, None, False),
    ],
)
def test_a_supervisor_at_chance_is_named(chance, baselines, guessing, low, is_at_chance, tmp_path):
    result = of({}, *baselines)
    (run,), result.chance = result.runs, chance
    run.weak.ci95 = None if low is None else [low, 0.9]
    assert run.accuracy_of_guessing(chance) == guessing
    write_report(result, tmp_path, notes=[])
    shown = (tmp_path / "report.md").read_text()
    assert ("Seed 0: the weak supervisor is not better than chance" in shown) == is_at_chance
    if is_at_chance:
        assert f"accuracy begins at {low:.3f}, and guessing has {guessing or 0:.3f}." in shown


@pytest.mark.parametrize(("low", "is_at_chance"), [(0.5, True), (0.501, False)])
def test_a_supervisor_at_chance_is_named_right_after_its_training(low, is_at_chance, tmp_path):
    """The warning comes before students are trained on its labels, and contains the training loss."""
    (tmp_path / "training.json").write_text('[{"loss": 0.7, "step": 1}, {"train_loss": 0.6931, "step": 2}]')
    rows = Dataset.from_dict({"id": ["a", "b"]})
    labels = WeakLabels(["a", "b"], np.full((2, 2), 0.5), {})
    weak = SimpleNamespace(predictions=labels, directory=tmp_path)
    splits = SimpleNamespace(test=rows, student=Half(rows, rows))
    setting = SimpleNamespace(scores=lambda predictions, rows: {"ci95": [low, 0.9]}, chance=0.5)
    args = SimpleNamespace(methods_by_name={"naive": METHODS["naive"]}, keep_confident=None)
    warnings = _supervisor_warnings(weak, splits, args, setting)
    assert len(warnings) == is_at_chance
    if is_at_chance:
        assert "guessing has 0.500. The mean training loss was 0.693. Its labels carry no" in warnings[0]
    args.methods_by_name = {"mine": METHODS["confidence"]}
    assert "the weak labels are unsure" in _supervisor_warnings(weak, splits, args, setting)[-1]


def test_prompts_count_with_their_calibrated_thresholds():
    prompt = PROMPT | {"accuracy": 0.4, "accuracy_at_median": 0.8, "accuracy_content_free": 0.45, "auroc": 0.9}
    (warning,) = ceiling_warnings(of(NOT_LEARNED, prompt))
    assert "before finetuning: zero-shot at median 0.800 [0.711, 0.867]." in warning
    (warning,) = ceiling_warnings(of(NOT_LEARNED, PROMPT | {"accuracy": 0.4, "accuracy_content_free": 0.75}))
    assert "before finetuning: zero-shot content free 0.750 [0.657, 0.825]." in warning
    (warning,) = ceiling_warnings(of({"accuracy": 0.5, "ci95": [0.404, 0.596]}, prompt | {"accuracy": 0.7}))
    assert "zero-shot 0.700" in warning and "zero-shot at median 0.800" in warning
    assert "optimizer steps" not in warning, "older results do not have them"


@pytest.mark.parametrize("baseline", [
    PROBE | {"accuracy": 0.5}, PROBE | {"accuracy": 0.9, "model": "another"}, PROBE | {"accuracy": 0.9, "model": ""},
])  # fmt: skip
def test_a_ceiling_that_is_not_below_its_own_base_is_not_told(baseline):
    result = of(NOT_LEARNED, baseline)
    assert ceiling_warnings(result) == [] and "before finetuning (" not in card_of(result.to_dict()).render()


@pytest.mark.parametrize(
    ("loss", "n_steps", "is_told"),
    [
        ({"aux_coef": 0.5, "aux_warmup_ratio": 0.2}, 80, True),
        ({"aux_coef": 0.5, "aux_warmup_ratio": 0.2}, 250, False),
        ({"aux_coef": 0.0, "aux_warmup_ratio": 0.2}, 80, False),
        ({"aux_coef": 0.5, "aux_warmup_ratio": 0.2, "aux_start": "agreement"}, 80, False),
        ({"aux_coef": 0.5, "aux_warmup_ratio": 0.2}, None, False),
        ({}, 80, False),
    ],
)
def test_a_short_warm_up_is_told_in_the_report(loss, n_steps, is_told, tmp_path):
    result = of({}, optimizer_steps=n_steps)
    result.settings.losses = {"naive": {"loss_type": "confidence", **loss}}
    write_report(result, tmp_path, notes=[])
    sentence = "the auxiliary weight of naive rises over 16 of 80 optimizer steps, fewer than 50"
    assert (sentence in (tmp_path / "report.md").read_text()) == is_told


@pytest.mark.parametrize(("step", "sentence"), [
    (23, "the auxiliary weight of naive rises after step 23"), (None, "the auxiliary weight of naive stayed 0"),
])  # fmt: skip
def test_the_report_says_when_an_auxiliary_term_has_begun(step, sentence, tmp_path):
    result = of({}, aux_start_step=step)
    result.settings.losses = {"naive": {"loss_type": "entropy", "aux_coef": 0.5, "aux_start": "agreement"}}
    write_report(result, tmp_path, notes=[])
    assert sentence in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("method", "confidence", "gradient"),
    [
        ("confidence", 0.55, "such a label is 0.05"),
        ("adaptive_confidence", 0.5, "such a label is 0.00"),
        ("confidence", 0.6, None),
        ("product", 0.55, None),
        ("confidence", None, None),
    ],
)
def test_unsure_weak_labels_are_told_where_a_loss_outweighs_them(method, confidence, gradient, tmp_path):
    warnings = unsure_labels({"naive": "xent", "mine": method}, confidence)
    assert [gradient in warning for warning in warnings] == ([] if gradient is None else [True])
    result = of({})
    result.runs[0].weak.label_confidence = confidence
    result.settings.losses = {result.summary[0].method: {"loss_type": method}}
    write_report(result, tmp_path, notes=[])
    is_told = "the weak labels are unsure" in (tmp_path / "report.md").read_text()
    assert is_told == (gradient is not None)
