"""Tests the errors of all trainers before the first step, and the warnings that they give once."""

import dataclasses
import logging

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers.models import make_character_tokenizer, make_language_model, make_model, make_rows, make_tokenizer
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import (
    BitsAndBytesConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    TrainingArguments,
    XLNetConfig,
    XLNetForSequenceClassification,
    set_seed,
)
from trl import RewardConfig, SFTConfig

from w2s_hf import (
    BootstrapConfig,
    BootstrapTrainer,
    CompletionConfig,
    CompletionTrainer,
    RewardPairConfig,
    RewardPairTrainer,
    StudentConfig,
    WeakToStrongConfig,
    WeakToStrongTrainer,
    load_student,
)
from w2s_hf.collators import move_padding, split_by_tokens
from w2s_hf.config import computes_in_bfloat16
from w2s_hf.experiments.config import ClassificationArguments
from w2s_hf.experiments.experiment import Experiment, setting_of
from w2s_hf.generation import complete
from w2s_hf.tasks import find_task
from w2s_hf.trainers.checks import refuse_longer, refuse_misspelt

WORDS = make_tokenizer()
CHARACTERS = make_character_tokenizer()
TEXTS = [f"w{i} w{i + 1} w{2 * i}" for i in range(8)]
COLUMNS = {
    "classifier": {"text": TEXTS, "labels": [0.2, 0.9] * 4},
    "bootstrap": {"text": TEXTS, "labels": [0.2, 0.9] * 4},
    "pairs": {"chosen": TEXTS, "rejected": TEXTS[::-1]},
    "completions": {"prompt": ["a: ", "b: "] * 4, "completion": ["x", "yz"] * 4},
}
CONFIGS = {
    "classifier": WeakToStrongConfig,
    "bootstrap": BootstrapConfig,
    "pairs": RewardPairConfig,
    "completions": CompletionConfig,
}
KINDS = list(CONFIGS)
ONE_MODEL = ["classifier", "pairs", "completions"]


def model_for(kind: str):
    if kind == "completions":
        return make_language_model(CHARACTERS)
    model = make_model("llama")
    if kind != "pairs":
        return model
    model.config.num_labels = 1
    set_seed(0)
    return LlamaForSequenceClassification(model.config)


def trainer_for(kind: str, tmp_path, rows=None, *, model=None, config=None, **kwargs):
    """Returns a trainer on eight rows. `config` replaces its arguments or adds to them."""
    options = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1}
    options |= {"save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False}
    is_changes = config is None or (isinstance(config, dict) and "output_dir" not in config)
    args = CONFIGS[kind](**(options | (config or {}))) if is_changes else config
    rows = Dataset.from_dict(COLUMNS[kind]) if rows is None else rows
    tokenizer = CHARACTERS if kind == "completions" else WORDS
    common = {"args": args, "train_dataset": rows, "processing_class": tokenizer, **kwargs}
    if kind == "bootstrap":
        return BootstrapTrainer(model_init=lambda link: model or model_for(kind), n_links=2, **common)
    classes = {"classifier": WeakToStrongTrainer, "pairs": RewardPairTrainer, "completions": CompletionTrainer}
    return classes[kind](model=model_for(kind) if model is None else model, **common)


# ---- Arguments ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config_class", [TrainingArguments, RewardConfig, SFTConfig, "another trainer's", dict])
def test_arguments_of_another_class_name_the_one_expected(kind, config_class, tmp_path):
    if config_class == "another trainer's":
        config_class = CompletionConfig if kind != "completions" else RewardPairConfig
    fields = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}
    args = config_class(**fields) if config_class is dict else config_class(**fields, bf16=False)
    expected = f"args: got a {config_class.__name__}, expected a {CONFIGS[kind].__name__}. Create "
    with pytest.raises(ValueError, match=expected):
        trainer_for(kind, tmp_path, config=args)


@pytest.mark.parametrize("config_class", [RewardPairConfig, CompletionConfig])
def test_bf16_that_is_not_set_follows_the_device(config_class, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: has_gpu)
    monkeypatch.setattr("w2s_hf.config.is_torch_bf16_gpu_available", lambda: has_gpu)
    make = {"output_dir": str(tmp_path), "report_to": "none"}
    has_gpu = False
    logging.Logger.warning_once.cache_clear()
    args = [config_class(**make, **more) for more in ({}, {"use_cpu": True}, {"bf16_full_eval": False})]
    assert not any(one.bf16 for one in args) and caplog.text.count("The training uses float32") == 1
    assert not computes_in_bfloat16() and config_class(**make, use_cpu=True, bf16=True).bf16, (
        "an explicit value is kept"
    )
    assert dataclasses.replace(args[0], seed=1).bf16 is False
    has_gpu = True
    assert config_class(**make).bf16 and not config_class(**make, use_cpu=True).bf16
    assert not config_class(**make, fp16=True).bf16 and computes_in_bfloat16()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bf16", "bf16_full_eval"])
