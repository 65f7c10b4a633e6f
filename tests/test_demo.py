"""Tests of the demo: generated texts and questions, and the models that are pretrained on them."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Value
from helpers.running import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from w2s_hf.config import CompletionConfig, RewardPairConfig, WeakToStrongConfig
from w2s_hf.demo.models import DEMO_MODELS, DemoModel, build_demo_model
from w2s_hf.demo.worlds import DemoWorld, WorldConfig
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.config import ChessArguments, ClassificationArguments, RewardArguments
from w2s_hf.experiments.experiment import Experiment, setting_of
from w2s_hf.tasks import PREFERENCE_TASKS, TASKS
from w2s_hf.tasks.chess import CHESS_PUZZLES

TINY = DemoModel("tiny", width=16, n_layers=1, mlp_width=32, n_documents=512, learning_rate=8e-3)


@pytest.fixture(scope="module")
def corpus(world) -> np.ndarray:
    return world.corpus(4000)


@pytest.fixture(scope="module")
def rows(world):
    return world.yes_no_rows(2000, "train")


def boolq_tokens(world: DemoWorld, row: dict) -> list[str]:
    tokenizer = world.tokenizer()
    return tokenizer.convert_ids_to_tokens(tokenizer(next(TASKS["boolq"].examples(row))["text"])["input_ids"])


def facts_of(tokens: list[str]) -> list[list[str]]:
    return [tokens[start : start + 4] for start in range(0, len(tokens), 4)]


def test_a_row_becomes_facts_and_a_question_that_ends_like_the_start_of_a_fact(world, rows):
    for row in rows.select(range(50)):
        tokens = boolq_tokens(world, row)
        assert len(tokens) == 23
        assert tokens[0] == "<bos>" and "<unk>" not in tokens
        facts = facts_of(tokens[1:17])
        assert " ".join(tokens[1:17]) == row["passage"]
        assert all(relation in ("is", "has", "can") and stop == "." for _, relation, _, stop in facts)
        counts = Counter(fact[0] for fact in facts)
        assert list(counts.values()) == [2, 2] and set(counts) <= set(world.entities)
        subject = tokens[21]
        assert tokens[17:] == ["question", ":", "alive", "?", subject, "is"] and subject in counts
        assert row["answer"] == world.is_alive[world.entities.index(subject)]


def test_rows_have_the_schema_of_boolq_and_both_answers(rows):
    assert rows.features == {"question": Value("string"), "answer": Value("bool"), "passage": Value("string")}
    assert len(set(zip(rows["question"], rows["passage"], strict=True))) == len(rows) == 2000
    assert np.mean(rows["answer"]) == pytest.approx(0.5, abs=0.05)


def test_questions_ask_about_all_entities_alike(rows):
    counts = Counter(question.split()[2] for question in rows["question"])
    assert len(counts) > 390 and max(counts.values()) < 20  # 5 of each are expected


def test_streams_share_no_row_and_longer_draws_begin_with_shorter_ones(world, rows):
    test = world.yes_no_rows(2000, "test")
    assert not set(rows["passage"]) & set(test["passage"])
    assert world.yes_no_rows(10, "train")[:] == rows[:10]
    assert np.array_equal(world.corpus(10), world.corpus(1500)[:10])
    assert len(world.yes_no_rows(0, "train")) == len(world.corpus(0)) == 0


def test_too_small_a_world_says_so():
    config = WorldConfig(
        n_entities=2, n_kinds=2, n_kind_words=1, n_superclass_words=1, n_generic_words=1, facts_per_item=2
    )
    with pytest.raises(ValueError, match="n: got 5000, expected at most"):
        DemoWorld(config).yes_no_rows(5000, "train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_kinds": 11}, "n_kinds: got 11, expected an even number"),
        ({"noise_ratio": 1.5}, "noise_ratio: got 1.5, expected a probability"),
        ({"n_generic_words": 0}, "n_generic_words: got 0, expected at least 1"),
        ({"n_entities": 6}, "n_entities: got 6, expected at least 12"),
    ],
)
def test_world_config_names_the_wrong_field(settings, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**settings)


def test_equal_seeds_are_equal_worlds_in_every_process(world, corpus, rows):
    code = (
        "from w2s_hf.demo.worlds import DemoWorld; w = DemoWorld(seed=0); "
        "print(w.corpus(3).tolist(), w.yes_no_rows(3, 'train')[:])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == f"{corpus[:3].tolist()} {rows[:3]}"
    again = DemoWorld(seed=0)
    assert again.yes_no_rows(2000, "train")[:] == rows[:] and again.vocabulary == world.vocabulary


def test_another_seed_is_another_world(world, corpus):
    other = DemoWorld(seed=1)
    assert len(set(world.entities) & set(other.entities)) < 20
    assert (world.kinds != other.kinds).mean() > 0.8
    assert not np.array_equal(other.corpus(100), corpus[:100])


def test_the_vocabulary_is_distinct_lower_case_words_in_no_order(world):
    assert len(world.vocabulary) == len(set(world.vocabulary)) == 3 + 10 + 400 + 180 + 24 + 30
    names = [word for word in world.vocabulary if len(word) == 6 and word.isalpha()]
    assert all(word == word.lower() and word.isascii() for word in names) and len(names) >= 634
    positions = [world.vocabulary.index(entity) for entity in world.entities]
    assert abs(np.corrcoef(positions, np.arange(400))[0, 1]) < 0.2
    assert world.is_alive.sum() == pytest.approx(200, abs=2)
    assert Counter(world.kinds.tolist()).keys() == set(range(12))


def test_documents_are_facts_about_two_entities(world, corpus):
    assert corpus.shape == (4000, 25)
    tokenizer = world.tokenizer()
    assert (corpus[:, 0] == tokenizer.bos_token_id).all()
    n_entities = [len(set(document[1::4])) for document in corpus]
    assert set(n_entities) == {1, 2}
    assert np.mean(n_entities) == pytest.approx(2 - 2**-5, abs=0.02)
    text = tokenizer.decode(corpus[0], skip_special_tokens=True)
    assert tokenizer(text)["input_ids"] == corpus[0].tolist()


def test_the_corpus_says_nothing_of_the_question(world, corpus):
    words = {world.vocabulary[index] for index in np.unique(corpus)}
    assert not words & {"question", ":", "alive", "?", "yes", "no", "<pad>", "<unk>"}


def test_entities_of_the_corpus_follow_zipf(world, corpus):
    rank = {entity: index for index, entity in enumerate(world.entities)}
    counts = np.zeros(400)
    for index, count in zip(*np.unique(corpus[:, 1::4], return_counts=True), strict=True):
        counts[rank[world.vocabulary[index]]] += count
    decades = [counts[:4].mean(), counts[4:40].mean(), counts[40:].mean()]
    assert decades == sorted(decades, reverse=True)
    slope = np.polyfit(np.log(np.arange(1, 401)), np.log(counts + 1), 1)[0]
    assert slope == pytest.approx(-0.8, abs=0.1)


def test_words_of_the_corpus_fit_the_kind_as_often_as_configured():
    quiet = DemoWorld(WorldConfig(noise_ratio=0, corpus_generic_ratio=0, superclass_ratio=0), seed=3)
    corpus = quiet.corpus(2000)
    kinds_of_word: dict[int, set] = {}
    kind_of = dict(zip(quiet.entities, quiet.kinds, strict=True))
    for entity, word in zip(corpus[:, 1::4].ravel(), corpus[:, 3::4].ravel(), strict=True):
        kinds_of_word.setdefault(word, set()).add(kind_of[quiet.vocabulary[entity]])
    assert len(kinds_of_word) == 3 * 12 * 5
    assert all(len(kinds) == 1 for kinds in kinds_of_word.values())

    hints = DemoWorld(WorldConfig(noise_ratio=0, corpus_generic_ratio=0, superclass_ratio=1), seed=3)
    assert len(np.unique(hints.corpus(2000)[:, 3::4])) == 3 * 2 * 4
    generic = DemoWorld(WorldConfig(corpus_generic_ratio=1), seed=3)
    assert len(np.unique(generic.corpus(2000)[:, 3::4])) == 3 * 10


class StopAt(TrainerCallback):
    """Stops in the middle of the training, as if the process was killed."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class StepRecorder(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


