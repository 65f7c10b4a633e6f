"""Tests that `python -m w2s_hf.publish` pushes the students of a recipe to a Hub on the loopback interface."""

import getpass
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.hub_server import TOKEN, LoopbackHub, Refused
from helpers.hub_worker import HubWorker
from helpers.running import TINY, recipe_here

from w2s_hf.cards import FIGURE, StudentCard
from w2s_hf.hub import PushError, repository_name
from w2s_hf.leaderboard import read_card
from w2s_hf.publish import main as publish_main
from w2s_hf.publish import push_students, student_files

CLASSES = 'id2label={0: "no", 1: "yes"}'  # in the snippets of cards
LABELS, STUDENT = "me/boolq-weak-labels-scratch-32x1-seed0", "me/boolq-pretrained-64x2-from-scratch-32x1-naive-seed0"


@pytest.fixture(scope="module")
def output(cache, tmp_path_factory):
    """A finished recipe, in a directory whose name must be quoted in commands."""
    output = tmp_path_factory.mktemp("my runs") / "all" / "out"  # results of other tests are not nearby
    process = recipe_here(*TINY, "--methods", "naive", "--output_dir", output, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    return output


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    with LoopbackHub() as hub:
        worker = HubWorker(hub.environment(tmp_path_factory.mktemp("home")))
        yield hub, worker
        worker.close()


@pytest.fixture
def hub(loopback):
    loopback[0].reset()
    return loopback[0]


@pytest.fixture
def publish(loopback):
    return loopback[1].publish


def start(hub, output, *options):
    """Starts the command in a new process, without waiting for it."""
    command = [sys.executable, "-m", "w2s_hf.publish", str(output), *options]
    environment = {**os.environ, **hub.environment(output.parent / "home")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "_stages" not in path.parts
    }


def refuse(status: int, where: str, times: int = 1000, message: str = "no"):
    """A fault: the first requests to a route are refused."""
    left = [times]

    def fault(method, path, handler):
        if where in path and left[0]:
            left[0] -= 1
            raise Refused(status, message)

    return fault


@pytest.mark.slow
def test_one_commit_a_student_and_none_the_second_time(hub, publish, output):
    before = snapshot(output)
    code, stderr = publish(output, "--hub_namespace", "me")
    assert code == 0, stderr
    assert f"Pushed {hub.url}/{STUDENT}" in stderr
    first = {key: repository.head for key, repository in hub.repositories.items()}
    assert set(first) == {("dataset", LABELS), ("model", STUDENT)}
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())
    assert not any(repository.private for repository in hub.repositories.values())
    code, stderr = publish(output, "--hub_namespace", "me")
    assert code == 0, stderr
    assert {key: repository.head for key, repository in hub.repositories.items()} == first
    assert snapshot(output) == before, "a push changes nothing on this disk"


def test_what_was_pushed(hub, publish, output, tmp_path):
    assert publish(output, "--hub_namespace", "me", "--hub_private")[0] == 0
    assert all(repository.private for repository in hub.repositories.values())
    commit = hub.repositories["model", STUDENT].head
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors", FIGURE}
    assert set(commit.files) == files | {"tokenizer.json", "tokenizer_config.json"}
    results = json.loads((output / "results.json").read_text())
    (student,) = results["runs"][0]["students"]
    card = commit.files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    metrics = {entry["type"]: entry for entry in front["model-index"][0]["results"][0]["metrics"]}
    assert metrics["accuracy"]["value"] == student["accuracy"]
    if student["pgr"] is None:
        assert "pgr" not in metrics
    else:
        assert metrics["pgr"]["value"] == student["pgr"]
    provenance = json.loads(hub.repositories["dataset", LABELS].head.files["provenance.json"])
    assert front["datasets"] == [LABELS]
    assert f"[{LABELS}]({hub.url}/datasets/{LABELS}) (fingerprint {provenance['fingerprint']})" in card
    assert f'load_student("{STUDENT}", base_model="PATH", {CLASSES}, dtype="float32")' in card
    # The demo's base is no repository, and its name must not be taken for one.
    config = json.loads(commit.files["adapter_config.json"])
    assert re.fullmatch(r"\./pretrained-64x2-[0-9a-f]+", config["base_model_name_or_path"])
    assert "base_model" not in front
    (tmp_path / "README.md").write_text(card)
    assert read_card(tmp_path).pgr == student["pgr"]


