"""Tests that BootstrapTrainer equals three trainers chained by hand, bit by bit, and its memory and options."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.chains import (
    LORA,
    N_LINKS,
    SPECIAL,
    assert_same_chain,
    bootstrap,
    files,
    state_of,
    student,
    three_parts,
    weights,
)
from helpers.models import WORDS, make_rows, make_tokenizer
from helpers.training import arguments, with_weights
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

from w2s_hf import BootstrapConfig, BootstrapTrainer, WeakLabels, WeakToStrongConfig, WeakToStrongTrainer, load_student
from w2s_hf.trainers import student_card


def student_with_dropout(link: int):
    config = GPT2Config(n_embd=16 * (link + 1), n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.2, **SPECIAL)
    return GPT2ForSequenceClassification(config)


def other_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with the words of `make_tokenizer` and other ids."""
    words = {"<pad>": 0, "<unk>": 1} | {word: 63 - number for number, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


def by_hand(tmp_path, rows, model_init, peft_config=None, **kwargs):
    """Trains three models, each on the labels of its predecessor. Returns their predictions for the next rows."""
    labels, trainers = [], []
    for link, part in enumerate(rows):
        if link > 0:
            labels.append(trainers[-1].predict_proba(part))
            part = part.remove_columns([name for name in part.column_names if name == "labels"])
            part = part.add_column("labels", labels[-1].tolist())
        set_seed(42)
        trainer = WeakToStrongTrainer(
            model=model_init(link),
            args=arguments(tmp_path / f"hand-{link}", lr_scheduler_type="linear", **kwargs),
            train_dataset=part,
            processing_class=make_tokenizer(),
            peft_config=peft_config,
        )
        trainer.train()
        trainers.append(trainer)
    return trainers, labels


@pytest.mark.parametrize("case", ["a part for each link", "one dataset with weights, adapters", "dropout"])
def test_a_chain_is_three_trainers_by_hand(case, tmp_path):
    init, peft_config, options = student, None, {}
    rows = given = three_parts()
    if case == "one dataset with weights, adapters":
        given, peft_config = with_weights(make_rows(16)), LORA
        rows = [given] * N_LINKS
    if case == "dropout":
        init, options = student_with_dropout, {"disable_dropout": False}
    trainer = bootstrap(tmp_path / "out", given, init, peft_config=peft_config, **options)
    trainer.train()
    trainers, labels = by_hand(tmp_path, rows, init, peft_config, **options)
    for link, hand in enumerate(trainers, 1):
        hand.save_model(str(tmp_path / "saved"))
        ours, theirs = weights(tmp_path / "out" / f"link-{link}"), weights(tmp_path / "saved")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), link
    for link, expected in enumerate(labels, 1):
        made = WeakLabels.load(tmp_path / "out" / f"link-{link}" / "labels" / "train")
        assert np.array_equal(made.probabilities, expected) and expected.std(axis=0).min() > 0.01
    test_rows = make_rows(8, "none", seed=9)
    assert np.array_equal(trainer.predict_proba(test_rows), trainers[-1].predict_proba(test_rows))
    assert not np.array_equal(labels[0], labels[1]), "all links have equal predictions, so the test is trivial"


