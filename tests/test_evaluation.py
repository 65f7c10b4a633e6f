"""Tests evaluation and prediction of all trainers: order of rows, options of the base trainers, names of metrics."""

import logging
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.models import make_character_tokenizer, make_language_model, make_model, make_rows, make_tokenizer
from helpers.training import Record, arguments, completion_arguments, make_pairs, pair_arguments, reward_model, rows_of
from torch import nn
from transformers import (
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from w2s_hf import BootstrapConfig, BootstrapTrainer, CompletionTrainer, RewardPairTrainer, WeakToStrongTrainer

KINDS = ("classification", "chain", "pairs", "completions")
N = 10  # in batches of 4: the last one has 2 rows
OWN = ("compute_metrics", "preprocess_logits_for_metrics", "callbacks", "data_collator", "eval_dataset")
CHARACTERS, WORDS = make_character_tokenizer(), make_tokenizer()


def rows_for(kind: str, seed: int = 0, n: int = N) -> Dataset:
    """Returns rows of several lengths for the trainer."""
    if kind == "pairs":
        return make_pairs(n, "random", seed=seed)
    return rows_of(n, seed) if kind == "completions" else make_rows(n, "scalar", seed=seed)


def trainer_of(kind: str, tmp_path, model=None, trained: bool = True, **options):
    """Returns a trainer. The chain has one link and is trained, since it has no model before."""
    given = {name: options.pop(name) for name in OWN if name in options}
    options = {"per_device_eval_batch_size": 4, "max_steps": 1, **options}
    rows = rows_for(kind, seed=1)
    if kind == "completions":
        model = make_language_model(CHARACTERS) if model is None else model
        args = completion_arguments(tmp_path, max_new_tokens=2, disable_tqdm=True, **options)
        return CompletionTrainer(model, args, train_dataset=rows, processing_class=CHARACTERS, **given)
    common = {"train_dataset": rows, "processing_class": WORDS, **given}
    if kind == "pairs":
        return RewardPairTrainer(
            reward_model() if model is None else model, pair_arguments(tmp_path, **options), **common
        )
    model = make_model("bert") if model is None else model
    if kind == "classification":
        return WeakToStrongTrainer(model, arguments(tmp_path, **options), **common)
    trainer = BootstrapTrainer(lambda link: model, 1, arguments(tmp_path, BootstrapConfig, **options), **common)
    if trained:
        trainer.train()
    return trainer


def labels_of(kind: str, label_ids: np.ndarray) -> list:
    """Returns the labels that identify each row in a function of the user."""
    if kind == "completions":
        return [[token for token in row if token >= 0] for row in label_ids.tolist()]
    return np.round(label_ids if kind == "pairs" else label_ids[:, 1], 5).tolist()


def expected_labels(kind: str, rows: Dataset) -> list:
    if kind == "completions":
        return [CHARACTERS(text)["input_ids"] + [CHARACTERS.eos_token_id] for text in rows["completion"]]
    return np.round(np.float32(rows["soft_label" if kind == "pairs" else "labels"][:]), 5).tolist()


@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_the_user_see_rows_in_their_order(kind, by_batch, tmp_path):
    seen, preprocessed, reported = [], [], []

    def compute_metrics(prediction, compute_result=True):
        label_ids = torch.as_tensor(prediction.label_ids).numpy()
        seen.append((labels_of(kind, label_ids), prediction.inputs, prediction.losses))
        return {"rows": float(sum(len(labels) for labels, *_ in seen))} if compute_result else {}

    def preprocess(logits, labels):
        preprocessed.extend(labels_of(kind, labels.numpy()))
        return logits

    class Report(TrainerCallback):
        def on_predict(self, args, state, control, metrics, **kwargs):
            reported.append(metrics.get("test_rows"))

    options = {} if kind == "pairs" else {"train_sampling_strategy": "group_by_length"}
    trainer = trainer_of(
        kind, tmp_path, compute_metrics=compute_metrics, preprocess_logits_for_metrics=preprocess,
        callbacks=[Report()], batch_eval_metrics=by_batch, include_for_metrics=["inputs", "loss"], **options,
    )  # fmt: skip
    rows = rows_for(kind)
    expected = expected_labels(kind, rows)
    output = trainer.predict(rows)
    assert [label for labels, *_ in seen for label in labels] == expected == preprocessed
    assert reported == [N] and output.metrics["test_rows"] == N
    assert len(seen) == (3 if by_batch else 1)
    if by_batch:
        assert all(inputs["input_ids"].shape == inputs["attention_mask"].shape for _, inputs, _ in seen)
    else:
        assert labels_of(kind, output.label_ids) == expected and len(output.predictions) == N == len(seen[0][2])
        inputs = seen[0][1] if kind != "pairs" else seen[0][1][..., 1]  # rejected, chosen
        if kind == "completions":
            tokens = CHARACTERS([row["prompt"] + row["completion"] for row in rows])["input_ids"]
        else:
            tokens = rows["chosen_ids" if kind == "pairs" else "input_ids"]
        for row, ids in zip(inputs.tolist(), tokens, strict=True):
            assert row[: len(ids)] == ids
    if kind != "completions":
        probabilities = trainer.predict_proba(rows)  # by length, and in their order
        logits = torch.from_numpy(np.concatenate([output.predictions]))
        torch.testing.assert_close(torch.from_numpy(probabilities), logits.softmax(-1), rtol=1e-4, atol=1e-5)
        assert len(seen) == (3 if by_batch else 1), "predict_proba computes no metrics"


OPTIONS = {
    "dataloader_drop_last": lambda whole: whole[:8],
    "prediction_loss_only": lambda whole: None,
    "eval_do_concat_batches": lambda whole: [whole[:4], whole[4:8], whole[8:]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_evaluation_are_those_of_the_stock_trainer(kind, tmp_path):
    """`predict` leaves out the same rows as in transformers; `predict_proba` returns all rows."""
    trainer, rows = trainer_of(kind, tmp_path), rows_for(kind)
    whole = trainer.predict(rows)
    assert whole.predictions.shape == (
        (N, 2) if kind != "completions" else (N, whole.label_ids.shape[1], len(CHARACTERS))
    )
    proba = None if kind == "completions" else trainer.predict_proba(rows)
    for option, expected in OPTIONS.items():
        before = getattr(trainer.args, option)
        setattr(trainer.args, option, not before)
        output = trainer.predict(rows)
        for values, of_whole in ((output.predictions, whole.predictions), (output.label_ids, whole.label_ids)):
            remaining = expected(of_whole)
            if remaining is None:
                assert values is None
            elif isinstance(remaining, list):
                # Completions are padded batch by batch.
                assert [len(batch) for batch in values] == [4, 4, 2]
                for batch, part in zip(values, remaining, strict=True):
                    np.testing.assert_allclose(batch, part[:, : batch.shape[1]] if batch.ndim > 1 else part, atol=1e-5)
            else:
                np.testing.assert_allclose(values, remaining, atol=1e-5)
        assert np.isfinite(output.metrics["test_loss"])
        assert np.isfinite(trainer.evaluate(rows)["eval_loss"])
        if proba is not None:
            np.testing.assert_allclose(trainer.predict_proba(rows), proba, atol=1e-5)
            assert getattr(trainer.args, option) == (not before), "predict_proba leaves the arguments as they are"
        setattr(trainer.args, option, before)


def test_the_accuracy_of_completions_is_of_the_rows_of_the_loss(tmp_path):
    trainer = trainer_of("completions", tmp_path, dataloader_drop_last=True)
    rows = rows_for("completions")
    written = [made.text for made in trainer.complete(rows["prompt"])]
    rows = rows.remove_columns("completion").add_column("completion", [*written[:8], "q", "q"])
    assert trainer.evaluate(rows)["eval_accuracy"] == 1.0
    assert "eval_accuracy" not in trainer.evaluate(rows.select(range(3)))  # there is no loss, either
    trainer.compute_metrics = lambda prediction: {"accuracy": 0.123}
    assert trainer.evaluate(rows)["eval_accuracy"] == 0.123


# ---- Outputs, inputs and datasets of other kinds ----


def stock(tmp_path, model, **options):
    args = arguments(tmp_path, TrainingArguments, per_device_eval_batch_size=4, **options)
    return Trainer(model, args, processing_class=WORDS)


def assert_same(ours, theirs):
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def bert(**config) -> BertForSequenceClassification:
    model = make_model("bert")
    for name, value in config.items():
        setattr(model.config, name, value)
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [{"return_dict": False}, {"output_hidden_states": True}, {"return_dict": False, "output_hidden_states": True}],
)
def test_tuples_and_several_outputs_are_those_of_the_stock_trainer(config, tmp_path):
    rows = make_rows(N, "hard")
    ours = trainer_of("classification", tmp_path / "ours", bert(**config))
    theirs = stock(tmp_path / "theirs", bert(**config))
    for part in (rows, rows.remove_columns("labels")):
        assert_same(ours.predict(part).predictions, theirs.predict(part).predictions)
    assert ours.evaluate(rows)["eval_loss"] == pytest.approx(theirs.evaluate(rows)["eval_loss"], rel=1e-5)
    assert ours.predict_proba(rows).shape == (N, 2)
    ours.train()


@pytest.mark.parametrize("kind", ["pairs", "completions"])
def test_trl_needs_outputs_with_names(kind, tmp_path):
    model = reward_model() if kind == "pairs" else make_language_model(CHARACTERS)
    model.config.return_dict = False
    with pytest.raises(ValueError, match="got config.return_dict=False, expected True"):
        trainer_of(kind, tmp_path, model)


@pytest.mark.parametrize("pad_token", ["<eos>", "w3"])
def test_the_tokenizer_says_which_token_is_padding(pad_token, tmp_path, caplog):
    """The padding token is that of the tokenizer: with another one in config.json, predictions depend on the batch."""
    model, tokenizer = make_model("llama"), make_tokenizer()
    tokenizer.pad_token = pad_token
    pad = tokenizer.pad_token_id
    assert model.config.pad_token_id not in (None, pad)
    ids = [[5, 6, 8], [9], [10, pad, 11, 12, 13, 14], [15, 16, 17, 18, 19, 20, 21]]
    found = {}
    for n_rows in (1, 4):
        trainer = WeakToStrongTrainer(
            model=model,
            args=arguments(tmp_path, per_device_eval_batch_size=n_rows),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": [0, 1, 0, 1]}),
            processing_class=tokenizer,
        )
        found[n_rows] = trainer.predict_proba(trainer.train_dataset)
    np.testing.assert_allclose(found[4], found[1], atol=1e-5)
    assert "padding token" not in caplog.text, "inside a text, padding tokens are allowed"
    logging.Logger.warning_once.cache_clear()
    trainer.predict_proba(Dataset.from_dict({"input_ids": [*ids, [5, pad]]}))
    assert f"1 rows end with the padding token '{pad_token}', and a decoder classifier reads the token" in caplog.text


class BagOfEmbeddings(PreTrainedModel):
    """A classifier of the user, whose configuration has no `pad_token_id`."""

    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding, self.classifier = nn.Embedding(64, 8), nn.Linear(8, 2)

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, labels=None):
        embeddings = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        return {"logits": self.classifier(embeddings.mean(dim=1))}


def test_a_model_of_ones_own_without_a_padding_token(tmp_path):
    torch.manual_seed(0)
    model = BagOfEmbeddings(PreTrainedConfig())
    assert not hasattr(model.config, "pad_token_id")
    trainer = trainer_of("classification", tmp_path, model)
    trainer.train()
    assert model.config.pad_token_id == WORDS.pad_token_id
    assert trainer.predict_proba(make_rows(N)).shape == (N, 2)


def test_rows_of_embeddings_predict(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(N, 5, 64)).astype("float32")
    rows = Dataset.from_dict({"inputs_embeds": vectors.tolist(), "labels": [0, 1] * (N // 2)})
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    trainer = WeakToStrongTrainer(make_model("bert"), args, train_dataset=rows)
    theirs = Trainer(make_model("bert"), arguments(tmp_path, TrainingArguments)).predict(rows)
    assert_same(trainer.predict(rows)[:2], theirs[:2])
    assert_same(trainer.predict_proba(rows), torch.from_numpy(theirs.predictions).softmax(-1).numpy())
    trainer.train()


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Dataset):
        self.rows = rows.to_list()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return dict(self.rows[index])


FORMS = {
    "with_format torch": lambda rows: rows.with_format("torch"),
    "with_format numpy": lambda rows: rows.with_format("numpy"),
    "with_transform": lambda rows: rows.with_transform(dict),
    "torch": Rows,
    "streamed": lambda rows: rows.to_iterable_dataset(),
}


@pytest.mark.parametrize("kind", ["classification", "pairs"])
def test_datasets_of_every_form_predict_alike(kind, tmp_path):
    rows, columns = rows_for(kind), {"label", "labels", "soft_label", "id"}
    rows = rows.remove_columns([name for name in rows.column_names if name == "id"])
    trainer = trainer_of(kind, tmp_path)
    expected, probabilities = trainer.predict(rows), trainer.predict_proba(rows)
    loss = trainer.evaluate(rows)["eval_loss"]
    for name, form in FORMS.items():
        output = trainer.predict(form(rows))
        assert_same(output.predictions, expected.predictions)
        assert_same(output.label_ids, expected.label_ids)
        assert_same(trainer.predict_proba(form(rows)), probabilities)
        # Test splits have -1 instead of missing labels.
        label = next(column for column in rows.column_names if column in columns)
        unlabelled = rows.remove_columns(label)
        if kind == "classification":
            unlabelled = unlabelled.add_column(label, [-1] * N)
        assert_same(trainer.predict_proba(form(unlabelled)), probabilities)
        if name != "torch":  # TRL evaluates only datasets that have columns
            # The loss of a stream is the mean over batches, since transformers does not know how long the last one is.
            tolerance = 0.1 if name == "streamed" else 1e-5
            assert trainer.evaluate(form(rows))["eval_loss"] == pytest.approx(loss, rel=tolerance)


def test_a_transform_may_tokenize(tmp_path):
    """As in transformers, with `remove_unused_columns=False`: the text is not one of the model's arguments."""
    texts = Dataset.from_dict({"text": [f"w{i} w2 w{2 * i}" for i in range(N)], "label": [0, 1] * (N // 2)})
    tokens = texts.map(lambda row: WORDS(row["text"])).rename_column("label", "labels")
    options = {"remove_unused_columns": False, "per_device_eval_batch_size": 4}
    lazy = texts.select(range(N))
    lazy.set_transform(lambda batch: {**WORDS(batch["text"]), "labels": batch["label"]})
    plain = WeakToStrongTrainer(make_model("bert"), arguments(tmp_path), train_dataset=tokens, processing_class=WORDS)
    trainer = WeakToStrongTrainer(
        make_model("bert"),
        arguments(tmp_path, **options),
        train_dataset=lazy,
        eval_dataset=lazy,
        processing_class=WORDS,
    )
    assert trainer.predict(lazy).label_ids.tolist() == texts["label"][:]
    assert_same(trainer.predict_proba(lazy), plain.predict_proba(tokens))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate(tokens)["eval_loss"])
    trainer.train(), plain.train()
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_texts_with_a_transform_are_refused_where_trl_tokenizes(tmp_path):
    texts = Dataset.from_dict({"chosen": ["w1 w2"] * 4, "rejected": ["w3"] * 4}).with_transform(dict)
    with pytest.raises(ValueError, match="test_dataset: Got texts with a transform"):
        trainer_of("pairs", tmp_path).predict(texts)


def test_streamed_texts_of_pairs_are_tokenized(tmp_path):
    texts = Dataset.from_dict({"chosen": [f"w{i} w2" for i in range(6)], "rejected": ["w3"] * 6})
    trainer = trainer_of("pairs", tmp_path)
    streamed = texts.to_iterable_dataset()
    assert_same(trainer.predict_proba(streamed), trainer.predict_proba(texts))
    assert trainer.evaluate(streamed)["eval_loss"] == pytest.approx(trainer.evaluate(texts)["eval_loss"], rel=0.1)


def test_a_collator_of_the_user_gets_rows_in_their_order(tmp_path):
    lengths, collate = [], DataCollatorWithPadding(WORDS)

    def collator(features):
        lengths.extend(len(row["input_ids"]) for row in features)
        return collate(features)

    rows = make_rows(N, "none")
    trainer = trainer_of("classification", tmp_path, data_collator=collator)
    expected = [len(ids) for ids in rows["input_ids"]]
    trainer.predict(rows), trainer.predict_proba(rows)
    assert lengths == 2 * expected != sorted(lengths)


def test_a_transform_gets_rows_in_their_order(tmp_path):
    seen = []

    def transform(batch):
        seen.extend(len(ids) for ids in batch["input_ids"])
        return dict(batch)

    rows = make_rows(N, "none")
    trainer_of("classification", tmp_path).predict_proba(rows.with_transform(transform))
    assert seen == [len(ids) for ids in rows["input_ids"]]


def test_completions_predict_from_texts_as_from_tokens(tmp_path):
    trainer = trainer_of("completions", tmp_path, eval_dataset=rows_for("completions"), max_length=12)
    texts, tokens = trainer.predict(rows_for("completions")), trainer.predict(trainer.eval_dataset)
    assert_same(texts[:2], tokens[:2])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a:"]}, "got the columns prompt, expected `prompt` and `completion`"),
        ({"prompt": ["a:", "abcdefghijkl:"], "completion": [" b", " b"]},
         r"1 of 2 rows are longer than max_length=12 tokens.*\(row 1 has 16\)"),
    ],
    ids=["no completion", "long"],
)  # fmt: skip
def test_completions_that_cannot_be_predicted_are_refused(columns, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of("completions", tmp_path, max_length=12).predict(Dataset.from_dict(columns))


def test_other_rows_are_evaluated_with_persistent_workers(tmp_path):
    rows, others = make_rows(4, "hard"), make_rows(4, "hard", seed=5)
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = trainer_of("classification", tmp_path, eval_dataset=rows, **options)
    losses = [trainer.evaluate(part)["eval_loss"] for part in (None, others, rows, None)]
    assert losses[0] == losses[2] == losses[3] != losses[1]
    # The workers of the trainer's rows are kept, as long as it has the same rows.
    kept = trainer._eval_dataloaders["eval"]
    trainer.evaluate()
    assert trainer._eval_dataloaders["eval"] is kept
    trainer.eval_dataset = others
    assert trainer.evaluate()["eval_loss"] == losses[1]


# ---- Several sets, and the metric that chooses the best model ----


def evaluating(kind: str, tmp_path, metric: str, **options):
    options = {
        "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": metric, "learning_rate": 1e-2, **options,
    }  # fmt: skip
    options.setdefault("eval_dataset", {"a": rows_for(kind, seed=2), "b": rows_for(kind, seed=3, n=4)})
    return trainer_of(kind, tmp_path, trained=False, **options)


def distance(prediction) -> dict:
    """Tests a metric of the user."""
    return {"distance": float(np.abs(prediction.predictions).mean())}


@pytest.mark.parametrize("kind", ["classification", "pairs", "completions"])
def test_every_set_has_its_own_metrics(kind, tmp_path):
    own = {"classification": "distance", "pairs": "accuracy", "completions": "accuracy"}[kind]
    metric = f"a_{own}"
    trainer = evaluating(kind, tmp_path, metric, compute_metrics=distance if kind == "classification" else None)
    parts = trainer.eval_dataset if kind != "completions" else {"a": rows_for(kind, seed=2), "b": rows_for(kind, 3, 4)}
    together = trainer.evaluate()
    for name, rows in parts.items():
        alone = trainer.evaluate(rows)
        for of_set in {own, "loss"} | ({"margin"} if kind == "pairs" else set()):
            assert together[f"eval_{name}_{of_set}"] == pytest.approx(alone[f"eval_{of_set}"])
            assert f"eval_{of_set}" not in together
    assert together["eval_a_loss"] != together["eval_b_loss"]
    assert trainer.evaluate("b")["eval_loss"] == pytest.approx(together["eval_b_loss"])
    again = trainer.evaluate(parts, metric_key_prefix="test")
    assert again["test_a_loss"] == pytest.approx(together["eval_a_loss"])
    trainer.train()
    scores = [entry[f"eval_{metric}"] for entry in trainer.state.log_history if f"eval_{metric}" in entry]
    assert len(scores) == 2 and trainer.state.best_metric == max(scores)


def test_prefix_of_evaluation_loop_may_be_positional(tmp_path):
    trainer = trainer_of("pairs", tmp_path)
    rows = trainer._prepare_test_rows(rows_for("pairs", seed=2))
    metrics = trainer.evaluation_loop(trainer.get_test_dataloader(rows), "Evaluation", None, None, "held_out").metrics
    assert "held_out_accuracy" in metrics and all(name.startswith("held_out_") for name in metrics)


REPORTED = {
    "classification": "eval_loss",
    "pairs": "eval_margin",
    "completions": "eval_accuracy",
    "chain": "eval_loss",
}


@pytest.mark.parametrize("computes", [None, distance])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_metric_is_refused_before_the_first_step(kind, computes, tmp_path):
    steps = []

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    options = {"eval_dataset": rows_for(kind, seed=2), "compute_metrics": computes, "callbacks": [Steps()]}
    reported = f"Got 'f1', expected a metric .*{REPORTED[kind]}"
    trainer = evaluating(kind, tmp_path, "f1", **options)
    with pytest.raises(ValueError, match=reported):
        trainer.train()
    assert not steps and not trainer.state.log_history and not trainer.is_in_train
    assert type(trainer.callback_handler.callbacks[-1]).__module__ != "w2s_hf.trainers.evaluation"
    if computes is not None:
        evaluating(kind, tmp_path / "known", "distance", **options).train()
        assert steps


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        # `load_best_model_at_end` alone uses the loss, and each set has its own.
        (None, {}, "Got 'loss', expected a metric .*eval_a_loss, .*eval_b_loss"),
        ("eval_b_loss", {}, None),
        # 4 rows are less than a whole batch.
        ("eval_b_loss", {"dataloader_drop_last": True, "per_device_eval_batch_size": 5}, "Got 'eval_b_loss'"),
    ],
    ids=["no set", "set", "set without a batch"],
)
def test_names_of_the_sets_are_part_of_a_metric(metric, options, message, tmp_path):
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        evaluating("classification", tmp_path, metric, **options).train()


def test_metrics_that_need_all_rows_or_are_added_by_a_callback_are_known(tmp_path):
    rows = rows_for("classification", seed=2)
    groups = np.arange(len(rows)) % 2

    def by_group(prediction):
        return {"spread": float(np.ptp([prediction.predictions[groups == group].mean() for group in (0, 1)]))}

    class Add(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_added"] = 1.0

    for metric, options in {"spread": {"compute_metrics": by_group}, "added": {"callbacks": [Add()]}}.items():
        trainer = evaluating("classification", tmp_path / metric, metric, eval_dataset=rows, **options)
        trainer.train()
        assert f"eval_{metric}" in {name for entry in trainer.state.log_history for name in entry} | {"eval_added"}


@pytest.mark.parametrize("kind", ["classification", "pairs"])
def test_looking_for_the_metric_leaves_the_training_as_it_is(kind, tmp_path):
    def noisy(prediction):
        return distance(prediction) | {"noise": random.random() + np.random.rand() + torch.rand(()).item()}

    class Events(Record):
        n_events = 0

        def on_prediction_step(self, args, state, control, **kwargs):
            self.n_events += 1

    runs = []
    for metric in ("loss", "noise"):
        record, rows = Events(), rows_for(kind, seed=2)
        model = None if kind == "pairs" else make_model("gpt2")  # with dropout
        trainer = evaluating(
            kind, tmp_path / metric, metric, model=model, disable_dropout=False, compute_metrics=noisy,
            eval_dataset=rows, callbacks=[record], loss_type="confidence", aux_warmup_ratio=0.0,
            per_device_train_batch_size=4, gradient_accumulation_steps=2,
        )  # fmt: skip
        random.seed(0), np.random.seed(0)
        trainer.train()
        clock = ("runtime", "per_second", "flos", "preparation_time")
        logs = [
            {k: v for k, v in e.items() if not any(word in k for word in clock)} for e in trainer.state.log_history
        ]
        runs.append((record.trajectory, logs, record.n_events))
    assert runs[0] == runs[1]


# ---- After an error ----


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [(N, RuntimeError, "refused"), (0, ValueError, "no rows")],
    ids=["error of the metrics", "no rows"],
)
@pytest.mark.parametrize("name", ["evaluate", "predict"])
@pytest.mark.parametrize("kind", ["classification", "pairs", "completions"])
def test_a_call_that_fails_leaves_nothing_behind(kind, name, rows, error, message, tmp_path):
    fails = [True]

    def compute_metrics(prediction):
        if fails:
            raise RuntimeError("refused")
        return {}

    others = rows_for(kind, seed=7)
    trainer = trainer_of(kind, tmp_path, compute_metrics=compute_metrics, skip_memory_metrics=False)
    plain = trainer_of(kind, tmp_path, compute_metrics=lambda prediction: {}, skip_memory_metrics=False)
    with pytest.raises(error, match=message):
        getattr(trainer, name)(rows_for(kind).select(range(rows)))
    fails.clear()
    for name in ("predict", "evaluate"):
        got, expected = getattr(trainer, name)(others), getattr(plain, name)(others)
        got, expected = (getattr(metrics, "metrics", metrics) for metrics in (got, expected))
        assert got.keys() == expected.keys() and any("mem_cpu" in key for key in got)
        timeless = [
            key for key in got if not any(w in key for w in ("mem_", "runtime", "per_second", "time", "epoch"))
        ]
        assert {key: got[key] for key in timeless} == pytest.approx({key: expected[key] for key in timeless})


def test_a_training_that_fails_leaves_nothing_behind(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("stopped")

    options = {"loss_type": "confidence", "neftune_noise_alpha": 5.0}
    trainer = trainer_of("classification", tmp_path, **options)
    stop = Stop()
    trainer.add_callback(stop)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.train()
    trainer.remove_callback(stop)
    assert not trainer.is_in_train and not any(trainer._numbers.values())
    assert not trainer.model.get_input_embeddings()._forward_hooks


def test_a_chain_without_a_student_is_not_pushed(tmp_path):
    """Tests a chain whose last link is finished on disk, but whose model cannot be created."""
    models, args = [make_model("bert")], arguments(tmp_path, BootstrapConfig, max_steps=1)
    rows = make_rows(8)
    trainer = BootstrapTrainer(lambda link: models.pop(), 1, args, train_dataset=rows, processing_class=WORDS)
    trainer.train()
    with pytest.raises(IndexError):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="push_to_hub: got a chain whose last link"):
        trainer.push_to_hub()
