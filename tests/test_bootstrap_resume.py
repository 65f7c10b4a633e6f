"""Tests that an interrupted BootstrapTrainer resumes with equal results, and never mixes files of different runs."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.chains import LORA, N_LINKS, assert_same_chain, bootstrap, files, state_of, student, three_parts
from helpers.models import make_rows, make_tokenizer
from helpers.training import arguments, with_weights
from transformers import EarlyStoppingCallback, TrainerCallback

from w2s_hf import BootstrapTrainer, WeakLabels, WeakToStrongTrainer, load_student
from w2s_hf.trainers.chain import ChainDirectory

# A learning rate so high that a later step is worse than an earlier one.
KEEP_BEST = {
    "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps",
    "save_steps": 1, "learning_rate": 0.3, "metric_for_best_model": "loss",
}  # fmt: skip


class Kill(TrainerCallback):
    """Stops the run at an event of a link, after a number of steps, as if the process were killed."""

    def __init__(self, trainer: BootstrapTrainer, link: int, event: str, n_steps: int):
        def stop(args, state, control, **kwargs):
            if trainer._link + 1 == link and state.global_step >= n_steps:
                raise KeyboardInterrupt

        setattr(self, event, stop)


class CountSteps(TrainerCallback):
    """Records the link of each training step."""

    def __init__(self, trainer: BootstrapTrainer):
        self.trainer, self.links = trainer, []
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        self.links.append(self.trainer._link + 1)


def train_and_kill(trainer: BootstrapTrainer, *when) -> None:
    trainer.add_callback(Kill(trainer, *when))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Kill)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trains a chain without interruption, with evaluation and the best step of each link."""
    directory = tmp_path_factory.mktemp("whole")
    bootstrap(directory, eval_dataset=three_parts(5), **KEEP_BEST).train()
    return directory


@pytest.mark.parametrize(
    ("when", "n_left"),
    [
        ((1, "on_step_begin", 0), 3),  # before any checkpoint
        ((2, "on_step_begin", 2), 1),
        ((2, "on_train_end", 3), 0),  # with a checkpoint of the last step, which is not the last of an epoch
        ((2, "on_predict", 3), 0),  # during labelling
        ((2, "rename", 3), 0),  # when the checkpoints are deleted, and the files that replace them are not renamed yet
    ],
)
def test_a_chain_that_was_stopped_ends_as_if_it_had_not_been(when, n_left, whole, tmp_path, monkeypatch):
    calls, before_move, tmp_path = [], tmp_path / "before", tmp_path / "after"

    def init(link):
        calls.append(link)
        return student(link)

    def rename(source, target, replace=os.replace):
        if Path(target).name == "link-2":
            raise KeyboardInterrupt
        replace(source, target)

    if when[1] == "rename":
        monkeypatch.setattr(os, "replace", rename)
    options = {"eval_dataset": three_parts(5), "model_init": init, **KEEP_BEST}
    is_moved = when[1] != "on_step_begin"
    trainer = bootstrap(before_move if is_moved else tmp_path, **options)
    train_and_kill(trainer, *when)
    monkeypatch.undo()
    if is_moved:
        before_move.rename(tmp_path)
    stopped = when[0]
    before = files(*(tmp_path / f"link-{link}" for link in range(1, stopped)))
    assert bool(before) == (stopped > 1) and not (tmp_path / f"link-{stopped}" / "link.json").exists()
    if when[1] == "on_train_end":
        (tmp_path / "link-2.partial").mkdir()
        (tmp_path / "link-2.partial" / "half-written").touch()
    if is_moved:
        trainer = bootstrap(tmp_path, **options)
    calls.clear()
    count = CountSteps(trainer)
    trainer.train(resume_from_checkpoint=True)
    assert count.links == [stopped] * n_left + [link for link in range(stopped + 1, 4) for _ in range(3)]
    assert calls == list(range(stopped - 1, N_LINKS)), "a finished link was loaded again"
    assert before.items() <= files(tmp_path).items()
    assert_same_chain(tmp_path, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.json", "link-1", "link-2", "link-3"]
    assert not list(tmp_path.rglob("checkpoint-*")) and not list(tmp_path.rglob("half-written"))


def test_the_best_step_of_a_link_teaches_the_next_and_is_chosen_by_the_labels_it_learns(whole, tmp_path):
    states = [state_of(whole, link) for link in (1, 2, 3)]
    assert any(state.best_global_step < state.global_step for state in states), "the last step was always the best"
    rows = three_parts(5)
    for link, state in enumerate(states, 1):
        part = rows[link - 1]
        if link > 1:
            labels = WeakLabels.load(whole / f"link-{link - 1}" / "labels" / "eval")
            part = labels.join(part)
        judge = WeakToStrongTrainer(
            model=load_student(str(whole / f"link-{link}"), dtype="float32"),
            args=arguments(tmp_path),
            processing_class=make_tokenizer(),
        )
        assert judge.evaluate(part)["eval_loss"] == pytest.approx(state.best_metric, rel=1e-5)


def test_a_finished_chain_is_read_and_not_trained(whole, tmp_path):
    calls = []
    before = files(whole)
    trainer = bootstrap(
        whole,
        eval_dataset=three_parts(5),
        model_init=lambda link: calls.append(link) or student(link),
        **KEEP_BEST,
    )
    count = CountSteps(trainer)
    with pytest.raises(ValueError, match="Call train"):
        trainer.predict_proba(make_rows(4))
    output = trainer.train(resume_from_checkpoint=True)
    assert calls == [2] and not count.links and files(whole) == before
    assert output.global_step == 3 and output.training_loss == output.metrics["train_loss"] > 0
    loaded = WeakToStrongTrainer(
        model=load_student(str(whole / "link-3"), dtype="float32"),
        args=arguments(tmp_path),
        processing_class=make_tokenizer(),
    )
    rows = make_rows(8, "none")
    assert np.array_equal(trainer.predict_proba(rows), loaded.predict_proba(rows))


PARTS, EVAL_PARTS, EXTRA = three_parts(), three_parts(5), make_rows(16, "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.1}, "learning_rate: got 0.1, expected 0.3"),
        ({"hard_labels": True}, "hard_labels: got True, expected False"),
        ({"rows": [*PARTS, EXTRA], "eval_dataset": [*EVAL_PARTS, EXTRA], "n_links": 4}, "n_links: got 4"),
        ({"peft_config": LORA}, "peft_config: got .*LORA"),
        ({"gradient_accumulation_steps": 2}, "rows_a_step: got 16, expected 8"),
        ({"rows": [make_rows(16, "hard"), *PARTS[1:]]}, "train_labels: got"),
        ({"rows": [*PARTS[:2], make_rows(16, "none", seed=7)]}, "train_rows: got"),
        ({"rows": [*PARTS[:2], with_weights(PARTS[2])]}, "train_rows: got"),
        ({"eval_dataset": [*EVAL_PARTS[:2], make_rows(3, "none")]}, "eval_rows: got"),
        ({"resume": None}, "link-1, link-2, link-3 of a chain are finished"),
        ({"resume": "link-2"}, "resume_from_checkpoint: got 'link-2', expected True"),
    ],
    ids=["learning rate", "hard labels", "links", "adapters", "rows a step", "labels", "rows", "weights",
         "evaluation rows", "not resumed", "resumed from a link"],
)  # fmt: skip
def test_other_settings_are_not_mixed_into_a_chain(changes, message, whole):
    before, changes = files(whole), {"eval_dataset": EVAL_PARTS, **KEEP_BEST, **changes}
    resume = changes.pop("resume", True)
    with pytest.raises(ValueError, match=message):
        bootstrap(whole, **changes).train(resume_from_checkpoint=resume)
    assert files(whole) == before


