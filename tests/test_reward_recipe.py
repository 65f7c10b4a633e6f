"""Tests the recipe of reward modelling as users run it, on a small demo and on local pairs."""

import json
import random
import runpy
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from helpers.models import make_model, make_tokenizer
from helpers.predictions import check_predictions
from helpers.preferences import TEMPLATE, explicit_messages, implicit_text, pairs_of
from helpers.running import ROOT, SMALL, TINY, forked, numbers, recipe_here, start
from helpers.training import LORA, make_pairs, pair_arguments, reward_model
from transformers import AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM

from w2s_hf import RewardPairTrainer, WeakLabels, fresh_adapter, load_student
from w2s_hf.config import RewardPairConfig
from w2s_hf.demo.rows import demo_pairs
from w2s_hf.demo.worlds import PAIR_SITUATIONS, DemoWorld
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.config import RewardArguments
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.experiments.generative_finetuning import generative_finetune
from w2s_hf.experiments.settings.classification import LINEAR_PROBE
from w2s_hf.experiments.settings.reward import REWARD
from w2s_hf.modeling.adapters import load_adapter_weights
from w2s_hf.modeling.heads import classification_head
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.tasks import PREFERENCE_TASKS
from w2s_hf.trainers.sft import ResumableSFTTrainer

NAME = "anthropic_hh.py"
DEMO_CONFIG = ROOT / "w2s_hf" / "configs" / "demo_reward.yaml"
GENERATIVE = "--generative_finetuning true --generative_learning_rate 3e-3".split()  # few steps

PROBED = "--linear_probe true".split()


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """A small run with the generative stage: its directory, its output and its results."""
    output = tmp_path_factory.mktemp("run") / "out"
    process = recipe_here(*SMALL, *GENERATIVE, *PROBED, "--output_dir", output, cache=cache, name=NAME)
    assert process.returncode == 0, process.stderr[-3000:]
    return output, process, numbers(output)


def run_here(monkeypatch, cache, options: str) -> None:
    """A small run in this process, which saves six seconds of imports."""
    monkeypatch.setenv("W2S_HF_CACHE", str(cache))
    monkeypatch.setattr("sys.argv", [f"recipes/{NAME}", *options.split()])
    runpy.run_path(str(ROOT / "recipes" / NAME), run_name="__main__")


def test_results_and_report(finished):
    output, process, results = finished
    assert (results["task"], results["setting"], results["preset"]) == ("anthropic_hh", "reward", "demo")
    assert results["dataset"]["n_dropped"] == {} and results["generative_finetuning"] is True
    assert {"ceiling_plain", LINEAR_PROBE} <= set(check_predictions(output)["role"])
    (run,) = results["runs"]
    weak, ceiling, plain = (run[name]["accuracy"] for name in ("weak", "ceiling", "ceiling_plain"))
    assert ceiling != plain, "equal ceilings could be confused"
    for student in run["students"]:
        assert student["n"] == 120
        for entry, best in ((student, ceiling), (student["against_plain_ceiling"], plain)):
            if best > weak:
                assert entry["pgr"] == pytest.approx((student["accuracy"] - weak) / (best - weak))
            else:
                assert entry["pgr"] is None and f"the ceiling ({best:.4f})" in entry["pgr_undefined"]
    assert set(run["by_situation"]) == set(PAIR_SITUATIONS)
    for model in ("weak", "ceiling", "ceiling_plain", "naive", "confidence", "control"):
        parts = [entry["share"] * entry[model] for entry in run["by_situation"].values() if entry["share"]]
        accuracies = {
            "control": run["controls"][0]["accuracy"],
            **{student["method"]: student["accuracy"] for student in run["students"]},
        }
        assert sum(parts) == pytest.approx(accuracies.get(model) or run[model]["accuracy"]), model
    assert "against_plain_ceiling" in results["summary"][0]
    report = (output / "report.md").read_text()
    for words in ("in conflict", "plain ceiling", "PGR against the plain ceiling", "120 for testing", "test pairs"):
        assert words in report
    assert "This is the embedded demo" in process.stdout and "plain ceiling" in process.stdout
    assert (output / "figures" / "accuracy.png").stat().st_size > 10_000
    assert not list(output.rglob("*.partial")) and not list(output.rglob("training_args.bin"))


