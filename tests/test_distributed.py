"""Tests that two ranks train and predict like one (gloo, CPU)."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import trl
from helpers.models import make_rows
from helpers.running import forked
from helpers.training import make_pairs
from packaging.version import Version

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SCRIPT = Path(__file__).parent / "helpers" / "distributed_script.py"


def run(tmp_path_factory, n_ranks: int) -> dict:
    output = tmp_path_factory.mktemp(f"ranks{n_ranks}") / "result.json"
    process = forked(SCRIPT, output, n_ranks=n_ranks)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(output.read_text()) | {"uneven": torch.load(output.with_suffix(".pt"))}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    one, two = run(tmp_path_factory, 1), run(tmp_path_factory, 2)
    assert (one["world"], two["world"]) == (1, 2)
    return one, two


@pytest.mark.parametrize("kind", ["classes", "pairs", "completions", "chain"])
def test_an_epoch_on_two_ranks_is_an_epoch_on_one_whatever_the_number_of_rows(results, kind):
    one, two = (result["uneven"] for result in results)
    names = [name for name in one if name.startswith(kind)]
    assert names and one.keys() == two.keys()
    for name in names:
        reference, other = one[name], two[name]
        close = partial(
            torch.testing.assert_close, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        close(other["steps"], reference["steps"])
        close(other["weights"], reference["weights"])
        assert other["counts"] == reference["counts"], name
        if "max_tokens" in name and kind == "pairs":
            continue  # TRL logs means over micro-batches, and more ranks have more of them
        assert len(other["logged"]) == len(reference["logged"])
        for got, expected in zip(other["logged"], reference["logged"], strict=True):
            for entry in (got, expected):
                entry.pop("window_kept_ratio", None)  # computed from the rows of rank 0
                if Version(trl.__version__) < Version("1.16"):
                    entry.pop("entropy", None)
                    entry.pop("eval_entropy", None)  # a mean over ranks that includes prompts and repeated rows
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-5), name


def test_a_loss_of_a_user_is_the_same_on_two_ranks(results):
    one, two = (torch.tensor(result["trajectories"]["own loss"]) for result in results)
    torch.testing.assert_close(two, one, rtol=5e-4, atol=5e-6)


@pytest.mark.parametrize("kind", ["classes", "completions"])
def test_a_resumed_epoch_has_the_rows_that_were_left_on_every_rank(results, kind):
    for result in results:
        whole, resumed = (result["uneven"][f"{kind} {name}"] for name in ("whole", "resumed"))
        torch.testing.assert_close(resumed["weights"], whole["weights"], rtol=0, atol=0)
        assert resumed["counts"] == whole["counts"]


def test_rows_that_cannot_be_split_are_spoken_of_at_the_start(results):
    own, *rebalanced, uneven = results[1]["said"]
    assert "some rows may be repeated or left out" in own
    assert all("repeated rows" in message for message in rebalanced)
    assert "got even_batches=False, expected True. Some of 2 processes would have no batch" in uneven


def test_weights_on_one_rank_only_are_refused_on_both(results):
    for errors in results[1]["weights"]:
        assert len(errors) == 2 and all("got batches with and without 'weight'" in error for error in errors)


def test_ranks_cut_alike_where_a_pass_is_a_collective(results):
    reference = torch.tensor(results[0]["trajectories"]["xent whole"])
    trajectory = torch.tensor(results[1]["trajectories"]["xent tokens, cut alike"])
    torch.testing.assert_close(trajectory, reference, rtol=5e-4, atol=5e-6)
    freely, alike = results[1]["alike"]
    assert freely[0] != freely[1], "if the micro-batches are equal anyway, the test is trivial"
    assert alike[0] == alike[1]


def test_two_ranks_predict_in_row_order(results):
    for name in ("predictions", "pairs"):
        one, two = (torch.tensor(result[name]) for result in results)
        assert one.shape == (21, 2) and one.std(dim=0).min() > 0.01
        torch.testing.assert_close(two, one, rtol=5e-4, atol=1e-5)


def test_compute_metrics_sees_rows_in_their_order(results):
    expected = {"rows": make_rows(21, "scalar")["labels"][:], "pairs": make_pairs(21, "random")["soft_label"][:]}
    for result in results:
        assert {name: pytest.approx(labels) for name, labels in expected.items()} == result["seen"]


def test_two_ranks_write_the_same_completions_in_row_order(results):
    one, two = results
    assert len({text for text, _ in one["completions"]}) > 5
    assert one["completions"] == two["completions"] and one["kept"] and two["kept"]
