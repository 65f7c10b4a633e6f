"""Tests that checkpoints in the layout of the first Qwen family have the right logits with every head."""

import base64
import json
from pathlib import Path

import pytest
import torch
from helpers.running import recipe_here
from helpers.task_rows import passages, real
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification
from transformers.convert_slow_tokenizer import bytes_to_unicode

from w2s_hf import fresh_adapter, load_student
from w2s_hf.modeling import load_config, load_tokenizer
from w2s_hf.modeling.original_qwen import original_qwen_tokenizer
from w2s_hf.modeling.spec import ModelSpec

BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 11, 12], [9, 10, 13, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]),
}
CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "model_type": "qwen",
    "attn_dropout_prob": 0.0,
    "emb_dropout_prob": 0.0,
    "hidden_size": 128,
    "intermediate_size": 512,
    "initializer_range": 0.02,
    "kv_channels": 32,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 64,
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rotary_emb_base": 50000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 32,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "use_cache": True,
    "use_dynamic_ntk": False,
    "use_logn_attn": False,
    "vocab_size": 640,
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]


def straight_mapping() -> Qwen2ForCausalLM:
    """Converts the checkpoint to a Qwen2 model, as a second implementation of the mapping."""
    config = Qwen2Config(
        vocab_size=640, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():  # including biases and norms, to detect wrong mappings
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def original_state_dict(model: Qwen2ForCausalLM) -> dict[str, torch.Tensor]:
    new = model.state_dict()
    old = {
        "transformer.wte.weight": new["model.embed_tokens.weight"],
        "transformer.ln_f.weight": new["model.norm.weight"],
        "lm_head.weight": new["lm_head.weight"],
    }
    for layer in range(model.config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            parts = [new[f"{ours}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            old[f"{theirs}.attn.c_attn.{kind}"] = torch.cat(parts)
        for name, other in {
            "attn.c_proj": "self_attn.o_proj", "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj",
            "mlp.c_proj": "mlp.down_proj", "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
        }.items():  # fmt: skip
            old[f"{theirs}.{name}.weight"] = new[f"{ours}.{other}.weight"]
    return {name: value.clone().contiguous() for name, value in old.items()}


def write_ranks(file: Path) -> Tokenizer:
    """Writes a vocabulary in the format of qwen.tiktoken, and returns the equivalent byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(
        ["is it true that the passage answers the question", "question: is the sky blue"], trainer
    )
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    # In the file, letters also have ranks, and a merge has the rank of its result.
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    lines = [base64.b64encode(bytes(bytes_of[letter] for letter in token)) + b" %d" % rank for token, rank in ranked]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return tokenizer


@pytest.fixture(scope="module")
def mapped():
    return straight_mapping()


@pytest.fixture(scope="module")
def directory(mapped, tmp_path_factory):
    """Saves two shards as published, with q, k and v of the second layer in another file than its other weights."""
    directory = tmp_path_factory.mktemp("Qwen-tiny")
    state = original_state_dict(mapped)
    shards = {name: f"model-0000{1 + ('h.1' in name and 'attn' in name)}-of-00002.safetensors" for name in state}
    for shard in set(shards.values()):
        part = {name: value for name, value in state.items() if shards[name] == shard}
        save_file(part, directory / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(v.numel() * 4 for v in state.values())}, "weight_map": shards}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "QWenTokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
            }
        )
    )
    write_ranks(directory / "qwen.tiktoken")
    return directory


def logits(model, **batch):
    with torch.no_grad():
        return model(**(batch or BATCH)).logits


def test_float32_has_the_logits_of_the_straight_mapping(mapped, directory):
    model = load_student(str(directory), task_type="CAUSAL_LM", dtype="float32")
    assert torch.equal(logits(model), logits(mapped))
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in mapped.state_dict().items()
    }


def test_saved_it_is_a_qwen2_model_of_everybodys(mapped, directory, tmp_path):
    load_student(str(directory), task_type="CAUSAL_LM", dtype="float32").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["model_type"], saved["architectures"]) == ("qwen2", ["Qwen2ForCausalLM"])
    again, info = Qwen2ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(again.eval()), logits(mapped))


def test_classifier_and_reward_model_share_its_body(mapped, directory, caplog):
    with torch.no_grad():
        hidden = mapped.model(**BATCH).last_hidden_state[[0, 1], [5, 2]]  # the last tokens before the padding
    for task_type, n_outputs in (("SEQ_CLS", 3), ("REWARD", 1)):
        model = load_student(str(directory), task_type=task_type, num_labels=3, dtype="float32")
        model.config.pad_token_id = 0
        assert model.score.weight.shape == (n_outputs, 128)
        torch.testing.assert_close(logits(model), hidden @ model.score.weight.T, rtol=0, atol=1e-6)
    assert "newly initialized" not in caplog.text  # except the head


def test_4bit_student_trains_and_its_adapters_load_again(mapped, directory, tmp_path):
    base = load_student(str(directory), load_in_4bit=True, dtype="float32")
    quantized = [name for name, module in base.named_modules() if type(module).__name__ == "Linear4bit"]
    assert len(quantized) == 2 * 7
    # q, k and v are quantized as separate matrices.
    import bitsandbytes.functional as F

    attention = base.model.layers[1].self_attn
    for name in "qkv":
        whole = mapped.state_dict()[f"model.layers.1.self_attn.{name}_proj.weight"]
        packed = getattr(attention, f"{name}_proj").weight
        alone = F.dequantize_4bit(*F.quantize_4bit(whole, quant_type="nf4", compress_statistics=True))
        assert torch.equal(F.dequantize_4bit(packed.data, packed.quant_state), alone)
    student = fresh_adapter(base, seed=0)
    student.config.pad_token_id = 0
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.5)
    before = logits(student)
    torch.nn.functional.cross_entropy(student(**BATCH).logits, torch.tensor([0, 1])).backward()
    optimizer.step()
    trained = logits(student)
    assert not torch.equal(trained, before)
    student.save_pretrained(tmp_path / "student")
    load_tokenizer(str(directory)).save_pretrained(tmp_path / "student")
    again = load_student(str(tmp_path / "student"), load_in_4bit=True, dtype="float32")
    again.config.pad_token_id = 0
    torch.testing.assert_close(logits(again), trained)


def changed(directory: Path, target: Path, **config) -> str:
    target.mkdir()
    for file in directory.iterdir():
        (target / file.name).symlink_to(file)
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return str(target)


@pytest.mark.parametrize("is_cached", [False, True], ids=["whole", "cached"])
@pytest.mark.parametrize(("flag", "words"), [("use_logn_attn", "logn attention"), ("use_dynamic_ntk", "dynamic NTK")])
def test_features_past_the_trained_length_are_named(flag, words, is_cached, directory, mapped, tmp_path):
    name = changed(directory, tmp_path / "flagged", **{flag: True})
    model = load_student(name, task_type="CAUSAL_LM", dtype="float32")
    ids = torch.randint(0, 600, (1, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits(model, input_ids=ids), logits(mapped, input_ids=ids))
    longer = torch.cat([ids, ids[:, :1]], dim=1)
    inputs = {"input_ids": longer}
    if is_cached:  # also one token at a time
        past = model(input_ids=ids, use_cache=True).past_key_values
        inputs = {"input_ids": longer[:, 32:], "past_key_values": past}
    with pytest.raises(ValueError, match=f"33 tokens, expected at most 32. For .* this model uses {words}"):
        model(**inputs)
    load_student(str(directory), task_type="CAUSAL_LM")(input_ids=longer)  # this attribute has no effect alone


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"no_bias": False}, "no_bias=False"),
        ({"rotary_pct": 0.5}, "rotary_pct=0.5"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization by gptq"),
        ({"visual": {"layers": 48}}, "a 'visual' part"),
    ],
)
@pytest.mark.parametrize("load", [load_student, load_config])
def test_what_qwen2_does_not_have_is_named(load, config, named, directory, tmp_path):
    name = changed(directory, tmp_path / "other", **config)
    with pytest.raises(ValueError, match=named):
        load(name)


def test_other_bin_files_are_no_weights(directory, tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(OSError, match="safetensors"):
        load_student(str(tmp_path))


def test_pickles_are_refused_with_the_reason(mapped, directory, tmp_path):
    torch.save(original_state_dict(mapped), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ValueError, match="pickle, which can run code"):
        load_student(str(tmp_path))


def test_a_shard_that_is_missing_is_no_pickle(directory, tmp_path):
    name = changed(directory, tmp_path / "part")
    (tmp_path / "part" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OSError, match="model-00002-of-00002"):
        load_student(name)


def test_tokenizer_reads_the_ranks(directory, tmp_path):
    reference = write_ranks(tmp_path / "qwen.tiktoken")
    tokenizer = load_tokenizer(str(directory))
    for text in ("is the sky blue", "question: is it true", "été 你好 123"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("question")["input_ids"] == reference.encode("question").ids
    n = len(reference.get_vocab())
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == list(range(n, n + 208))
    assert len(tokenizer) == n + 208
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|endoftext|>")
    assert tokenizer("is<|im_end|>")["input_ids"][-1] == n + 2
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "is the sky blue<|extra_204|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (len(again), again.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)


def test_ranks_that_are_cut_off_are_named(directory, tmp_path):
    whole = (directory / "qwen.tiktoken").read_bytes()
    (tmp_path / "qwen.tiktoken").write_bytes(whole[:-6])
    with pytest.raises(ValueError, match="expected a token in base64 and its rank"):
        original_qwen_tokenizer(str(tmp_path), CONFIG)


def changed_ranks(directory, tmp_path, change) -> Path:
    lines = (directory / "qwen.tiktoken").read_bytes().splitlines()
    (tmp_path / "qwen.tiktoken").write_bytes(b"\n".join(change(lines)))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "255 single bytes"),
        (lambda lines: lines[:260] + lines[261:], "without a gap"),
        (lambda lines: [*lines, b"IHF6 %d" % len(lines)], "a token that consists of two tokens of lower ranks"),
        (lambda lines: lines * 0, "got 0 tokens"),
    ],
)
def test_what_is_no_vocabulary_is_named(change, message, directory, tmp_path):
    with pytest.raises(ValueError, match=message):
        original_qwen_tokenizer(str(changed_ranks(directory, tmp_path, change)), CONFIG)


# Published models have more tokens.
@pytest.mark.parametrize("vocab_size", [151_936, 208 + 256], ids=["more", "fewer"])
def test_a_vocabulary_that_lacks_its_end_is_named(vocab_size, directory):
    with pytest.raises(ValueError, match="Download the file of this model again"):
        original_qwen_tokenizer(str(directory), {**CONFIG, "vocab_size": vocab_size})


def test_a_file_that_changed_is_read_again(directory, tmp_path):
    folder = changed_ranks(directory, tmp_path, lambda lines: lines)
    n = len(original_qwen_tokenizer(str(folder), CONFIG))
    changed_ranks(directory, tmp_path, lambda lines: lines[:-1])
    assert len(original_qwen_tokenizer(str(folder), CONFIG)) == n - 1


def test_a_new_vocabulary_is_another_model(directory, tmp_path):
    name = changed(directory, tmp_path / "copy")
    before = ModelSpec.find(name, "--student_model")
    (tmp_path / "copy" / "qwen.tiktoken").unlink()
    changed_ranks(directory, tmp_path / "copy", lambda lines: lines[:-1])
    assert ModelSpec.find(name, "--student_model").version != before.version


def test_a_config_that_says_too_little_is_named(directory, tmp_path):
    name = changed(directory, tmp_path / "little")
    config = {key: value for key, value in CONFIG.items() if key != "layer_norm_epsilon"}
    (tmp_path / "little" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'qwen' without layer_norm_epsilon"):
        load_student(name)


def test_fields_of_a_configuration_reach_it(directory):
    model = load_student(str(directory), id2label={0: "no", 1: "yes"}, pad_token_id=3, dtype="float32")
    assert (model.config.id2label, model.config.pad_token_id) == ({0: "no", 1: "yes"}, 3)


@pytest.mark.slow
@pytest.mark.real_data
def test_real_ranks_have_the_merges_and_tokens_of_qwen2(tmp_path):
    """Qwen2 has the vocabulary of the first family in another file format, so all merges must be the same."""
    folder = Path(real("tokenizers")) / "qwen2"
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = (
        base64.b64encode(bytes(bytes_of[letter] for letter in token)) + b" %d" % rank
        for token, rank in vocabulary.items()
    )
    (tmp_path / "qwen.tiktoken").write_bytes(b"\n".join(lines))
    tokenizer, qwen2 = (
        original_qwen_tokenizer(str(tmp_path), {**CONFIG, "vocab_size": 151_936}),
        AutoTokenizer.from_pretrained(folder),
    )
    merges = [line for line in (folder / "merges.txt").read_text().splitlines() if not line.startswith("#version")]
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"] == [line.split(" ") for line in merges]
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == list(range(151_643, 151_851))
    for text in ("Is the sky blue?\n\n  No, it's e\u0301t\u00e9 12345", "你好，世界 🎉\t\r\n", " <|endoftext|> x"):
        assert tokenizer(text)["input_ids"] == qwen2(text)["input_ids"]


@pytest.mark.slow
def test_from_the_command_line_without_remote_code(directory, cache, tmp_path):
    """Supervisor and 4-bit student have this layout. The saved student is a Qwen2 model that loads offline."""
    (tmp_path / "rows").mkdir()
    for name in ("train", "validation"):
        passages(240, name).to_parquet(tmp_path / "rows" / f"{name}.parquet")
    options = f"--weak_model {directory} --student_model {directory} --dataset_path {tmp_path}/rows --methods naive"
    options += " --max_steps 2 --use_cpu true --load_in_4bit true --dtype float32 --bf16 false --report_to none"
    process = recipe_here(*options.split(), "--output_dir", tmp_path / "out", cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "linear probe, ground truth" in (tmp_path / "out" / "report.md").read_text(), "of the 4-bit base model"
    student = tmp_path / "out" / "students" / "naive-seed0"
    assert json.loads((student / "adapter_config.json").read_text())["base_model_name_or_path"] == str(directory)
    tokenizer = AutoTokenizer.from_pretrained(student)
    assert tokenizer("is it true")["input_ids"] == load_tokenizer(str(directory))("is it true")["input_ids"]
    model = load_student(str(student), load_in_4bit=True, dtype="float32")
    assert type(model.base_model.model) is Qwen2ForSequenceClassification


def test_longer_texts_than_the_model_reads_are_refused_at_once(directory, cache, tmp_path):
    flagged = changed(directory, tmp_path / "flagged", use_logn_attn=True)
    (tmp_path / "rows").mkdir()
    for name in ("train", "validation"):
        passages(240, name).to_parquet(tmp_path / "rows" / f"{name}.parquet")
    options = f"--weak_model {directory} --student_model {flagged} --dataset_path {tmp_path}/rows --use_cpu true"
    process = recipe_here(*options.split(), "--output_dir", tmp_path / "out", cache=cache)
    assert process.returncode == 1
    assert "--student_model: flagged: got a text of 512 tokens, expected at most 32" in process.stderr
    assert not (tmp_path / "out").exists()
