"""Tests of label transforms on a small world whose students are logistic regressions."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from datasets import Dataset
from helpers.label_context import FakeContext, make_context
from scipy.special import softmax

from w2s_hf import transforms
from w2s_hf.analysis import doubtful, logistic_probe, neighbour_labels, out_of_fold, topological_filter
from w2s_hf.labels import WeakLabels
from w2s_hf.metrics import expected_calibration_error
from w2s_hf.transforms import confusion_posterior

ANY_NUMBER_OF_CLASSES = {
    "most_confident": partial(transforms.most_confident, share=0.25),
    "confident": transforms.confident,
    "calibrated": transforms.calibrated,
    "margin_weighted": transforms.margin_weighted,
    "self_labels": transforms.self_labels,
    "noisy_channel": transforms.noisy_channel,
    "noisy_channel_student": partial(transforms.noisy_channel, prior="student"),
    "refined": transforms.refined,
    "filtered_by_topology": transforms.filtered_by_topology,
}
TWO_CLASSES = {
    "relabelled_by_probe": transforms.relabelled_by_probe,
    "relabelled_by_knn": partial(transforms.relabelled_by_probe, kind="knn"),
    "filtered_by_probe": transforms.filtered_by_probe,
    "filtered_by_knn": partial(transforms.filtered_by_probe, kind="knn"),
}
CASES = [
    *((2, name, transform) for name, transform in (ANY_NUMBER_OF_CLASSES | TWO_CLASSES).items()),
    *((3, name, transform) for name, transform in ANY_NUMBER_OF_CLASSES.items()),
]


def context_of(probabilities, **changes) -> FakeContext:
    """Makes a context with these weak labels. By default all rows are training rows, and no model is used."""
    probabilities = np.asarray(probabilities, dtype=np.float32)
    ids = [f"row {index}" for index in range(len(probabilities))]
    values = {
        "rows": Dataset.from_dict({"id": ids}),
        "is_train": np.ones(len(ids), dtype=bool),
        "weak_labels": WeakLabels(ids, probabilities, {"stage": "weak-1"}),
        "features": np.zeros((len(ids), 1)),
        "predictions": probabilities,
        "validation": (probabilities, np.zeros(len(ids), dtype=int)),
        "truth": np.zeros(len(ids), dtype=int),
    }
    return FakeContext(**values | changes)


def of_class_1(*values: float) -> np.ndarray:
    p = np.array(values)
    return np.stack([1 - p, p], axis=1)


def error_of(labels: WeakLabels, context: FakeContext) -> float:
    """Returns the share of training rows with a wrong label."""
    wrong = labels.of(context.ids).argmax(axis=1) != context.truth
    return float(wrong[context.is_train].mean())


# ---- All transforms ----


@pytest.mark.parametrize(("n_classes", "name", "transform"), CASES, ids=[f"{name}-{n}" for n, name, _ in CASES])
def test_a_transform_gives_valid_labels_without_the_truth(n_classes, name, transform):
    context = make_context(n_classes, n_train=90, n_validation=20)
    assert set(context.rows.column_names) == {"id", "text"}
    labels = transform(context)
    assert set(context.ids[90:]) <= set(labels.ids) <= set(context.ids)  # all validation rows
    assert set(context.ids[:90]) & set(labels.ids)
    assert labels.probabilities.dtype == np.float32 and labels.probabilities.shape == (len(labels), n_classes)
    np.testing.assert_allclose(labels.probabilities.sum(axis=1), 1, atol=1e-6)
    assert labels.provenance["stage"] == "weak-1"
    assert labels.provenance["transform"]["name"] == getattr(transform, "func", transform).__name__
    assert "transform" not in context.weak_labels.provenance

    swapped = transform(replace(context, truth=(context.truth + 1) % n_classes, trained=[]))
    assert swapped.fingerprint == labels.fingerprint and swapped.provenance == labels.provenance
    if labels.weights is not None:
        np.testing.assert_array_equal(swapped.weights, labels.weights)


@pytest.mark.parametrize("name", ANY_NUMBER_OF_CLASSES | TWO_CLASSES)
def test_only_rank_0_fits(name, monkeypatch):
    transform = (ANY_NUMBER_OF_CLASSES | TWO_CLASSES)[name]
    results: list = []

    class MainRank(FakeContext):
        def once(self, make):
            results.append(make())
            return results[-1]

    class OtherRank(FakeContext):
        def once(self, make):
            return results.pop(0)

    def no_fit(*args, **kwargs):
        raise AssertionError("a rank without the result of rank 0 would have other labels")

    values = vars(make_context(n_train=90, n_validation=20))
    labels = transform(MainRank(**values))
    for fit in ("logistic_probe", "neighbour_labels", "topological_filter", "minimize_scalar", "logsumexp", "softmax"):
        monkeypatch.setattr(transforms, fit, no_fit)
    assert transform(OtherRank(**values)).fingerprint == labels.fingerprint


@pytest.mark.parametrize("name", TWO_CLASSES)
def test_probes_refuse_three_classes(name):
    with pytest.raises(ValueError, match="expected 2"):
        TWO_CLASSES[name](make_context(3, n_train=60, n_validation=10))


def test_labels_of_a_context():
    context = context_of(of_class_1(0.1, 0.6, 0.9))
    keep = np.array([True, False, True])
    labels = context.labels(of_class_1(0.2, 0.3, 0.4), weights=[1.0, 2.0, 3.0], keep=keep)
    assert labels.ids == ["row 0", "row 2"] and labels.provenance == {"stage": "weak-1"}
    np.testing.assert_allclose(labels.probabilities, of_class_1(0.2, 0.4), atol=1e-7)
    assert labels.weights.tolist() == [1, 3] and labels.weights.dtype == np.float32
    assert context.labels(context.probabilities).weights is None
    for changes in ({"weights": np.ones(2)}, {"keep": keep[:2]}, {"probabilities": of_class_1(0.2)}):
        with pytest.raises(ValueError, match="rows, expected 3"):
            context.labels(**{"probabilities": context.probabilities} | changes)
    with pytest.raises(ValueError, match="keep: got int64"):
        context.labels(context.probabilities, keep=np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (partial(transforms.most_confident, share=0), "share: got 0"),
        (partial(transforms.confident, band=1.5), "band: got 1.5"),
        (partial(transforms.refined, rounds=0), "rounds: got 0"),
        (partial(transforms.refined, max_replaced=2), "max_replaced: got 2"),
        (partial(transforms.noisy_channel, prior="weak"), "prior: got 'weak'"),
        (partial(transforms.filtered_by_probe, kind="tree"), "kind: got 'tree'"),
    ],
)
def test_settings_out_of_range_are_refused(transform, message):
    with pytest.raises(ValueError, match=message):
        transform(context_of(of_class_1(0.1, 0.9)))


# ---- Selection and weights ----


def test_most_confident_keeps_the_rows_of_the_option():
    context = make_context(3)
    labels = transforms.most_confident(context, share=0.3)
    train, validation = context.ids[:400], context.ids[400:]
    is_kept = context.weak_labels.most_confident(train, 0.3)
    assert labels.ids == [*np.array(train)[is_kept], *validation]
    np.testing.assert_array_equal(labels.probabilities, context.weak_labels.of(labels.ids))


def test_confident_drops_the_rows_inside_the_band():
    p = (0.2, 0.25, 0.26, 0.5, 0.74, 0.75, 0.9, 0.5)
    context = context_of(of_class_1(*p), is_train=np.arange(8) < 7)
    assert transforms.confident(context).ids == ["row 0", "row 1", "row 5", "row 6", "row 7"]
    with pytest.raises(ValueError, match="no training row with a confidence of at least 0.95.*largest.* 0.900"):
        transforms.confident(context, band=0.95)


def test_weights_are_the_margin_of_the_two_best_classes():
    two = transforms.margin_weighted(context_of(of_class_1(0.5, 0.9, 0.2, 1.0)))
    np.testing.assert_allclose(two.weights, [0, 0.8, 0.6, 1], atol=1e-6)
    logits = np.log(0.9 / 0.1)
    assert two.weights[1] == pytest.approx(2 / (1 + np.exp(-logits)) - 1)
    three = transforms.margin_weighted(context_of([[0.2, 0.6, 0.2], [0.4, 0.2, 0.4]]))
    np.testing.assert_allclose(three.weights, [0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(two.probabilities, of_class_1(0.5, 0.9, 0.2, 1.0).astype(np.float32))


# ---- Calibration and models without weak labels ----


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("planted", [3.0, 0.4], ids=["overconfident", "underconfident"])
def test_calibration_recovers_a_temperature(n_classes, planted):
    rng = np.random.default_rng(1)

    def rows(n: int) -> tuple[np.ndarray, np.ndarray]:
        logits = 1.5 * rng.normal(size=(n, n_classes))
        truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # a draw from the softmax of the logits
        return softmax(planted * logits, axis=1), truth

    labels, truth = rows(4000)
    calibrated = transforms.calibrated(context_of(labels, validation=rows(4000)))
    assert calibrated.provenance["transform"]["temperature"] == pytest.approx(planted, rel=0.1)
    before, after = (expected_calibration_error(each, truth) for each in (labels, calibrated.probabilities))
    assert before > 0.08 and after < 0.03
    np.testing.assert_array_equal(calibrated.probabilities.argmax(axis=1), labels.argmax(axis=1))


def test_calibration_of_extreme_supervisors():
    labels, truth = of_class_1(0.1, 0.9, 0.2, 0.8), np.array([0, 1, 0, 1])
    right = transforms.calibrated(context_of(labels, validation=(labels, truth)))
    assert 0.05 < right.provenance["transform"]["temperature"] < 2
    # For a constant confidence, the result is the accuracy with one more observation of each class: (2 + 1) / (2 + 2).
    constant = transforms.calibrated(context_of(labels[:2], validation=(labels[:2], truth[:2])))
    np.testing.assert_allclose(constant.probabilities[:, 1], [0.25, 0.75], atol=1e-4)
    wrong = transforms.calibrated(context_of(labels, validation=(labels, 1 - truth)))
    np.testing.assert_allclose(wrong.probabilities, 0.5, atol=0.01)
    hard = np.eye(2)[[0, 1, 1, 1, 0, 1, 0, 0]]
    soft = transforms.calibrated(context_of(hard, validation=(hard, np.array([0, 1, 0, 1, 0, 1, 0, 1]))))
    np.testing.assert_allclose(soft.probabilities.max(axis=1), (6 + 1) / (8 + 2), atol=1e-4)
    with pytest.raises(ValueError, match="got 2 predictions and 0 true classes"):
        transforms.calibrated(context_of(labels, validation=(labels[:2], truth[:0])))


def test_self_labels_are_balanced_by_the_median_of_the_training_rows():
    context = make_context()
    prediction = context.zero_shot().argmax(axis=1)[context.is_train]
    assert prediction.mean() < 0.4  # the base model prefers class 0
    labels = transforms.self_labels(context)
    logits = np.log(labels.probabilities[:, 1] / labels.probabilities[:, 0])
    zero_shot = np.log(context.zero_shot()[:, 1] / context.zero_shot()[:, 0])
    assert np.median(logits[context.is_train]) == pytest.approx(0, abs=1e-5)
    assert (logits[context.is_train] > 0).sum() == 200
    np.testing.assert_allclose(logits, zero_shot - np.median(zero_shot[context.is_train]), atol=1e-4)

    # The centred logarithms are (0, 0, 0), (1.5, 0, -1.5) and (3, 0, -3). Their medians are those of the second row.
    rows = softmax([[0, 0, 0], [3, 1.5, 0], [6, 3, 0]], axis=1)
    three = transforms.self_labels(context_of(rows))
    expected = softmax([[-1.5, 0, 1.5], [0, 0, 0], [1.5, 0, -1.5]], axis=1)
    np.testing.assert_allclose(three.probabilities, expected, atol=1e-5)


# ---- Noisy channel ----

PLANTED = {
    2: np.array([[0.9, 0.1], [0.35, 0.65]]),
    3: np.array([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.05, 0.05, 0.9]]),
}


def channel(n_classes: int, n_rows: int = 6000, seed: int = 0):
    """Draws a calibrated prior, true classes, and hard labels of the planted confusion matrix."""
    rng = np.random.default_rng(seed)
    prior = softmax(1.5 * rng.normal(size=(n_rows, n_classes)), axis=1)
    truth = (np.log(prior) + rng.gumbel(size=prior.shape)).argmax(axis=1)
    weak = (np.log(PLANTED[n_classes][truth]) + rng.gumbel(size=prior.shape)).argmax(axis=1)
    return prior, truth, np.eye(n_classes)[weak]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_em_recovers_a_planted_confusion_matrix(n_classes):
    prior, truth, labels = channel(n_classes)
    posterior, confusion = confusion_posterior(prior, labels)
    np.testing.assert_allclose(confusion, PLANTED[n_classes], atol=0.05)
    assert (posterior.argmax(axis=1) == truth).mean() > max(
        (values.argmax(axis=1) == truth).mean() + 0.03 for values in (prior, labels)
    )
    np.testing.assert_allclose(posterior.sum(axis=1), 1)


def test_em_takes_the_steps_of_the_formulas():
    prior, labels = of_class_1(0.3, 0.8, 0.6), of_class_1(0.1, 0.7, 1.0)
    start = np.array([[0.8, 0.2], [0.2, 0.8]])

    def posterior_of(confusion):
        joint = prior * np.array([[np.prod(row**label) for row in confusion] for label in labels])
        return joint / joint.sum(axis=1, keepdims=True)

    first = posterior_of(start)
    counts = np.array([[(first[:, y] * labels[:, k]).sum() + 0.5 for k in (0, 1)] for y in (0, 1)])
    expected = counts / counts.sum(axis=1, keepdims=True)
    posterior, confusion = confusion_posterior(prior, labels, n_iterations=1, smoothing=0.5)
    np.testing.assert_allclose(confusion, expected)
    np.testing.assert_allclose(posterior, posterior_of(expected))


def test_em_climbs_to_a_maximum():
    prior, _, labels = channel(3, n_rows=300)

    def objective(confusion: np.ndarray) -> float:
        return np.log((prior * (labels @ confusion.T)).sum(axis=1)).sum() + np.log(confusion).sum()  # for hard labels

    steps = [confusion_posterior(prior, labels, n_iterations=n)[1] for n in (0, 1, 2, 5, 20)]
    end = confusion_posterior(prior, labels)[1]
    values = [objective(confusion) for confusion in (*steps, end)]
    assert values == sorted(values) and values[0] < values[-1]
    # With strong smoothing, too, a further step changes nothing. The likelihood alone then falls.
    posterior, confusion = confusion_posterior(prior, labels, smoothing=50)
    counts = posterior.T @ labels + 50
    np.testing.assert_allclose(confusion, counts / counts.sum(axis=1, keepdims=True), atol=1e-4)
    # Without a tolerance, further iterations change little.
    np.testing.assert_allclose(confusion_posterior(prior, labels, n_iterations=3000, tolerance=0)[1], end, atol=2e-3)


def test_em_of_extreme_labels():
    prior, truth, labels = channel(2)
    perfect, confusion = confusion_posterior(prior, np.eye(2)[truth])
    assert (perfect.argmax(axis=1) == truth).mean() > 0.99 and confusion.diagonal().min() > 0.95
    certain, _ = confusion_posterior(np.eye(2)[truth], labels)
    assert (certain.argmax(axis=1) == truth).all()
    # With a prior that knows nothing, the posterior repeats the weak labels.
    posterior, confusion = confusion_posterior(np.full(prior.shape, 0.5), labels)
    assert np.isfinite(posterior).all() and (posterior.argmax(axis=1) == labels.argmax(axis=1)).all()
    # A class without rows, and labels that say nothing.
    one_class = np.eye(2)[np.zeros(5, dtype=int)]
    for values in (one_class, np.full((5, 2), 0.5)):
        posterior, confusion = confusion_posterior(one_class, values)
        assert np.isfinite(posterior).all() and (confusion > 0).all()
        np.testing.assert_allclose(confusion[1], 0.5)
    with pytest.raises(ValueError, match=r"prior of shape \(5, 2\) and labels of shape \(6000, 2\)"):
        confusion_posterior(one_class, labels)
    with pytest.raises(ValueError, match="smoothing: got 0"):
        confusion_posterior(prior, labels, smoothing=0)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_noisy_channel_is_better_than_its_parts(n_classes):
    context = make_context(n_classes, n_train=1000)
    labels = transforms.noisy_channel(context)
    assert error_of(labels, context) < min(
        error_of(each, context) for each in (transforms.self_labels(context), context.weak_labels)
    )
    # The matrix is fitted to the training rows. The provenance has it, and the labels of all rows follow from it.
    prior = transforms.self_labels(context).probabilities
    _, confusion = confusion_posterior(prior[context.is_train], context.probabilities[context.is_train])
    np.testing.assert_allclose(labels.provenance["transform"]["confusion"], confusion, atol=1e-3)
    joint = prior * np.exp(context.probabilities @ np.log(confusion).T)
    np.testing.assert_allclose(labels.probabilities, joint / joint.sum(axis=1, keepdims=True), atol=1e-3)
    assert not context.trained


def check_cross_fit(context: FakeContext, trained: list[tuple[WeakLabels, list[str]]]) -> None:
    """Checks that two students are trained on halves of the training rows, and that no student predicts its half."""
    (first, asked_first), (second, asked_second) = trained
    assert len(first) == len(second) == 200
    assert set(first.ids) | set(second.ids) == set(context.ids[:400])
    assert set(asked_first) == set(second.ids) | set(context.ids[400:])
    assert set(asked_second) == set(first.ids) | set(context.ids[400:])
    n_of_class = [each.probabilities.argmax(axis=1).sum() for each in (first, second)]
    assert abs(n_of_class[0] - n_of_class[1]) <= 1


def test_the_prior_of_students_is_cross_fitted():
    context = make_context()
    labels = transforms.noisy_channel(context, prior="student")
    check_cross_fit(context, context.trained)
    assert error_of(labels, context) < error_of(context.weak_labels, context) - 0.1
    # Validation rows have the mean of both students as their prior.
    asked = context.rows.select(range(400, 460))
    prior = np.mean([context.train_student(each, asked) for each, _ in context.trained[:2]], axis=0)
    weak = context.weak_labels.of(list(asked["id"]))
    joint = prior * np.exp(weak @ np.log(labels.provenance["transform"]["confusion"]).T)
    np.testing.assert_allclose(labels.of(list(asked["id"])), joint / joint.sum(axis=1, keepdims=True), atol=2e-3)


# ---- Refinement ----


@pytest.mark.parametrize("n_classes", [2, 3])
def test_refinement_corrects_random_errors(n_classes):
    context = make_context(n_classes)
    labels = transforms.refined(context, rounds=3)
    replaced = labels.provenance["transform"]["replaced"]
    assert len(replaced) == 3 and replaced[0] == 40  # a tenth of the rows
    assert error_of(context.weak_labels, context) - error_of(labels, context) > 0.12
    np.testing.assert_array_equal(labels.of(context.ids[400:]), context.probabilities[400:])
    for number in range(3):
        check_cross_fit(context, context.trained[2 * number : 2 * number + 2])
    # Students of the second round are trained on the labels of the first. The halves are others.
    one = transforms.refined(context, rounds=1)
    for student, _ in context.trained[2:4]:
        np.testing.assert_array_equal(student.probabilities, one.of(student.ids))
    assert set(context.trained[0][0].ids) != set(context.trained[2][0].ids)


def test_refinement_replaces_the_most_confident_candidates():
    context = make_context()
    labels = transforms.refined(context, rounds=1, max_replaced=0.05)
    weak = context.weak_labels.of(context.ids)
    train_ids = set(context.ids[:400])
    for student, asked in list(context.trained):
        ids = [row_id for row_id in asked if row_id in train_ids]
        predictions = context.train_student(student, Dataset.from_dict({"id": ids}))
        old, new = context.weak_labels.of(ids), labels.of(ids)
        is_candidate = predictions.argmax(axis=1) != old.argmax(axis=1)
        best = np.argsort(-np.where(is_candidate, predictions.max(axis=1), 0))[:10]  # 0.05 of 200 rows
        is_replaced = np.isin(np.arange(len(ids)), best)
        np.testing.assert_array_equal(new[is_replaced], predictions[is_replaced])
        np.testing.assert_array_equal(new[~is_replaced], old[~is_replaced])
    assert (labels.probabilities != weak).any(axis=1).sum() == 20


def test_the_largest_share_is_counted_exactly():
    class Contrary(FakeContext):
        def train_student(self, labels, predict):
            confidence = 0.6 + 0.3 * np.arange(len(predict)) / len(predict)
            return np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)

    context = Contrary(**vars(context_of(of_class_1(*[0.8] * 200))))
    labels = transforms.refined(context, rounds=1, max_replaced=0.29)  # 0.29 * 100 is less than 29 in floating point
    assert labels.provenance["transform"]["replaced"] == [2 * 29]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_refinement_leaves_perfect_labels(n_classes):
    context = make_context(n_classes, error=0)
    labels = transforms.refined(context)
    assert labels.provenance["transform"]["replaced"] == [0] and len(context.trained) == 2  # no second round
    np.testing.assert_array_equal(labels.probabilities, context.probabilities)


def test_refinement_needs_a_confidence_above_a_half():
    class Unsure(FakeContext):
        def train_student(self, labels, predict):
            return np.tile(np.array([[0.5, 0.26, 0.24]], dtype=np.float32), (len(predict), 1))

    labels = np.tile([[0.1, 0.8, 0.1]], (20, 1))
    context = Unsure(**vars(context_of(labels)))
    assert transforms.refined(context, max_replaced=1).provenance["transform"]["replaced"] == [0]


def test_another_seed_gives_other_halves():
    first, second, third = (transforms.refined(replace(make_context(), seed=seed)) for seed in (0, 0, 1))
    assert first.fingerprint == second.fingerprint != third.fingerprint


# ---- Probes ----


@pytest.fixture(scope="module")
def probed():
    """A context with its arrays of training rows, and of validation rows: states and labels."""
    context = make_context(n_train=120, n_validation=30)
    states, labels = context.features, context.weak_labels.of(context.ids)
    return context, (states[:120], labels[:120]), (states[120:], labels[120:])


def test_probes_give_the_labels_of_the_analysis(probed):
    context, train, validation = probed
    probe = logistic_probe(*train, validation)
    opinions = {
        "logistic": (out_of_fold(probe, *train), probe.predict_proba(validation[0])),
        "knn": (neighbour_labels(*train), neighbour_labels(*train, validation[0])),
    }
    for kind, (of_train, of_validation) in opinions.items():
        relabelled = transforms.relabelled_by_probe(context, kind=kind)
        expected = WeakLabels(context.ids, np.concatenate([of_train, of_validation]))
        assert relabelled.fingerprint == expected.fingerprint and relabelled.ids == context.ids
        keep = np.concatenate([~doubtful(train[1], of_train), np.ones(30, dtype=bool)])
        filtered = transforms.filtered_by_probe(context, kind=kind)
        assert filtered.ids == list(np.array(context.ids)[keep]) and len(filtered) == 120 - 12 + 30
        np.testing.assert_array_equal(filtered.probabilities, context.weak_labels.of(filtered.ids))


def test_topology_keeps_the_rows_of_the_analysis(probed):
    context, (states, labels), _ = probed
    keep = np.concatenate([topological_filter(states, labels.argmax(axis=1)), np.ones(30, dtype=bool)])
    filtered = transforms.filtered_by_topology(context)
    assert filtered.ids == list(np.array(context.ids)[keep]) and 30 < len(filtered) < 150
    np.testing.assert_array_equal(filtered.probabilities, context.weak_labels.of(filtered.ids))
