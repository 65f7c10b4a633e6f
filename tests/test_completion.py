"""Tests CompletionTrainer: supervised finetuning with TRL, scored by the completions that the model generates."""

import copy
import inspect

import pytest
import torch
from datasets import Dataset
from helpers.models import make_character_tokenizer, make_language_model, merging_tokenizer
from helpers.training import completion_arguments, rows_of
from peft import LoraConfig
from transformers import BitsAndBytesConfig, EarlyStoppingCallback, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from w2s_hf import CompletionTrainer, fresh_adapter, load_student
from w2s_hf.generation import complete

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_character_tokenizer()


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def make_trainer(model, tokenizer, tmp_path, **options) -> CompletionTrainer:
    args = completion_arguments(tmp_path, **options)
    return CompletionTrainer(
        model=model, args=args, train_dataset=rows_of(32), eval_dataset=rows_of(24, 32), processing_class=tokenizer
    )


def test_it_trains_as_trl_does(tokenizer, tmp_path):
    ours = make_trainer(make_language_model(tokenizer), tokenizer, tmp_path)
    theirs = SFTTrainer(
        model=make_language_model(tokenizer),
        args=completion_arguments(tmp_path, SFTConfig, completion_only_loss=True),
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
    assert n == 3 * 8  # a space, a letter and the end-of-text token
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


def test_early_stopping_goes_by_the_labels_of_the_validation_rows(tokenizer, tmp_path):
    """
    The validation rows contain the completions of the untrained model, so that each training step lowers the score.
    """
    model = make_language_model(tokenizer)
    rows = rows_of(24, 32)
    made = [made.text for made in complete(model.eval(), tokenizer, rows["prompt"], max_new_tokens=4)]
    own = rows.remove_columns("completion").add_column("completion", made)
    args = completion_arguments(
        tmp_path, max_steps=40, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4,
        load_best_model_at_end=True, metric_for_best_model="accuracy", save_total_limit=2, eval_on_start=True,
        learning_rate=3e-4,
    )  # fmt: skip
    trainer = CompletionTrainer(
        model=model, args=args, train_dataset=rows_of(32), eval_dataset=own, processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )  # fmt: skip
    trainer.train()
    scores = {e["step"]: e["eval_accuracy"] for e in trainer.state.log_history if "eval_accuracy" in e}
    assert scores[0] == 1.0 > scores[8] and len(set(scores.values())) > 2
    after_start = {step: score for step, score in scores.items() if step}
    assert trainer.state.best_metric == max(after_start.values())
    assert trainer.state.global_step < 40, "the callback did not see the accuracy"


def test_evaluate_scores_the_rows_it_is_given(tokenizer, tmp_path):
    trainer = make_trainer(make_language_model(tokenizer), tokenizer, tmp_path)
    rows = rows_of(10)
    made = [made.text for made in trainer.complete(rows["prompt"])]
    own = rows.remove_columns("completion").add_column("completion", [*made[:7], "q", "q", "q"])
    assert trainer.evaluate(own)["eval_accuracy"] == 0.7
    assert trainer.evaluate(own, metric_key_prefix="test")["test_accuracy"] == 0.7
    assert trainer.evaluate()["eval_accuracy"] != 0.7
    assert "test_accuracy" not in trainer.predict(trainer.eval_dataset).metrics


def test_completing_leaves_the_model_as_it_was(tokenizer, tmp_path):
    student = fresh_adapter(make_language_model(tokenizer, attention_dropout=0.9), LORA, seed=0)
    trainer = make_trainer(student, tokenizer, tmp_path, disable_dropout=False)
    trainer.model.train()
    first = trainer.complete(["ab:", "c:"])
    assert trainer.model.training and trainer.complete(["ab:", "c:"]) == first, "completed with dropout"
    trainer.model.eval()
    trainer.complete(["ab:"])
    assert not trainer.model.training


def test_a_completion_never_changes_the_tokens_of_its_prompt(tmp_path):
    """The tokenizer merges `:` and a space. Tokenized separately, `a:` and ` b` are the prompt and the answer."""
    tokenizer = merging_tokenizer()
    rows = Dataset.from_dict({"prompt": ["a:", "b"], "completion": [" b", " c"]})
    args = completion_arguments(tmp_path)
    trainer = CompletionTrainer(make_language_model(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
    asked = tokenizer(["a:", "b"])["input_ids"]
    assert tokenizer("a: b")["input_ids"][:2] != asked[0], "no tokens merge, so the test is trivial"
    for row, prompt, completion in zip(trainer.train_dataset, asked, rows["completion"], strict=True):
        batch = trainer.data_collator([row])
        after = tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
        assert batch["input_ids"].tolist() == [prompt + after]
        assert batch["labels"].tolist() == [[-100] * len(prompt) + after]


def test_a_name_and_a_configuration_of_adapters_will_do(tokenizer, tmp_path):
    make_language_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trainer = CompletionTrainer(
        model=str(tmp_path / "base"), args=completion_arguments(tmp_path), train_dataset=rows_of(8), peft_config=LORA,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )  # fmt: skip
    trainable = [value for value in trainer.model.parameters() if value.requires_grad]
    assert trainable and all(value.dtype == torch.float32 for value in trainable)
    assert trainer.processing_class.eos_token == "<eos>"
    trainer.train()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": rows_of(3).select([])}, r"eval_dataset\['a'\]: got no rows"),
        (rows_of(3).with_transform(dict), "eval_dataset: Got rows with a transform"),
        (rows_of(3).remove_columns("completion"), "got the columns prompt, expected `prompt` and `completion`"),
        (rows_of(3).select([]), "eval_dataset: got no rows"),
        (
            Dataset.from_dict({"prompt": ["a"], "completion": [None]}),
            "got 'a' and None, expected text in `prompt`",
        ),
    ],
)
def test_rows_that_do_not_do_say_why(tokenizer, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        CompletionTrainer(
            model=make_language_model(tokenizer), args=completion_arguments(tmp_path), train_dataset=rows_of(3),
            eval_dataset=rows, processing_class=tokenizer,
        )  # fmt: skip


def test_one_base_serves_student_after_student(tokenizer, tmp_path):
    base = make_language_model(tokenizer)
    reference = make_trainer(fresh_adapter(copy.deepcopy(base), LORA, seed=1), tokenizer, tmp_path)
    student, runs = base, []
    for _ in range(3):
        student = fresh_adapter(student, LORA, seed=1)
        trainer = make_trainer(student, tokenizer, tmp_path)
        runs.append(losses(trainer))
        forward = base.forward  # newer TRL versions replace it with a forward with a fused head
        inner = inspect.getclosurevars(getattr(forward, "__func__", forward)).nonlocals.get("original_forward")
        assert inner is None or inner == base._untrained_forward, "TRL's patch was applied twice"
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


def long_rows() -> Dataset:
    """Returns rows of 4, 6, 10 and 12 tokens. The third has a long prompt, the last a long completion."""
    return Dataset.from_dict({"prompt": ["a:", "bcd:", "efghefg:", "a:"], "completion": ["x", "y", "x", "abcabcabc"]})


def test_training_rows_that_do_not_fit_are_left_out_and_counted(tokenizer, tmp_path, caplog):
    """TRL drops rows whose prompts fill `max_length` and truncates long completions. Here no row loses its end."""
    args = completion_arguments(tmp_path, max_length=8)
    trainer = CompletionTrainer(
        model=make_language_model(tokenizer), args=args, train_dataset=long_rows(), processing_class=tokenizer
    )
    rows = trainer.train_dataset
    assert [len(ids) for ids in rows["input_ids"]] == [4, 6]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in rows["input_ids"])
    assert caplog.text.count("train_dataset: 2 of 4 rows are longer than max_length=8 tokens") == 1
    assert "(row 2 has 10); they are left out" in caplog.text
    caplog.clear()
    for max_length in (None, 12):
        args = completion_arguments(tmp_path, max_length=max_length)
        whole = CompletionTrainer(
            model=make_language_model(tokenizer), args=args, train_dataset=long_rows(), processing_class=tokenizer
        )
        assert [len(ids) for ids in whole.train_dataset["input_ids"]] == [4, 6, 10, 12]
    assert "max_length" not in caplog.text


LONG = r"eval_dataset: 2 of 4 rows are longer than max_length=8 tokens.*Set args.max_length to 12 or to None"


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda make: make(eval_dataset=long_rows()), LONG),
        (lambda make: make().evaluate(long_rows()), LONG),
        (lambda make: make(train_dataset=long_rows().select([2, 3])),
         "train_dataset: 2 of 2 rows are longer than max_length=8"),
    ],
    ids=["evaluate later", "evaluate now", "train"],
)  # fmt: skip
def test_evaluation_rows_that_do_not_fit_and_no_row_that_fits_are_refused(use, message, tokenizer, tmp_path):
    def make(**rows):
        args = completion_arguments(tmp_path, max_length=8)
        rows = {"train_dataset": rows_of(8)} | rows
        return CompletionTrainer(make_language_model(tokenizer), args, processing_class=tokenizer, **rows)

    with pytest.raises(ValueError, match=message):
        use(make)


