"""Compares the estimate of memory with measured bytes of real models, and with calculations by hand."""

import copy
import json
import runpy
import subprocess
import sys

import pytest
import torch
from helpers.running import ROOT
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, Qwen2Config

from w2s_hf import fresh_adapter, load_student
from w2s_hf.memory import StudentMemory, config_of, estimate_memory, usable_bytes, with_layers
from w2s_hf.memory.__main__ import main
from w2s_hf.memory.estimate import GIB
from w2s_hf.memory.seed_models import SEED_MODELS
from w2s_hf.memory.shapes import quantized_bytes
from w2s_hf.modeling import disable_dropout

# The benchmark uses the same functions to measure real models.
peak_of = runpy.run_path(str(ROOT / "recipes" / "benchmarks" / "memory_on_cpu.py"))["peak_of"]

LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
CONFIGS = {
    "qwen2": Qwen2Config(
        vocab_size=2000, hidden_size=256, intermediate_size=640, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    ),
    "gpt2": GPT2Config(vocab_size=2000, n_embd=256, n_layer=5, n_head=4, n_positions=256, pad_token_id=0),
    "bert": BertConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4
    ),
}  # fmt: skip
CLASSES = {"qwen2": "Qwen2ForSequenceClassification", "gpt2": "GPT2ForSequenceClassification",
           "bert": "BertForSequenceClassification"}  # fmt: skip


def one_layer(kind: str):
    config = copy.deepcopy(CONFIGS[kind])
    config.num_hidden_layers = 1
    return config


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    import transformers

    found = {}
    for kind, config in CONFIGS.items():
        found[kind] = str(tmp_path_factory.mktemp(kind))
        getattr(transformers, CLASSES[kind])(config).save_pretrained(found[kind])
    return found


def bytes_of_weights(model) -> int:
    """Returns the bytes of frozen weights and buffers, including the constants that bitsandbytes stores."""
    total = sum(buffer.nbytes for buffer in model.buffers())
    for parameter in model.parameters():
        if parameter.requires_grad:
            continue
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = state.state2
            total += sum(t.nbytes for t in (state.absmax, state.code, state.offset, nested.absmax, nested.code))
    return total


