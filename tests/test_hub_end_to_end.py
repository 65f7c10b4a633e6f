"""Tests students on 4-bit bases of the Hub: trained, pushed, and loaded again in a new process."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.hub_server import LoopbackHub
from helpers.models import make_language_model
from helpers.running import recipe
from helpers.task_rows import passages

from w2s_hf import WeakLabels

SCRIPT = Path(__file__).parent / "helpers" / "hub_scripts.py"
OF_TRAINERS = ("classifier", "reward", "writer", "whole")
STUDENT, LABELS = "me/boolq-base-from-weak-naive-seed0", "me/boolq-weak-labels-weak-seed0"


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tokenizer, _models):
    """A Hub with a weak classifier, and a base that is a language model, like most bases."""
    with LoopbackHub() as hub:
        for name, model in (("weak", _models["llama"]), ("base", make_language_model(tokenizer))):
            directory = tmp_path_factory.mktemp(name)
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            hub.add(f"me/{name}", directory)
        yield hub


def run(name: str, hub: LoopbackHub, folder: Path) -> None:
    environment = {**os.environ, **hub.environment(folder / f"home of {name}")}
    command = [sys.executable, str(SCRIPT), name, str(folder)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]


def run_recipe(hub: LoopbackHub, folder: Path, cache: Path) -> str:
    (folder / "rows").mkdir()
    for name in ("train", "validation"):
        passages(240, name).to_parquet(folder / "rows" / f"{name}.parquet")
    options = "--weak_model me/weak --student_model me/base --dataset_path rows --methods naive --max_steps 3"
    options += " --load_in_4bit true --output_dir out --report_to none --use_cpu true --learning_rate 1e-2"
    options += " --push_to_hub true --hub_namespace me --hub_private true"
    home = hub.environment(folder / "home of the recipe")
    process = recipe(*options.split(), cache=cache, cwd=folder, **home)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stderr


@pytest.fixture(scope="module")
def pushed(hub, cache, tmp_path_factory) -> tuple[Path, str]:
    """A folder with students of each trainer and of a recipe, and the output of the recipe."""
    folder = tmp_path_factory.mktemp("pushed")
    with ThreadPoolExecutor() as pool:
        trained = pool.submit(run, "trainers", hub, folder)
        said = pool.submit(run_recipe, hub, folder, cache)
        trained.result()
        return folder, said.result()


def card_of(hub: LoopbackHub, repo_id: str) -> tuple[dict, str]:
    """Returns the front matter and the text of a card."""
    _, front, text = hub.repositories["model", repo_id].head.files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(front), text


def test_students_of_all_trainers_are_pushed_once_and_whole(hub, pushed):
    folder, _ = pushed
    for name in OF_TRAINERS:
        repository = hub.repositories["model", f"me/{name}"]
        assert len(repository.commits) == 1, "the second push had nothing new"
        files = repository.head.files
        front, text = card_of(hub, f"me/{name}")
        if name == "whole":
            student = {"config.json", "model.safetensors"}
            assert front["library_name"] == "transformers"
        else:
            student = {"adapter_config.json", "adapter_model.safetensors"}
            assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
            assert front["library_name"] == "peft" and "| adapters, r | 4 |" in text
        assert set(files) == student | {"README.md", "pgr.png", "tokenizer.json", "tokenizer_config.json"}
        assert front["base_model"] == "me/base" and "mine" in front["tags"] and "(pgr.png)" in text
        assert ("confidence" in front["tags"]) == (name == "classifier")
        (result,) = front["model-index"][0]["results"]
        assert {entry["type"]: entry["value"] for entry in result["metrics"]} == {
            "accuracy": 0.6,
            "pgr": pytest.approx(0.4),
        }
        # The cards of PEFT and TRL are replaced.
        assert "generated_from_trainer" not in str(front) and "Framework versions" not in text
        assert (folder / name / "training_args.bin").is_file(), "nothing to leave out"


def test_a_push_of_a_trainer_that_is_refused_says_how_to_push_again(pushed):
    folder, _ = pushed
    refused = (folder / "refused.txt").read_text()
    assert "HTTP 401" in refused and "Set HF_TOKEN" in refused and "hf_of_yesterday" not in refused
    assert refused.endswith(f"w2s publish {folder}/classifier --repo_id me/classifier --hub_private")


def test_a_recipe_pushes_its_student_and_its_labels(hub, pushed):
    folder, said = pushed
    assert f"Pushed {hub.url}/{STUDENT}" in said
    for key in (("model", STUDENT), ("dataset", LABELS)):
        assert len(hub.repositories[key].commits) == 1 and hub.repositories[key].private
    front, text = card_of(hub, STUDENT)
    (entry,) = json.loads((folder / "out" / "results.json").read_text())["runs"][0]["students"]
    metrics = {found["type"]: found["value"] for found in front["model-index"][0]["results"][0]["metrics"]}
    assert metrics["accuracy"] == entry["accuracy"] and metrics.get("pgr") == entry["pgr"]
    assert front["datasets"] == [LABELS] and front["base_model"] == "me/base"
    assert "load_in_4bit=True" in text


def test_no_path_of_this_machine_is_pushed(hub, pushed):
    folder, _ = pushed
    # (The bases were in the cache before.)
    for (_, repo_id), repository in hub.repositories.items():
        for name, content in repository.head.files.items():
            assert str(folder).encode() not in content and b"/tmp" not in content, (repo_id, name)


def test_all_of_them_are_the_same_from_the_hub(hub, pushed, tmp_path):
    folder, _ = pushed
    # The base gets a new commit; its students still load the commit that they were trained on.
    base = hub.repositories["model", "me/base"]
    before = base.head.sha
    hub.commit(base, {**base.head.files, "model.safetensors": b"broken"}, base.head.in_lfs, "Broken")
    snippets = {}
    for name, repo_id in {**{name: f"me/{name}" for name in OF_TRAINERS}, "recipe": STUDENT}.items():
        _, text = card_of(hub, repo_id)
        if name != "whole":
            config = json.loads(hub.repositories["model", repo_id].head.files["adapter_config.json"])
            assert config["revision"] == before and f"adapters for me/base (commit {before})" in text
        snippets[name] = re.search(r"```python\n(.*?)```", text, flags=re.S)[1]
    # The local directory of the recipe loads in the same way.
    snippets["kept"] = snippets["recipe"].replace(STUDENT, str(folder / "out" / "students" / "naive-seed0"))
    (tmp_path / "snippets.json").write_text(json.dumps(snippets))
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    run("load", hub, tmp_path)
    trained, loaded = (json.loads(path.read_text()) for path in (folder / "trained.json", tmp_path / "loaded.json"))
    assert {name: loaded[name] for name in OF_TRAINERS} == trained, "bit by bit, head included"
    assert np.std(trained["classifier"]) > 0 and np.std(trained["reward"]) > 0
    assert loaded["recipe"] == loaded["kept"] != loaded["classifier"]
    ids, probabilities = json.loads((tmp_path / "joined.json").read_text())
    weak = WeakLabels.load(folder / "out" / "weak_labels" / "seed0")
    assert ids == weak.ids[::-1]
    assert np.array_equal(np.array(probabilities, dtype=np.float32), weak.probabilities[::-1])
