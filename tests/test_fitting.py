"""Tests that recipes check the memory of models before they load weights."""

import copy
import pickle
from contextlib import nullcontext

import pytest
from helpers.models import make_model
from helpers.running import recipe_here
from helpers.task_rows import passages
from peft import LoraConfig
from transformers import FunnelConfig, Qwen2Config

from w2s_hf import CompletionConfig, RewardPairConfig, StudentConfig, WeakToStrongConfig
from w2s_hf.memory import StudentMemory, estimate_memory
from w2s_hf.memory import check as fitting
from w2s_hf.memory.check import check_fits
from w2s_hf.modeling.spec import ModelSpec


@pytest.fixture(scope="module")
def options(tmp_path_factory, tokenizer):
    """Returns the arguments of a run with local models and rows."""
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
    assert "--weak_model weak: needs 0.0 GiB to train on one row of 64 tokens, but only" in process.stderr
    assert "GiB are available. The parts are weights (0.0 GiB), gradients and optimizer (0.0) and" in process.stderr
    assert "does not fit with --gradient_checkpointing true either. Use a smaller model" in process.stderr
    assert "--check_memory false" in process.stderr
    assert not (tmp_path / "out").exists()


def test_it_can_be_turned_off(options, cache, tmp_path, monkeypatch):
    process = run(options, "--check_memory false", tmp_path / "out", cache, monkeypatch, 2**10)
    assert process.returncode == 0, process.stderr[-2000:]


# ---- The check itself ----


@pytest.fixture
def large(tmp_path):
    """Saves a configuration without weights, because nothing else is read."""
    Qwen2Config(
        vocab_size=2000, hidden_size=512, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=8,
    ).save_pretrained(tmp_path / "large")  # fmt: skip
    return str(tmp_path / "large")


def arguments(tmp_path, kind=WeakToStrongConfig, **kwargs):
    return kind(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", **{"max_length": 64, **kwargs})


def memory_of(large, **kwargs):
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
    return StudentMemory(large, peft_config=lora, **{"dtype": "float32", "bf16": False, **kwargs})


@pytest.mark.parametrize(
    ("missing", "is_followed", "message"),
    [
        (0, False, "Use --use_peft true --load_in_4bit true --gradient_checkpointing true, with which"),
        (1, False, "Use a smaller model, or a GPU with more memory"),
        (0, True, None),
    ],
    ids=["it would fit", "it would not", "it does"],
)
def test_a_student_is_told_of_four_bits(missing, is_followed, message, large, tmp_path, monkeypatch):
    quantized = memory_of(large, load_in_4bit=True, gradient_checkpointing=True).estimate(1, 64).peak
    assert quantized < memory_of(large, gradient_checkpointing=True).estimate(1, 64).peak
    monkeypatch.setattr(fitting, "_capacity", lambda args: quantized - missing)
    config = StudentConfig(dtype="float32", load_in_4bit=is_followed)
    student = ModelSpec.find(large, "--student_model", config)
    args = arguments(tmp_path, **({"gradient_checkpointing": True} if is_followed else {}))
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_fits(student, "--student_model", args, "SEQ_CLS")


def test_advice_that_has_no_estimate_does_not_hide_what_is_wrong(large, tmp_path, monkeypatch):
    """DoRA can be estimated without quantization, but not in 4 bits."""
    monkeypatch.setattr(fitting, "_capacity", lambda args: 1)
    student = ModelSpec.find(large, "--student_model", StudentConfig(dtype="float32", use_dora=True))
    with pytest.raises(ValueError, match="needs .* does not fit with --gradient_checkpointing true either. Use"):
        check_fits(student, "--student_model", arguments(tmp_path), "SEQ_CLS")


def test_a_pair_counts_twice_in_the_budget(large, tmp_path, monkeypatch, caplog):
    model = ModelSpec.find(large, "--student_model", StudentConfig(dtype="float32"))
    args = arguments(tmp_path, RewardPairConfig, per_device_train_batch_size=8, per_device_eval_batch_size=1,
                     max_tokens_per_micro_batch=2 * 64 * 3, bf16=False, gradient_checkpointing=False)  # fmt: skip
    three = memory_of(large, task_type="REWARD").estimate(3, 64).peak
    monkeypatch.setattr(fitting, "_capacity", lambda args: three)
    check_fits(model, "--student_model", args, "REWARD")
    assert "may need" not in caplog.text
    monkeypatch.setattr(fitting, "_capacity", lambda args: three - 1)
    check_fits(model, "--student_model", args, "REWARD")
    assert "micro-batches of 3 rows of 64 tokens may need" in caplog.text
    assert f"Use --max_tokens_per_micro_batch {2 * 64 * 2}" in caplog.text


def test_a_batch_of_prediction_is_warned_of(large, tmp_path, monkeypatch, caplog):
    model = ModelSpec.find(large, "--student_model", StudentConfig(dtype="float32"))
    args = arguments(tmp_path, per_device_train_batch_size=1, per_device_eval_batch_size=256)
    monkeypatch.setattr(fitting, "_capacity", lambda args: memory_of(large).estimate(1, 64).peak)
    check_fits(model, "--student_model", args, "SEQ_CLS")
    assert "predicting 256 rows of 64 tokens may need" in caplog.text


@pytest.mark.parametrize("config", [None, StudentConfig(dtype="float32")])
def test_writers_of_moves_are_estimated_and_have_no_budget(config, large, tmp_path, monkeypatch, caplog):
    model = ModelSpec.find(large, "--student_model", config)
    args = arguments(tmp_path, CompletionConfig, per_device_train_batch_size=8, bf16=False)
    monkeypatch.setattr(fitting, "_capacity", lambda args: 2**40)
    check_fits(model, "--student_model", args, "CAUSAL_LM")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    options = {"task_type": "CAUSAL_LM", "gradient_checkpointing": args.gradient_checkpointing, "bf16": False}
    peak = estimate_memory(
        large, peft_config=None if config is None else lora, dtype="float32", length=64, **options
    ).peak
    monkeypatch.setattr(fitting, "_capacity", lambda args: peak)
    check_fits(model, "--student_model", args, "CAUSAL_LM")
    assert "Use --per_device_train_batch_size 1 and a larger --gradient_accumulation_steps" in caplog.text


@pytest.mark.parametrize(
    ("config", "kwargs", "environment", "reason"),
    [
        ({}, {"optim": "adafactor"}, {}, "with --optim adafactor"),
        ({"load_in_8bit": True}, {}, {}, "in 8 bits"),
        ({}, {}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "under DeepSpeed"),
        ({}, {}, {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "FSDP offloads weights"),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
            {},
            {"ACCELERATE_USE_FSDP": "true"},
            "shards a 4-",
        ),
    ],
)
def test_what_is_not_estimated_is_said(config, kwargs, environment, reason, large, tmp_path, monkeypatch, caplog):
    args = arguments(tmp_path, **kwargs)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fitting, "_capacity", lambda args: 1)
    with caplog.at_level("INFO"):
        check_fits(
            ModelSpec.find(large, "--student_model", StudentConfig(**config)), "--student_model", args, "SEQ_CLS"
        )
    assert "memory is not estimated" in caplog.text and reason in caplog.text


