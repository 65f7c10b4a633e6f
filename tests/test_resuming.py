"""Tests that a resumed training equals an uninterrupted one, or raises an error with the reason at its start."""

import copy
import gc
import math
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from helpers.chains import LORA, SPECIAL, student
from helpers.models import make_character_tokenizer, make_language_model, make_model, make_rows, make_tokenizer
from helpers.training import Stop, arguments, make_pairs, rows_of
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    GPT2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForSequenceClassification,
    TrainerCallback,
    set_seed,
)

from w2s_hf import (
    CompletionConfig,
    CompletionTrainer,
    RewardPairConfig,
    RewardPairTrainer,
    WeakToStrongConfig,
    WeakToStrongTrainer,
)

OTHER_LORA = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2)  # PEFT would load it without a warning
KINDS = ("classes", "adapters", "pairs", "completions")
# 4 steps per epoch. The training stops in the middle of the second epoch.
OPTIONS = {
    "max_steps": 6, "per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1,
    "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss",
    "learning_rate": 0.1, "lr_scheduler_type": "linear", "bf16": False, "gradient_checkpointing": False,
}  # fmt: skip


class CountSteps(TrainerCallback):
    def __init__(self):
        self.n_steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.n_steps += 1


def make(kind: str, directory: Path, callbacks=(), model=None, rows=None, **options):
    """Returns a trainer on 16 rows. Evaluation rows have swapped labels, so that the score decreases in training."""
    options, callbacks = {**OPTIONS, **options}, list(callbacks)
    set_seed(0)
    if kind == "completions":
        tokenizer = make_character_tokenizer()
        model = make_language_model(tokenizer, small=True) if model is None else model
        rows, args = rows_of(16) if rows is None else rows, arguments(directory, CompletionConfig, **options)
        others = rows.select(range(4)).map(lambda row: {"completion": " Q"})
        return CompletionTrainer(model, args, rows, others, tokenizer, callbacks=callbacks)
    if kind == "pairs":
        cls, config = RewardPairTrainer, RewardPairConfig
        given = {"model": student(0, num_labels=1), "train_dataset": make_pairs(16, "random")}
        given["eval_dataset"] = given["train_dataset"].map(lambda row: {"soft_label": 1 - row["soft_label"]})
    else:
        cls, config = WeakToStrongTrainer, WeakToStrongConfig
        given = {"model": student(0), "train_dataset": make_rows(16)}
        given["eval_dataset"] = given["train_dataset"].map(lambda row: {"labels": row["labels"][::-1]})
    if kind == "adapters":
        given["peft_config"] = options.pop("peft_config", LORA)
    given |= {name: value for name, value in (("model", model), ("train_dataset", rows)) if value is not None}
    args = arguments(directory, config, **options)
    return cls(args=args, processing_class=make_tokenizer(), callbacks=callbacks, **given)