def test_a_chain_that_was_begun_before_an_argument_existed_is_resumed(tmp_path):
    chain, settings = ChainDirectory(tmp_path, N_LINKS), {"loss_type": "xent", "reverse_smoothing": 0.1, "loss": "a"}
    chain.begin({"loss_type": "xent", "loss": "a"})
    assert chain.resume(settings) == 0
    for changes, message in (
        ({"reverse_smoothing": 0.2}, "reverse_smoothing: got 0.2, expected 0.1"),
        ({"loss": "b"}, "loss: got 'b', expected 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            chain.resume(settings | changes)


def test_a_chain_that_was_not_begun_is_not_resumed(tmp_path):
    with pytest.raises(ValueError, match="expected a chain in"):
        bootstrap(tmp_path / "new").train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("is_replaced", "message"),
    [
        (False, "got no finished link, expected a finished link, since later links"),
        (True, "got a student trained on labels with the fingerprint .* two chains are mixed"),
    ],
    ids=["missing", "of another chain"],
)
def test_links_of_different_chains_are_not_mixed(is_replaced, message, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "link-2")
    if is_replaced:
        bootstrap(tmp_path / "other", three_parts(1), eval_dataset=EVAL_PARTS, **KEEP_BEST).train()
        (tmp_path / "other" / "link-2").rename(tmp_path / "one" / "link-2")
    with pytest.raises(ValueError, match=f"link-2: {message}"):
        bootstrap(tmp_path / "one", eval_dataset=EVAL_PARTS, **KEEP_BEST).train(resume_from_checkpoint=True)


def test_a_chain_that_begins_anew_takes_nothing_from_a_stopped_one(tmp_path):
    stopped = bootstrap(tmp_path / "out", save_strategy="steps", save_steps=1, learning_rate=0.1)
    train_and_kill(stopped, 1, "on_step_begin", 2)
    assert (tmp_path / "out" / "link-1" / "checkpoint-2").is_dir()
    train_and_kill(bootstrap(tmp_path / "out"), 1, "on_step_begin", 0)  # before its first checkpoint
    bootstrap(tmp_path / "out").train(resume_from_checkpoint=True)
    bootstrap(tmp_path / "new").train()
    assert_same_chain(tmp_path / "out", tmp_path / "new")


def test_early_stopping_begins_anew_with_every_link(tmp_path):
    options = {**KEEP_BEST, "max_steps": 8, "eval_dataset": three_parts(5), "learning_rate": 0.5}
    bootstrap(tmp_path, callbacks=[EarlyStoppingCallback(2)], **options).train()
    states = [state_of(tmp_path, link) for link in (1, 2, 3)]
    assert any(state.global_step < 8 for state in states)
    for state in states:
        assert state.global_step == min(8, state.best_global_step + 2)
