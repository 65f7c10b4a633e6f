"""Tests of students: all precisions, shared base models, and saving and loading with the head."""

import copy

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from helpers.models import BATCH, logits, make_rows
from helpers.training import LORA, arguments
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from peft.utils.integrations import dequantize_module_weight
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from w2s_hf import WeakToStrongTrainer, fresh_adapter, load_student
from w2s_hf.modeling import load_tokenizer
from w2s_hf.modeling.heads import initialise_head


@pytest.fixture
def directory_of(model_of, tokenizer, tmp_path):
    def save(kind):
        directory = tmp_path / kind
        model_of(kind).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return str(directory)

    return save


def train(model, tokenizer, tmp_path, **kwargs):
    trainer = WeakToStrongTrainer(
        model=model,
        args=arguments(tmp_path / "out", max_steps=6),
        train_dataset=make_rows(24),
        processing_class=tokenizer,
        **kwargs,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    ("load_in_4bit", "dtype"), [(False, "float32"), (False, "bfloat16"), (True, "float32"), (True, "bfloat16")]
)
def test_student_trains_saves_and_loads_with_its_head(kind, load_in_4bit, dtype, directory_of, tokenizer, tmp_path):
    base = load_student(directory_of(kind), load_in_4bit=load_in_4bit, dtype=dtype)
    student = fresh_adapter(base, LORA, seed=0)
    trainable = {name: value for name, value in student.named_parameters() if value.requires_grad}
    assert {value.dtype for value in trainable.values()} == {torch.float32}
    assert any("modules_to_save" in name for name in trainable)
    quantized = {type(module).__name__ for module in student.modules()}
    assert ("Linear4bit" in quantized) == load_in_4bit
    before = logits(student)
    train(student, tokenizer, tmp_path)
    after = logits(student)
    assert (after - before).abs().max() > 1e-3
    student.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    again = load_student(str(tmp_path / "student"), load_in_4bit=load_in_4bit, dtype=dtype)
    assert isinstance(again, PeftModel) and torch.equal(logits(again), after)


def test_student_loads_with_peft_alone(directory_of, tokenizer, tmp_path):
    trainer = train(load_student(directory_of("llama"), dtype="float32"), tokenizer, tmp_path, peft_config=LORA)
    trainer.save_model(str(tmp_path / "student"))
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "student", dtype="float32")
    assert torch.equal(logits(again), logits(trainer.model))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_fourbit_is_close_to_full_precision(kind, directory_of):
    directory = directory_of(kind)
    full, quantized = (load_student(directory, load_in_4bit=flag, dtype="float32") for flag in (False, True))
    difference = (logits(full) - logits(quantized)).abs().mean()
    assert 0 < difference < 0.5 * logits(full).abs().mean()
    head = quantized.classifier if kind == "bert" else quantized.score
    assert type(head) is torch.nn.Linear and head.weight.dtype == torch.float32


def test_a_finished_student_trains_on_only_if_asked_to(directory_of, tokenizer, tmp_path):
    model = load_student(directory_of("llama"), dtype="float32", peft_config=LORA)
    train(model, tokenizer, tmp_path).save_model(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    frozen = load_student(str(tmp_path / "student"), dtype="float32")
    with pytest.raises(ValueError, match="is_trainable=True"):
        train(frozen, tokenizer, tmp_path)
    before = logits(frozen)
    # Models given by name are loaded in float32, because all weights are trained.
    trainer = train(str(tmp_path / "student"), tokenizer, tmp_path)
    assert not torch.equal(logits(trainer.model), before)


def test_a_classifier_keeps_its_number_of_classes_and_its_dtype(directory_of, model_of, tokenizer, tmp_path):
    config = model_of("llama").config
    config.num_labels = 3
    LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(tmp_path / "three")
    loaded = load_student(str(tmp_path / "three"), dtype="auto")
    assert loaded.config.num_labels == 3 and loaded.model.embed_tokens.weight.dtype == torch.bfloat16
    assert load_student(directory_of("llama")).config.num_labels == 2
    with pytest.raises(ValueError, match="dtype: got 'bf16', expected bfloat16"):
        load_student(str(tmp_path / "three"), dtype="bf16")


def test_trainer_takes_a_name(directory_of, tmp_path):
    trainer = WeakToStrongTrainer(
        model=directory_of("llama"),
        args=arguments(tmp_path / "out"),
        train_dataset=make_rows(24),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        peft_config=LORA,
    )
    trainer.train()
    assert trainer.model.base_model.model.is_loaded_in_4bit
    assert trainer.predict_proba(make_rows(5, "none")).shape == (5, 2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_bfloat16_base_loaded_elsewhere_gets_a_float32_head(wrapped, model_of, tokenizer, tmp_path):
    model = model_of("llama").to(torch.bfloat16)
    if wrapped:
        model = get_peft_model(model, copy.deepcopy(LORA), autocast_adapter_dtype=False)
    trainer = train(model, tokenizer, tmp_path, peft_config=None if wrapped else LORA)
    dtypes = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32} and trainer.state.log_history[0]["loss"] > 0


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(tokenizer, tmp_path):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "bare")
    loaded = load_tokenizer(str(tmp_path / "bare"))
    assert loaded.pad_token_id == loaded.eos_token_id is not None
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "barer")
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"):
        load_tokenizer(str(tmp_path / "barer"))