def test_rows_longer_than_the_positions_are_refused(tokenizer, tmp_path):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=11)
    with pytest.raises(ValueError, match="train_dataset: got 1 of 4 rows with more tokens than the 11 positions"):
        CompletionTrainer(
            GPT2LMHeadModel(config),
            completion_arguments(tmp_path),
            train_dataset=long_rows(),
            processing_class=tokenizer,
        )


def test_completions_that_cannot_be_written_are_counted(tokenizer, tmp_path, caplog):
    trainer = make_trainer(make_language_model(tokenizer), tokenizer, tmp_path, max_new_tokens=2)
    assert "max_new_tokens" not in caplog.text, "a truncated completion lacks only the end-of-text token"
    trainer.evaluate(long_rows())
    assert "eval_dataset: 1 of 4 completions have more than max_new_tokens=2 tokens" in caplog.text
    assert "Set args.max_new_tokens to 10." in caplog.text


@pytest.mark.parametrize("prompts", ["a:", [{"prompt": "a:"}], [["a"]]])
def test_prompts_that_are_no_list_of_strings_are_refused(prompts, tokenizer):
    with pytest.raises(ValueError, match="prompts: got .* expected"):
        complete(make_language_model(tokenizer), tokenizer, prompts, max_new_tokens=2)


def test_dropout_is_off_unless_asked_for(tokenizer, tmp_path):
    for disable in (True, False):
        model = make_language_model(tokenizer, attention_dropout=0.5)
        student = fresh_adapter(model, LoraConfig(**{**LORA.to_dict(), "lora_dropout": 0.3}), seed=0)
        make_trainer(student, tokenizer, tmp_path, disable_dropout=disable)
        rates = {module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == ({0} if disable else {0.3})
        ids = tokenizer("abc:", return_tensors="pt")
        one, two = (student.train()(**ids).logits for _ in range(2))
        assert torch.equal(one, two) == disable, "dropout of the attention"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, expected a positive"),
        ({"max_length": -3}, "max_length: got -3"),
        ({"packing": True}, "packing: got True, expected False"),
        ({"pad_token": "!"}, "pad_token: got '!', expected None"),
        ({"eos_token": "!"}, "eos_token: got '!', expected None, because rows are tokenized before TRL uses"),
        ({"chat_template_path": "a.jinja"}, "chat_template_path: got 'a.jinja', expected None"),
        ({"truncation_mode": "keep_end"}, "truncation_mode: got 'keep_end', expected the default 'keep_start'"),
    ],
)
def test_wrong_arguments_say_what_to_do(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        completion_arguments(tmp_path, **options)