def test_bf16_without_a_device_for_it_says_what_to_set(kind, name, tmp_path):
    if computes_in_bfloat16():
        pytest.skip("this machine computes in bfloat16")
    with pytest.raises(ValueError, match=f"{name}: got True on a machine without .* --{name} false .*, {name}=False"):
        CONFIGS[kind](output_dir=str(tmp_path), **{"bf16": False, name: True})


@pytest.fixture
def slow_cpu(monkeypatch):
    """Simulates a CPU without instructions for bfloat16, and no GPU."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"architecture": "x86_64", "avx2": True})
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("w2s_hf.config.is_torch_bf16_gpu_available", lambda: False)
    logging.Logger.warning_once.cache_clear()


def test_memory_is_pinned_only_for_an_accelerator(monkeypatch, tmp_path):
    """torch warns if memory is pinned without one."""
    for is_available in (False, True):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: is_available)  # noqa: B023
        args = WeakToStrongConfig(output_dir=str(tmp_path), bf16=False)
        assert args.dataloader_pin_memory is is_available


SLOW = "about 40 times slower than float32. Set --dtype float32 --bf16 false (in Python: "


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("dtype", 1), ("checkpoint", 1), ("4 bit", 1), ("bf16", 1), ("bf16_full_eval", 1), ("recipe", 1), ("all", 1),
        ("nothing", 0), ("float32", 0), ("4 bit, nothing", 0), ("all weights", 0),
    ],
)  # fmt: skip
def test_bfloat16_on_a_cpu_without_instructions_is_warned_of_once(source, expected, slow_cpu, tmp_path, caplog):
    make_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    path, args = str(tmp_path), {"output_dir": "out", "report_to": "none", "use_cpu": True}
    sources = {
        "dtype": lambda: load_student(path, dtype="bfloat16"),
        "checkpoint": lambda: load_student(path, dtype="auto"),
        "4 bit": lambda: load_student(
            path,
            dtype="float32",
            quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        ),
        "bf16": lambda: WeakToStrongConfig(**args, bf16=True),
        "bf16_full_eval": lambda: CompletionConfig(**args, bf16_full_eval=True),
        "recipe": lambda: StudentConfig(dtype="bfloat16").resolved(use_cpu=True),
        "nothing": lambda: (load_student(path), WeakToStrongConfig(**args), StudentConfig().resolved(use_cpu=True)),
        "float32": lambda: (
            load_student(path, dtype="float32"),
            StudentConfig(dtype="float32").resolved(use_cpu=True),
        ),
        "4 bit, nothing": lambda: load_student(path, load_in_4bit=True),
        "all weights": lambda: StudentConfig(dtype="bfloat16", use_peft=False).resolved(use_cpu=True),
    }
    for name in sources if source == "all" else [source]:
        sources[name]()
    assert caplog.text.count(SLOW) == expected


@pytest.mark.parametrize("instructions", ["avx512_bw", "amx_bf16", "bf16"])
def test_bfloat16_on_a_cpu_with_instructions_is_silent(instructions, slow_cpu, monkeypatch, caplog):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {instructions: True})
    StudentConfig(dtype="bfloat16").resolved(use_cpu=True)
    assert SLOW not in caplog.text


def test_bfloat16_on_a_cpu_whose_instructions_torch_does_not_know_is_silent(slow_cpu, monkeypatch, caplog):
    monkeypatch.delattr("torch.cpu.get_capabilities")
    StudentConfig(dtype="bfloat16").resolved(use_cpu=True)
    assert SLOW not in caplog.text


def test_dtype_of_a_recipe_follows_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr("w2s_hf.config.is_torch_bf16_gpu_available", lambda: True)
    assert StudentConfig().resolved(use_cpu=False).dtype == "bfloat16"
    assert StudentConfig().resolved(use_cpu=True).dtype == "float32", "on a machine with a GPU, too"
    assert StudentConfig(dtype="float16").resolved(use_cpu=True).dtype == "float16", "an explicit dtype is kept"
    assert StudentConfig(use_peft=False).resolved(use_cpu=True).dtype == "bfloat16", "as in the keys of cached stages"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert StudentConfig().resolved(use_cpu=False).dtype == "float32", "emulation is slow"
    task, args = find_task("boolq"), WeakToStrongConfig(str(tmp_path), use_cpu=True, report_to="none")
    experiment = Experiment(task, setting_of(task), ClassificationArguments(), args, StudentConfig())
    assert experiment.student_config.dtype == "float32", "it is in the keys of stages and in results"
    with pytest.raises(ValueError, match="dtype: got 'auto' with 4-bit weights"):
        StudentConfig(load_in_4bit=True, dtype="auto")


@pytest.mark.parametrize("kind", ["classifier", "pairs"])
def test_a_frozen_base_is_float32_where_bfloat16_is_slow(kind, tmp_path, monkeypatch):
    model_for(kind).save_pretrained(tmp_path / "base")
    WORDS.save_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear")
    name, found = str(tmp_path / "base"), {}
    for has_gpu in (False, True):
        monkeypatch.setattr("w2s_hf.config.is_torch_bf16_gpu_available", lambda has_gpu=has_gpu: has_gpu)
        loaded = load_student(name, task_type="REWARD" if kind == "pairs" else "SEQ_CLS")
        args = CONFIGS[kind](output_dir=str(tmp_path / "out"), report_to="none", use_cpu=not has_gpu, bf16=False)
        model = trainer_for(kind, tmp_path, config=args, model=name, peft_config=lora).model
        found[has_gpu] = [part.get_input_embeddings().weight.dtype for part in (loaded, model)]
    assert found == {False: [torch.float32] * 2, True: [torch.bfloat16] * 2}


@pytest.mark.parametrize("kind", ["classifier", "bootstrap"])
@pytest.mark.parametrize("loss_type", ["confidence", "openai"])
def test_a_loss_with_a_threshold_refuses_three_classes_at_once(kind, loss_type, tmp_path):
    rows = Dataset.from_dict({"text": TEXTS, "labels": [[0.1, 0.2, 0.7]] * 8})
    model = make_model("llama")
    model.config.num_labels = 3
    model = LlamaForSequenceClassification(model.config)
    with pytest.raises(ValueError, match=f"loss_type: got '{loss_type}' and a model of 3 classes"):
        trainer_for(kind, tmp_path, rows, model=model, config={"loss_type": loss_type})
    trainer_for(kind, tmp_path, rows, model=model, config={"loss_type": "window"})


# ---- Models ----


def _lora(model, **kwargs):
    task_type = "CAUSAL_LM" if "CausalLM" in type(model).__name__ else "SEQ_CLS"
    return get_peft_model(model, LoraConfig(task_type=task_type, target_modules="all-linear", **kwargs))


def _frozen(model):
    return model.requires_grad_(False)


def _inference(model):
    return _lora(model, inference_mode=True)


def _disabled(model):
    student = _lora(model)
    student.disable_adapter_layers()
    return student


def _merged(model):
    """Returns a classifier with merged adapters, of which only the head would be trained."""
    student = _lora(model)
    student.merge_adapter()
    return student


def _other_adapter(model):
    """Returns a model whose trainable adapter is not active."""
    student = _lora(model)
    student.add_adapter("other", student.peft_config["default"])
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(".other." in name)
    return student


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("freeze", [_frozen, _inference, _disabled, _merged, _other_adapter])
@pytest.mark.parametrize("kind", ONE_MODEL)
def test_a_model_that_would_not_train_is_refused(kind, freeze, checkpointing, tmp_path):
    messages = {_disabled: "adapters are disabled", _merged: r"adapters are merged.*unmerge_adapter\(\)"}
    message = messages.get(freeze, "parameters are all frozen.*is_trainable=True")
    with pytest.raises(ValueError, match=message):
        model = freeze(model_for(kind))
        trainer_for(kind, tmp_path, model=model, config={"gradient_checkpointing": checkpointing})


@pytest.mark.parametrize("kind", ONE_MODEL)
def test_a_model_that_is_frozen_later_is_refused_when_training_begins(kind, tmp_path):
    trainer = trainer_for(kind, tmp_path)
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters are all frozen"):
        trainer.train()
    assert trainer.state.global_step == 0
    head = trainer.model.get_output_embeddings() if kind == "completions" else trainer.model.score
    head.requires_grad_(True)
    trainer.train()  # a head alone is enough


@pytest.mark.parametrize("kind", ONE_MODEL)
def test_adapters_that_are_merged_later_are_refused_when_training_begins(kind, tmp_path):
    trainer = trainer_for(kind, tmp_path, model=_lora(model_for(kind)))
    trainer.model.merge_adapter()
    with pytest.raises(ValueError, match="adapters are merged"):
        trainer.train()
    trainer.model.unmerge_adapter()
    trainer.train()


@pytest.fixture
def from_inits(tmp_path):
    """Returns a trainer whose `model_init` returns one model after another."""
    args = WeakToStrongConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1)

    def make(*models):
        left, rows = list(models), Dataset.from_dict(COLUMNS["classifier"])
        return WeakToStrongTrainer(
            model_init=lambda: left.pop(0), args=args, train_dataset=rows, processing_class=WORDS
        )

    return make


def test_models_of_model_init_are_checked(from_inits):
    with pytest.raises(ValueError, match="parameters are all frozen"):
        from_inits(_frozen(make_model("llama")))


@pytest.mark.parametrize("model_init", [None, lambda: make_model("llama")])
def test_adapters_without_a_model_are_refused(model_init, tmp_path):
    args = WeakToStrongConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="Got a peft_config and no model, expected a base model or its name"):
        WeakToStrongTrainer(args=args, model_init=model_init, peft_config=LoraConfig())


def test_models_that_model_init_makes_to_train_are_checked(from_inits):
    trainer = from_inits(make_model("llama"), _frozen(make_model("llama")))
    with pytest.raises(ValueError, match="parameters are all frozen"):
        trainer.train()


def test_models_of_model_init_train_after_a_search_with_ray(from_inits):
    trainer = from_inits(*[make_model("llama")] * 2)
    trainer.model = None  # as transformers' search for hyperparameters with Ray does
    assert trainer.train().global_step == 1


def test_models_of_links_are_checked(tmp_path):
    chain = trainer_for("bootstrap", tmp_path, model=_frozen(make_model("llama")))
    with pytest.raises(ValueError, match="parameters are all frozen"):
        chain.train()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_is_that_of_the_model_init_kwargs(kind, tmp_path):
    """The tokenizer has the revision and the subfolder of the model."""
    model_for(kind).save_pretrained(tmp_path / "repository" / "v1")
    (CHARACTERS if kind == "completions" else WORDS).save_pretrained(tmp_path / "repository" / "v1")
    options = {"processing_class": None, "config": {"model_init_kwargs": {"subfolder": "v1"}}}
    trainer = trainer_for(kind, tmp_path, model=str(tmp_path / "repository"), **options)
    trainer.train()
    assert trainer.processing_class is not None


def test_completions_of_split_weights_are_refused_before_the_first_step(tmp_path):
    rows = Dataset.from_dict(COLUMNS["completions"])
    options = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_for("completions", tmp_path, eval_dataset=rows, config=options)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="weights are split over processes .* Set eval_strategy='no'"):
        trainer.train()
    assert trainer.state.global_step == 0


VIRTUAL = {
    "prompt tuning": lambda task_type: PromptTuningConfig(task_type=task_type, num_virtual_tokens=3),
    "p-tuning": lambda task_type: PromptEncoderConfig(
        task_type=task_type, num_virtual_tokens=3, encoder_hidden_size=8
    ),
}
KEEP_TOKENS = {
    "prefix tuning": lambda task_type: PrefixTuningConfig(task_type=task_type, num_virtual_tokens=3),
    "ia3": lambda task_type: IA3Config(task_type=task_type),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", VIRTUAL)
@pytest.mark.parametrize("kind", ["classifier", "pairs"])
def test_virtual_tokens_before_a_decoder_classifier_are_refused(kind, name, wrapped, tmp_path):
    model, peft_config = model_for(kind), VIRTUAL[name]("SEQ_CLS")
    options = {"model": get_peft_model(model, peft_config)} if wrapped else {"peft_config": peft_config}
    with pytest.raises(ValueError, match="for a classifier of type 'llama', expected adapters that keep the tokens"):
        trainer_for(kind, tmp_path, **{"model": model} | options)


@pytest.mark.parametrize(
    ("base", "name"),
    [("llama", "prefix tuning"), ("llama", "ia3"), ("bert", "prompt tuning"), ("bert", "p-tuning"), ("bert", "ia3")],
)
def test_adapters_that_are_accepted_read_a_row_alike_alone_and_in_a_batch(base, name, tmp_path):
    rows = make_rows(9, lengths=(3, 12))
    model = make_model(base)
    trainer = trainer_for(
        "classifier", tmp_path, rows, model=model, peft_config=(VIRTUAL | KEEP_TOKENS)[name]("SEQ_CLS")
    )
    trainer.train()
    for key, parameter in trainer.model.named_parameters():
        if "prompt" in key:
            parameter.data.normal_()  # so that they change the results
    batch = trainer.predict_proba(rows)
    alone = np.concatenate([trainer.predict_proba(rows.select([row])) for row in range(9)])
    np.testing.assert_allclose(batch, alone, atol=1e-5)


@pytest.mark.parametrize("name", [*VIRTUAL, "prefix tuning"])
def test_completions_behind_virtual_tokens_do_not_depend_on_the_batch(name):
    """The completions are greedy: each token is the most probable one after all tokens before it."""
    set_seed(0)
    model = make_language_model(CHARACTERS)
    student = get_peft_model(model, (VIRTUAL | KEEP_TOKENS)[name]("CAUSAL_LM")).eval()
    for key, parameter in student.named_parameters():
        if "prompt" in key:
            parameter.data.normal_()
    prompts = ["a", "abcdef: ", "some text"]
    together = complete(student, CHARACTERS, prompts, max_new_tokens=4)
    for prompt, completion in zip(prompts, together, strict=True):
        ids = CHARACTERS(prompt)["input_ids"]
        for _ in range(4):
            with torch.no_grad():
                logits = student(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits
            ids.append(int(logits[0, -1].argmax()))
        end = ids.index(CHARACTERS.eos_token_id) if CHARACTERS.eos_token_id in ids else None
        assert prompt + completion.text == CHARACTERS.decode(ids[:end], skip_special_tokens=True)


def _positional(kind: str):
    common = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": 1}
    set_seed(0)
    if kind == "roberta":
        return RobertaForSequenceClassification(
            RobertaConfig(hidden_size=32, intermediate_size=32, num_attention_heads=2, max_position_embeddings=41,
                          initializer_range=0.2, **common)
        )  # fmt: skip
    if kind == "opt":
        return OPTForSequenceClassification(
            OPTConfig(hidden_size=32, ffn_dim=32, num_attention_heads=2, max_position_embeddings=40, init_std=0.2,
                      word_embed_proj_dim=32, **common)
        )  # fmt: skip
    if kind == "xlnet":
        return XLNetForSequenceClassification(
            XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=2, d_inner=32, pad_token_id=0,
                        initializer_range=0.2)
        )  # fmt: skip
    return make_model(kind)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "roberta", "opt", "llama", "xlnet"])
def test_a_row_is_classified_alike_alone_and_in_a_batch(kind, padding_side, tmp_path):
    """The result does not depend on the padding of tokenized rows."""
    tokenizer = make_tokenizer()
    tokenizer.padding_side = padding_side
    rows = make_rows(9, lengths=(3, 12))
    model = _positional(kind)
    trainer = trainer_for("classifier", tmp_path, rows, model=model, config={"max_tokens_per_micro_batch": 30})
    trainer.processing_class = trainer.data_collator.base_collator.tokenizer = tokenizer
    batch = trainer.predict_proba(rows)
    alone = np.concatenate([trainer.predict_proba(rows.select([row])) for row in range(9)])
    padded = tokenizer.pad(rows.select_columns(["input_ids", "attention_mask"]).to_dict(), padding="max_length",
                           max_length=16)  # fmt: skip
    np.testing.assert_allclose(batch, alone, atol=1e-5)
    np.testing.assert_allclose(trainer.predict_proba(Dataset.from_dict(dict(padded))), alone, atol=1e-5)
    assert tokenizer.padding_side == padding_side and np.ptp(batch[:, 0]) > 1e-3


def test_a_reward_model_that_reads_the_last_position_pads_before_the_text(tmp_path):
    model = _positional("xlnet")
    model.config.num_labels = 1
    rows = Dataset.from_dict({"chosen_ids": [[5], [6, 7, 8, 9]], "rejected_ids": [[10, 11], [12, 13, 14, 15, 16, 17]]})
    trainer = trainer_for("pairs", tmp_path, rows, model=XLNetForSequenceClassification(model.config).eval())
    batch = trainer.predict_proba(rows)
    np.testing.assert_allclose(batch, [trainer.predict_proba(rows.select([row]))[0] for row in range(2)], atol=1e-5)


def test_only_padding_moves():
    mask = torch.tensor([[0, 0, 1, 0, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    batch = {"input_ids": torch.arange(15).view(3, 5), "attention_mask": mask, "labels": torch.arange(3), "name": "x"}
    batch["inputs_embeds"] = batch["input_ids"][..., None].float().expand(3, 5, 2)
    right, left = move_padding(batch, "right"), move_padding(batch, "left")
    assert right["input_ids"].tolist() == [[2, 3, 4, 0, 1], [5, 6, 7, 8, 9], [11, 12, 13, 14, 10]]
    assert right["attention_mask"].tolist() == [[1, 0, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert left["input_ids"].tolist() == [[0, 1, 2, 3, 4], [9, 5, 6, 7, 8], [10, 11, 12, 13, 14]]
    assert torch.equal(right["inputs_embeds"][..., 0].long(), right["input_ids"])
    assert right["labels"] is batch["labels"] and move_padding(right, "right") is right
    assert move_padding({"input_ids": mask}, "right")["input_ids"] is mask


def test_labels_of_as_many_classes_as_tokens_stay_as_they_are():
    """With as many tokens as classes, `(B, C)` and `(B, T)` have equal shapes."""
    batch = {"attention_mask": torch.tensor([[0, 1], [0, 1]]), "labels": torch.tensor([[0.1, 0.9], [0.2, 0.8]])}
    assert torch.equal(move_padding(batch, "right")["labels"], batch["labels"])
    cut = split_by_tokens(batch, 1)
    assert torch.equal(torch.cat([part["labels"] for part in cut]), batch["labels"])
    assert [part["attention_mask"].tolist() for part in cut] == [[[1]], [[1]]]


@pytest.mark.parametrize(("kind", "n_positions"), [("gpt2", 64), ("bert", 64), ("roberta", 40), ("opt", 40)])
def test_rows_that_are_longer_than_the_positions_are_refused(kind, n_positions, tmp_path):
    model = _positional(kind)
    ids = [[4] * n_positions, [5] * (n_positions + 1)]
    logits = model(input_ids=torch.tensor(ids[:1])).logits  # the same number fits
    assert logits.shape == (1, 2)
    with pytest.raises(ValueError, match=rf"train_dataset: got 1 of 2 rows with more tokens than the {n_positions} "):
        rows = Dataset.from_dict(
            {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": [0, 1]}
        )
        trainer_for("classifier", tmp_path, rows, model=model)
    refuse_longer(_positional("llama"), [1000], "rows")  # rotary positions have no limit


def test_pairs_and_completions_longer_than_the_positions_are_refused(tmp_path):
    model = _positional("gpt2")
    model.config.num_labels = 1
    rows = Dataset.from_dict({"chosen_ids": [[5] * 65], "rejected_ids": [[6]]})
    with pytest.raises(ValueError, match="train_dataset: got 1 of 1 rows with more tokens than the 64"):
        trainer_for("pairs", tmp_path, rows, model=type(model)(model.config))


# ---- Rows ----


FORMS = ["list of rows", "tuple of rows", "columns", "data frame", "splits", "name"]


def _forms(columns: dict) -> dict:
    rows = Dataset.from_dict(columns)
    return {
        "list of rows": (rows.to_list(), r"got a list.*Dataset\.from_list\(rows\)"),
        "tuple of rows": (tuple(rows.to_list()), r"got a tuple.*Dataset\.from_list\(rows\)"),
        "columns": (columns, r"got a dict.*Dataset\.from_dict\(rows\)"),
        "data frame": (pandas.DataFrame(columns), r"got a DataFrame.*Dataset\.from_pandas\(rows\)"),
        "splits": (DatasetDict({"train": rows}), "got a DatasetDict.*Choose one of its splits: 'train'"),
        "name": ("me/rows", "got a str.*load_dataset"),
    }


@pytest.mark.parametrize(
    ("argument", "form"),
    [
        *(("rows", form) for form in FORMS),
        *(("eval_dataset", form) for form in FORMS if form != "splits"),  # they are several evaluation sets
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_no_dataset_say_how_to_make_one(kind, argument, form, tmp_path):
    rows, message = _forms(COLUMNS[kind])[form]
    with pytest.raises(ValueError, match=f"{argument.replace('rows', 'train_dataset')}: {message}"):
        trainer_for(kind, tmp_path, **{argument: rows})


@pytest.mark.parametrize("kind", ONE_MODEL)
def test_predict_takes_one_of_several_sets(kind, tmp_path):
    rows = Dataset.from_dict(COLUMNS[kind])
    with pytest.raises(ValueError, match="test_dataset: got a dict.*Choose one of its splits: 'a', 'b'"):
        trainer_for(kind, tmp_path).predict({"a": rows, "b": rows})


@pytest.mark.parametrize("form", ["list of rows", "columns", "data frame"])
@pytest.mark.parametrize(
    ("kind", "call"),
    [(kind, call) for kind in ("classifier", "pairs") for call in ("evaluate", "predict", "predict_proba")]
    + [("completions", "evaluate")],
)
def test_evaluate_and_predict_say_how_to_make_a_dataset(kind, call, form, tmp_path):
    rows, message = _forms(COLUMNS[kind])[form]
    with pytest.raises(ValueError, match=message):
        getattr(trainer_for(kind, tmp_path), call)(rows)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (lambda rows: rows.to_list()[:2], r"train_dataset: got a list.*from_list"),
        (lambda rows: [rows, rows.to_pandas()], "train_dataset: got a DataFrame"),
    ],
    ids=["rows", "data frame"],
)
def test_a_list_of_rows_is_no_list_of_datasets_for_links(datasets, message, tmp_path):
    rows = Dataset.from_dict(COLUMNS["bootstrap"])
    assert trainer_for("bootstrap", tmp_path, [rows, rows]).n_links == 2
    with pytest.raises(ValueError, match=message):
        trainer_for("bootstrap", tmp_path, datasets(rows))


def test_map_style_and_iterable_datasets_of_torch_still_train(tmp_path):
    rows = make_rows(8, "hard", lengths=(5, 6)).remove_columns("id").to_list()

    class Rows(torch.utils.data.Dataset):
        __len__ = lambda self: len(rows)  # noqa: E731
        __getitem__ = lambda self, index: rows[index]  # noqa: E731

    class Stream(torch.utils.data.IterableDataset):
        __iter__ = lambda self: iter(rows)  # noqa: E731

    for dataset in (Rows(), Stream(), Dataset.from_list(rows).to_iterable_dataset()):
        assert trainer_for("classifier", tmp_path, dataset).train().global_step == 1


MISSPELT = [
    ("classifier", "soft_label", "labels"), ("classifier", "soft_labels", "labels"),
    ("classifier", "weak_label", "labels"), ("classifier", "probs", "labels"), ("classifier", "target", "labels"),
    ("bootstrap", "weak_labels", "labels"),
    ("pairs", "soft_labels", "soft_label"), ("pairs", "label", "soft_label"), ("pairs", "labels", "soft_label"),
    ("pairs", "P_label", "soft_label"), ("pairs", "margins", "margin"),
    ("pairs", "weakProbabilities", "soft_label"), ("completions", "soft_label", "completion"),
]  # fmt: skip


USES = {
    "train": lambda kind, path, rows: trainer_for(kind, path, rows),
    "evaluate later": lambda kind, path, rows: trainer_for(kind, path, eval_dataset=rows),
    "evaluate now": lambda kind, path, rows: trainer_for(kind, path).evaluate(rows),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("kind", "column", "expected"), MISSPELT)
def test_columns_that_look_like_labels_are_refused(kind, column, expected, use, tmp_path):
    rows = Dataset.from_dict(COLUMNS[kind]).add_column(column, [0.25] * 8)
    message = f"_dataset: got a column '{column}', which the trainer does not use, expected '{expected}'"
    with pytest.raises(ValueError, match=("train" if use == "train" else "eval") + message):
        USES[use](kind, tmp_path, rows)


def test_a_misspelt_input_of_the_model_is_refused(tmp_path):
    rows = make_rows(8).add_column("token_types_ids", [[0]] * 8)
    with pytest.raises(ValueError, match="train_dataset: .*'token_types_ids', which .* expected 'token_type_ids'"):
        trainer_for("classifier", tmp_path, rows, model=make_model("bert"))


def test_log_probabilities_are_no_labels(tmp_path):
    """A dataset may have such columns, for example log probabilities of a policy."""
    columns = {name: [-0.5] * 8 for name in ("chosen_logprobs", "rejected_log_prob", "logprob")}
    trainer_for("pairs", tmp_path, Dataset.from_dict(COLUMNS["pairs"] | columns))


@pytest.mark.parametrize("kind", ONE_MODEL)
def test_other_columns_are_named_once(kind, tmp_path, caplog):
    logging.Logger.warning_once.cache_clear()
    rows = Dataset.from_dict(COLUMNS[kind]).add_column("id", list("abcdefgh"))
    rows = rows.add_column("ground_truth", [1] * 8)
    trainer_for(kind, tmp_path, rows)
    assert "does not use" not in caplog.text
    rows = rows.add_column("problem", TEXTS).add_column("label_text", TEXTS)
    for _ in range(2):
        trainer_for(kind, tmp_path, rows)
    assert caplog.text.count("train_dataset: the trainer does not use the columns problem, label_text") == 1


def test_a_column_that_somebody_else_reads_is_left_alone(tmp_path):
    """With `remove_unused_columns=False` every column reaches the collator."""
    rows = make_rows(8).add_column("soft_labels", [0.5] * 8)
    trainer_for("classifier", tmp_path, rows, config={"remove_unused_columns": False})
    raw = Dataset.from_dict(COLUMNS["classifier"]).add_column("soft_labels", [0.5] * 8)
    refuse_misspelt(raw.with_transform(dict), "rows", labels="labels", reads=("text", "labels"))
    assert trainer_for("classifier", tmp_path).predict_proba(rows).shape == (8, 2)


def test_texts_that_are_truncated_are_counted(tmp_path, caplog):
    rows = Dataset.from_dict({"text": ["w1 w2 w3", "w1 w2 w3 w4 w5 w6", "w1 w2 w3 w4"], "labels": [0, 1, 1]})
    trainer = trainer_for("classifier", tmp_path, rows, config={"max_length": 4})
    assert [len(ids) for ids in trainer.train_dataset["input_ids"]] == [3, 4, 4]
    assert "train_dataset: 1 of 3 texts are longer than max_length=4 tokens and are truncated" in caplog.text
    caplog.clear()
    assert set(trainer.train_dataset.column_names) == {"text", "labels", "input_ids", "attention_mask"}
    for kept in (None, 6):
        trainer_for("classifier", tmp_path, rows, config={"max_length": kept})
    assert "truncated" not in caplog.text


# ---- Labels of a collator of the user ----


def collator_of(labels):
    """Pads rows, and adds labels in another form."""

    def collate(rows):
        batch = dict(WORDS.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt"))
        return batch if labels is None else {**batch, "labels": labels([row["labels"] for row in rows])}

    return collate


@pytest.mark.parametrize(
    "labels",
    [
        lambda values: torch.tensor(values).int(),
        lambda values: torch.tensor(values).bool(),
        lambda values: torch.tensor(values)[:, None],
        lambda values: torch.nn.functional.one_hot(torch.tensor(values), 2),
        lambda values: torch.tensor(values, dtype=torch.bfloat16),
        list,
    ],
    ids=["int32", "bool", "column", "one-hot", "bfloat16", "list"],
)
def test_labels_of_any_form_are_trained_on(labels, tmp_path):
    rows = make_rows(8, "hard")
    losses = []
    for collator in (None, collator_of(labels)):
        trainer = trainer_for("classifier", tmp_path, rows, data_collator=collator)
        losses.append(trainer.train().training_loss)
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda values: torch.tensor([2.0 * value for value in values]), r"labels: got .* values in \[0, 1\]"),
        (lambda values: torch.tensor(values) * 0 - 100, "labels: got class -100 in rows 0, 1, .* expected 0 to 1"),
        (None, "got batches with 'input_ids', 'attention_mask', expected 'labels' among them"),
    ],
    ids=["above 1", "ignored", "none"],
)
def test_labels_that_no_loss_reads_are_refused(labels, message, tmp_path):
    rows = make_rows(8, "hard", seed=1)
    with pytest.raises(ValueError, match=message):
        trainer_for("classifier", tmp_path, rows, data_collator=collator_of(labels)).train()


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_models_of_other_problems_are_refused(problem_type, tmp_path):
    model = model_for("classifier")
    model.config.problem_type = problem_type
    with pytest.raises(ValueError, match=f"problem_type: got '{problem_type}', expected 'single_label_class"):
        trainer_for("classifier", tmp_path, model=model)