def test_4_bit_weights_are_never_packed_for_inference(directory_of, tokenizer, tmp_path, monkeypatch):
    """Simulates a CPU with AVX512-BF16 instructions, on which bitsandbytes packs weights without a gradient."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    student = load_student(directory_of("llama"), load_in_4bit=True, dtype="float32")
    quantized = [module for module in student.modules() if isinstance(module, Linear4bit)]
    assert quantized and not any(module.support_avx512bf16_for_cpu for module in quantized)
    for module in quantized:  # a model that load_student did not create
        module.support_avx512bf16_for_cpu = True
    options = {"args": arguments(tmp_path), "processing_class": tokenizer, "peft_config": LORA}
    WeakToStrongTrainer(student, **options)
    assert not any(module.support_avx512bf16_for_cpu for module in quantized)


@pytest.mark.parametrize("from_init", [False, True], ids=["model", "model_init"])
def test_4_bit_weights_that_are_packed_are_refused(from_init, directory_of, tokenizer, tmp_path):
    student = load_student(directory_of("llama"), load_in_4bit=True, dtype="float32")
    student.model.layers[1].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    options = {"model_init": lambda: student} if from_init else {"model": student, "peft_config": LORA}
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*packed for inference"):
        WeakToStrongTrainer(args=arguments(tmp_path), processing_class=tokenizer, **options)


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_one_base_serves_many_students(load_in_4bit, directory_of, tokenizer, tmp_path):
    base = load_student(directory_of("llama"), load_in_4bit=load_in_4bit, dtype="float32")
    untrained = logits(base)
    first = fresh_adapter(base, LORA, seed=1)
    train(first, tokenizer, tmp_path)
    first_logits = logits(first)
    assert not torch.equal(first_logits, untrained)
    second = fresh_adapter(first, LORA, seed=1)
    assert list(second.peft_config) == ["default"]
    assert torch.equal(logits(second), untrained), "a part of the first student remains, for example its head"
    train(second, tokenizer, tmp_path)
    assert torch.equal(logits(second), first_logits), "the same seed and labels gave another student"
    assert LORA.modules_to_save is None, "the configuration was changed"


def test_head_initialisation(model_of):
    model = model_of("llama")
    initialise_head(model, "zeros")
    assert logits(model).abs().max() == 0
    initialise_head(model, "normal", seed=1)
    first = model.score.weight.clone()
    assert 0.1 < first.std() < 0.4  # initializer_range is 0.2
    initialise_head(model, "normal", seed=1)
    assert torch.equal(model.score.weight, first)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unembedding", "not a single known token"),  # this vocabulary has no "0"
        ("ones", "normal, zeros, unembedding or answers"),
    ],
)
def test_a_head_of_unknown_tokens_or_kind_is_refused(kind, message, model_of, tokenizer):
    with pytest.raises(ValueError, match=message):
        initialise_head(model_of("llama"), kind, tokenizer=tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_unembedding_head(tied, model_of, tmp_path):
    config = model_of("llama").config
    config.tie_word_embeddings = tied
    causal = LlamaForCausalLM(config)
    causal.save_pretrained(tmp_path)

    class Numbers:  # "0" is token 7, "1" is token 8
        unk_token_id = 3

        def __call__(self, text, **kwargs):
            return {"input_ids": [int(text) + 7]}

    model = load_student(str(tmp_path), dtype="float32")
    initialise_head(model, "unembedding", tokenizer=Numbers())
    assert torch.equal(model.score.weight, causal.get_output_embeddings().weight[[7, 8]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_type": "CLS"}, "SEQ_CLS, REWARD or CAUSAL_LM"),
        ({"load_in_4bit": True, "quantization_config": BitsAndBytesConfig()}, "expected one of them"),
    ],
)
def test_students_that_cannot_be_loaded(options, message, directory_of):
    with pytest.raises(ValueError, match=message):
        load_student(directory_of("llama"), **options)


def test_a_model_with_adapters_gets_no_others(model_of, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="already has adapters"):
        train(fresh_adapter(model_of(), LORA), tokenizer, tmp_path, peft_config=LORA)


def test_a_classifier_needs_two_outputs(model_of, tokenizer, tmp_path):
    config = model_of().config
    config.num_labels = 1
    reward = LlamaForSequenceClassification(config)
    with pytest.raises(ValueError, match="1 output,"):
        train(reward, tokenizer, tmp_path)


def test_a_base_with_another_head_gets_a_new_one_and_says_so(directory_of, caplog):
    reward_model = load_student(directory_of("bert"), task_type="REWARD", dtype="float32")
    assert reward_model.config.num_labels == 1 and reward_model.classifier.out_features == 1
    assert "a head of another size (classifier.weight (2, 64)), which is replaced by a new head" in caplog.text


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_head_counts_in_full_precision_under_autocast(kind, directory_of):
    """bfloat16 has 8 significant bits, so rewards near 20 would be multiples of 1/8."""
    student = fresh_adapter(load_student(directory_of(kind), task_type="REWARD"), seed=0)
    input_ids = torch.randint(4, 60, (40, 9), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        logits = student(input_ids).logits
    assert logits.dtype == torch.float32 and (logits != logits.bfloat16().float()).float().mean() > 0.9


def test_a_head_that_is_in_pieces_is_found(directory_of, monkeypatch):
    """ZeRO-3 partitions weights when they are loaded. A rank has a part or nothing, and the shape in `ds_shape`."""
    from_pretrained = LlamaForSequenceClassification.from_pretrained.__func__

    def in_pieces(cls, *args, **kwargs):
        model, info = from_pretrained(cls, *args, **kwargs)
        model.score.weight.ds_shape = model.score.weight.shape
        model.score.weight.data = torch.empty(0)
        return model, info

    monkeypatch.setattr(LlamaForSequenceClassification, "from_pretrained", classmethod(in_pieces))
    assert load_student(directory_of("llama"), dtype="float32").score.out_features == 2


# ---- Properties of real models and tokenizers ----


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM"])
@pytest.mark.parametrize("has_adapters", [False, True])
def test_tied_embeddings_are_saved_and_loaded(task_type, has_adapters, model_of, tokenizer, tmp_path):
    config = copy.deepcopy(model_of("llama").config)
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    student = load_student(str(tmp_path / "base"), task_type=task_type, dtype="float32")
    if has_adapters:
        student = fresh_adapter(student, LoraConfig(task_type=task_type, target_modules="all-linear"), seed=0)
    else:
        student.requires_grad_()
    student(**BATCH).logits.square().sum().backward()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad.sign())
    expected = logits(student)
    student.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    again = load_student(str(tmp_path / "student"), task_type=task_type, dtype="float32")
    assert torch.equal(logits(again), expected)
    base = again.get_base_model() if has_adapters else again
    if task_type == "CAUSAL_LM":
        assert base.lm_head.weight is base.get_input_embeddings().weight


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_rotary_frequencies_keep_float32(load_in_4bit, directory_of):
    """In bfloat16, the positions of a text of 8,192 tokens would be wrong by up to 16."""
    expected = load_student(directory_of("llama"), dtype="float32").model.rotary_emb.inv_freq
    student = load_student(directory_of("llama"), dtype="bfloat16", load_in_4bit=load_in_4bit)
    student = fresh_adapter(student, LORA, seed=0)
    frequencies = student.get_base_model().model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32 and torch.equal(frequencies, expected)


def test_4_bits_need_no_width_that_divides_by_the_block(tokenizer, tmp_path):
    """Blocks of 64 weights cross the ends of rows, and the last block of a matrix is incomplete."""
    size = {"hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = LlamaConfig(vocab_size=64, num_key_value_heads=1, pad_token_id=0, initializer_range=0.2, **size)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    student = fresh_adapter(load_student(str(tmp_path / "base"), load_in_4bit=True, dtype="float32"), LORA, seed=0)
    layer = student.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert layer.in_features % 64 and (layer.in_features * layer.out_features) % 64
    train(student, tokenizer, tmp_path)
    after = logits(student)
    with torch.no_grad():  # bitsandbytes has another code path for one row
        alone = student(input_ids=BATCH["input_ids"][1:, :2]).logits
    torch.testing.assert_close(alone, after[1:], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        weight = dequantize_module_weight(layer)
        inputs = torch.randn(3, 72)
        torch.testing.assert_close(layer(inputs), inputs @ weight.T, atol=1e-5, rtol=1e-5)
    student.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    again = load_student(str(tmp_path / "student"), load_in_4bit=True, dtype="float32")
    assert torch.equal(logits(again), after)