def test_each_link_says_what_taught_it_and_loads_by_itself(tmp_path):
    given = WeakLabels([f"row-{i}" for i in range(16)], np.tile(np.float32([0.3, 0.7]), (16, 1)), {"model": "weak"})
    parts = [given.join(make_rows(16, "none")), make_rows(16, "none", seed=1), make_rows(16, "none", seed=2)]
    parts[1] = parts[1].remove_columns("id")
    trainer = bootstrap(tmp_path, parts, max_steps=1)
    output = trainer.train()
    first, second = (WeakLabels.load(tmp_path / f"link-{link}" / "labels" / "train") for link in (1, 2))
    assert first.provenance == {"link": 1, "trained_on": given.fingerprint, "hard_labels": False, "seed": 42}
    assert second.provenance == {**first.provenance, "link": 2, "trained_on": first.fingerprint}
    assert json.loads((tmp_path / "link-3" / "link.json").read_text())["train_labels"] == second.fingerprint
    assert first.ids == [str(position) for position in range(16)] and second.ids == parts[2]["id"][:]
    states = [state_of(tmp_path, link) for link in (1, 2, 3)]
    assert [{entry["link"] for entry in state.log_history} for state in states] == [{1}, {2}, {3}]
    assert [state.global_step for state in states] == [1, 1, 1] and output.global_step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.json", "link-1", "link-2", "link-3"]
    assert not (tmp_path / "link-3" / "labels").exists()
    loaded = WeakToStrongTrainer(
        model=load_student(str(tmp_path / "link-3"), dtype="float32"),
        args=arguments(tmp_path / "x"),
        processing_class=make_tokenizer(),
    )
    assert np.array_equal(loaded.predict_proba(parts[0]), trainer.predict_proba(parts[0]))


def test_labels_of_later_rows_are_never_read(tmp_path, monkeypatch):
    columns = []
    predict = BootstrapTrainer.predict_proba
    monkeypatch.setattr(
        BootstrapTrainer, "predict_proba", lambda self, rows: columns.extend(rows.column_names) or predict(self, rows)
    )
    plain, labelled = three_parts(), three_parts()
    labelled[1] = labelled[1].add_column("labels", [1] * 16).add_column("ground_truth", [1] * 16)
    labelled[2] = labelled[2].add_column("label", [-1] * 16).add_column("label_ids", [1] * 16)
    for name, rows in (("plain", plain), ("labelled", labelled)):
        trainer = bootstrap(tmp_path / name, rows)
        trainer.train()
    assert_same_chain(tmp_path / "plain", tmp_path / "labelled")
    assert set(columns) == {"id", "input_ids", "attention_mask"}
    assert set(trainer.train_dataset.column_names) == {*columns, "labels"}


def test_a_student_is_gone_before_the_next_is_made_and_earlier_ones_stay_as_they_are(tmp_path):
    made, alive, n_bytes, hashes = [], [], [], []

    def live_bytes():
        gc.collect()
        parameters = [it for it in gc.get_objects() if isinstance(it, torch.nn.Parameter)]
        return sum(it.numel() * it.element_size() for it in parameters)

    def init(link):
        alive.append([ref() is not None for ref in made])  # the trainer must free memory
        n_bytes.append(live_bytes())
        hashes.append(files(*(tmp_path / f"link-{k}" for k in range(1, link + 1))))
        model = student_with_dropout(0)  # models of one size, so that their bytes can be compared
        made.append(weakref.ref(model))
        return model

    options = {
        "bf16": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }  # autocast creates a reference cycle
    trainer = bootstrap(tmp_path, make_rows(16), init, eval_dataset=make_rows(8), **options)
    trainer.train()
    assert alive == [[], [False], [False, False]]
    assert n_bytes[1:] == [n_bytes[0]] * 2 and made[-1]() is trainer.model
    after = files(tmp_path)
    for earlier in hashes:
        assert all(after[name] == value for name, value in earlier.items())
    assert len(hashes[2]) > len(hashes[1]) > 5


def test_labels_between_links_are_soft_or_hard(tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction.label_ids)
        return {}

    for hard in (False, True):
        trainer = bootstrap(
            tmp_path / str(hard),
            n_links=2,
            rows=three_parts()[:2],
            eval_dataset=make_rows(8),
            compute_metrics=metrics,
            eval_strategy="epoch",
            max_steps=2,
            hard_labels=hard,
        )
        trainer.train()
        made = WeakLabels.load(tmp_path / str(hard) / "link-1" / "labels" / "train").probabilities
        assert np.isin(made, (0, 1)).all() == hard and 0 < made[:, 1].mean() < 1
        learned = np.asarray(trainer.train_dataset["labels"][:])
        assert np.array_equal(learned, made.argmax(axis=1) if hard else made)
    soft, hard = seen[1], seen[3]
    assert soft.shape == (8, 2) and 0 < soft.min() and hard.dtype == np.int64
    assert np.array_equal(soft.argmax(axis=1), hard)


