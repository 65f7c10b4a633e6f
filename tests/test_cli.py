"""Tests the command `w2s`: its subcommands, the launch through accelerate, and help that fits a screen."""

import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml
from helpers.running import ROOT, TINY, numbers, recipe_here
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from w2s_hf import __version__
from w2s_hf.cli import main
from w2s_hf.config import CompletionConfig, RewardPairConfig
from w2s_hf.experiments import cli
from w2s_hf.launch import ACCELERATE_CONFIGS, CONFIGS, LaunchOptions, config_names, launch, split_launch
from w2s_hf.tasks import PREFERENCE_TASKS, TASKS, find_any_task
from w2s_hf.tasks.chess import CHESS_PUZZLES

COMMANDS = ["run", "sweep", "tasks", "memory", "publish", "leaderboard", "leak-probe"]
SETTINGS = {"boolq": "texts", "anthropic_hh": "pairs", "chess_puzzles": "puzzles"}


def ended(argv: list[str], capsys) -> SimpleNamespace:
    """Returns the output and the exit code of a command line. A message of `SystemExit` is added to stderr."""
    try:
        code = main(argv) or 0
    except SystemExit as error:
        code = error.code or 0
    out, err = capsys.readouterr()
    return SimpleNamespace(code=code if isinstance(code, int) else 1, out=out, err=f"{err}{code}")


@pytest.mark.parametrize("word", ["--help", "--version", "rnu"])
def test_nothing_heavy_is_imported_for_a_word(word):
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'yaml', 'huggingface_hub'}"
    code = f"import sys\nfrom w2s_hf.cli import main\ntry:\n main([{word!r}])\nexcept SystemExit: pass\n"
    code += f"found = {heavy} & set(sys.modules)\nassert not found, found"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr


def test_help_and_version_name_the_commands(capsys):
    for argv in ([], ["--help"], ["-h"], ["--help=all"]):
        result = ended(argv, capsys)
        assert result.code == 0 and all(f"\n  {name}" in result.out for name in COMMANDS)
    assert ended(["--version"], capsys).out == f"w2s_hf {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("rnu boolq", "Got 'rnu', expected one of run, sweep, .*Did you mean 'run'?"),
        ("leak_probe", "Did you mean 'leak-probe'?"),
        ("frobnicate", "`w2s --help` explains them"),
        (
            "run",
            "Got no task, expected the first word to be a task's name.*`w2s tasks` lists.*`w2s run boolq` runs",
        ),
        ("run --config demo boolq", "Got --config before the task"),
        ("run bolq", "task: got 'bolq', expected one of .*Did you mean 'boolq'?"),
        ("run anthropic", "Did you mean 'anthropic_hh'?"),
        ("run chess", "Did you mean 'chess_puzzles'?"),
        ("run nowhere.py", "got 'nowhere.py', expected an existing file"),
        (f"run {ROOT / 'recipes' / 'minimol.py'}", "Did you mean 'minimal.py'?"),
        ("run boolq --num_process 2", "--help all lists all options. Did you mean --num_processes?"),
        ("run boolq --num_processes two", "got 'two', expected a positive integer"),
        ("run boolq --accelerate_config fdsp", "shipped configurations: ddp, fsdp.*Did you mean 'fsdp'?"),
        ("run boolq --num_processes 2 --accelerate_config single", "which starts one process"),
        ("run boolq --help everything", "expected --help or --help all"),
        ("run boolq --trust_remote_code true", "Got --trust_remote_code"),
        ("run anthropic_hh --trust_remote_code true", "trust_remote_code"),
        ("tasks --al", "Got --al, which is not an option"),
    ],
)
def test_wrong_words_say_what_is_right(argv, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = ended(argv.split(), capsys)
    assert result.code and re.search(message, " ".join(result.err.split())), result.err
    assert not any(tmp_path.iterdir())


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch):
    monkeypatch.setattr("w2s_hf.tasks.task_table", mock.Mock(side_effect=KeyboardInterrupt))
    assert main(["tasks"]) == 130


# ---- Help ----