def test_nothing_private_is_pushed(hub, publish, output, cache):
    # Adds other files that a student's directory may contain.
    directory = output / "students" / "naive-seed0"
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "runs/events.host", "_stages/x.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(f"{TOKEN} {output}")
    assert publish(output, "--hub_namespace", "me")[0] == 0
    pushed = {name for repository in hub.repositories.values() for name in repository.head.files}
    assert not pushed & {"training_args.bin", "optimizer.pt", "trainer_state.json"}
    assert not any(name.startswith(("_", "runs", "checkpoint")) for name in pushed)
    assert str(cache) in (directory / "adapter_config.json").read_text(), "nothing to leave out"
    secrets = [TOKEN, str(output), str(cache), str(Path.home())]
    names = [rf"\b{re.escape(name)}\b".encode() for name in (socket.gethostname(), getpass.getuser())]
    for (kind, repo_id), repository in hub.repositories.items():
        for name, content in repository.head.files.items():
            found = [secret for secret in secrets if secret.encode() in content]
            if name not in repository.head.in_lfs:  # two letters occur in any image
                found += [pattern for pattern in names if re.search(pattern, content)]
            assert not found, (kind, repo_id, name, found)


@pytest.fixture(scope="module", autouse=True)
def cut(output):
    """The connection is closed in every upload. The client tries for 23 seconds, while other tests run."""

    def cut(method, path, handler):
        if method == "PUT":
            assert int(handler.headers["Content-Length"]) > 100
            handler.rfile.read(100)
            return True

    with LoopbackHub() as hub:
        hub.faults.append(cut)
        yield hub, start(hub, output, "--hub_namespace", "me")


@pytest.mark.parametrize(
    ("fault", "options", "environment", "message"),
    [
        (None, ["--hub_namespace", "me"], {"HF_TOKEN": "hf_of_yesterday"}, "HTTP 401: .* Set HF_TOKEN"),
        (None, [], {"HF_TOKEN": "hf_of_yesterday"}, "did not return the owner of the token .HTTP 401"),
        (None, ["--hub_namespace", "others"], {}, "HTTP 403: You don't have the rights .* write access"),
        (refuse(409, "/commit/", message="moved on"), ["--hub_namespace", "me"], {}, "HTTP 409: moved on.* Try again"),
        (refuse(500, "/commit/"), ["--hub_namespace", "me"], {}, "HTTP 500: no"),
    ],
    ids=["401", "401 whoami", "403", "409", "500"],
)
def test_what_was_refused_is_kept_and_pushed_again(fault, options, environment, message, hub, publish, output):
    before = snapshot(output)
    hub.faults += [fault] if fault else []
    code, stderr = publish(output, *options, **environment)
    assert code == 1 and "Traceback" not in stderr
    assert re.search(message, stderr), stderr
    assert snapshot(output) == before and not any(hub.repositories[key].commits for key in hub.repositories)
    assert "hf_of_yesterday" not in stderr
    command = f"w2s publish '{output}'" + (f" {' '.join(options)}" if options else "")
    assert stderr.endswith(f"Push again with\n    {command}\n")
    hub.faults.clear()
    if "others" in options:
        stderr = stderr.replace("--hub_namespace others", "--hub_namespace me")
    code, stderr = publish(*again(stderr))
    assert code == 0, stderr
    assert [len(repository.commits) for repository in hub.repositories.values()] == [1, 1]


def test_files_are_shown_without_a_token(output, monkeypatch, caplog):
    monkeypatch.setattr("w2s_hf.publish.get_token", lambda: None)
    monkeypatch.setattr("w2s_hf.hub.get_token", lambda: None)
    with caplog.at_level("INFO", "w2s_hf.publish"):
        ids = push_students(output, dry_run=True)
    assert [name.split("/")[-2] for name in ids] == ["ME", "ME"] and "adapter_model.safetensors" in caplog.text
    (student,) = (output / "students").iterdir()
    publish_main([str(student), "--repo_id", "mine", "--dry_run"])
    assert "ME/mine: README.md, adapter_config.json" in caplog.text
    with pytest.raises(PushError, match="Got no token, expected the token of a user. Set HF_TOKEN"):
        push_students(output)


def test_a_hub_that_fails_once_is_asked_again(hub, publish, output):
    hub.faults += [refuse(500, "/api/repos/create", 1), refuse(503, f"{STUDENT}/commit/", 1)]
    code, stderr = publish(output, "--hub_namespace", "me")
    assert code == 0 and "HTTP 503" in stderr, stderr
    assert [len(repository.commits) for repository in hub.repositories.values()] == [1, 1]