def test_sizes_may_have_their_own_tokenizers(tmp_path):
    other = other_tokenizer()
    texts = [f"w{i} w{i + 1} w{2 * i}" for i in range(16)]
    rows = Dataset.from_dict({"text": texts, "labels": [0.1, 0.9] * 8})
    trainer = bootstrap(tmp_path, rows, n_links=2, tokenizer=[make_tokenizer(), other])
    trainer.train()
    assert trainer.train_dataset["input_ids"][:] == [other(text)["input_ids"] for text in texts]
    assert WeakLabels.load(tmp_path / "link-1" / "labels" / "train").probabilities.std(axis=0).min() > 0.01
    saved = [PreTrainedTokenizerFast.from_pretrained(tmp_path / f"link-{link}").get_vocab() for link in (1, 2)]
    assert saved == [make_tokenizer().get_vocab(), other.get_vocab()]
    same = [make_tokenizer(), make_tokenizer()]
    bootstrap(tmp_path / "same", three_parts()[:2], n_links=2, tokenizer=same)


def test_models_may_be_names(tmp_path):
    names = [str(tmp_path / f"base-{link}") for link in range(2)]
    for link, name in enumerate(names):
        set_seed(0)
        student(link).save_pretrained(name)
        make_tokenizer().save_pretrained(name)

    def chain(output_dir):
        args = arguments(output_dir, BootstrapConfig)
        return BootstrapTrainer(names.__getitem__, 2, args, train_dataset=make_rows(16), peft_config=LORA)

    trainer, again = chain(tmp_path / "out"), chain(tmp_path / "out")
    trainer.train()
    assert isinstance(trainer.model, PeftModel) and trainer.processing_class is not None
    assert (tmp_path / "out" / "link-2" / "adapter_model.safetensors").is_file()
    again.train(resume_from_checkpoint=True)
    rows = make_rows(8, "none")
    assert np.array_equal(again.predict_proba(rows), trainer.predict_proba(rows))
    other_tokenizer().save_pretrained(names[1])
    with pytest.raises(ValueError, match="different vocabularies, expected rows of text"):
        chain(tmp_path / "x").train()


def test_only_the_last_student_goes_to_the_hub(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(student_card, "commit_files", lambda *args, **kwargs: pushed.append((*args, kwargs)))
    monkeypatch.setattr(student_card, "owner_of_token", lambda token: "me")
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **kwargs: pushed.append("repository"))
    trainer = bootstrap(tmp_path / "out", push_to_hub=True, max_steps=1)
    with pytest.raises(ValueError, match="link-3, is not finished"):
        trainer.push_to_hub()
    trainer.train()
    trainer.push_to_hub("Done", revision="v1")
    ((repo_id, files, options),) = pushed[1:]
    assert pushed[0] == "repository" and repo_id == "me/out"
    assert options["message"] == "Done" and options["revision"] == "v1"
    assert files["model.safetensors"] == tmp_path / "out" / "link-3" / "model.safetensors"
    assert not any(name.startswith(("link", "labels", "trainer_state", "training_args")) for name in files)
    assert b"- bootstrap\n" in files["README.md"] and b'load_student("me/out"' in files["README.md"]
    assert trainer.args.output_dir == str(tmp_path / "out") and trainer.args.hub_model_id is None


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (BootstrapConfig, {"push_to_hub": True, "hub_strategy": "every_save"}, "hub_strategy: got 'every_save'"),
        (WeakToStrongConfig, {"push_to_hub": True, "hub_strategy": "every_save"}, "hub_strategy: got 'every_save'"),
        (BootstrapConfig, {"enable_jit_checkpoint": True}, "enable_jit_checkpoint: got True"),
    ],
    ids=["pushed chain", "pushed student", "checkpoint of a signal"],
)
def test_arguments_that_a_chain_cannot_honour_are_refused(config, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, config, **options)