@pytest.mark.parametrize(
    "argv", [[], ["run"], *(["run", task] for task in SETTINGS), *([name] for name in COMMANDS[1:])]
)
def test_help_fits_a_screen(argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = ended([*argv, "--help"], capsys)
    lines = result.out.splitlines()
    assert result.code == 0 and len(lines) <= 45, f"{len(lines)} lines"
    assert lines[0].startswith(f"usage: w2s {' '.join(argv)}".strip())
    assert max(map(len, lines)) <= 100, max(lines, key=len)


@pytest.mark.parametrize(
    "name", ["boolq", "sciq", "cosmos_qa", "amazon_polarity", "anthropic_hh", "chess", "nlp", "sweep"]
)
def test_help_of_a_recipe_fits_a_screen(name, capsys, monkeypatch, cache):
    monkeypatch.setenv("COLUMNS", "100")
    process = recipe_here("--help", cache=cache, name=f"{name}.py")
    lines = process.stdout.splitlines()
    assert process.returncode == 0 and len(lines) <= 55, f"{len(lines)} lines"
    assert any(f"accelerate launch recipes/{name}.py" in line for line in lines)
    assert "--num_processes" not in process.stdout, "recipes are launched by accelerate"


@pytest.mark.parametrize("argv", [["run", "boolq"], ["run", "anthropic_hh"], ["run", "chess_puzzles"], ["sweep"]])
def test_all_help_lists_every_option_once(argv, capsys):
    out = ended([*argv, "--help", "all"], capsys).out
    names = re.findall(r"^  (?:-h, )?(--[\w-]+)", out, flags=re.M)
    assert len(names) == len(set(names)) > 12
    assert not [name for name in names if name.startswith("--no_") or "-" in name[2:]]
    short = re.findall(r"^  (?:-h, )?(--[\w-]+)", ended([*argv, "--help"], capsys).out, flags=re.M)
    assert len(short) > 10 and set(short) <= set(names)
    if argv[0] == "run":
        places = [out.index(f"\n  {name} ") for name in ("--weak_model", "--lora_r", "--warmup_steps")]
        assert places == sorted(places), "experiment, student, training"
        assert not {"--seed", "--hub_token", "--trust_remote_code"} & set(names), "recipes refuse them"


def test_tasks_are_listed(capsys):
    for argv in (["tasks"], ["tasks", "--sources"]):
        out = ended(argv, capsys).out
        names = {line.split()[0] for line in out.splitlines()[2:]}
        assert names == {*TASKS, *PREFERENCE_TASKS, CHESS_PUZZLES.name}
        assert ("google/boolq" in out) == ("--sources" in argv)
    line = next(line for line in out.splitlines() if line.startswith("chess"))
    (source,) = CHESS_PUZZLES.sources
    assert source.id in line and CHESS_PUZZLES.description in line
    assert f"{CHESS_PUZZLES.train_split[0]} / {CHESS_PUZZLES.test_split[0]}" in line


# ---- Launching ----


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LaunchOptions(1), ["single", "--num_processes", "1"]),
        (LaunchOptions(4), ["ddp", "--num_processes", "4"]),
        (LaunchOptions(2, "fsdp"), ["fsdp", "--num_processes", "2"]),
        (LaunchOptions(None, "zero3.yaml"), ["zero3"]),
    ],
)
def test_options_of_accelerate(options, expected):
    path, *words = options.arguments()[1:]
    assert path == str(ACCELERATE_CONFIGS / f"{expected[0]}.yaml")
    assert words == [*expected[1:], "--main_process_port", "0"]


def test_a_file_of_several_machines_keeps_its_port(tmp_path):
    content = yaml.safe_load((ACCELERATE_CONFIGS / "ddp.yaml").read_text())
    content |= {"num_machines": 2, "main_process_ip": "10.0.0.1", "main_process_port": 29500}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    words = LaunchOptions(8, str(tmp_path / "mine.yaml")).arguments()
    assert words == ["--config_file", str(tmp_path / "mine.yaml"), "--num_processes", "8"]


@pytest.fixture
def launched(monkeypatch):
    """Records the arguments of `accelerate launch`, and launches nothing."""
    calls = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", calls.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return calls