@pytest.mark.slow
def test_a_hub_that_is_gone_and_comes_back(hub, publish, output):
    with LoopbackHub() as gone:
        pass
    before = snapshot(output)
    process = start(gone, output, "--hub_namespace", "me", "--hub_private")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and "Connection refused" in stderr and "Traceback" not in stderr
    assert stderr.endswith(f"\n    w2s publish '{output}' --hub_namespace me --hub_private\n")
    assert snapshot(output) == before
    code, stderr = publish(*again(stderr))
    assert code == 0, stderr
    assert [len(repository.commits) for repository in hub.repositories.values()] == [1, 1]


def test_a_student_that_changed_is_a_second_commit_without_files_of_the_first(hub, publish, tmp_path):
    student = tmp_path / "out"
    student.mkdir()
    (student / "config.json").write_text("{}")
    (student / "model.safetensors").write_bytes(b"\0 all weights")
    StudentCard(library_name="transformers").save(student / "README.md")
    push = [student, "--repo_id", "me/one"]
    assert publish(*push)[0] == 0
    repository = hub.repositories["model", "me/one"]
    kept = {"LICENSE": b"mine", "model_old/mine.safetensors": b"mine, too"}
    hub.commit(repository, repository.head.files | kept, repository.head.in_lfs, "By hand")
    (student / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/mine"}')
    (student / "adapter_model.safetensors").write_bytes(b"\0 a few weights")
    # The card is used, not old files of another training in the directory.
    assert publish(*push)[0] == 0 and len(repository.commits) == 2
    StudentCard(library_name="peft").save(student / "README.md")
    assert publish(*push, "--revision", "main")[0] == 0 and len(repository.commits) == 3
    assert set(repository.head.files) == {*kept, "README.md", "adapter_config.json", "adapter_model.safetensors"}
    # The local card loads the student from its directory. The pushed card loads it from the Hub, which lacks its base.
    card = repository.head.files["README.md"].decode()
    assert 'load_student("me/one", base_model="PATH")' in card and 'from_pretrained("me/one")' in card
    assert 'load_student(".")' in (student / "README.md").read_text()


def test_a_student_without_a_card_of_ours_or_with_a_token_in_it_is_not_pushed(hub, publish, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    StudentCard(library_name="transformers").save(tmp_path / "README.md")
    code, stderr = publish(tmp_path, "--repo_id", "me/one")
    assert code == 1 and "got a directory without a student, expected config.json and *.safetensors" in stderr
    (tmp_path / "model.safetensors").write_bytes(b"\0 all weights")
    card = (tmp_path / "README.md").read_text()
    # The card of PEFT contains the path of the base.
    for text in ("---\nbase_model: /home/me/base\n---\n", None):
        (tmp_path / "README.md").unlink() if text is None else (tmp_path / "README.md").write_text(text)
        code, stderr = publish(tmp_path, "--repo_id", "me/one")
        assert code == 1 and "got no model card of a student" in stderr
    (tmp_path / "README.md").write_text(f"{card} my token is {TOKEN}")
    code, stderr = publish(tmp_path, "--repo_id", "me/one")
    assert code == 1 and "README.md with a token of the Hub" in stderr and TOKEN not in stderr
    assert not hub.repositories
    (tmp_path / "README.md").write_text(card.replace("tags:", "base_model: no id at all\ntags:"))
    code, stderr = publish(tmp_path, "--repo_id", "one", "--hub_private")  # of the owner of the token
    assert code == 1 and "did not accept somebody/one" in stderr and "is no id" in stderr
    assert stderr.endswith(f"w2s publish {tmp_path} --repo_id somebody/one --hub_private\n")
    (tmp_path / "README.md").write_text(card)
    assert publish(*again(stderr))[0] == 0
    assert hub.repositories["model", "somebody/one"].private, "the command that was printed makes it private, too"


def again(stderr: str) -> list[str]:
    """The options of the printed command."""
    program, command, *options = shlex.split(stderr.splitlines()[-1])
    assert [program, command] == ["w2s", "publish"]
    return options


def test_before_anything_is_pushed(hub, publish, output, tmp_path):
    code, stderr = publish(tmp_path)
    assert code == 1 and "got a directory without results.json, expected the --output_dir of a finished run" in stderr
    for wrong in (output.parent / "elsewhere", output / "students"):
        named = publish(wrong)[1].partition("Name a directory that has results: ")[2].split("\n")[0]
        assert os.path.relpath(output) in named.removesuffix(".").split(", ")
    (student,) = (output / "students").glob("naive-seed0")
    assert "The directory has one student. Push the student with --repo_id ME/NAME." in publish(student)[1]
    code, stderr = publish(output, "--dry_run", "--hub_namespace", "me")
    assert code == 0 and f"{STUDENT}: README.md, adapter_config.json, adapter_model.safetensors" in stderr
    assert f"datasets/{LABELS}: README.md, provenance.json, weak_labels.parquet" in stderr
    assert not hub.repositories and not hub.requests
    assert publish(output, "--repo_id", "a/b", "--hub_namespace", "c")[0] == 2


def test_a_base_that_is_on_the_hub_though_the_student_learned_on_a_copy(hub, publish, output):
    assert publish(output, "--hub_namespace", "me", "--base_model", "me/base")[0] == 0
    files = hub.repositories["model", STUDENT].head.files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert "base_model: me/base\n" in files["README.md"].decode()
    assert f'load_student("{STUDENT}", {CLASSES}, dtype="float32")' in files["README.md"].decode()


def test_local_bases_leave_their_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for base, expected in {
        "models/mine": "./mine",  # it looks like an id of the Hub
        "../up/mine": "./mine",
        "~/models/mine": "./mine",
        "data/me/private/mine": "./mine",
        str(tmp_path / "models" / "mine"): "./mine",
        "/somewhere/else/mine": "./mine",
        "Qwen/Qwen2.5-7B": "Qwen/Qwen2.5-7B",
    }.items():
        config = json.dumps({"base_model_name_or_path": base, "revision": "c0ffee"})
        (tmp_path / "adapter_config.json").write_text(config)
        file = student_files(tmp_path, "a card", "peft")["adapter_config.json"]
        written = json.loads(file if isinstance(file, bytes) else file.read_text())
        assert written == {
            "base_model_name_or_path": expected,
            "revision": None if expected == "./mine" else "c0ffee",
        }


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["boolq", "Qwen2.5-7B", "naive-seed0"], "boolq-Qwen2.5-7B-naive-seed0"),
        (['a "task"', "<b>{{ c }}", "..x--"], "a-task-b-c-x"),
        (["été", "模型"], "t"),
        (["模型"], "student"),
        (["repo.git"], "repo"),
    ],
)
def test_repository_names_are_valid(parts, name):
    assert repository_name(*parts) == name