def test_students_and_ceiling_start_from_the_generative_stage_and_the_supervisor_does_not(finished):
    tuned: dict[str, list[bool]] = {}
    for path in (finished[0] / "_stages").glob("*/stage.json"):
        stage = json.loads(path.read_text())
        if stage["stage"] != "linear-probe":  # the probe uses only hidden states
            tuned.setdefault(stage["stage"], []).append(" generative-" in stage["settings"]["model"]["version"])
    tuned = {name: sorted(found) for name, found in tuned.items()}
    assert tuned == {
        "generative": [False], "weak": [False], "ceiling": [False, True], "student-naive": [True],
        "student-confidence": [True], "control": [False], "hidden-states": [True],
    }  # fmt: skip
    history = next((finished[0] / "_stages").glob("generative-*[0-9a-f]/training.json")).read_text()
    losses = [entry["loss"] for entry in json.loads(history) if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_student_loads_alone_and_predicts_what_was_scored(finished):
    output, _, _ = finished
    stored = WeakLabels.load(next((output / "_stages").glob("student-confidence-*[0-9a-f]")) / "predictions")
    directory = str(output / "students" / "confidence-seed0")
    assert 'load_student(".", task_type="REWARD", dtype="float32")' in (output / directory / "README.md").read_text()
    student, tokenizer = (
        load_student(directory, dtype="float32", task_type="REWARD"),
        AutoTokenizer.from_pretrained(directory),
    )
    n_compared = 0
    pairs = demo_pairs(DemoWorld(seed=0), 150, "test pairs", held_out=True)
    for row in [PREFERENCE_TASKS["anthropic_hh"].example(row) for row in pairs.select(range(20))]:
        if row["id"] not in stored.ids:
            continue
        first, second = (
            student(**tokenizer(row["prompt"] + row[side], return_tensors="pt")).logits.item()
            for side in ("first", "second")
        )
        expected = 1 / (1 + np.exp(second - first))
        np.testing.assert_allclose(stored.of([row["id"]])[0], [1 - expected, expected], atol=1e-5)
        n_compared += 1
    assert n_compared > 5


def test_without_the_generative_stage_there_is_one_ceiling(finished, cache, monkeypatch, capsys):
    output = finished[0].parent / "plain"
    shutil.copytree(finished[0], output)
    run_here(
        monkeypatch, cache, f"{' '.join(SMALL)} --output_dir {output} --methods confidence --overwrite_output_dir true"
    )
    (run,) = numbers(output)["runs"]
    assert len(list((output / "_stages").glob("ceiling-*[0-9a-f]"))) == 2, "the plain ceiling was trained again"
    assert "ceiling_plain" not in run and "against_plain_ceiling" not in run["students"][0]
    assert run["ceiling"]["accuracy"] == finished[2]["runs"][0]["ceiling_plain"]["accuracy"]
    assert "plain" not in capsys.readouterr().out.replace("pretrained", "").partition("seed")[2].partition("/")[0]


def test_killed_in_the_generative_stage_and_run_again(finished, cache, tmp_path):
    command = [ROOT / "recipes" / NAME, *SMALL, *GENERATIVE, *PROBED, "--output_dir", tmp_path / "out"]
    for pattern in ("generative-*.partial/checkpoints", "ceiling-*.partial/checkpoints"):
        process = start(*command, log=tmp_path / "log", W2S_HF_CACHE=str(cache))
        checkpoints = f"out/_stages/{pattern}/checkpoint-*/trainer_state.json"
        while process.is_alive() and not any(tmp_path.glob(checkpoints)):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        assert any(tmp_path.glob(f"out/_stages/{pattern}")), "the run finished before it was killed"
    process = forked(*command, W2S_HF_CACHE=str(cache))
    assert process.returncode == 0 and "resumed" in process.stderr, process.stderr[-3000:]
    found = numbers(tmp_path / "out")
    assert (found["runs"], found["summary"]) == (finished[2]["runs"], finished[2]["summary"])


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_run_the_recipe(cache, tmp_path):
    options = "--methods confidence --generative_finetuning true --max_tokens_per_micro_batch 200".split()
    options += ["--per_device_train_batch_size", 16, "--output_dir", tmp_path / "out"]
    process = forked(ROOT / "recipes" / NAME, *TINY, *options, n_ranks=2, W2S_HF_CACHE=str(cache))
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("strong ceiling") == 1
    assert numbers(tmp_path / "out")["runs"][0]["weak"]["n"] == 40


@pytest.mark.slow
@pytest.mark.parametrize("make", [implicit_text, explicit_messages])
def test_own_models_and_pairs_with_4_bit_adapters(make, cache, tmp_path, monkeypatch):
    """The reward model starts from the adapters of the generative stage."""
    rows = pairs_of(make, 150).to_list()
    rows += [make("w1", "w2", "w2"), make("w1", "", "w2"), make("w1", "w2 " * 40, "w3")]
    (tmp_path / "pairs").mkdir()
    for name, part in (("train", rows), ("test", pairs_of(make, 30, begin=500).to_list())):
        (tmp_path / "pairs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name in ("weak", "strong"):
        LlamaForCausalLM(make_model("llama").config).save_pretrained(tmp_path / name)
        tokenizer = make_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    options = "--weak_model weak --student_model strong --dataset_path pairs --methods naive --load_in_4bit true"
    options += " --generative_finetuning true --max_steps 2 --use_cpu true --bf16 false --report_to none"
    options += " --gradient_checkpointing false --max_length 24 --output_dir out --per_device_train_batch_size 8"
    # The reward stage changes no weights, so its adapters are those of the generative stage.
    options += " --learning_rate 0 --weak_learning_rate 1e-3 --generative_learning_rate 1e-2"
    run_here(monkeypatch, cache, options)
    results = numbers(tmp_path / "out")
    assert results["dataset"]["n_dropped"] == {
        "identical responses": 1, "an empty response": 1, "a response of more than 24 tokens": 1
    }  # fmt: skip
    report = (tmp_path / "out" / "report.md").read_text()
    assert "were left out: 1 with identical responses" in report and "in conflict" not in report
    student = load_student(str(tmp_path / "out/students/naive-seed0"), task_type="REWARD", load_in_4bit=True)
    tuned = load_student(
        str(next((tmp_path / "out/_stages").glob("generative-*[0-9a-f]")) / "model"), task_type="CAUSAL_LM"
    )
    adapters = [
        {name: p for name, p in model.named_parameters() if "lora_" in name and "score" not in name}
        for model in (student, tuned)
    ]
    assert adapters[0].keys() == adapters[1].keys() and len(adapters[0]) > 10
    for name, parameter in adapters[0].items():
        assert bool((parameter == adapters[1][name]).all()), name
    trained = [p for name, p in adapters[0].items() if "lora_B" in name]
    assert all(p.any() for p in trained) and any((p != p.bfloat16().float()).any() for p in trained), "not float32"


def test_a_situation_without_pairs_is_no_trouble(finished, cache, tmp_path, monkeypatch):
    options = f"{' '.join(SMALL[:-1])} 6 --methods naive --output_dir {tmp_path / 'out'}"
    run_here(monkeypatch, cache, options)
    (run,) = numbers(tmp_path / "out")["runs"]
    empty = [name for name, entry in run["by_situation"].items() if not entry["share"]]
    assert empty, "all situations have pairs: the test is vacuous"
    assert "| - |" in (tmp_path / "out" / "report.md").read_text()


def test_models_that_share_words_and_not_their_ends_have_their_own_tokens(tmp_path):
    pairs = Dataset.from_list(
        [PREFERENCE_TASKS["anthropic_hh"].example(row) for row in pairs_of(explicit_messages, 3)]
    )
    finetuner = Finetuner(None, REWARD, pair_arguments(tmp_path))
    tokens = []
    for ending in ("<eos>", "<unk>"):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = TEMPLATE + ending
        tokens.append(finetuner.tokenize(ModelSpec("m", "m", "1"), tokenizer, pairs)["chosen_ids"][:])
    assert [ids[-1] for ids in tokens[0]] == [2] * 3 and [ids[-1] for ids in tokens[1]] == [3] * 3


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_features_of_a_pair_are_what_its_reward_difference_is_made_of(kind, tmp_path):
    model, tokenizer, pairs = reward_model(kind).eval(), make_tokenizer(), make_pairs(6)
    features = REWARD.hidden_states(model, tokenizer, pairs, 4)
    weight = classification_head(model).weight.detach().numpy()[0]
    trainer = RewardPairTrainer(
        model=model, args=pair_arguments(tmp_path), train_dataset=pairs, processing_class=tokenizer
    )
    first_is_better = trainer.predict_proba(pairs)[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-features @ weight)), first_is_better, atol=1e-5)
    assert features.std() > 0.01, "both responses have the same features"