def test_a_quantized_student_is_estimated_under_fsdp(large, tmp_path, monkeypatch):
    model = ModelSpec.find(large, "--student_model", StudentConfig(load_in_4bit=True))
    args = arguments(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(fitting, "_capacity", lambda args: 1)
    with pytest.raises(ValueError, match="--student_model large: needs"):
        check_fits(model, "--student_model", args, "SEQ_CLS")


def test_an_architecture_that_cannot_be_traced_is_not_refused(tmp_path, monkeypatch, caplog):
    FunnelConfig(vocab_size=100, d_model=32, n_head=2, d_head=16, d_inner=64).save_pretrained(tmp_path / "funnel")
    monkeypatch.setattr(fitting, "_capacity", lambda args: 1)
    model = ModelSpec.find(str(tmp_path / "funnel"), "--weak_model")
    check_fits(model, "--weak_model", arguments(tmp_path), "SEQ_CLS")
    assert (
        "model type 'funnel' with settings that cannot be estimated" in caplog.text
        and "whether the model fits is skipped" in caplog.text
    )


@pytest.mark.parametrize("student_config", [None, StudentConfig(use_peft=False), StudentConfig(dtype="float32")])
def test_equal_models_have_equal_stage_keys(student_config, large):
    model = ModelSpec.find(large, "--student_model", student_config)
    for equal in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), ModelSpec.find(large, "", student_config)):
        assert equal == model and equal.identity == model.identity


def test_student_without_adapters_is_another_model_than_supervisor(large):
    """Its memory is then checked, and its cached steps depend on its options."""
    supervisor = ModelSpec.find(large, "--weak_model")
    student = ModelSpec.find(large, "--student_model", StudentConfig(use_peft=False))
    assert student != supervisor and student.config == supervisor.config
    assert supervisor.identity["config"] is None and student.identity["config"]["use_peft"] is False


def test_processes_of_a_machine_share_it(tmp_path, monkeypatch):
    alone = fitting._capacity(arguments(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert fitting._capacity(arguments(tmp_path)) == pytest.approx(alone / 4, rel=0.2)