@pytest.mark.parametrize(
    ("argv", "n_processes", "words"),
    [
        ("run boolq --methods naive --num_processes 2 --seeds 0 1", 2, "run boolq --methods naive --seeds 0 1"),
        ("run boolq --num-processes=3 --use_cpu true", 3, "run boolq --use_cpu true"),
        ("run my_task.py --accelerate_config ddp", None, "run my_task.py"),
        ("sweep --accelerate_config ddp --tasks boolq sciq", None, "sweep --tasks boolq sciq"),
        ("sweep --engine local --accelerate_config ddp", None, "sweep --engine local"),
    ],
)
def test_processes_are_launched_by_accelerate(argv, n_processes, words, launched):
    assert main(argv.split()) == 0
    (args,) = launched
    assert args.module and args.training_script == "w2s_hf" and args.training_script_args == words.split()
    assert args.num_processes == n_processes and args.config_file == str(ACCELERATE_CONFIGS / "ddp.yaml")


def test_accelerate_config_of_a_sweep_on_ray_is_that_of_its_cells(launched, monkeypatch, tmp_path):
    (tmp_path / "grid.yaml").write_text("engine: ray\nweak_models: [a]\nstudent_models: [b]\n")
    seen = []
    monkeypatch.setattr("w2s_hf.sweep.cli.run_sweep", lambda args, options, configs: seen.append(args) or sys.exit())
    for words in (["--engine", "ray"], ["--engine=ray"], ["--config", str(tmp_path / "grid.yaml")]):
        with pytest.raises(SystemExit):
            main(["sweep", *words, "--accelerate_config", "ddp"])
    assert [args.accelerate_config for args in seen] == [str(ACCELERATE_CONFIGS / "ddp.yaml")] * 3
    assert not launched


def test_a_launched_process_launches_no_others(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit):
        split_launch(["--num_processes", "2"], "w2s run boolq")
    assert "Give these options to the launcher" in capsys.readouterr().err
    assert split_launch(["--seeds", "1"], "w2s run boolq") == (None, ["--seeds", "1"])


@pytest.mark.slow
def test_one_process_is_launched_and_its_error_is_the_last_line(cache, tmp_path):
    """Runs this process, accelerate, and a process with `python -m w2s_hf run`."""
    command = [sys.executable, "-m", "w2s_hf", "run", "boolq", "--num_processes", "1", "--weak_model", "nowhere"]
    command += ["--student_model", "nowhere", "--use_cpu", "true", "--output_dir", str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    assert process.stderr.count("Loading torch, transformers and peft ...") == 1
    assert process.stderr.rstrip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (subprocess.CalledProcessError(2, "python"), 2),
        (subprocess.CalledProcessError(-9, "python"), 137),
        (ChildFailedError("w2s", {0: ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file="")}), 2),
        (ValueError("unknown keys"), 2),
        (SignalException("Process 1 got signal: 2", signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
    ],
    ids=["options", "killed", "several", "configuration", "several-interrupted", "interrupted"],
)
def test_a_failed_launch_ends_with_its_code(error, code, monkeypatch):
    monkeypatch.setattr("accelerate.commands.launch.launch_command", mock.Mock(side_effect=error))
    monkeypatch.setattr("os.wait", mock.Mock(side_effect=ChildProcessError))
    assert launch(LaunchOptions(1), ["run", "boolq"]) == code


def test_a_file_that_is_no_configuration_of_accelerate(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("a: [1\n")
    assert launch(LaunchOptions(2, str(tmp_path / "mine.yaml")), ["run", "boolq"]) == 2
    assert "mine.yaml', expected a file of `accelerate config`." in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "- a", "learning_rate: 1.0e-4"])