def stopped(kind: str, directory: Path, step: int, **options) -> None:
    """Starts a training and stops it after a step."""
    with pytest.raises(KeyboardInterrupt):
        make(kind, directory, [Stop(step)], **options).train()


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_same_end(resumed, whole) -> None:
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("global_step", "max_steps", "epoch", "best_global_step", "best_metric"):
        assert getattr(resumed.state, name) == getattr(whole.state, name), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the final state of an uninterrupted training."""
    trained = {}

    def train(kind: str):
        if kind not in trained:
            trainer = make(kind, tmp_path_factory.mktemp(kind))
            output = trainer.train()
            assert 0 < trainer.state.best_global_step < 6, "the last step is the best, so the test is trivial"
            trained[kind] = trainer, output
        return trained[kind]

    return train


@pytest.mark.parametrize("step", [5, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_training_ends_as_if_it_had_not_been_also_in_a_directory_that_was_moved(
    kind, step, whole, tmp_path, monkeypatch
):
    uninterrupted, output = whole(kind)
    stopped(kind, tmp_path / "before", step)
    (tmp_path / "before").rename(tmp_path / "after")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # a relative path, as the one in trainer_state.json may be
    count = CountSteps()
    trainer = make(kind, Path("../after"), [count], save_total_limit=2)
    resumed = trainer.train(True if step == 6 else f"../after/checkpoint-{step}/")
    assert count.n_steps == 6 - step
    assert_same_end(trainer, uninterrupted)
    assert resumed.global_step == 6
    if step == 6:
        assert resumed.training_loss == resumed.metrics["train_loss"] == pytest.approx(output.training_loss, rel=1e-3)
        assert trainer.state.log_history[-1]["train_loss"] == resumed.training_loss
    last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert last["eval_loss"] == pytest.approx(uninterrupted.state.log_history[-2]["eval_loss"])
    if kind != "classes" and kind != "adapters":
        assert last["eval_num_tokens"] == uninterrupted.state.log_history[-2]["eval_num_tokens"]


@pytest.mark.parametrize(("ratio", "is_other"), [(1 / 3, False), (0.5, True)])
def test_ratios_of_steps_are_compared_as_steps(ratio, is_other, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("transformers.trainer_utils.logger.warning_once", warnings.append)
    steps = {"save_strategy": "steps", "eval_strategy": "steps", "load_best_model_at_end": False}
    names = ("logging_steps", "eval_steps", "save_steps")
    stopped("classes", tmp_path, 4, **steps, **dict.fromkeys(names, 1 / 3))
    trainer = make("classes", tmp_path, **steps, **dict.fromkeys(names, ratio))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert all(getattr(trainer.args, name) == ratio for name in names), "the arguments are unchanged"
    assert [f"{name}: 3 (from args) != 2 (from" in text for text in warnings for name in names] == 3 * [
        True
    ] * is_other


def test_the_loss_of_a_training_without_logs_is_not_known(tmp_path):
    stopped("classes", tmp_path, 6, logging_strategy="no")
    assert math.isnan(make("classes", tmp_path, logging_strategy="no").train(True).training_loss)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_callback_states_and_strategies_by_epoch(strategy, tmp_path):
    options = {"save_strategy": strategy, "eval_strategy": strategy, "restore_callback_states_from_checkpoint": True}
    trainer = make("classes", tmp_path / "whole", [EarlyStoppingCallback(9)], **options)
    trainer.train()
    with pytest.raises(KeyboardInterrupt):
        make("classes", tmp_path / "stopped", [EarlyStoppingCallback(9), Stop(6)], **options).train()
    resumed = make("classes", tmp_path / "stopped", [EarlyStoppingCallback(9)], **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, trainer)


def test_the_best_adapters_are_loaded_whatever_they_are_called(tmp_path):
    set_seed(0)
    model = get_peft_model(student(0), copy.deepcopy(LORA), adapter_name="strong")
    trainer = make("adapters", tmp_path, peft_config=None, model=model)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-6", "the last step is the best, so the test is trivial"
    saved, loaded = load_file(best / "adapter_model.safetensors"), get_peft_model_state_dict(trainer.model)
    assert saved and all(torch.equal(loaded[name], weight) for name, weight in saved.items())


def test_adapters_beside_a_resized_embedding_are_resumed(tmp_path):
    """PEFT saves the embedding, too, which is called `wte` in GPT-2."""
    make_model("gpt2").save_pretrained(tmp_path / "base")

    def resized(**options):
        model = GPT2ForSequenceClassification.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(65, mean_resizing=False)
        return make("adapters", tmp_path / "out", model=model, **options)

    resized(max_steps=1).train()
    saved = load_file(tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors")
    assert "base_model.model.transformer.wte.weight" in saved, "the test is trivial"
    trainer = resized(max_steps=2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
RENAMED = {
    "completions": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SPECIAL | TINY | {"vocab_size": 128})),
    "classes": lambda: MixtralForSequenceClassification(
        MixtralConfig(**SPECIAL | TINY, num_key_value_heads=2, num_local_experts=2)
    ),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_models_that_are_saved_under_other_names_are_resumed_and_their_best_weights_loaded(kind, tmp_path):
    def make_renamed(directory, *callbacks):
        set_seed(0)
        return make(kind, directory, callbacks, model=RENAMED[kind]())

    trainer = make_renamed(tmp_path / "whole")
    trainer.train()
    assert 0 < trainer.state.best_global_step < 6, "the last step is the best, so the test is trivial"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)
    with pytest.raises(KeyboardInterrupt):
        make_renamed(tmp_path / "stopped", Stop(5)).train()
    resumed = make_renamed(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, trainer)
    losses = [[e["eval_loss"] for e in t.state.log_history if "eval_loss" in e][:6] for t in (trainer, resumed)]
    assert losses[0] == losses[1]


VIRTUAL = {
    "p-tuning": PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=2, encoder_hidden_size=4),
    "projected": PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, encoder_hidden_size=4, prefix_projection=True
    ),
}


@pytest.mark.parametrize("is_resumed", [False, True], ids=["best", "resumed"])
@pytest.mark.parametrize(("base", "name"), [("bert", "p-tuning"), ("llama", "projected")])
def test_virtual_tokens_of_an_encoder_are_not_loaded_again(base, name, is_resumed, tmp_path):
    count = CountSteps()

    def train(**options):
        options |= {"load_best_model_at_end": not is_resumed, "max_steps": 1, "peft_config": VIRTUAL[name]}
        resume = options.pop("resume", False)
        make("adapters", tmp_path, [count], model=make_model(base), **options).train(resume_from_checkpoint=resume)

    if is_resumed:
        train()  # a training that loads no checkpoint
        assert count.n_steps == 1
    with pytest.raises(ValueError, match="whose checkpoints lack the encoder of its virtual tokens"):
        train(resume=is_resumed)
    assert count.n_steps == is_resumed


@pytest.mark.parametrize("kind", ["classes", "adapters", "pairs"])  # TRL's SFTTrainer does not
def test_a_trainer_that_is_gone_frees_its_model(kind, tmp_path):
    """Memory is freed without the garbage collector."""
    trainer = make(kind, tmp_path, max_steps=1, load_best_model_at_end=False)
    trainer.train()
    model = weakref.ref(trainer.model)
    gc.disable()
    try:
        del trainer
        assert model() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["classes", "completions"])
@pytest.mark.parametrize("options", [{"train_sampling_strategy": "group_by_length"}, {"dataloader_num_workers": 1},
                                     {"accelerator_config": {"use_seedable_sampler": False}}], ids=str)  # fmt: skip
def test_the_rows_of_a_resumed_epoch_are_those_that_were_left(kind, options, tmp_path):
    options |= {"load_best_model_at_end": False, "eval_strategy": "no", "save_steps": 5}
    trainer = make(kind, tmp_path / "whole", **options)
    trainer.train()
    stopped(kind, tmp_path / "stopped", 5, **options)
    torch.manual_seed(7)  # the state of the global generator does not matter
    resumed = make(kind, tmp_path / "stopped", **options)
    torch.manual_seed(7)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, trainer)


@pytest.mark.parametrize("n_left", [1, 0])
def test_early_stopping_goes_on_counting(n_left, tmp_path):
    def make_stopping(directory, *more):
        # The largest loss is the second.
        options = {"learning_rate": 0.3, "greater_is_better": True}
        return make("pairs", directory, [EarlyStoppingCallback(3), *more], **options)

    trainer = make_stopping(tmp_path / "whole")
    trainer.train()
    end = trainer.state.global_step
    assert end < 6, "it did not stop early, so the test is trivial"
    with pytest.raises(KeyboardInterrupt):
        make_stopping(tmp_path / "stopped", Stop(end - n_left)).train()
    resumed = make_stopping(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, trainer)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Returns the directories of trainings that were stopped after step 5."""
    directories = {}

    def stop(kind: str) -> Path:
        if kind not in directories:
            directories[kind] = tmp_path_factory.mktemp(f"stopped-{kind}")
            stopped(kind, directories[kind], 5)
        return directories[kind]

    return stop