def test_the_reward_model_starts_from_the_generative_adapters(tmp_path, model_of):
    trained = fresh_adapter(reward_model(), LORA, seed=1)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    trained.save_pretrained(tmp_path / "adapters")
    student = fresh_adapter(reward_model(), LORA, seed=2)
    load_adapter_weights(student, str(tmp_path / "adapters"))
    for (name, left), right in zip(student.named_parameters(), trained.parameters(), strict=True):
        assert bool((left == right).all()), name
    other = fresh_adapter(reward_model("gpt2"), LORA, seed=2)
    with pytest.raises(ValueError, match="adapters that do not match the student, such as base_model.model"):
        load_adapter_weights(other, str(tmp_path / "adapters"))


def test_the_generative_stage_keeps_to_the_arguments(tmp_path, monkeypatch):
    """With a token budget, losses are the same for micro-batches of 2 texts instead of 8. There is no dropout."""
    seen = []
    monkeypatch.setattr(
        "w2s_hf.experiments.generative_finetuning.ResumableSFTTrainer",
        lambda **options: seen.append(options) or ResumableSFTTrainer(**options),
    )
    GPT2LMHeadModel(make_model("gpt2").config).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    pairs = Dataset.from_list([PREFERENCE_TASKS["anthropic_hh"].example(row) for row in pairs_of(implicit_text, 24)])
    losses = []
    for budget in (None, 40):
        args = pair_arguments(tmp_path / "out", max_tokens_per_micro_batch=budget)
        finetuner = Finetuner(StageCache(tmp_path / f"stages-{budget}"), REWARD, args)
        tuned = generative_finetune(finetuner, ModelSpec("m", str(tmp_path / "model"), "1"), pairs, seed=0)
        history = json.loads((Path(tuned.path).parent / "training.json").read_text())
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    batches = [
        (options["args"].per_device_train_batch_size, options["args"].gradient_accumulation_steps) for options in seen
    ]
    assert batches == [(8, 1), (2, 4)]
    assert len(losses[0]) == 6, "48 texts once, since --max_steps applies only to reward models"
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for module in seen[0]["model"].modules():
        assert getattr(module, "p", 0) == 0, "dropout"


