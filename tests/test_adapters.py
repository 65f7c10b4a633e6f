"""Tests of adapters: new layers before the head, quantized heads, names, and merged or moved base models."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from helpers.models import BATCH, logits, make_language_model, make_rows
from helpers.training import arguments, pair_arguments
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    set_seed,
)

from w2s_hf import RewardPairTrainer, WeakToStrongTrainer, fresh_adapter, load_student
from w2s_hf.leaderboard import leaderboard, read_card
from w2s_hf.modeling.adapters import prepare_adapters
from w2s_hf.modeling.heads import HEAD_NAMES, head_linears, head_modules, initialise_head

SIZE = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
SIZES = {
    "distilbert": {"vocab_size": 64, "dim": 64, "hidden_dim": 64, "n_layers": 1, "n_heads": 2, "pad_token_id": 0},
    "xlnet": {"vocab_size": 64, "d_model": 64, "d_inner": 64, "n_layer": 1, "n_head": 2, "pad_token_id": 0},
    "modernbert": SIZE | {"cls_token_id": 1, "sep_token_id": 2},
}
# The layers of the head by kind of base model. The checkpoint of this BERT has no pooler.
HEADS = {
    "bert": ["bert.pooler", "classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "llama": ["score"],
    "modernbert": ["head", "classifier"],
    "roberta": ["classifier"],
    "xlnet": ["sequence_summary", "logits_proj"],
}


def lora(**options):
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS", **options})


@pytest.fixture(scope="module")
def base_of(tmp_path_factory, tokenizer):
    """Returns the directory of a base model without a head, optionally stored in 4 or 8 bit."""

    def save(kind: str, bits: int | None = None) -> str:
        directory = tmp_path_factory.getbasetemp() / f"base-{kind}-{bits}"
        auto_class = AutoModelForMaskedLM if kind == "bert" else AutoModel
        if not directory.is_dir():
            if bits is None:
                set_seed(0)
                model = auto_class.from_config(AutoConfig.for_model(kind, **SIZES.get(kind, SIZE)))
            else:
                model = auto_class.from_pretrained(save(kind), quantization_config=quantized(bits))
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        return str(directory)

    return save


def quantized(bits: int, **options) -> BitsAndBytesConfig:
    """Returns the quantization config of published quantized models, which do not list classification heads."""
    options = {"llm_int8_skip_modules": ["lm_head", "decoder"], **options}
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, **options)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, **options
    )


def step(student):
    """Trains for one step of gradient descent."""
    student.train()
    student(**BATCH).logits.square().sum().backward()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.sub_(0.05 * parameter.grad.sign())
    student.zero_grad()


def save(student, tokenizer, directory):
    student.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    set_seed(77)  # another seed for random numbers while the student is loaded
    return str(directory)


@pytest.mark.parametrize("source", ["load_student", "transformers", "4bit"])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "distilbert", "modernbert", "xlnet"])
def test_new_layers_before_the_head_are_trained_saved_and_put_back(kind, source, base_of, tokenizer, tmp_path):
    task_type = "REWARD" if kind == "modernbert" else "SEQ_CLS"
    options = {"task_type": task_type, "dtype": "float32", "load_in_4bit": source == "4bit"}
    if source == "transformers":
        n_labels = 1 if task_type == "REWARD" else 2
        base = AutoModelForSequenceClassification.from_pretrained(base_of(kind), num_labels=n_labels)
    else:
        base = load_student(base_of(kind), **options)
    if source == "4bit":  # a GPU also quantizes new layers unless they are on this list
        skipped = base.config.quantization_config.llm_int8_skip_modules
        assert {f"^{name}$" for name in head_linears(base) if not name.startswith(HEAD_NAMES)} <= set(skipped)
    student = fresh_adapter(base, lora(), seed=0)
    untrained = logits(student)
    assert list(head_modules(student)) == HEADS[kind]
    for module in head_modules(student).values():
        assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in module.parameters())
    before = [layer.weight.clone() for layer in head_linears(student).values()]
    step(student)
    after = [layer.weight for layer in head_linears(student).values()]
    assert len(after) == 2 and not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    again = load_student(save(student, tokenizer, tmp_path / "student"), **options)
    assert torch.equal(logits(again), logits(student))
    assert torch.equal(logits(fresh_adapter(student, lora(), seed=0)), untrained)


@pytest.mark.parametrize("kind", ["deberta-v2", "roberta"])
def test_a_seed_gives_the_same_head_however_the_base_was_loaded(kind, base_of):
    def make(student, seed):
        student = fresh_adapter(student, lora(), seed=seed)
        initialise_head(student, seed=seed)
        return student

    set_seed(1)
    first = make(load_student(base_of(kind), dtype="float32"), seed=3)
    set_seed(2)
    second = make(load_student(base_of(kind), dtype="float32"), seed=3)
    expected = logits(first)
    assert torch.equal(logits(second), expected)
    other = make(second, seed=4)
    assert not torch.equal(logits(other), expected)
    assert torch.equal(logits(make(other, seed=3)), expected)


USES = {
    "classifier": lambda student, tokenizer, path: WeakToStrongTrainer(
        student, arguments(path), processing_class=tokenizer
    ),
    "pairs": lambda student, tokenizer, path: RewardPairTrainer(
        student, pair_arguments(path), train_dataset=None, processing_class=tokenizer
    ),
    # Older versions saved this form.
    "loading": lambda student, tokenizer, path: load_student(save(student, tokenizer, path), task_type="REWARD"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_adapters_that_leave_out_new_layers_are_refused(kind, use, base_of, tokenizer, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(base_of(kind), num_labels=1)
    with pytest.raises(ValueError, match=r"without .*pooler\.dense, which the base checkpoint lacks"):
        USES[use](get_peft_model(base, lora()), tokenizer, tmp_path)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_the_pooler_of_a_finetuned_classifier_is_in_its_checkpoint(kind, base_of, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(base_of(kind)).save_pretrained(tmp_path / "classifier")
    finetuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    prepare_adapters(get_peft_model(finetuned, lora()))


def test_a_base_that_lacks_what_adapters_cannot_save_is_refused(base_of):
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight, which adapters neither train nor save"):
        load_student(base_of("llama"), task_type="CAUSAL_LM", peft_config=lora(task_type="CAUSAL_LM"))


def test_a_broken_base_is_refused_where_adapters_would_not_save_its_weights(base_of, tmp_path):
    shutil.copytree(base_of("llama"), tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    del weights["layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    base = load_student(str(tmp_path / "broken"))  # a model whose weights are all trainable
    with pytest.raises(ValueError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.weight"):
        fresh_adapter(base)


def trained(base, **options):
    student = fresh_adapter(base, lora(**options), seed=1)
    step(student)
    return student


@pytest.mark.parametrize("load_in_4bit", [False, True])
@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (lambda student: student.merge_adapter() or student, "adapters are merged into the base model"),
        (lambda student: student.merge_and_unload(), r"have changed since .*self_attn\.q_proj\.weight"),
    ],
    ids=["merged", "merged and unloaded"],
)
def test_a_base_with_merged_adapters_is_refused(merge, message, load_in_4bit, base_of):
    student = trained(load_student(base_of("llama"), dtype="float32", load_in_4bit=load_in_4bit))
    with pytest.raises(ValueError, match=message):
        fresh_adapter(merge(student))


def test_nothing_of_an_earlier_student_is_left_in_the_base(base_of):
    base = load_student(base_of("bert"), dtype="float32")
    untrained = logits(base)
    both = trained(base)
    both.add_adapter("other", lora())
    both.set_adapter("other")
    ways = {
        "unloaded": trained(fresh_adapter(both).unload()).unload(),
        "with a trained embedding": trained(base, modules_to_save=["word_embeddings"]),
        "the base itself": (trained(base), base)[1],
    }
    for name, model in ways.items():
        # These are other modules than before, so adapters on them must be removed explicitly.
        student = fresh_adapter(model, lora(target_modules=["query"]))
        assert torch.equal(logits(student), untrained), name
    with pytest.raises(ValueError, match="have changed since"):  # trained biases change the base model itself
        fresh_adapter(trained(base, bias="all"))


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_a_finished_student_that_is_merged_is_no_base(load_in_4bit, base_of, tokenizer, tmp_path):
    options = {"dtype": "float32", "load_in_4bit": load_in_4bit}
    directory = save(trained(load_student(base_of("llama"), **options)), tokenizer, tmp_path)
    loaded = load_student(directory, **options)
    untrained = logits(fresh_adapter(loaded, lora(), seed=0))
    assert not torch.equal(untrained, logits(load_student(directory, **options)))
    with pytest.raises(ValueError, match="have changed since"):
        fresh_adapter(load_student(directory, **options).merge_and_unload())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "llama", "roberta"])
def test_a_base_stored_quantized_gets_a_float32_head(kind, bits, base_of, tokenizer, tmp_path):
    for options in ({}, {"load_in_4bit": True}, {"task_type": "REWARD", "quantization_config": quantized(bits)}):
        options = {"dtype": "float32", **options}
        base = load_student(base_of(kind, bits), **options)
        for layer in head_linears(base).values():
            assert type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32
        kinds = {type(module).__name__ for module in base.modules()}
        assert ("Linear4bit" if bits == 4 else "Linear8bitLt") in kinds
    student = trained(base)
    again = load_student(save(student, tokenizer, tmp_path), **options)
    assert torch.equal(logits(again), logits(student))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["deberta-v2", "llama", "roberta"])
def test_a_classifier_stored_with_a_quantized_head_gets_a_float32_one(kind, bits, base_of, tokenizer, tmp_path):
    full = AutoModelForSequenceClassification.from_pretrained(base_of(kind))
    full.save_pretrained(tmp_path / "full")
    stored = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full", quantization_config=quantized(bits))
    stored.save_pretrained(tmp_path / "stored")
    loaded = load_student(str(tmp_path / "stored"), dtype="float32")
    for (name, layer), whole in zip(head_linears(loaded).items(), head_linears(full).values(), strict=True):
        assert type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32, name
        # The weights of the classifier are rounded to steps of a 127th (8 bit) or a tenth (4 bit) of the largest.
        largest = whole.weight.abs().max()
        assert (layer.weight - whole.weight).abs().max() < largest / (100 if bits == 8 else 5), name
        assert layer.bias is None or torch.equal(layer.bias, whole.bias), name
    student = trained(stored)  # a model that load_student did not create
    *others, last = [layer.weight for layer in head_linears(student).values()]
    before = [weight.clone() for weight in (*others, last)]
    initialise_head(student, seed=5)
    assert all(weight.dtype == torch.float32 for weight in (*others, last)) and not torch.equal(last, before[-1])
    assert all(torch.equal(*pair) for pair in zip(others, before, strict=False)), "these are from the checkpoint"
    if Version(transformers.__version__) < Version("5.23"):
        with pytest.raises(ValueError, match="does not replace the head of a quantized model. Update"):
            load_student(str(tmp_path / "stored"), dtype="float32", num_labels=3)
    else:
        other = load_student(str(tmp_path / "stored"), dtype="float32", num_labels=3)
        assert logits(other).shape == (2, 3) and list(head_linears(other).values())[-1].weight.dtype == torch.float32


def test_adapters_of_another_name_are_saved_where_students_are(base_of, tokenizer, tmp_path):
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base_of("llama")),
        lora(target_modules=["q_proj", "v_proj", "o_proj", "k_proj"], init_lora_weights=False),
        "student",
    )
    before = logits(model)
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    options |= {"save_strategy": "steps", "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = WeakToStrongTrainer(
        model,
        arguments(tmp_path / "out", max_steps=3, learning_rate=0.05, **options),
        train_dataset=make_rows(8),
        eval_dataset=make_rows(8),
        processing_class=tokenizer,
    )
    assert list(model.peft_config) == ["default"] and torch.equal(logits(model), before)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{max(losses, key=losses.get)}")
    for directory in (tmp_path / "out", trainer.state.best_model_checkpoint):
        assert torch.equal(logits(load_student(str(directory), dtype="float32")), logits(model))
    # Names are sorted on the card and in the file, because the order of a set differs between processes.
    names = ["k_proj", "o_proj", "q_proj", "v_proj"]
    escaped = str(names).translate({ord("["): "&#91;", ord("]"): "&#93;"})
    assert f"| adapters, target_modules | {escaped} |" in (tmp_path / "out" / "README.md").read_text()
    student = fresh_adapter(model, lora(target_modules=names[::-1]))
    assert student.peft_config["default"].target_modules == names


def test_students_in_two_precisions_are_of_two_kinds(base_of, tokenizer, tmp_path):
    cards = []
    for load_in_4bit in (False, True):
        student = fresh_adapter(load_student(base_of("llama"), dtype="float32", load_in_4bit=load_in_4bit))
        trainer = WeakToStrongTrainer(student, arguments(tmp_path), processing_class=tokenizer)
        trainer.create_model_card()
        cards.append(read_card(tmp_path))
    assert cards[0].fingerprint != cards[1].fingerprint
    assert [card.settings.get("load_in_4bit") for card in cards] == [None, True]
    assert leaderboard(cards)["load_in_4bit"].notna().sum() == 1


@pytest.fixture
def two_adapters(tokenizer):
    model = get_peft_model(make_language_model(tokenizer), lora(task_type="CAUSAL_LM"))
    model.add_adapter("other", lora(task_type="CAUSAL_LM"))
    prepare_adapters(model)
    return model


@pytest.mark.parametrize(
    ("activate", "message"),
    [
        (lambda model: model.base_model.set_adapter(["default", "other"]), "2 active adapters"),
        (lambda model: model.set_adapter("other"), "default, other, of which 'other' is active.*delete_adapter"),
    ],
    ids=["both", "other"],
)
def test_adapters_that_would_be_saved_as_others_are_refused(activate, message, two_adapters):
    activate(two_adapters)
    with pytest.raises(ValueError, match=message):
        prepare_adapters(two_adapters)


def test_an_adapter_of_another_name_is_renamed_and_not_loaded_from_its_subdirectory(two_adapters, tokenizer, tmp_path):
    model = two_adapters
    model.set_adapter("other")
    model.delete_adapter("default")
    with pytest.raises(ValueError, match=r"in subdirectories.*Load one of .*other"):
        load_student(save(model, tokenizer, tmp_path))
    weights = {name.replace("other", "default"): weight.clone() for name, weight in model.named_parameters()}
    state = torch.get_rng_state()
    prepare_adapters(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize(
    ("task_type", "options"),
    [
        ("SEQ_CLS", {"load_in_4bit": True}),
        ("SEQ_CLS", {"trained": [64]}),
        ("REWARD", {}),
        ("CAUSAL_LM", {}),
        ("CAUSAL_LM", {"tied": True}),
    ],
)
def test_students_with_more_embeddings_than_their_base(task_type, options, base_of, tokenizer, tmp_path):
    options = dict(options)
    directory, tied, trained_ids = base_of("llama"), options.pop("tied", False), options.pop("trained", None)
    if task_type == "CAUSAL_LM":
        make_language_model(tokenizer, tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
        directory = str(tmp_path / "base")
    options = {"task_type": task_type, "dtype": "float32", **options}
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"pad_token": "<new>"})
    base = load_student(directory, **options)
    base.resize_token_embeddings(len(larger), mean_resizing=False)
    peft_task_type = "CAUSAL_LM" if task_type == "CAUSAL_LM" else "SEQ_CLS"
    student = fresh_adapter(base, lora(task_type=peft_task_type, trainable_token_indices=trained_ids), seed=0)
    student.config.pad_token_id = larger.pad_token_id
    batch = {"input_ids": torch.tensor([[5, larger.pad_token_id, 6]]), "attention_mask": torch.ones(1, 3)}
    again = load_student(save(student, larger, tmp_path / "student"), **options)
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, student.eval()(**batch).logits)


GONE = {
    "moved": "cannot load its base model.*base_model=",
    "me/gone": "cannot load its base model 'me/gone' at the revision 0000.*base_model=",
    None: "without the name of a base.*base_model=",
}


@pytest.fixture(params=GONE)
def moved(request, base_of, tokenizer, tmp_path):
    """Returns a student and its directory. Its base model is in `tmp_path / "elsewhere"`."""
    shutil.copytree(base_of("llama"), tmp_path / "base")
    student = load_student(str(tmp_path / "base"), dtype="float32", peft_config=lora())
    directory = save(student, tokenizer, tmp_path / "student")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    if request.param != "moved":
        file = tmp_path / "student" / "adapter_config.json"
        config = json.loads(file.read_text()) | {"base_model_name_or_path": request.param, "revision": "0000"}
        file.write_text(json.dumps(config))
    return student, directory, GONE[request.param]


def test_a_base_that_is_gone_can_be_named(moved, tmp_path):
    student, directory, message = moved
    with pytest.raises((OSError, ValueError), match=message):
        load_student(directory)
    again = load_student(directory, dtype="float32", base_model=str(tmp_path / "elsewhere"))
    assert torch.equal(logits(again), logits(student))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"base_model": "/no/such/base"}, OSError, "(?s)^(?!.*cannot load its base)"),
        ({"peft_config": lora()}, ValueError, "already has adapters"),
    ],
    ids=["no base", "more adapters"],
)
def test_what_is_named_for_a_base_that_is_gone_is_checked(options, error, message, moved):
    with pytest.raises(error, match=message):
        load_student(moved[1], **options)


def test_students_have_as_many_classes_as_they_were_saved_with(base_of, tokenizer, tmp_path):
    student = fresh_adapter(load_student(base_of("llama"), num_labels=3, dtype="float32"), lora())
    step(student)
    again = load_student(save(student, tokenizer, tmp_path), dtype="float32")
    torch.testing.assert_close(logits(again), logits(student))
