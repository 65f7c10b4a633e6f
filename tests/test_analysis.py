"""Tests the functions of analyses: values computed by hand, a copied supervisor, a perfect student, and chance."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.models import make_character_tokenizer, make_language_model, make_rows, make_tokenizer
from helpers.training import arguments
from scipy.stats import binomtest
from transformers import RobertaConfig, RobertaForSequenceClassification

from w2s_hf import WeakLabels, WeakToStrongTrainer, fresh_adapter, losses, metrics
from w2s_hf.analysis import (
    ERROR_KINDS,
    PromptFormat,
    answer_probabilities,
    choose_stops,
    compare_answers,
    compare_probabilities,
    doubtful,
    feature_experiment,
    few_shot_prompts,
    last_hidden_states,
    logistic_probe,
    neighbour_labels,
    out_of_fold,
    simulate_labels,
    topological_filter,
    with_opinion,
)
from w2s_hf.analysis.prompting import encode_prompts
from w2s_hf.analysis.saliency import saliency_section
from w2s_hf.metrics import accuracy, accuracy_interval, brier_score, performance_gap_recovered, squared_distance
from w2s_hf.modeling.heads import classification_head
from w2s_hf.tasks.prompt import answer_tokens
from w2s_hf.trainers.snapshots import SnapshotCallback, snapshot_steps

RNG = np.random.default_rng(0)
N = 600
TRUTH = RNG.integers(0, 2, N)


def one_hot(labels) -> np.ndarray:
    return np.eye(2)[labels]


def supervisor(error_rate: float = 0.3, confidence: float = 0.8) -> np.ndarray:
    """Returns probabilities with a share of errors, all with the same confidence."""
    answers = simulate_labels("random", TRUTH, round(error_rate * N))
    return confidence * one_hot(answers) + (1 - confidence) * one_hot(1 - answers)


# ---- Agreement ----


def test_a_copied_supervisor_agrees_everywhere_and_recovers_nothing():
    weak = supervisor()
    found = compare_probabilities(weak, weak, TRUTH)
    assert found["agreement"] == {"overall": 1.0, "supervisor_right": 1.0, "supervisor_wrong": 1.0}
    assert found["inherited"] == 1 and found["corrected"] == 0 and found["new_errors"] == 0
    assert found["misfit"] == 0 and found["gain"] == 0
    assert performance_gap_recovered(accuracy(weak, TRUTH), found["accuracy"], 0.9) == 0


def test_a_perfect_student_corrects_all_errors_and_makes_none():
    weak = supervisor()
    found = compare_probabilities(one_hot(TRUTH), weak, TRUTH)
    assert found["agreement"] == {"overall": 0.7, "supervisor_right": 1.0, "supervisor_wrong": 0.0}
    assert found["inherited"] == 0 and found["corrected"] == 1 and found["new_errors"] == 0
    assert performance_gap_recovered(accuracy(weak, TRUTH), found["accuracy"], 1.0) == 1
    assert found["brier"] == 0 and found["ece"] == 0 and found["gain"] == pytest.approx(brier_score(weak, TRUTH))


def test_two_errors_by_hand():
    labels = np.array([0, 0, 1, 1])
    weak = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])  # right, wrong, right, wrong
    student = np.array([[0.8, 0.2], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])  # right, corrected, new error, inherited
    found = compare_probabilities(student, weak, labels)
    assert found["agreement"] == {"overall": 0.5, "supervisor_right": 0.5, "supervisor_wrong": 0.5}
    assert (found["inherited"], found["corrected"], found["new_errors"]) == (0.5, 0.5, 0.5)
    assert found["brier"] == pytest.approx((0.04 + 0.01 + 0.36 + 0.36) / 4)
    assert found["misfit"] == pytest.approx((0.01 + 0.25 + 0.16 + 0.01) / 4)
    assert found["gain"] == pytest.approx((0.01 + 0.36 + 0.04 + 0.49) / 4 - found["brier"])
    assert found["cross_entropy_supervisor_wrong"] == pytest.approx(-(np.log(0.1) + np.log(0.6)) / 2)
    assert found["cross_entropy_supervisor_right"] == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)


def test_with_text_a_student_may_be_wrong_in_its_own_way():
    same, student, weak = ([1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1])
    found = compare_answers(np.array(same), np.array(student), np.array(weak))
    assert (found["inherited"], found["corrected"], found["new_errors"]) == (0.0, 0.5, 0.5)
    assert found["agreement"]["supervisor_wrong"] == 0
    assert compare_answers(np.array([1]), np.array([1]), np.array([1]))["inherited"] is None
    with pytest.raises(ValueError, match="equal predictions"):
        compare_answers(np.array([1]), np.array([1]), np.array([0]))


def test_brier_score_is_that_of_scikit_learn():
    from sklearn.metrics import brier_score_loss

    p = RNG.uniform(size=N)
    probabilities = np.stack([1 - p, p], axis=1)
    assert brier_score(probabilities, TRUTH) == pytest.approx(brier_score_loss(TRUTH, p))
    assert squared_distance(probabilities, one_hot(TRUTH)) == brier_score(probabilities, TRUTH)
    with pytest.raises(ValueError, match="expected"):
        brier_score(probabilities, TRUTH[:-1])


# ---- Early stopping ----


def test_stops_are_the_first_of_the_best():
    stops = choose_stops([0.6, 0.8, 0.8, 0.7], [0.5, 0.6, 0.9, 0.9])
    assert stops == {"last_step": 3, "weak_labels": 1, "ground_truth": 2}


@pytest.mark.parametrize("n_steps", [1, 3, 10, 11, 126])
@pytest.mark.parametrize("n_snapshots", [1, 4, 10])
def test_snapshots_are_even_and_end_with_the_last_step(n_steps, n_snapshots):
    steps = sorted(snapshot_steps(n_steps, n_snapshots))
    assert steps[-1] == n_steps and steps[0] >= 1 and len(steps) == min(n_steps, n_snapshots)
    assert max(np.diff([0, *steps])) <= n_steps / len(steps) + 1
    with pytest.raises(ValueError, match="at least 1"):
        SnapshotCallback(print, 0)


def test_a_look_at_a_training_leaves_it_as_it_is(model_of, tokenizer, tmp_path):
    weights, looks = [], []
    for is_watched in (False, True):
        model = fresh_adapter(model_of("gpt2"), seed=0)
        options = {"num_train_epochs": 2, "max_steps": -1, "disable_dropout": False}
        args = arguments(tmp_path / str(is_watched), per_device_train_batch_size=4, **options)
        trainer = WeakToStrongTrainer(model=model, args=args, train_dataset=make_rows(20), processing_class=tokenizer)
        if is_watched:
            others = make_rows(8, seed=1)
            trainer.add_callback(SnapshotCallback(lambda step: looks.append(trainer.predict_proba(others)), 5))  # noqa: B023
        trainer.train()
        weights.append([value.detach().clone() for value in model.parameters() if value.requires_grad])
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))
    assert len(looks) == 5 and not np.array_equal(looks[0], looks[-1])
    np.testing.assert_array_equal(looks[-1], trainer.predict_proba(others))


# ---- Prompting ----


def test_prompts_show_the_same_examples_with_either_labels():
    form = PromptFormat.for_classes(("no", "yes"))
    examples, texts = [f"example {n}" for n in range(30)], ["a?", "b?", "c?"]
    truth, weak = [n % 2 for n in range(30)], [1 - n % 2 for n in range(30)]
    by_truth, by_weak = (few_shot_prompts(texts, examples, labels, 5, form, seed=3) for labels in (truth, weak))
    for text, one, two in zip(texts, by_truth, by_weak, strict=True):
        start = "Answer 0 for no and 1 for yes.\n\n"
        assert (
            one.startswith(start + "example ") and one.endswith(f"\n\n{text}\nAnswer:") and one.count("Answer:") == 6
        )
        assert two == one.replace("Answer: 0", "@").replace("Answer: 1", "Answer: 0").replace("@", "Answer: 1")
        for shown in one.removeprefix(start).split("\n\n")[:-1]:
            number, answer = int(shown.split()[1]), int(shown[-1])
            assert answer == truth[number]
    assert len({prompt.split("\n\n")[1] for prompt in by_truth}) > 1, "all prompts begin with the same example"
    assert few_shot_prompts(["a?"], examples, truth, 0, form) == [start + "a?\nAnswer:"]
    with pytest.raises(ValueError, match="n_shots"):
        few_shot_prompts(texts, examples[:2], truth[:2], 3, form)


def test_answers_are_scored_by_two_tokens_whatever_the_padding():
    tokenizer = make_character_tokenizer()
    model = make_language_model(tokenizer).eval()
    form = PromptFormat(answers=(" a", " b"), suffix=":")
    shared, (first, second) = answer_tokens(tokenizer, form)
    assert tokenizer.decode(shared) == " " and (tokenizer.decode([first]), tokenizer.decode([second])) == ("a", "b")
    prompts = ["1. e4 1...:", "1. d4:", "1. Nf3 1... d5 2. g3 2...:"]
    found = answer_probabilities(model, tokenizer, prompts, form, batch_size=2)
    assert found.shape == (3, 2) and found.dtype == np.float32
    for prompt, row in zip(prompts, found, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"] + shared])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        np.testing.assert_allclose(row, logits[[first, second]].softmax(dim=-1).numpy(), atol=1e-5)
    assert found.std(axis=0).min() > 1e-4


@pytest.mark.parametrize(
    ("length", "answers", "message"),
    [(1, ("é", "ü"), "of which one begins with the tokens"), (160, (" a", " b"), "prompt 1 with .* fewer examples")],
    ids=["same answers", "long prompt"],
)
def test_answers_that_cannot_be_scored_are_named(length, answers, message):
    tokenizer = make_character_tokenizer()
    form = PromptFormat(answers=answers, suffix=":")
    with pytest.raises(ValueError, match=message):
        answer_probabilities(make_language_model(tokenizer), tokenizer, ["1. d4:", "e" * length], form)


# ---- Probes ----


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("has_adapters", [False, True])
def test_the_head_makes_the_logits_of_the_hidden_states(kind, has_adapters, model_of, tokenizer):
    model = fresh_adapter(model_of(kind), seed=0) if has_adapters else model_of(kind)
    model, rows = model.eval(), make_rows(11)
    hidden = last_hidden_states(model, tokenizer, rows, batch_size=4)
    assert hidden.shape == (11, 64) and hidden.dtype == np.float32
    with torch.no_grad():
        for ids, state in zip(rows["input_ids"], hidden, strict=True):
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            of_state = classification_head(model)(torch.from_numpy(state))
            torch.testing.assert_close(of_state, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pad_token", ["<pad>", "w3"])
def test_hidden_states_are_of_the_token_that_a_decoder_reads(pad_token, model_of):
    """Texts may end with the padding token: for many tokenizers it is the end-of-text token or an ordinary token."""
    model, tokenizer = model_of("llama").eval(), make_tokenizer()
    tokenizer.pad_token = pad_token
    pad = tokenizer.pad_token_id
    rows = [{"input_ids": ids} for ids in ([5, 6, pad], [8, pad, 9, 10, 11], [12, pad, pad, 13], [pad, pad])]
    hidden = last_hidden_states(model, tokenizer, rows, batch_size=4)
    inputs = tokenizer.pad(rows, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(model.score(torch.from_numpy(hidden)), logits, atol=1e-4, rtol=1e-4)


def test_of_an_encoder_that_does_not_pool_it_is_the_first_token(tokenizer):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=64, **sizes, **special)).eval()
    rows = make_rows(7)
    hidden = last_hidden_states(model, tokenizer, rows, batch_size=3)
    with torch.no_grad():
        for ids, state in zip(rows["input_ids"], hidden, strict=True):
            logits = model(input_ids=torch.tensor([ids])).logits
            of_state = classification_head(model)(torch.from_numpy(state)[None, None])  # it takes the first itself
            torch.testing.assert_close(of_state, logits, atol=1e-4, rtol=1e-4)


def test_a_decoder_need_not_know_its_padding(model_of, tokenizer):
    model, rows = model_of("llama").eval(), make_rows(5)
    expected = last_hidden_states(model, tokenizer, rows)
    model.config.pad_token_id = None
    np.testing.assert_array_equal(last_hidden_states(model, tokenizer, rows), expected)


def test_a_probe_on_random_features_is_at_chance():
    features, test = RNG.normal(size=(N, 20)), RNG.normal(size=(4 * N, 20))
    labels = RNG.integers(0, 2, 4 * N)
    right = logistic_probe(features, one_hot(TRUTH), (features[:100], one_hot(TRUTH[:100]))).predict(test) == labels
    low, high = binomtest(int(right.sum()), len(right)).proportion_ci(0.999, method="wilson")
    assert low < 0.5 < high


def separable(n: int, rng) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, 2, n)
    features = rng.normal(size=(n, 8))
    features[:, 3] += 3.0 * (2 * labels - 1)
    return features, labels


def test_a_probe_finds_what_is_linear_in_soft_labels():
    rng = np.random.default_rng(1)
    features, labels = separable(N, rng)
    test = separable(N, rng)
    # Only the probabilities differ between classes: all hard labels are class 0.
    soft = np.stack([1 - (0.1 + 0.3 * labels), 0.1 + 0.3 * labels], axis=1)
    p = logistic_probe(features, soft).predict_proba(test[0])[:, 1]
    assert p[test[1] == 1].mean() > p[test[1] == 0].mean() + 0.2 and p.max() < 0.6
    assert logistic_probe(features, one_hot(labels)).score(*test) > 0.97
    with pytest.raises(ValueError, match="one class"):
        logistic_probe(features, one_hot(np.zeros(N, dtype=int)))


def test_neighbours_are_other_rows():
    features = np.array([[0.0], [1.0], [10.0], [11.0]])
    labels = one_hot([0, 1, 1, 0])
    np.testing.assert_array_equal(neighbour_labels(features, labels, k=1).argmax(axis=1), [1, 0, 0, 1])
    others = np.array([[0.2], [10.1]])
    np.testing.assert_array_equal(neighbour_labels(features, labels, others, k=1), one_hot([0, 1]))


def test_wrong_labels_are_doubted_and_filtered():
    rng = np.random.default_rng(2)
    features, truth = separable(400, rng)
    wrong = rng.choice(400, 40, replace=False)
    labels = truth.copy()
    labels[wrong] = 1 - labels[wrong]
    probe = logistic_probe(features, one_hot(labels))
    dropped = doubtful(one_hot(labels), probe.predict_proba(features))
    assert dropped.sum() == 40 and np.isin(np.flatnonzero(dropped), wrong).mean() > 0.85
    kept = topological_filter(features, labels, k=20)
    assert (labels[kept] == truth[kept]).mean() > 0.98 and kept.mean() > 0.6
    by_neighbours = neighbour_labels(features, one_hot(labels), k=20).argmax(axis=1)
    assert (by_neighbours == truth).mean() > (labels == truth).mean() + 0.05


def test_rows_are_predicted_by_probes_of_other_folds():
    # With as many features as rows, a probe repeats the noise of its training labels. Other probes cannot predict it.
    rng = np.random.default_rng(5)
    features, noise = rng.normal(size=(200, 400)), one_hot(rng.integers(0, 2, 200))
    probe = logistic_probe(features, noise)
    assert (probe.predict_proba(features).argmax(axis=1) == noise.argmax(axis=1)).mean() > 0.99
    opinions = out_of_fold(probe, features, noise)
    assert 0.3 < (opinions.argmax(axis=1) == noise.argmax(axis=1)).mean() < 0.7
    np.testing.assert_allclose(opinions.sum(axis=1), 1)


def test_a_rare_class_is_not_outvoted_for_being_rare():
    rng = np.random.default_rng(6)
    labels = np.array([0] * 40 + [1] * 8)
    features = rng.normal(size=(48, 4)) + 8 * labels[:, None]
    assert (neighbour_labels(features, one_hot(labels)).argmax(axis=1) == labels).all()
    assert topological_filter(features, labels)[labels == 1].mean() > 0.7


@pytest.mark.parametrize(("ceiling", "said"), [(0.9, "closes 50 %"), (0.72, "too close")])
def test_a_share_of_a_gap_is_said_where_there_is_one(ceiling, said):
    accuracies = {"lp(weak)": 0.6, "lp(gt)": 0.7, "ft(weak)": 0.75, "ft(weak)+lp(gt)": 0.8, "ft(gt)": ceiling}
    scores = {name: {"accuracy": value, "ci95": [value - 0.03, value + 0.03]} for name, value in accuracies.items()}
    text = saliency_section([{"weak": 0.6, "n_test": 1000, "accuracies": scores}])
    assert (
        said in text
        and "| lp(gt) | linear probe of the base model, fitted to ground truth | 0.700 [0.670, 0.730] |" in text
    )


# ---- Supervisor errors ----


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.4])
def test_random_errors_of_a_rate_make_a_supervisor_of_that_accuracy(rate):
    right = simulate_labels("random", TRUTH, round(rate * N), seed=5) == TRUTH
    low, high = accuracy_interval(right)
    assert low <= 1 - rate <= high and right.mean() == pytest.approx(1 - rate, abs=1 / N)
    # Errors are in both classes, in early and late rows, and on other rows with another seed.
    for part in (TRUTH == 0, TRUTH == 1, np.arange(N) < N / 2):
        assert abs(right[part].mean() - (1 - rate)) < 0.1
    assert (right != (simulate_labels("random", TRUTH, round(rate * N), seed=6) == TRUTH)).any()


def test_simulated_errors_are_where_they_should_be():
    texts = ["x" * length for length in np.random.default_rng(3).integers(1, 10_000, N)]
    p = np.random.default_rng(4).uniform(0.01, 0.99, N)
    strong = np.stack([1 - p, p], axis=1)
    lengths, confidence, of_truth = np.array([*map(len, texts)]), strong.max(axis=1), strong[np.arange(N), TRUTH]
    wrong = {}
    for kind in ERROR_KINDS:
        labels = simulate_labels(kind, TRUTH, 150, texts=texts, strong=strong)
        wrong[kind] = labels != TRUTH
        assert wrong[kind].sum() == 150 and set(labels) == {0, 1}
    assert lengths[wrong["longest"]].min() >= lengths[~wrong["longest"]].max()
    assert lengths[wrong["shortest"]].max() <= lengths[~wrong["shortest"]].min()
    assert confidence[wrong["unconfident"]].max() <= confidence[~wrong["unconfident"]].min()
    assert of_truth[wrong["confident"]].min() >= of_truth[~wrong["confident"]].max()


@pytest.mark.parametrize(
    ("kind", "n", "message"),
    [("often", 3, "random, longest"), ("confident", 3, "needs `strong`"), ("random", N + 1, f"expected 0 to {N}")],
)
def test_errors_that_cannot_be_simulated_are_refused(kind, n, message):
    with pytest.raises(ValueError, match=message):
        simulate_labels(kind, TRUTH, n)


def test_new_kind_of_errors_is_not_taken_for_random_ones(monkeypatch):
    monkeypatch.setitem(ERROR_KINDS, "newest", "the last prompts")
    with pytest.raises(NotImplementedError, match="Got the kind 'newest' of ERROR_KINDS.* Add a branch"):
        simulate_labels("newest", TRUTH, 3)


def test_an_opinion_is_the_end_of_the_text():
    rows = Dataset.from_dict({"id": ["a", "b"], "text": ["first", "second"], "context_end": [3, 3]})
    told = with_opinion(rows, [1, 0])
    assert told["text"][:] == [
        "first I think this is correct. What do you think?",
        "second I think this is incorrect. What do you think?",
    ]
    assert told["id"][:] == rows["id"][:] and set(told.column_names) == set(rows.column_names)


def test_a_student_repeats_simulable_errors_and_not_random_ones():
    rng = np.random.default_rng(7)

    def rows(n: int):
        features = rng.normal(size=(n, 30))
        return features, (features.sum(axis=1) > 0).astype(int)

    found = feature_experiment(rows(1000), rows(4000), rows(2000), [3, 10, 30])
    assert [entry["k"] for entry in found] == [3, 10, 30]
    for entry in found[:2]:
        assert abs(entry["simulable"] - entry["weak"]) < 0.03 and entry["random"] > entry["weak"] + 0.1
        assert entry["random"] <= entry["ceiling"] + 0.01
    assert found[-1]["weak"] > 0.9


# ---- Options of student training ----


def test_supervisors_are_averaged_by_row():
    one = WeakLabels(["a", "b"], np.array([[0.8, 0.2], [0.4, 0.6]]), {"model": "m", "stage": "s1"})
    two = WeakLabels(["b", "a"], np.array([[0.0, 1.0], [0.6, 0.4]]), {"model": "m", "stage": "s2"})
    mean = WeakLabels.mean([one, two])
    assert mean.ids == ["a", "b"] and mean.provenance == {"model": "m", "stage": "s1+s2"}
    np.testing.assert_allclose(mean.probabilities, [[0.7, 0.3], [0.2, 0.8]], atol=1e-6)


def test_the_most_confident_labels_of_either_class_are_kept():
    p = np.array([0.95, 0.9, 0.85, 0.8, 0.4, 0.3])  # c is surer than f, and of the other class
    labels = WeakLabels(list("abcdef"), np.stack([1 - p, p], axis=1))
    kept = labels.most_confident(list("fedcba"), 0.5)
    assert kept.tolist() == [True, False, False, False, True, True]  # f of class 0; b and a of class 1
    assert labels.most_confident(list("abcdef"), 1.0).all()


THREE = ["w1 w2 w3", "w4", "w5 w6"]


def test_token_ids_are_taken_from_a_dataset_or_encodings(model_of, tokenizer):
    model = model_of("llama").eval()
    tokens = Dataset.from_dict({"text": THREE}).map(lambda row: tokenizer(row["text"]))
    expected = last_hidden_states(model, tokenizer, tokens)
    for form in ([tokenizer(text) for text in THREE], tokenizer(THREE), tokens.to_list(), tokens.with_format("numpy")):
        np.testing.assert_array_equal(last_hidden_states(model, tokenizer, form), expected)


@pytest.mark.parametrize(
    "form",
    [
        lambda tokenizer: THREE,
        lambda tokenizer: Dataset.from_dict({"text": THREE}),
        lambda tokenizer: [],
        lambda tokenizer: [tokenizer(text, return_tensors="np") for text in THREE],
        lambda tokenizer: [[1, 2]],
    ],
    ids=["texts", "dataset of texts", "empty", "batches", "ids"],
)
def test_token_ids_of_another_form_are_refused(form, model_of, tokenizer):
    with pytest.raises(ValueError, match="tokens: got"):
        last_hidden_states(model_of("llama"), tokenizer, form(tokenizer))


FEATURES = np.random.default_rng(0).normal(size=(40, 3))
OF_CLASS_1 = 1 / (1 + np.exp(-3 * FEATURES[:, 0]))
BOTH, HARD = np.stack([1 - OF_CLASS_1, OF_CLASS_1], axis=1), (OF_CLASS_1 > 0.5).astype(int)
OF_LABELS = {
    "probe": lambda labels: logistic_probe(FEATURES, labels, (FEATURES, labels)).predict_proba(FEATURES),
    "folds": lambda labels: out_of_fold(logistic_probe(FEATURES, BOTH), FEATURES, labels),
    "neighbours": lambda labels: neighbour_labels(FEATURES, labels, k=5),
    "doubtful": lambda labels: doubtful(labels, BOTH[:, ::-1]),
}


@pytest.mark.parametrize("name", OF_LABELS)
def test_two_classes_may_be_probabilities_of_the_second_or_classes(name):
    call = OF_LABELS[name]
    np.testing.assert_allclose(call(OF_CLASS_1), call(BOTH), atol=1e-5)
    np.testing.assert_allclose(call(HARD), call(np.eye(2)[HARD]), atol=1e-5)


@pytest.mark.parametrize(
    "labels",
    [BOTH[:-1], np.ones((40, 3)) / 3, HARD + 1, OF_CLASS_1 + 1],
    ids=["too few", "three classes", "class 2", "above one"],
)
@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_of_other_than_two_classes_are_refused(name, labels):
    with pytest.raises(ValueError, match="got"):
        OF_LABELS[name](labels)


SAME = np.array([True, False])
HALVES = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: topological_filter(np.ones((2, 3)), HALVES),
        lambda: simulate_labels("random", HALVES, 1),
        lambda: simulate_labels("random", [0, 2], 1),
        lambda: simulate_labels("longest", [0, 1], 1, texts=["a"]),
        lambda: simulate_labels("confident", [0, 1], 1, strong=HALVES[:1]),
        lambda: with_opinion(Dataset.from_dict({"text": ["a", "b"]}), [0.2, 0.9]),
        lambda: with_opinion(Dataset.from_dict({"text": ["a", "b"]}), [1]),
        lambda: with_opinion(Dataset.from_dict({"texts": ["a"]}), [1]),
        lambda: feature_experiment(*[(np.ones((2, 2)), HALVES)] * 3, [1]),
        lambda: few_shot_prompts("text", ["a"], [0], 1, PromptFormat()),
        lambda: few_shot_prompts(["text"], ["a"], [0.3], 1, PromptFormat()),
        lambda: encode_prompts(None, "one prompt", PromptFormat(), None),
        lambda: encode_prompts(None, [], PromptFormat(), None),
        lambda: compare_answers(SAME, SAME[:1], SAME),
        lambda: choose_stops([], []),
        lambda: choose_stops([0.5, 0.6], [0.5]),
        lambda: metrics.accuracy_interval([]),
        lambda: metrics.auroc(HALVES, [0, 1]),
        lambda: metrics.squared_distance([0.5, 0.5], [0.5, 0.5]),
        lambda: metrics.agreement_shares(SAME, SAME[:1]),
        lambda: metrics.pgr_over_seeds([]),
        lambda: losses.cross_entropy_loss([[0.0, 1.0]], [[0.5, 0.5]]),
        lambda: losses.confidence_threshold(torch.ones(2, 2), 0.5),
        lambda: losses.confidence_threshold(torch.ones(0), 0.5),
    ],
)
def test_arguments_of_another_form_say_which_is_expected(call):
    with pytest.raises(ValueError, match="(?i)got .*expected"):
        call()


def test_shares_of_lists_are_those_of_arrays():
    assert metrics.agreement_shares([True, False], [True, False])["supervisor_wrong"] == 0.0