def measure(model, n_rows: int, length: int, *, checkpointing: bool, bf16: bool) -> dict[str, int]:
    disable_dropout(model)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        if isinstance(model, PeftModel):
            model.enable_input_require_grads()
    ids, mask = torch.randint(1, 2000, (n_rows, length)), torch.ones(n_rows, length, dtype=torch.long)
    mask[0, length // 2 :] = 0  # a padded batch
    labels = torch.zeros(n_rows, dtype=torch.long)

    def step():
        kwargs = {} if model.config.model_type == "bert" else {"use_cache": False}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids, attention_mask=mask, **kwargs).logits
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    step()
    optimizer.step()  # creates its state; gradients stay, as during accumulation
    state = [t for entry in optimizer.state.values() for t in entry.values() if t.numel() > 1]
    return {
        "weights": bytes_of_weights(model),
        "trained": sum(p.nbytes for p in trained),
        "gradients": sum(p.grad.nbytes for p in trained),
        "optimizer": sum(t.nbytes for t in state),
        "activations": peak_of(step),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "way", "checkpointing", "bf16", "n_rows"),
    [
        ("qwen2", "4bit", True, True, 4),
        ("qwen2", "4bit", False, False, 4),
        ("qwen2", "4bit", True, True, 1),  # with few tokens, a 16-bit matrix has the largest share
        ("qwen2", "all", True, True, 4),  # autocast keeps a second copy in 16 bits
        ("gpt2", "all", False, False, 4),
        ("bert", "lora", False, True, 4),
    ],
)
def test_estimate_is_what_is_measured(kind, way, checkpointing, bf16, n_rows, directories):
    dtype, length = "bfloat16" if bf16 else "float32", 64 if n_rows > 1 else 8
    peft_config = None if way == "all" else LORA
    model = load_student(directories[kind], load_in_4bit=way == "4bit", dtype="float32" if way == "all" else dtype)
    if peft_config is not None:
        model = fresh_adapter(model, peft_config)
    found = measure(model, n_rows, length, checkpointing=checkpointing, bf16=bf16)
    estimate = estimate_memory(
        CONFIGS[kind], load_in_4bit=way == "4bit", dtype=dtype, peft_config=peft_config, n_rows=n_rows, length=length,
        gradient_checkpointing=checkpointing, bf16=bf16,
    )  # fmt: skip
    for name in ("weights", "trained", "gradients", "optimizer"):
        assert getattr(estimate, name) == found[name], name
    assert estimate.activations == pytest.approx(found["activations"], rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_estimate_is_what_the_allocator_of_a_gpu_measures(tmp_path):
    """Compares within 10 %, for a student so large that tensors have the largest share of memory."""
    report = tmp_path / "report.json"
    options = ["--model", "Qwen/Qwen-1_8B", "--load_in_4bit", "--max_tokens", "2048", "--steps", "2"]
    script = ROOT / "recipes" / "benchmarks" / "student_on_gpu.py"
    subprocess.run([sys.executable, script, *options, "--output_file", report], check=True)
    report = json.loads(report.read_text())
    assert report["peak_bytes"] == pytest.approx(report["estimated_peak_bytes"], rel=0.1)


def test_nf4_by_hand():
    # 2 weights per byte, a constant per 64 weights, a float32 per 256 constants, an offset, tables of 256 and 16.
    assert quantized_bytes(64 * 256) == 8192 + 256 + 4 + 4 + 1024 + 64
    assert quantized_bytes(64 * 257) == 8224 + 257 + 8 + 4 + 1024 + 64
    assert quantized_bytes(64 * 256, double_quant=False) == 8192 + 4 * 256 + 64


def test_a_directory_wins_over_a_name_that_is_known(tmp_path, monkeypatch):
    CONFIGS["gpt2"].save_pretrained(tmp_path / "gpt2")
    assert config_of("gpt2").n_embd == config_of("openai-community/gpt2").n_embd == 768
    monkeypatch.chdir(tmp_path)
    assert config_of("gpt2").n_embd == 256


def test_all_layers_are_the_line_through_two():
    """
    Checks that the estimate for six layers, extrapolated from two and three, equals that of a pass through all six.
    """
    config = copy.deepcopy(CONFIGS["qwen2"])
    config.num_hidden_layers, config.layer_types = 6, ["full_attention"] * 6
    kwargs = {"load_in_4bit": True, "peft_config": LORA, "gradient_checkpointing": True}
    estimate = StudentMemory(config, **kwargs).estimate(2, 64, 4)
    whole = StudentMemory(config, traced_layers=(6,), **kwargs).estimate(2, 64, 4)
    assert estimate == whole


def test_a_pair_is_two_rows():
    kwargs = {"load_in_4bit": True, "peft_config": LORA, "length": 64}
    pairs = estimate_memory(one_layer("qwen2"), task_type="REWARD", n_rows=2, n_predicted_rows=3, **kwargs)
    rows = estimate_memory(one_layer("qwen2"), n_rows=4, n_predicted_rows=6, **kwargs)
    assert (pairs.activations, pairs.prediction) == pytest.approx((rows.activations, rows.prediction), rel=1e-3)


def test_a_language_model_keeps_its_cache_and_not_all_logits():
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    config = one_layer("qwen2")
    config.vocab_size = 20_000
    memory = StudentMemory(config, task_type="CAUSAL_LM", peft_config=lora)
    small, large = memory.estimate(1, 64, 8), memory.estimate(1, 64, 16)
    cache_of_a_row = 2 * config.num_hidden_layers * 64 * 2 * 64 * 2  # k and v, layers, tokens, 2 heads of 64, 16 bits
    assert large.prediction - small.prediction >= 8 * cache_of_a_row
    assert large.prediction < 16 * 64 * config.vocab_size * 4


def test_what_sharding_divides():
    kwargs = {"gradient_checkpointing": True, "length": 64}
    whole, half = (estimate_memory(CONFIGS["gpt2"], n_gpus=n, sharded=True, **kwargs) for n in (1, 2))
    for name in ("trained", "gradients", "optimizer"):
        assert getattr(half, name) == getattr(whole, name) // 2
    assert half.activations == whole.activations
    alone = estimate_memory(CONFIGS["gpt2"], n_gpus=2, **kwargs)
    assert (alone.trained, alone.optimizer) == (whole.trained, whole.optimizer)
    assert alone.activations < whole.activations, "a sharded layer is gathered"


def test_the_largest_micro_batch_fits_and_one_more_does_not():
    memory = StudentMemory(one_layer("gpt2"), gradient_checkpointing=True)

    def needs(n_rows):
        return memory.estimate(n_rows, 64).training_peak

    for capacity, most in ((needs(7), 7), (needs(7) - 1, 6), (needs(1) - 1, 0)):
        assert memory.largest_micro_batch(capacity, 64) == most
    assert memory.largest_micro_batch(needs(7), 64, at_most=3) == 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"load_in_4bit": True}, "no adapters"),
        ({"load_in_4bit": True, "peft_config": LORA, "sharded": True, "n_gpus": 2}, "sharded=True"),
        ({"optim": "adafactor"}, "optim: got 'adafactor', expected one of adamw_torch"),
    ],
)
def test_what_is_not_estimated_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        estimate_memory(CONFIGS["qwen2"], **kwargs)


