"""Two ranks train and predict as one (gloo, CPU)."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_rows
from running import forked
from test_reward_pair import make_pairs

from w2s_hf.losses import LOSS_TYPES

SCRIPT = Path(__file__).with_name("distributed_script.py")


def run(tmp_path_factory, n_ranks: int) -> dict:
    output = tmp_path_factory.mktemp(f"ranks{n_ranks}") / "result.json"
    process = forked(SCRIPT, output, n_ranks=n_ranks)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    one, two = run(tmp_path_factory, 1), run(tmp_path_factory, 2)
    assert (one["world"], two["world"]) == (1, 2)
    return one, two


@pytest.mark.parametrize("cut", ["whole", "accumulated", "tokens"])
@pytest.mark.parametrize("loss_type", [*LOSS_TYPES, "pairs xent", "pairs confidence"])
def test_two_ranks_step_as_one(results, loss_type, cut):
    reference = torch.tensor(results[0]["trajectories"][f"{loss_type} whole"])
    assert reference.std(dim=0).min() > 1e-4, "every step is the same: the comparison would be vacuous"
    trajectory = torch.tensor(results[1]["trajectories"][f"{loss_type} {cut}"])
    torch.testing.assert_close(trajectory, reference, rtol=5e-4, atol=5e-6)


def test_ranks_cut_alike_where_a_pass_is_a_collective(results):
    reference = torch.tensor(results[0]["trajectories"]["xent whole"])
    trajectory = torch.tensor(results[1]["trajectories"]["xent tokens, cut alike"])
    torch.testing.assert_close(trajectory, reference, rtol=5e-4, atol=5e-6)
    freely, alike = results[1]["alike"]
    assert freely[0] != freely[1], "they would cut alike anyhow: the test would be vacuous"
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
