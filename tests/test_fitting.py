"""Recipes ask whether a model fits before anything of it is loaded."""

import pytest
from conftest import make_model
from running import recipe_here
from test_splits import passages

from w2s_hf.experiments import fitting


@pytest.fixture(scope="module")
def options(tmp_path_factory, tokenizer):
    """Of a run with models and rows of our own."""
    directory = tmp_path_factory.mktemp("fitting")
    for name in ("train", "validation"):
        passages(240, name).to_parquet(directory / f"{name}.parquet")
    for name in ("weak", "strong"):
        make_model("llama").save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    names = f"--weak_model {directory}/weak --student_model {directory}/strong --dataset_path {directory}"
    others = "--methods naive --max_steps 1 --max_length 64 --use_cpu true --dtype float32 --report_to none"
    return f"{names} {others}".split()


def run(options, more, out, cache, patch, capacity):
    patch.setattr(fitting, "_capacity", lambda args: capacity)
    return recipe_here(*options, *more.split(), "--output_dir", out, cache=cache)


def test_what_cannot_fit_is_refused_before_anything_is_done(options, cache, tmp_path, monkeypatch):
    process = run(options, "", tmp_path / "out", cache, monkeypatch, 2**10)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "--weak_model weak: needs 0.0 GiB to train on one row of 64 tokens (weights" in process.stderr
    assert "does not fit with --gradient_checkpointing true either: take a smaller model" in process.stderr
    assert "--check_memory false" in process.stderr
    assert not (tmp_path / "out").exists()


def test_the_advice_fits(options, monkeypatch, tmp_path, cache):
    """A student in float32 that is too large, and what the message says that it would need in 4 bits."""
    seen = []
    estimate = fitting.StudentMemory.estimate

    def remember(self, *args):
        seen.append(estimate(self, *args))
        return seen[-1]

    monkeypatch.setattr(fitting.StudentMemory, "estimate", remember)
    weak = run(options, "--use_peft false", tmp_path / "first", cache, monkeypatch, 2**40)
    assert weak.returncode == 0, weak.stderr[-2000:]
    all_weights = seen[0].peak
    message = run(options, "--use_peft false", tmp_path / "second", cache, monkeypatch, all_weights - 1).stderr
    assert "needs" in message and "With --gradient_checkpointing true it needs" in message


def test_a_large_micro_batch_is_warned_of(options, cache, tmp_path, monkeypatch):
    seen = []
    estimate = fitting.StudentMemory.estimate
    monkeypatch.setattr(
        fitting.StudentMemory, "estimate", lambda self, *args: seen.append(estimate(self, *args)) or seen[-1]
    )
    more = "--per_device_train_batch_size 16"
    assert run(options, more, tmp_path / "first", cache, monkeypatch, 2**40).returncode == 0
    between = (seen[0].peak + seen[1].peak) // 2  # of one row, and of all 16, of the supervisor
    process = run(options, more, tmp_path / "second", cache, monkeypatch, between)
    assert process.returncode == 0, process.stderr[-2000:]
    assert "micro-batches of 16 rows of 64 tokens may need" in process.stderr
    budget = int(process.stderr.split("Take --max_tokens_per_micro_batch ")[1].split()[0])
    assert budget % 64 == 0 and 1 <= budget // 64 < 16


def test_it_can_be_turned_off(options, cache, tmp_path, monkeypatch):
    process = run(options, "--check_memory false", tmp_path / "out", cache, monkeypatch, 2**10)
    assert process.returncode == 0, process.stderr[-2000:]