def test_a_killed_pretraining_ends_with_the_same_weights(world, tmp_path):
    n_threads, random_state = torch.get_num_threads(), torch.random.get_rng_state()
    build_demo_model(TINY, world, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build_demo_model(
            TINY, world, tmp_path / "killed", callbacks=[StopAt(11)]
        )  # of 16 steps; checkpoints at 4, 8, ...
    checkpoints = tmp_path / "killed" / "pretraining"
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-8"]
    # An incomplete checkpoint, without the state of the Trainer, as if the process was killed while it was saved.
    (checkpoints / "checkpoint-12").mkdir()
    (checkpoints / "checkpoint-12" / "trainer_state.json").write_text('{"global_step": 1')

    seen = StepRecorder()
    build_demo_model(TINY, world, tmp_path / "killed", callbacks=[seen])
    assert seen.steps == list(range(9, 17))  # the training was resumed
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for name in ("whole", "killed"):
        assert not (tmp_path / name / "pretraining").exists()
    assert torch.get_num_threads() == n_threads and torch.equal(torch.random.get_rng_state(), random_state)


def test_pretraining_learns_and_scratch_models_are_not_pretrained(world, tmp_path):
    losses = []

    class Record(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    build_demo_model(TINY, world, tmp_path / "pretrained", n_documents=2048, callbacks=[Record()])
    assert len(losses) == 4 and losses[-1] < losses[0] - 1
    scratch = DemoModel("scratch", width=16, n_layers=1, mlp_width=32)
    build_demo_model(scratch, world, tmp_path / "scratch")
    embedding = load_file(tmp_path / "scratch" / "model.safetensors")["model.embed_tokens.weight"]
    assert embedding.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["scratch-32x1", "scratch-64x2"])
def test_a_checkpoint_loads_as_a_classifier_with_its_tokenizer(world, rows, tmp_path, name):
    build_demo_model(DEMO_MODELS[name], world, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.unk_token) == ("<pad>", "<bos>", "<unk>")
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (128, "right")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    texts = [next(TASKS["boolq"].examples(row))["text"] for row in rows.select(range(4))]
    assert tokenizer(texts)["input_ids"] == world.tokenizer()(texts)["input_ids"]
    assert tokenizer("QUESTION: nothing")["input_ids"][1:] == tokenizer.convert_tokens_to_ids(
        ["question", ":", "<unk>"]
    )
    batch = tokenizer([*texts, "alive ?"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert model(**batch).logits.shape == (5, 2)
    assert sum(parameter.numel() for parameter in model.parameters()) > 30_000


def test_every_pretrained_model_has_documents_and_its_control_does_not():
    assert {name: model.n_documents for name, model in DEMO_MODELS.items() if model.n_documents} == {
        "pretrained-16x2": 40_000,
        "pretrained-32x2": 40_000,
        "pretrained-64x2": 40_000,
    }
    assert all(name == model.name for name, model in DEMO_MODELS.items())
    student, control = DEMO_MODELS["pretrained-64x2"], DEMO_MODELS["scratch-64x2"]
    assert (student.width, student.n_layers, student.mlp_width) == (control.width, control.n_layers, control.mlp_width)
    assert student.width % 64 == student.mlp_width % 64 == 0  # 4 bit


@pytest.mark.parametrize(
    ("config", "task", "arguments", "training"),
    [
        ("demo", TASKS["boolq"], ClassificationArguments, WeakToStrongConfig),
        ("demo_reward", PREFERENCE_TASKS["anthropic_hh"], RewardArguments, RewardPairConfig),
        ("demo_chess", CHESS_PUZZLES, ChessArguments, CompletionConfig),
    ],
    ids=["classification", "reward", "chess"],
)
@pytest.mark.parametrize(
    ("environment", "demo", "expected"),
    [
        ({}, True, 1),  # python recipes/boolq.py
        ({"OMP_NUM_THREADS": "2", "ACCELERATE_DYNAMO_MODE": "default"}, True, 1),  # accelerate launch --cpu
        ({"OMP_NUM_THREADS": "2"}, True, 2),  # chosen by the user
        ({}, False, 2),
    ],
)
def test_the_demo_trains_on_one_thread_however_it_is_started(
    config, task, arguments, training, environment, demo, expected, tmp_path, monkeypatch
):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = ["--output_dir", str(tmp_path)] if demo else f"--output_dir {tmp_path} --weak_model a --student_model b"
    options = options if demo else [*options.split(), "--use_cpu", "true", "--bf16", "false"]
    config = ROOT / "w2s_hf" / "configs" / f"{config}.yaml"
    parsed = parse_arguments("", config, options, arguments, training, announce=False)
    experiment = Experiment(None, setting_of(task), *parsed)
    n_threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        experiment.finetuner.cache.run("any", {}, lambda directory: seen.append(torch.get_num_threads()))
        assert (seen, torch.get_num_threads()) == ([expected], 2)
    finally:
        torch.set_num_threads(n_threads)