# Published sizes, in millions of weights.
PUBLISHED = {
    "gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558, "Qwen/Qwen-1_8B": 1837, "Qwen/Qwen-7B": 7721,
    "Qwen/Qwen-14B": 14_167, "Qwen/Qwen-72B": 72_288, "Qwen/Qwen2.5-0.5B": 494, "Qwen/Qwen2.5-1.5B": 1544,
    "Qwen/Qwen2.5-3B": 3086, "Qwen/Qwen2.5-7B": 7616, "Qwen/Qwen2.5-14B": 14_770, "Qwen/Qwen2.5-32B": 32_764,
    "Qwen/Qwen2.5-72B": 72_706, "Qwen/Qwen3-0.6B-Base": 596, "Qwen/Qwen3-1.7B-Base": 1721, "Qwen/Qwen3-4B-Base": 4022,
    "Qwen/Qwen3-8B-Base": 8191, "Qwen/Qwen3-14B-Base": 14_768,
}  # fmt: skip


def test_seed_models_have_their_published_sizes():
    assert set(PUBLISHED) == set(SEED_MODELS)

    def count(config) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())

    for name, millions in PUBLISHED.items():
        config = config_of(name)
        few, one_more = (count(with_layers(config, n)) for n in (1, 2))  # all layers are equal
        n = few + (config.num_hidden_layers - 1) * (one_more - few)
        assert round(n / 1e6) == pytest.approx(millions, abs=1), name


def test_a_72b_student_fits_one_gpu_of_80_gib_by_the_estimate():
    """Calculates the weights by hand: 80 layers in nf4, the embedding in 16 bits. No number was measured on a GPU."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
    estimate = estimate_memory(
        "Qwen/Qwen-72B", load_in_4bit=True, peft_config=lora, n_rows=16, length=512, gradient_checkpointing=True
    )
    d, mlp = 8192, 24_576
    layer = 4 * quantized_bytes(d * d) + 3 * quantized_bytes(d * mlp) + 2 * (3 * d + 2 * d)
    by_hand = 80 * layer + 2 * 152_064 * d + 2 * d + 4 * 2 * d  # biases, norms; embedding; last norm; first head
    assert estimate.weights == pytest.approx(by_hand, abs=10_000)  # rotary tables
    assert estimate.trained == 4 * (80 * 16 * (4 * 2 * d + 3 * (d + mlp)) + 2 * d)
    assert estimate.peak < usable_bytes(80 * GIB)


@pytest.mark.slow
def test_command_line(capsys, tmp_path):
    one_layer("gpt2").save_pretrained(tmp_path)  # a model of one layer
    main([str(tmp_path), "--gpus", "2x4", "--length", "64"])
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| LoRA, 4-bit base", "| LoRA, bfloat16 base", "| all weights", "| LoRA, bfloat16 base, sharded",
        "| all weights, sharded",
    ]  # fmt: skip
    assert "GPUs: 2, each with 4.0 GiB, of which 2.8 are usable" in out
    main(["--list"])
    listed = capsys.readouterr().out
    assert all(f"| {name} |" in listed for name in SEED_MODELS) and "| gpt2-medium | 5e-05 |" in listed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gpt2", "--gpus", "80"], "got '80', expected COUNTxGIB such as 1x80"),
        (["gpt2", "--gpus", "0x80"], "expected COUNTxGIB"),
        ([], "Got no model, expected a model or --list"),
        (["no/such/model"], "`w2s memory --list` prints the models whose shapes are known offline"),
    ],
)
def test_command_line_says_what_is_wrong(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert message in capsys.readouterr().err + str(stopped.value)
