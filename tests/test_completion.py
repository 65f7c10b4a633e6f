"""CompletionTrainer: TRL's SFT, scored by what the model writes."""

import copy
import inspect

import pytest
import torch
from conftest import make_character_tokenizer, make_language_model
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from w2s_hf import CompletionConfig, CompletionTrainer, fresh_adapter, load_student

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_character_tokenizer()


def rows_of(n: int, first: int = 0) -> Dataset:
    """Says the last letter of the prompt again."""
    words = [f"{'abcdefgh'[number % 8] * (1 + number % 5)}{'xyz'[number % 3]}" for number in range(first, first + n)]
    return Dataset.from_dict({"prompt": [f"{word}:" for word in words], "completion": [f" {w[-1]}" for w in words]})


def arguments(tmp_path, kind=CompletionConfig, **options):
    options = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 8, "learning_rate": 3e-3, "max_steps": 4,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "lr_scheduler_type": "constant", **options,
    }  # fmt: skip
    if kind is CompletionConfig:
        options.setdefault("max_new_tokens", 4)
    return kind(**options)


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def make_trainer(model, tokenizer, tmp_path, **options) -> CompletionTrainer:
    args = arguments(tmp_path, **options)
    return CompletionTrainer(
        model=model, args=args, train_dataset=rows_of(32), eval_dataset=rows_of(24, 32), processing_class=tokenizer
    )


def test_it_trains_as_trl_does(tokenizer, tmp_path):
    ours = make_trainer(make_language_model(tokenizer), tokenizer, tmp_path)
    theirs = SFTTrainer(
        model=make_language_model(tokenizer),
        args=arguments(tmp_path, SFTConfig, completion_only_loss=True),
        train_dataset=rows_of(32),
        processing_class=tokenizer,
    )
    assert losses(ours) == losses(theirs)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_the_completion_and_its_end_are_learned(tokenizer, tmp_path):
    trainer = make_trainer(make_language_model(tokenizer), tokenizer, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    model = make_language_model(tokenizer)
    by_hand, n = 0.0, 0
    for ids in batch["input_ids"].tolist():
        text = tokenizer.decode([token for token in ids if token != tokenizer.pad_token_id])
        prompt, completion = text.split(":")
        assert completion.endswith("<eos>")
        whole = tokenizer(text, return_tensors="pt")["input_ids"]
        logits = model(whole).logits[0].log_softmax(-1)
        for position in range(len(prompt) + 1, whole.shape[1]):
            by_hand -= logits[position - 1, whole[0, position]].item()
            n += 1
    assert n == 3 * 8  # a space, a letter and the end
    loss = trainer.compute_loss(trainer.model.train(), batch)
    assert loss.item() == pytest.approx(by_hand / n, rel=1e-4)


def test_accuracy_is_what_it_writes(tokenizer, tmp_path):
    trainer = make_trainer(make_language_model(tokenizer), tokenizer, tmp_path, max_steps=150, learning_rate=2e-3)
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    metrics = trainer.evaluate()
    right = [made.text for made in trainer.complete(rows_of(24, 32)["prompt"])]
    share = sum(a == b for a, b in zip(right, rows_of(24, 32)["completion"], strict=True)) / 24
    assert metrics["eval_accuracy"] == share > max(before, 0.9)
    assert trainer.evaluate(rows_of(5))["eval_accuracy"] in [n / 5 for n in range(6)]


def test_early_stopping_goes_by_the_labels_of_the_validation_rows(tokenizer, tmp_path):
    """Wrong labels on the validation rows: the checkpoint that agrees with them most is the first one."""
    wrong = rows_of(24, 32).map(lambda row: {"completion": " q"})
    args = arguments(
        tmp_path, max_steps=60, eval_strategy="steps", eval_steps=20, save_strategy="steps", save_steps=20,
        load_best_model_at_end=True, metric_for_best_model="accuracy", save_total_limit=1,
    )  # fmt: skip
    trainer = CompletionTrainer(
        model=make_language_model(tokenizer), args=args, train_dataset=rows_of(32), eval_dataset=wrong,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    scores = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert len(scores) == 3 and trainer.state.best_metric == max(scores)
    assert trainer.state.best_global_step == 20 * (1 + scores.index(max(scores)))


def test_one_base_serves_student_after_student(tokenizer, tmp_path):
    base = make_language_model(tokenizer)
    reference = make_trainer(fresh_adapter(copy.deepcopy(base), LORA, seed=1), tokenizer, tmp_path)
    student, runs = base, []
    for _ in range(3):
        student = fresh_adapter(student, LORA, seed=1)
        trainer = make_trainer(student, tokenizer, tmp_path)
        runs.append(losses(trainer))
        forward = base.__dict__["forward"]  # TRL's, since it has a fused head, around the model's own
        inner = inspect.getclosurevars(getattr(forward, "__func__", forward)).nonlocals.get("original_forward")
        assert inner is None or inner == base._untrained_forward, "TRL's patch was put upon itself"
    assert runs[0] == runs[1] == runs[2] == losses(reference)
    assert base._untrained_forward.__func__ is LlamaForCausalLM.forward


def test_adapters_on_4_bits_stay_float32(tokenizer, tmp_path):
    path = tmp_path / "base"
    make_language_model(tokenizer).save_pretrained(path)
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = load_student(str(path), task_type="CAUSAL_LM", dtype="float32", quantization_config=quantized)
    student = fresh_adapter(base, LORA, seed=0)
    before = {name: value.clone() for name, value in student.named_parameters() if value.requires_grad}
    trainer = make_trainer(student, tokenizer, tmp_path)
    assert before and all(value.dtype == torch.float32 for value in student.parameters() if value.requires_grad)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in student.named_parameters() if name in before)
    assert len(trainer.complete(["a:", "bb:"])) == 2


def test_dropout_is_off_unless_asked_for(tokenizer, tmp_path):
    for disable in (True, False):
        model = make_language_model(tokenizer, attention_dropout=0.1)
        student = fresh_adapter(model, LoraConfig(**{**LORA.to_dict(), "lora_dropout": 0.3}), seed=0)
        make_trainer(student, tokenizer, tmp_path, disable_dropout=disable)
        rates = {module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == ({0} if disable else {0.3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, expected a positive"),
        ({"max_length": -3}, "max_length: got -3"),
        ({"packing": True}, "packing: got True, and completions are scored row by row"),
    ],
)
def test_wrong_arguments_say_what_to_do(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)