def test_labels_reach_the_trainer_as_probabilities_of_the_first_response():
    tokens = Dataset.from_dict({"chosen_ids": [[4], [5]], "rejected_ids": [[6], [7]]})
    for labels, expected in (([[0.25, 0.75], [1.0, 0.0]], [0.75, 0.0]), ([1, 0], [1.0, 0.0])):
        assert REWARD.add_labels(tokens, Dataset.from_dict({"labels": labels}))["soft_label"][:] == expected


def test_an_encoder_cannot_write(cache, tmp_path, monkeypatch, model_of, capsys):
    pairs_of(implicit_text, 150).to_json(tmp_path / "train.jsonl")
    pairs_of(implicit_text, 30, begin=500).to_json(tmp_path / "test.jsonl")
    model_of("bert").save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    options = f"--weak_model {tmp_path / 'bert'} --student_model {tmp_path / 'bert'} --dataset_path {tmp_path}"
    options += f" --use_cpu true --generative_finetuning true --output_dir {tmp_path / 'out'}"
    with pytest.raises(SystemExit, match="'bert', expected a decoder"):
        run_here(monkeypatch, cache, options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"chosen": "a", "reject": "b"}\n', "the split 'train' has no column 'rejected'. Got chosen, reject"),
        ('{"chosen": "a", "rejected": "a"}\n', "got no usable pair in the split .* Dropped: 1 with identical"),
        ('{"chosen": "a", "rejected": "b"}\n', "training rows in total, expected at most"),
    ],
)
def test_bad_pairs_end_in_one_clear_line(rows, message, cache, tmp_path, monkeypatch, model_of):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    model_of("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    options = f"--weak_model {tmp_path / 'model'} --student_model {tmp_path / 'model'} --dataset_path {tmp_path}"
    with pytest.raises(SystemExit, match=message):
        run_here(monkeypatch, cache, f"{options} --use_cpu true --n_train 20 --output_dir {tmp_path / 'out'}")


def test_help_is_of_pairs(capsys):
    with pytest.raises(SystemExit):
        parse_arguments("About pairs.", DEMO_CONFIG, ["--help", "all"], RewardArguments, RewardPairConfig)
    out = capsys.readouterr().out
    for words in ("--generative_finetuning", "--center_rewards_coefficient", "--aux_coef", "--dataset_path"):
        assert words in out
    assert "--conversion" not in out and "--drop_empty" not in out, "options of texts, not of pairs"


def test_no_epochs_of_the_generative_stage_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments("", DEMO_CONFIG, ["--generative_num_train_epochs", "0"], RewardArguments, RewardPairConfig)
    assert "--generative_num_train_epochs: got 0.0, expected a positive number" in capsys.readouterr().err


def test_configurations_name_models_and_lengths(tmp_path):
    for name in ("demo_reward", "single_gpu", "qwen_72b"):
        argv = ["--config", str(ROOT / "w2s_hf" / "configs" / f"{name}.yaml"), "--output_dir", str(tmp_path)]
        args, training_args, _ = parse_arguments(
            "", DEMO_CONFIG, [*argv, "--use_cpu", "true"], RewardArguments, RewardPairConfig
        )
        assert args.student_model and training_args.max_length