def best_is_gone(directory):
    for checkpoint in directory.glob("checkpoint-[1234]"):
        shutil.rmtree(checkpoint)


def cut(name):
    def cut_off(directory):
        file = directory / "checkpoint-5" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut_off


NEW_WORKERS = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "disable_dropout": False}


def without(*names):
    return lambda directory: [(directory / "checkpoint-5" / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("kind", "change", "options", "message"),
    [
        ("classes", best_is_gone, {}, r"checkpoint-\d \(step \d\) is neither next to the resumed checkpoint nor at"),
        ("classes", without("optimizer.pt", "scheduler.pt"), {}, "without optimizer.pt, scheduler.pt"),
        ("pairs", without("scheduler.pt"), {}, "without scheduler.pt"),
        ("completions", without("rng_state.pth"), {"disable_dropout": False}, "without rng_state.pth"),
        ("classes", None, NEW_WORKERS, "dataloader_persistent_workers=True with dropout"),
        ("classes", cut("optimizer.pt"), {}, "optimizer.pt is truncated"),
        ("classes", cut("model.safetensors"), {}, "model.safetensors is truncated"),
        ("adapters", cut("trainer_state.json"), {}, "trainer_state.json is missing or truncated"),
        ("classes", None, {"max_steps": 4}, "max_steps: got 4, expected at least 5"),
        ("classes", None, {"per_device_train_batch_size": 8}, "rows per optimizer step: got 8, expected 4"),
        ("pairs", None, {"gradient_accumulation_steps": 2}, "rows per optimizer step: got 8, expected 4"),
        ("completions", None, {"rows": rows_of(17)}, "rows: got 17, expected 16"),
        ("classes", None, {"data_seed": 1}, "data_seed: got 1, expected 42"),
        ("classes", None, {"dataloader_drop_last": True}, "dataloader_drop_last: got True"),
        ("classes", None, {"train_sampling_strategy": "sequential"}, "train_sampling_strategy: got 'sequential'"),
        ("classes", None, {"model": "adapters"}, "checkpoint of another model"),
        ("adapters", None, {"peft_config": OTHER_LORA}, "adapters of another model"),
    ],
)  # fmt: skip
def test_what_cannot_be_resumed_is_refused_before_its_first_step(
    kind, change, options, message, checkpoints, tmp_path
):
    directory = shutil.copytree(checkpoints(kind), tmp_path / "stopped")
    if change is not None:
        # In a copy, trainer_state.json refers to a directory that exists.
        state = directory / "checkpoint-5" / "trainer_state.json"
        state.write_text(state.read_text().replace(str(checkpoints(kind)), str(tmp_path / "gone")))
        change(directory)
    count, options = CountSteps(), dict(options)
    if options.get("model") == "adapters":
        trainer = make("adapters", directory, [count])
    else:
        trainer = make(kind, directory, [count], **options)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(directory / "checkpoint-5"))
    assert count.n_steps == 0


def test_what_changes_nothing_is_not_refused(checkpoints, tmp_path, whole):
    directory = shutil.copytree(checkpoints("classes"), tmp_path / "stopped")
    (directory / "checkpoint-5" / "rng_state.pth").unlink()  # nothing draws random numbers
    (directory / "checkpoint-final").mkdir()  # of the user
    (directory / "checkpoint-6").mkdir()  # incomplete
    trainer = make("classes", directory, callbacks=[EarlyStoppingCallback(9)])  # new to the checkpoint
    trainer.train(resume_from_checkpoint=True)
    assert_same_end(trainer, whole("classes")[0])
    assert (directory / "checkpoint-final").is_dir()
    longer = make("classes", directory, max_steps=8)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 8
    with pytest.raises(ValueError, match="got True, expected a complete checkpoint in"):
        make("classes", tmp_path / "new").train(resume_from_checkpoint=True)


def test_a_best_checkpoint_that_is_gone_at_the_end_is_an_error(tmp_path):
    class Lose(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                shutil.rmtree(state.best_model_checkpoint)

    with pytest.raises(ValueError, match="is missing. The model has the weights of the last step, 6"):
        make("classes", tmp_path, [Lose()]).train()