def test_long_repository_names_stay_different():
    one, two = (repository_name("task", "m" * 200, f"seed{seed}") for seed in (0, 1))
    assert one != two and len(one) == len(two) == 96


def test_students_that_are_being_replaced_are_not_pushed_with_the_numbers_of_others(
    hub, publish, output, cache, monkeypatch
):
    """A second run is stopped between its first student and its results."""

    def stop(*args):
        raise KeyboardInterrupt

    before = (output / "results.json").read_bytes()
    others = json.loads(before)
    others["runs"][0]["students"][0]["accuracy"] = 1.0  # the next run replaces this student
    (output / "results.json").write_text(json.dumps(others))
    options = [*TINY, "--methods", "naive", "--output_dir", output]
    with monkeypatch.context() as patch:
        patch.setattr("w2s_hf.experiments.experiment.keep_outputs", stop)
        assert "Stopped. Repeat the command to resume" in recipe_here(*options, cache=cache).stderr
    code, stderr = publish(output, "--hub_namespace", "me")
    assert code == 1 and "got a directory without results.json" in stderr and not hub.repositories
    assert recipe_here(*options, cache=cache).returncode == 0
    after = (output / "results.json").read_bytes()
    assert json.loads(after) | {"wall_seconds": None} == json.loads(before) | {"wall_seconds": None}


def test_students_that_are_in_no_results_are_named(publish, output):
    orphan = output / "students" / "naive-seed7"
    orphan.mkdir()
    _, stderr = publish(output, "--hub_namespace", "me", "--dry_run")
    orphan.rmdir()
    assert "not in results.json: naive-seed7." in stderr and "not pushed" not in publish(output, "--dry_run")[1]


def test_a_connection_cut_in_the_middle_of_an_upload(output, cut):
    hub, process = cut
    before = snapshot(output)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in stderr
    assert "Error while uploading 'weak_labels.parquet'" in stderr and "disconnected" in stderr
    assert f"\n    w2s publish '{output}' --hub_namespace me" in stderr
    assert snapshot(output) == before and not hub.objects
    hub.faults.clear()
    directory, *options = again(stderr[: stderr.index(" me\n") + 4])
    process = start(hub, Path(directory), *options)
    assert process.wait(timeout=120) == 0
    assert [len(repository.commits) for repository in hub.repositories.values()] == [1, 1]