def test_a_file_of_another_kind_is_no_configuration_of_accelerate(content, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(content)
    assert launch(LaunchOptions(accelerate_config=str(tmp_path / "mine.yaml")), ["run", "boolq"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.yaml', " in line and "expected a file of `accelerate config`." in line


# ---- Running ----


def test_it_runs_what_the_recipe_runs(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("W2S_HF_CACHE", str(cache))
    options = [*TINY, "--methods", "naive", "--output_dir", str(tmp_path / "out")]
    result = ended(["run", "boolq", *options], capsys)
    assert result.code == 0, result.err
    assert "The real task, on one GPU:  w2s run boolq --config single_gpu\n" in result.out
    before = numbers(tmp_path / "out")
    process = recipe_here(*options, cache=cache)
    assert process.returncode == 0 and "Nothing was trained" in process.stderr, "the stages have other keys"
    assert numbers(tmp_path / "out") == before


GENERATION = """
from w2s_hf.tasks import GenerationTask

class Additions(GenerationTask):
    columns = ("question", "answer")

    def example(self, row):
        return {"prompt": row["question"], "ground_truth": f" {row['answer']}"}

ADDITIONS = Additions("additions", "me/additions", description="Sums of two numbers")
"""
PREFERENCES = "from w2s_hf.tasks import PreferenceTask\nMINE = PreferenceTask('mine', 'me/pairs')\n"


@pytest.mark.parametrize(
    ("content", "training", "option", "no_option"),
    [
        (GENERATION, CompletionConfig, "--max_new_tokens", "--max_train_rating"),
        (PREFERENCES, RewardPairConfig, "--generative_finetuning", "--conversion"),
        (None, CompletionConfig, "--max_train_rating", "--conversion"),
    ],
    ids=["generation", "preferences", "chess"],
)
def test_the_task_decides_the_setting(content, training, option, no_option, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    name = "my_task.py" if content else "chess_puzzles"
    (tmp_path / "my_task.py").write_text(content or "")
    shown = ended(["run", name, "--help", "all"], capsys).out
    assert option in shown and no_option not in shown
    seen = []
    monkeypatch.setattr(cli, "run_experiment", lambda *args: seen.append(args) or sys.exit())
    options = "--weak_model a --student_model b --use_cpu true --bf16 false".split()
    assert ended(["run", name, *options], capsys).code == 0
    ((task, args, training_args, _),) = seen
    assert isinstance(training_args, training) and args.models == ("a", "b")
    assert training_args.output_dir == f"outputs/{task.name}"
    # The recipe of any task accepts it, too.
    monkeypatch.setattr(sys, "argv", ["nlp.py", "--task", name, *options])
    with pytest.raises(SystemExit):
        cli.run_named_task("")
    assert seen[1][0].name == task.name and isinstance(seen[1][2], training)


def test_a_generative_task_has_no_demo(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(GENERATION)
    error = ended(["run", "my_task.py"], capsys).err
    assert "Got no --weak_model and no --student_model, expected both models. Name both models." in error


def test_a_file_of_several_tasks(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(GENERATION + PREFERENCES)
    assert find_any_task("my_task.py:MINE").name == "mine"
    message = ended(["run", "my_task.py"], capsys).err
    assert "defines ADDITIONS, MINE, expected one task. Add the name of a task: `my_task.py:ADDITIONS`." in message


# ---- What is shipped ----


def test_configurations_are_shipped():
    assert "single_gpu" in config_names(CONFIGS) and config_names(ACCELERATE_CONFIGS) == [
        "ddp",
        "fsdp",
        "single",
        "zero3",
    ]
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["w2s_hf"]
    shipped = {path for pattern in patterns for path in (ROOT / "w2s_hf").glob(pattern)}
    assert {*CONFIGS.iterdir(), *ACCELERATE_CONFIGS.iterdir()} <= shipped


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_scripts_name_their_dependencies(path: Path):
    """Inline script metadata (PEP 723), which `uv run` and `hf jobs uv run` read."""
    (block,) = re.findall(r"(?m)^# /// script$\s((?:^#(?:| .*)$\s)+?)^# ///$", path.read_text())
    metadata = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["requires-python"] == project["requires-python"]
    (dependency,) = metadata["dependencies"]
    name, _, extras = dependency.rstrip("]").partition("[")
    assert name == "w2s_hf" and set(filter(None, extras.split(","))) <= set(project["optional-dependencies"])
    assert ("chess" in extras) == (path.stem in ("chess", "sweep"))
    source = metadata["tool"]["uv"]["sources"]["w2s_hf"]
    assert (path.parent / source["path"] / "pyproject.toml").is_file()
