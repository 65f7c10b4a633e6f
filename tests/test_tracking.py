"""Tests `--report_to` with the callbacks of transformers and fake trackers that record their calls."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from datasets import Dataset
from helpers.finetuners import finetuner_of
from helpers.models import make_model, make_tokenizer
from helpers.preferences import implicit_text, pairs_of
from helpers.training import pair_arguments
from transformers import GPT2LMHeadModel

from w2s_hf.config import StudentConfig
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.cli import CONFIGS, parse_arguments
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.experiments.generative_finetuning import generative_finetune
from w2s_hf.experiments.settings.reward import REWARD
from w2s_hf.experiments.tracking import run_path
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.tasks import PREFERENCE_TASKS, Half

TRACKERS = ["tensorboard", "trackio", "wandb"]


class Trackers:
    """Replaces the libraries of the trackers. `events` has what they receive: tracker, event, name or logs."""

    def __init__(self):
        self.events: list[tuple] = []
        self.runs: list[dict] = []  # of Weights & Biases
        self.stops = False
        self.trackio = mock.MagicMock()
        self.trackio.init.side_effect = lambda **options: self.add("trackio", "init", options["name"])
        self.trackio.log.side_effect = lambda logs: self.log("trackio", logs)
        self.trackio.finish.side_effect = lambda: self.add("trackio", "finish")
        self.trackio.context_vars.current_space_id.get.return_value = None
        self.wandb = mock.MagicMock(run=None)
        self.wandb.init.side_effect = self.open_wandb
        self.wandb.log.side_effect = lambda logs: self.log("wandb", logs)

    def add(self, *event):
        self.events.append(event)

    def log(self, tracker: str, logs: dict):
        self.add(tracker, "log", logs)
        if self.stops:
            raise KeyboardInterrupt

    @contextmanager
    def open_wandb(self, **options):
        self.runs.append(options)
        self.wandb.run = mock.MagicMock()
        self.add("wandb", "init", options["name"])
        try:
            yield
        finally:
            self.wandb.run = None
            self.add("wandb", "finish")

    def writer(self, log_dir: str):
        self.add("tensorboard", "init", log_dir)
        return mock.MagicMock(close=lambda: self.add("tensorboard", "finish"))

    def of(self, tracker: str) -> list[tuple]:
        """The runs that a tracker opened and closed."""
        return [event[1:] for event in self.events if event[0] == tracker and event[1] != "log"]


@pytest.fixture
def trackers(monkeypatch) -> Trackers:
    trackers = Trackers()
    for name in TRACKERS:
        monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{name}_available", lambda: True)
    modules = dict.fromkeys(["wandb", "wandb.sdk", "wandb.sdk.lib"], trackers.wandb)
    modules["wandb.sdk.lib.config_util"] = SimpleNamespace(ConfigError=KeyError)
    modules |= {"trackio": trackers.trackio, "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=trackers.writer)}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return trackers


class Experiment:
    """Finetunes a supervisor, and a student on its labels."""

    def __init__(self, tmp_path, report_to=TRACKERS, **options):
        self.finetuner, self.rows = finetuner_of("classification", tmp_path, tmp_path / "model")
        for name, value in {"report_to": report_to, "run_name": "mine", "logging_steps": 1, **options}.items():
            setattr(self.finetuner.args, name, value)
        self.model = ModelSpec("demo/m", str(tmp_path / "model"), "1", StudentConfig(dtype="float32", lora_r=4))

    def labelled(self, supervisor=None) -> Half:
        if supervisor is None:
            rows = self.finetuner.setting.with_ground_truth(self.rows)
        else:
            rows = supervisor.predictions.join(self.rows.remove_columns("ground_truth"))
        return Half(rows, rows)

    def finetune(self, name: str, supervisor=None):
        splits = SimpleNamespace(provenance={"task": "boolq"}, task=SimpleNamespace(class_names=("no", "yes")))
        labels = None if supervisor is None else {"student": supervisor.predictions}
        options = {"splits": splits, "seed": 0, "labels": labels, "title": f"{name} (naive)"}
        return self.finetuner.finetune(name, self.model, self.labelled(supervisor), [self.rows], **options)


def id_of(directory) -> str:
    return (directory / "run_id").read_text()


def test_every_model_has_its_own_run(trackers, tmp_path):
    experiment = Experiment(tmp_path)
    weak = experiment.finetune("weak")
    student = experiment.finetune("student", weak)
    ids = [id_of(finetuned.directory) for finetuned in (weak, student)]
    assert ids[0] != ids[1]
    paths = [f"mine/boolq/seed0/weak-naive-m-{ids[0]}", f"mine/boolq/seed0/student-naive-m-to-m-{ids[1]}"]
    names = [path.replace("/", "-") for path in paths]
    for tracker in ("trackio", "wandb"):
        runs = trackers.of(tracker)
        assert runs == [("init", names[0]), ("finish",), ("init", names[1]), ("finish",)], (
            "one run each, closed before the next, and none for predictions"
        )
        logs = [event[2] for event in trackers.events if event[:2] == (tracker, "log")]
        assert [of_step["train/global_step"] for of_step in logs if "train/loss" in of_step] == [1, 2, 3] * 2
    assert [run["group"] for run in trackers.runs] == ["mine"] * 2 and [run["id"] for run in trackers.runs] == ids
    logs = tmp_path / "runs"
    opened = [event[1] for event in trackers.of("tensorboard") if event[0] == "init"]
    assert opened == [str(logs / path) for path in paths], "not in the checkpoints, which are removed"
    assert experiment.finetuner.args.run_name == "mine", "the name of the experiment, in results and cards"
    before = len(trackers.events)
    experiment.finetuner.predict("more", weak, experiment.labelled(), [experiment.rows])
    assert len(trackers.events) == before, "predictions of a finished model"


def test_trackers_change_no_number_and_no_key(trackers, tmp_path):
    stages = []
    for name, report_to in (("one", TRACKERS), ("two", [])):
        (tmp_path / name).mkdir()
        options = {"trackio_static_space_id": "me/space", "trackio_bucket_id": "me/bucket"} if report_to else {}
        stages.append(Experiment(tmp_path / name, report_to, **options).finetune("weak"))
    assert stages[0].directory.name == stages[1].directory.name
    np.testing.assert_array_equal(stages[0].predictions.probabilities, stages[1].predictions.probabilities)
    assert not (stages[1].directory / "run_id").exists()


def test_a_resumed_training_continues_its_run(trackers, tmp_path, monkeypatch):
    experiment = Experiment(tmp_path)
    trackers.stops = True
    with pytest.raises(KeyboardInterrupt):
        experiment.finetune("weak")
    assert trackers.of("wandb")[-1] == ("finish",), "a sweep trains other models after an error"
    trackers.stops = False
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(type(experiment.finetuner.setting), "predict", mock.Mock(side_effect=KeyboardInterrupt))
        experiment.finetune("weak")
    for tracker in TRACKERS:
        (first, second) = [event for event in trackers.of(tracker) if event[0] == "init"]
        assert first == second
    assert [run["resume"] for run in trackers.runs] == ["allow"] * 2 and trackers.runs[0]["id"] == trackers.runs[1][
        "id"
    ]
    before = len(trackers.events)
    experiment.finetune("weak")
    assert len(trackers.events) == before, "a run that only predicts has no events"


def test_directory_of_tensorboard_and_open_run_of_the_user(trackers, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trackers.wandb.run = mock.MagicMock()
    stage = Experiment(tmp_path, run_name=None).finetune("weak").directory
    path = f"boolq/seed0/weak-naive-m-{id_of(stage)}"
    assert trackers.of("tensorboard") == [("init", str(tmp_path / "logs" / path)), ("finish",)]
    assert trackers.of("wandb") == [] and trackers.wandb.run is not None


def test_generative_finetuning_has_its_own_run(trackers, tmp_path):
    GPT2LMHeadModel(make_model("gpt2").config).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    pairs = Dataset.from_list([PREFERENCE_TASKS["anthropic_hh"].example(row) for row in pairs_of(implicit_text, 8)])
    finetuner = Finetuner(StageCache(tmp_path / "stages"), REWARD, pair_arguments(tmp_path, report_to=TRACKERS))
    generative_finetune(finetuner, ModelSpec("m", str(tmp_path / "model"), "1"), pairs, seed=0, task="hh")
    (stage,) = (tmp_path / "stages").glob("generative-*[0-9a-f]")
    name = f"hh-seed0-generative-finetuning-m-{id_of(stage)}"
    assert trackers.of("trackio") == trackers.of("wandb") == [("init", name), ("finish",)]
    assert trackers.of("tensorboard")[0] == ("init", str(tmp_path / "runs" / name.replace("-", "/", 2)))


@pytest.mark.parametrize(
    ("title", "weak", "path"),
    [
        ("strong ceiling", None, "boolq/seed1/strong-ceiling-gpt2"),
        ("link 2 of 3 of the chain", "demo/a", "boolq/seed1/link-2-of-3-of-the-chain-a-to-gpt2"),
    ],
)
def test_names_of_runs(title, weak, path):
    assert run_path(None, "boolq", 1, title, "openai-community/gpt2", weak) == path
    assert run_path("my run/../2", "boolq", 1, title, "gpt2", weak) == f"my-run-..-2/{path}"


@pytest.mark.parametrize(
    ("words", "in_file", "expected"),
    [
        ("--report_to tensorboard trackio", None, ["tensorboard", "trackio"]),
        ("--report_to wandb", "[tensorboard, trackio]", ["wandb"]),
        ("", "[tensorboard, trackio]", ["tensorboard", "trackio"]),
        ("", "tensorboard", ["tensorboard"]),
        ("--report_to none", "tensorboard", []),
    ],
)
def test_several_trackers(trackers, words, in_file, expected, tmp_path):
    words = words.split()
    if in_file is not None:
        (tmp_path / "mine.yaml").write_text((CONFIGS / "demo.yaml").read_text().replace("report_to: none", ""))
        with (tmp_path / "mine.yaml").open("a") as file:
            file.write(f"\nreport_to: {in_file}\n")
        words += ["--config", str(tmp_path / "mine.yaml")]
    _, training_args, _ = parse_arguments("", CONFIGS / "demo.yaml", words, announce=False)
    assert training_args.report_to == expected
