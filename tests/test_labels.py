"""Tests that weak labels are joined and converted without losing, reordering or changing a row."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from helpers.models import make_rows
from transformers import DataCollatorWithPadding

from w2s_hf import WeakCompletions, WeakLabels
from w2s_hf.collators import WeakToStrongCollator, split_by_tokens
from w2s_hf.labels import Completion, as_probabilities, label_files


def weak_labels(n=4):
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.0, 1.0]], dtype=np.float32)[:n]
    return WeakLabels([f"r{i}" for i in range(n)], probabilities, {"model": "weak", "seed": 0})


def rows(ids):
    return Dataset.from_dict({"id": ids, "text": [f"text {i}" for i in ids], "ground_truth": [0] * len(ids)})


def test_join_goes_by_id_and_drops_ground_truth():
    joined = weak_labels().join(rows(["r3", "r0"]))
    assert joined["id"][:] == ["r3", "r0"] and joined["text"][:] == ["text r3", "text r0"]
    np.testing.assert_allclose(joined["labels"][:], [[0.0, 1.0], [0.9, 0.1]], atol=1e-7)
    assert "ground_truth" not in joined.column_names


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        (["r0", "missing"], KeyError, "1 of 2 rows without a weak label.*missing"),
        (["r0", "r0"], ValueError, "repeated ids"),
    ],
)
def test_join_refuses_to_lose_or_repeat_a_row(ids, error, match):
    with pytest.raises(error, match=match):
        weak_labels().join(rows(ids))


@pytest.mark.parametrize(("name", "new", "message"), [
    ("ground_truth", "label", "expected rows without labels"),
    ("id", "number", "expected a column `id`"),
])  # fmt: skip
def test_join_refuses_a_second_label_column_and_rows_without_id(name, new, message):
    with pytest.raises(ValueError, match=message):
        weak_labels().join(rows(["r0"]).rename_column(name, new))


def test_saved_labels_load_equal_and_notice_a_change(tmp_path):
    labels = weak_labels()
    labels.save(tmp_path / "w")
    loaded = WeakLabels.load(tmp_path / "w")
    assert loaded.ids == labels.ids and loaded.provenance == labels.provenance
    assert np.array_equal(loaded.probabilities, labels.probabilities) and loaded.fingerprint == labels.fingerprint
    assert load_dataset(str(tmp_path / "w"), split="train")["id"][:] == labels.ids
    record = json.loads((tmp_path / "w" / "provenance.json").read_text())
    record["fingerprint"] = "0" * 16
    (tmp_path / "w" / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="changed or mixed"):
        WeakLabels.load(tmp_path / "w")


@pytest.mark.parametrize(
    ("ids", "probabilities", "message"),
    [
        (["a", "b", "b", "a", "a"], [[0.5, 0.5]] * 5, "got 3 repeated ids, such as 'b'"),
        (["a", "b"], [[0.5, 0.5]] * 3, "2 ids for 3"),
        (["a", "b"], [[0.5, 0.5], [0.5, 0.6]], "row b"),
    ],
)
def test_weak_labels_need_different_ids_and_probabilities(ids, probabilities, message):
    with pytest.raises(ValueError, match=message):
        WeakLabels(ids, np.array(probabilities))


def test_three_forms_of_labels():
    np.testing.assert_array_equal(as_probabilities([0, 2], 3), [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(as_probabilities([True, False]), [[0, 1], [1, 0]])
    np.testing.assert_allclose(as_probabilities([0.25, 1.0]), [[0.75, 0.25], [0, 1]])
    np.testing.assert_allclose(as_probabilities([[0.2, 0.3, 0.5]], 3), [[0.2, 0.3, 0.5]], atol=1e-7)
    assert as_probabilities([0, 1]).dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([0.5, float("nan")], "NaN.*row b"),
        ([1.2, 0.5], "row a"),
        ([-0.1, 0.5], "row a"),
        ([[0.5, 0.5], [0.9, 0.2]], "sum to 1.1.*row b"),
        ([0, 2], "class 2 in row b"),
        ([-100, 1], "class -100 in row a"),
        ([0, None], "row b without a label"),
        ([[0.5, 0.5], [1.0]], "different length|mixture"),
        ([[0.2, 0.3, 0.5]] * 2, "got 3 probabilities per row, expected 2"),
        (["no", "yes"], "got <U3"),
    ],
)
def test_labels_that_are_not_are_named(labels, match):
    with pytest.raises(ValueError, match=match):
        as_probabilities(labels, 2, ["a", "b"])


@pytest.mark.parametrize(("kind", "shape", "dtype"), [
    ("hard", (6,), torch.int64), ("scalar", (6, 2), torch.float32), ("soft", (6, 2), torch.float32)
])  # fmt: skip
def test_collator(kind, shape, dtype, tokenizer):
    collate = WeakToStrongCollator(DataCollatorWithPadding(tokenizer), 2)
    features = make_rows(6, kind).remove_columns("id")
    batch = collate(list(features))
    assert batch["labels"].shape == shape and batch["labels"].dtype == dtype
    np.testing.assert_allclose(
        batch["labels"].numpy()[:, 1] if kind == "scalar" else batch["labels"], features["labels"][:]
    )
    assert "labels" not in collate(list(features.remove_columns("labels")))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_split_keeps_every_row_once_and_its_tokens(side, budget, tokenizer):
    lengths = [3, 9, 5, 9, 1, 7, 2]
    mask = torch.tensor([[1] * n + [0] * (9 - n) for n in lengths])
    mask = mask.flip(1) if side == "left" else mask
    ids = torch.arange(63).reshape(7, 9) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(7)}
    parts = split_by_tokens(batch, budget)
    assert sorted(torch.cat([part["labels"] for part in parts]).tolist()) == list(range(7))
    for part in parts:
        assert len(part["labels"]) == 1 or part["input_ids"].numel() <= budget
        for row, label in zip(range(len(part["labels"])), part["labels"].tolist(), strict=True):
            assert (
                part["input_ids"][row][part["attention_mask"][row] == 1].tolist()
                == ids[label][mask[label] == 1].tolist()
            )
    assert (len(parts) == 1) == (budget >= 63)


def weak_completions():
    return WeakCompletions(["r0", "r1"], [Completion(" yes", False), Completion(" no", True)])


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"task": "spam", "model": "me/weak"},
        {"link": 1, "trained_on": "0" * 16, "hard_labels": False, "seed": 0},
        {"dataset": "imdb", "Task": ["a", 1], "task": {"name": "a", "Name": None}, "share": 0.5, "none": None},
    ],
    ids=["empty", "partial", "chain", "other"],
)
@pytest.mark.parametrize("make", [weak_labels, weak_completions])
def test_labels_of_any_provenance_have_a_card(make, provenance, tmp_path):
    labels = dataclasses.replace(make(), provenance=provenance)
    labels.save(tmp_path)
    card = label_files(tmp_path, "me/labels")["README.md"].decode()
    assert f"for {len(labels)} rows" in card and f"from w2s_hf import {type(labels).__name__}" in card
    assert type(labels).load(tmp_path).provenance == provenance
    assert ("imdb" in card.split("labels of the dataset")[1]) == ("dataset" in provenance)


@pytest.mark.parametrize("make", [weak_labels, weak_completions])
def test_labels_keep_their_weights_and_join_them(make, tmp_path):
    plain = make()
    weights = np.arange(len(plain), dtype=np.float64) / 4
    labels = dataclasses.replace(plain, weights=weights)
    joined = labels.join(rows(["r1", "r0"]))
    assert joined["weight"][:] == [0.25, 0.0] and joined.features["weight"].dtype == "float32"
    assert labels.weights_of(["r1"]).tolist() == [0.25] and plain.weights_of(["r1"]).tolist() == [1.0]
    assert labels.fingerprint != plain.fingerprint
    assert labels.fingerprint != dataclasses.replace(plain, weights=weights + 1).fingerprint
    labels.save(tmp_path / "w")
    loaded = type(labels).load(tmp_path / "w")
    assert np.array_equal(loaded.weights, labels.weights) and loaded.weights.dtype == np.float32
    assert loaded.fingerprint == labels.fingerprint
    assert load_dataset(str(tmp_path / "w"), split="train")["weight"][:] == weights.tolist()
    card = label_files(tmp_path / "w", "me/labels")["README.md"].decode()
    assert "| weight | weight of the row in training |" in card
    plain.save(tmp_path / "plain")
    assert type(plain).load(tmp_path / "plain").weights is None
    assert "weight" not in load_dataset(str(tmp_path / "plain"), split="train").column_names
    weighted_rows = rows(["r0"]).add_column("weight", [2.0])
    with pytest.raises(ValueError, match="labels with weights and rows with the column `weight`"):
        labels.join(weighted_rows)
    assert plain.join(weighted_rows)["weight"][:] == [2.0]


def test_a_fingerprint_without_weights_is_that_of_earlier_versions():
    assert (weak_labels().fingerprint, weak_completions().fingerprint) == ("7e784027da06fb78", "8d59f46d6341e81c")


@pytest.mark.parametrize("make", [weak_labels, weak_completions])
def test_weights_that_are_not_are_named(make):
    labels = make()
    for weights, message in (([1.0, -1.0], "got -1.0 in row r1"), ([1.0], f"got 1 weights for {len(labels)} labels")):
        weights = weights + [1.0] * (len(labels) - 2) if len(weights) > 1 else weights
        with pytest.raises(ValueError, match=f"{type(labels).__name__}: (weight: )?{message}"):
            dataclasses.replace(labels, weights=np.array(weights))


def test_a_mean_of_labels_with_weights_is_refused():
    weighted = dataclasses.replace(weak_labels(), weights=np.ones(4))
    with pytest.raises(ValueError, match="mean: got labels with weights"):
        WeakLabels.mean([weak_labels(), weighted])


@pytest.mark.parametrize("from_hub", [False, True], ids=["directory", "hub"])
@pytest.mark.parametrize(("make", "other"), [(weak_labels, WeakCompletions), (weak_completions, WeakLabels)])
def test_labels_of_the_other_kind_name_their_class(make, other, from_hub, tmp_path, monkeypatch):
    make().save(tmp_path)
    calls = []
    download = lambda repo_id, **options: calls.append(options) or str(tmp_path)  # noqa: E731
    monkeypatch.setattr("w2s_hf.labels.snapshot_download", download)
    place = "me/labels" if from_hub else str(tmp_path)
    message = f"{place}: .*expected the columns of {other.__name__}.*Load it with {type(make()).__name__}"
    with pytest.raises(ValueError, match=message):
        (other.from_hub if from_hub else other.load)(place)
    # A dataset may have gigabytes of other files, which are not downloaded.
    assert not from_hub or calls[0]["allow_patterns"] == ["weak_labels.parquet", "provenance.json"]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (None, FileNotFoundError, "without weak_labels.parquet and provenance.json"),
        ({}, ValueError, "without `fingerprint`"),
        ({"probabilities": "text"}, ValueError, "Pass a directory with labels of w2s_hf"),
    ],
    ids=["no files", "other provenance", "other columns"],
)
def test_directories_without_labels_are_named(columns, error, message, tmp_path):
    if columns is not None:
        (tmp_path / "provenance.json").write_text('{"name": "of something else"}')
        weak_labels().to_dataset().rename_columns(columns).to_parquet(tmp_path / "weak_labels.parquet")
    with pytest.raises(error, match=message):
        WeakLabels.load(tmp_path)


def test_a_provenance_that_is_not_json_leaves_no_files(tmp_path):
    labels = dataclasses.replace(weak_labels(), provenance={"accuracy": np.float32(0.5)})
    with pytest.raises(TypeError, match="float32"):
        labels.save(tmp_path / "w")
    assert not (tmp_path / "w").exists()