FIRST, SECOND, THIRD = three_parts()
TWO_TOKENIZERS = [make_tokenizer(), other_tokenizer()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_links": 0}, "n_links: got 0"),
        ({"rows": [FIRST, SECOND]}, "train_dataset: got a list of 2 datasets for 3 links"),
        ({"eval_dataset": [FIRST]}, "eval_dataset: got a list of 1 datasets for 3 links"),
        ({"rows": [SECOND, SECOND, THIRD]}, "train_dataset: got the columns .*expected `labels`, on which link 1"),
        ({"eval_dataset": SECOND}, "eval_dataset: got the columns .*expected `labels`"),
        ({"rows": [FIRST, SECOND, THIRD.select([])]}, "train_dataset of link 3: got no rows"),
        ({"rows": [FIRST, SECOND.select_columns("id"), THIRD]}, "train_dataset of link 2: got the columns id"),
        ({"rows": [FIRST, SECOND.remove_columns("id").add_column("id", ["a"] * 16), THIRD]},
         "train_dataset of link 2: got 15 repeated ids"),
        ({"rows": {"a": FIRST}}, "train_dataset: got a dict"),
        ({"rows": FIRST.remove_columns("labels").add_column("labels", [-1] + [1] * 15)},
         "train_dataset: labels: got class -1"),
        ({"optimizers": (None, None)}, "optimizers, expected no optimizers, since they belong to one model"),
        ({"rows": [FIRST, SECOND], "n_links": 2, "tokenizer": TWO_TOKENIZERS},
         "different vocabularies, expected rows of text"),
        ({"tokenizer": TWO_TOKENIZERS[:1] * 2}, "got 2 tokenizers for 3 links"),
    ],
    ids=["no link", "two datasets", "one evaluation set", "unlabelled", "unlabelled evaluation set", "no rows",
         "only ids", "repeated ids", "dict", "class", "optimizers", "vocabularies", "two tokenizers"],
)  # fmt: skip
def test_what_no_chain_can_be_made_of_is_refused_before_anything_trains(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        bootstrap(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_loss_without_a_hash_of_its_code_is_refused_before_anything_trains(tmp_path):
    class Loss:
        def __call__(self, logits, soft_labels, step):
            return logits.sum(dim=1)

    with pytest.raises(TypeError, match="^loss: Got a callable of type Loss, expected a function"):
        bootstrap(tmp_path, loss=Loss())


def test_a_chain_needs_its_own_arguments(tmp_path):
    with pytest.raises(ValueError, match="got a WeakToStrongConfig, expected a BootstrapConfig"):
        BootstrapTrainer(student, 1, WeakToStrongConfig(output_dir=str(tmp_path)), train_dataset=FIRST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model_init", "message"),
    [
        (lambda link: student(link, 2 + link), r"model_init\(1\): got a model of 3 classes, expected 2, .* of link 1"),
        (lambda link: None, r"model_init\(0\): got None"),
    ],
    ids=["three classes", "none"],
)
@pytest.mark.parametrize("hard", [False, True])
def test_models_of_other_classes_are_refused(hard, model_init, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        bootstrap(tmp_path, model_init=model_init, hard_labels=hard, max_steps=1).train()


def test_three_classes(tmp_path):
    rows = make_rows(16, n_classes=3)
    trainer = bootstrap(tmp_path, rows, model_init=lambda link: student(link, 3), n_links=2)
    trainer.train()
    assert WeakLabels.load(tmp_path / "link-1" / "labels" / "train").probabilities.shape == (16, 3)
    assert trainer.predict_proba(rows).shape == (16, 3)
