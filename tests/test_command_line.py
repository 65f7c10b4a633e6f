"""Tests that unknown options and configurations and wrong values end with an error of one line."""

import re
import runpy
import sys

import pytest
from helpers.running import ROOT

from w2s_hf import publish
from w2s_hf.command_line import CommandLine, HelpFormatter, did_you_mean
from w2s_hf.config import CompletionConfig, RewardPairConfig, WeakToStrongConfig
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.config import AnyTaskArguments, ChessArguments, ClassificationArguments, RewardArguments
from w2s_hf.experiments.config_file import config_file
from w2s_hf.memory.__main__ import main as memory_main
from w2s_hf.sweep.cli import parse_sweep
from w2s_hf.tasks import leak_probe

CONFIGS = ROOT / "w2s_hf" / "configs"
RECIPES = {
    "texts": (ClassificationArguments, WeakToStrongConfig, "demo.yaml"),
    "pairs": (RewardArguments, RewardPairConfig, "demo_reward.yaml"),
    "puzzles": (ChessArguments, CompletionConfig, "demo_chess.yaml"),
}


def refused(parse, *args, capsys, **kwargs) -> str:
    """Returns the error of a command line, which ends the process with code 2."""
    with pytest.raises(SystemExit) as ended:
        parse(*args, **kwargs)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method 1", "which is not an option.*Did you mean .*--methods"),
        ("--n_trian=5 1", "which is not an option.*Did you mean .*--n_train"),
        ("--epochs 1", "which is not an option.*Did you mean .*--num_train_epochs"),
        ("--lr 1", "which is not an option.*Did you mean .*--learning_rate"),
        ("\u2013\u2013seeds 1", "which is not an option.*Did you mean .*--seeds"),
        ("naive", "Got naive, expected an option"),
    ],
)
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_read_no_abbreviations_and_suggest_options(name, words, message, capsys):
    experiment, training, config = RECIPES[name]
    error = refused(parse_arguments, "", CONFIGS / config, words.split(), experiment, training, capsys=capsys)
    assert re.search(message, error, re.S)


@pytest.mark.parametrize(
    ("main", "argv", "suggestion"),
    [
        (memory_main, ["gpt2", "--len", "5"], "--length"),
        (publish.main, ["out", "--hub_name", "me"], "--hub_namespace"),
        (leak_probe.main, ["--task", "boolq", "--max_row", "50"], "--max_rows"),
    ],
)
def test_other_command_lines_read_no_abbreviations_either(main, argv, suggestion, capsys):
    assert f"Did you mean {suggestion}" in refused(main, argv, capsys=capsys)


def test_scripts_have_no_parser_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", "outputs", "--outptu", "x.md"])
    recipe = ROOT / "recipes" / "leaderboard.py"
    assert "Did you mean --output?" in refused(runpy.run_path, str(recipe), run_name="__main__", capsys=capsys)
    for path in [*(ROOT / "recipes").rglob("*.py"), *(ROOT / "w2s_hf").rglob("*.py"), *ROOT.glob("model_cards/*.py")]:
        assert path.name == "command_line.py" or " ArgumentParser(" not in path.read_text().replace(".", " "), path


def test_words_are_suggested_by_their_letters_or_their_parts():
    assert did_you_mean("naiv", ["naive", "window"]) == " Did you mean 'naive'?"
    assert did_you_mean("foo", ["naive", "window"]) == ""


def test_help_shows_the_defaults_of_options_with_a_value():
    parser = CommandLine(description="First line.\nSecond line.", formatter_class=HelpFormatter)
    parser.add_argument("--n_rows", type=int, default=32, help="Number of rows.")
    parser.add_argument("--layers", type=int, help="Number of layers (default: as in the model).")
    parser.add_argument("--width", type=int, default=8, help="Hidden size (default: eight).")
    parser.add_argument("--bf16", action="store_true", help="Use bfloat16.")
    shown = parser.format_help()
    assert "First line.\nSecond line." in shown and "Number of rows. (default: 32)" in shown
    assert shown.count("default") == 3 and "None" not in shown and "False" not in shown


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("name", ["single_gpu", "single_gpu.yaml"])
def test_shipped_configurations_are_named_from_everywhere(name, where, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT if where == "here" else tmp_path)
    assert config_file(name, CONFIGS, "--config") == CONFIGS / "single_gpu.yaml"
    options = ["--use_cpu", "true", "--bf16", "false"]
    args, _, _ = parse_arguments("", CONFIGS / "demo.yaml", ["--config", name, *options])
    assert args.student_model == "Qwen/Qwen2.5-7B"
    grid = ["--weak_models", "a", "--student_models", "b", f"--cell_config={name}"]
    assert parse_sweep("", CONFIGS / "sweep_demo.yaml", grid)[0].cell_config == str(CONFIGS / "single_gpu.yaml")


# The kinds of recipe that each shipped configuration is for. Grids are for sweeps only.
SUITS = {
    "cpu_real": ["texts"], "cpu_real_reward": ["pairs"], "demo": ["texts"], "demo_chess": ["puzzles"],
    "demo_ladder": ["texts"], "demo_reward": ["pairs"], "qwen_72b": ["texts", "pairs"],
    "single_gpu": ["texts", "pairs"], "single_gpu_chess": ["puzzles"], "single_gpu_small": ["texts", "pairs"],
    "sweep_demo": [],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_shipped_configurations_parse_for_the_recipes_that_they_suit(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for kind in SUITS[name]:
        experiment, training, demo = RECIPES[kind]
        argv = ["--config", name, "--use_cpu", "true"]
        args, training_args, student = parse_arguments("", CONFIGS / demo, argv, experiment, training)
        assert args.weak_model and args.student_model and training_args.max_length and student.lora_r
        if not args.demo:
            argv += ["--weak_model", "weak", "--student_model", "strong"]
            args, training_args, _ = parse_arguments("", CONFIGS / demo, argv, experiment, training)
            assert args.models == ("weak", "strong")
    if not SUITS[name]:
        assert parse_sweep("", CONFIGS / f"{name}.yaml", [])[0].student_models


def test_a_file_comes_before_a_shipped_configuration(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("weak_model: a\nstudent_model: b\nuse_cpu: true\n")
    assert parse_arguments("", CONFIGS / "demo.yaml", ["--config", "demo.yaml"])[0].weak_model == "a"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--config nowhere.yaml", "shipped configurations: cpu_real, cpu_real_reward, demo, demo_chess, demo_ladder"),
        ("--config configs/singel_gpu.yaml", "Did you mean 'single_gpu'"),
        ("--config .", "expected a YAML file"),
        ("--config", "--config: got nothing, expected a YAML file"),
        ("--config --seeds 1", "--config: got nothing"),
        ("--config demo --config=demo", "got 2 configurations, expected one"),
        ("--methods naive,window", "expected names separated by spaces. Replace the commas"),
        ("--analyses agrement", "Did you mean 'agreement'?"),
        ("--loss_type confidenc", "Did you mean 'confidence'"),
        ("--eval_strategy step", "Did you mean 'steps'?"),
        ("--report_to wandbb", "--report_to: got wandbb, which is unknown or not installed"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size: got 0, expected at least 1"),
        ("--learning_rate nan", "--learning_rate: got nan, expected at least 0"),
        ("--max_steps 0", "--max_steps: got 0, expected a positive number of steps, or -1"),
        ("--seeds 0 -1", "--seeds: got -1, expected integers from 0 to 4294967295"),
        ("--seeds 4294967296", "--seeds: got 4294967296, expected integers from 0 to 4294967295"),
        ("--lora_r 0", "--lora_r: got 0, expected at least 1"),
        ("--output_dir file", "--output_dir: got 'file', and 'file' is a file. Name another directory"),
        ("--output_dir file/below", "'file' is a file. Name another directory"),
        ("--output_dir=", "--output_dir: got an empty name, expected a directory"),
    ],
)
def test_wrong_values_say_what_is_right(options, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert message in refused(parse_arguments, "", CONFIGS / "demo.yaml", options.split(), capsys=capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "weak_modle: a",
            "got 'weak_modle', which is not an option. --help all lists all options. Did you mean 'weak_model'",
        ),
        ("weak-model: a", "Did you mean 'weak_model'"),
        ("seeds: [0]\nweak_model: a\nseeds: [1]", "in line 3 (the key 'seeds' occurs twice), expected valid YAML"),
        ("- a\n- b", "got a list, expected a YAML mapping"),
        ("", "got an empty file, expected a YAML mapping"),
        ("a: [1\nb: 2", "invalid YAML in line 2"),
        ("1: 2", "got the key 1, expected the name of an option"),
        ("n_train: many", "n_train: got 'many', expected an integer"),
        ("n_train: 10.5", "n_train: got 10.5, expected an integer"),
        ("n_train: [1, 2]", "n_train: got [1, 2], expected an integer"),
        ("learning_rate: {a: 1}", "learning_rate: got {'a': 1}, expected a number"),
        ("seeds: [0, a]", "seeds: got 'a', expected an integer"),
        ("demo: maybe", "demo: got 'maybe', expected true or false"),
        ("weak_model: yes", "got True, expected text. YAML reads yes, no, on and off as true and false"),
        ("eval_strategy: no", "eval_strategy: got False, expected one of no, steps, epoch. YAML reads yes, no"),
        ("head_init: zeroes", "expected one of normal, zeros, unembedding, answers. Did you mean 'zeros'?"),
        ("methods: naiv", "Did you mean 'naive'?"),
    ],
)
def test_values_of_a_file_are_checked_as_those_of_the_command_line(content, message, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(content)
    argv = ["--config", str(tmp_path / "mine.yaml")]
    error = refused(parse_arguments, "", CONFIGS / "demo.yaml", argv, capsys=capsys)
    assert message in error and ("mine.yaml" in error or "methods" in content)


def test_values_of_a_file_may_be_written_as_on_the_command_line(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "weak_model: a\nstudent_model: b\nuse_cpu: true\nseeds: 3\nmethods: naive\nlearning_rate: 1e-3\nladder: []\n"
        "n_train: null\nlr_scheduler_kwargs: {num_cycles: 1}\nreport_to: [none]\nlora_target_modules: all-linear\n"
        "disable_dropout: false\neval_strategy: 'no'\n"
    )
    argv = ["--config", str(tmp_path / "mine.yaml"), "--weak_model", "c"]
    args, training, student = parse_arguments("", CONFIGS / "demo.yaml", argv)
    assert (args.weak_model, args.seeds, args.methods, args.ladder, args.n_train) == ("c", [3], ["naive"], [], None)
    assert training.learning_rate == 1e-3 and training.lr_scheduler_kwargs == {"num_cycles": 1}
    assert not training.disable_dropout and student.lora_target_modules == "all-linear"


@pytest.mark.parametrize("form", ["--config {}", "--config={}", "--config {}.yaml", "--config={}.yaml"])
@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_configuration_is_read_by_its_recipe(name, form, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = form.format(name).split()
    if name.startswith("sweep"):
        grid, _ = parse_sweep("", CONFIGS / "sweep_demo.yaml", words)
        assert grid == parse_sweep("", CONFIGS / "sweep_demo.yaml", [])[0]
        return
    kind = "puzzles" if "chess" in name else "pairs" if "reward" in name else "texts"
    experiment, training, demo = RECIPES[kind]
    options = [*words, "--use_cpu", "true", "--bf16", "false"]
    args, training_args, _ = parse_arguments("", CONFIGS / demo, options, experiment, training, task="boolq")
    assert args.student_model and training_args.output_dir == f"outputs/{name if args.demo else 'boolq'}"


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ("", "demo"),
        ("--methods naive bootstrap", "demo_ladder"),
        ("--methods=bootstrap", "demo_ladder"),
        ("--ladder pretrained-32x2 pretrained-64x2", "demo_ladder"),
        ("--ladder pretrained-32x2 pretrained-64x2 --analyses agreement", "demo"),
        ("--ladder pretrained-32x2 pretrained-64x2 --analyses=agreement", "demo"),
        ("--ladder pretrained-32x2 pretrained-64x2 --run_name agreement", "demo_ladder"),
        ("--run_name bootstrap", "demo"),
        ("--run-name=bootstrap", "demo"),
    ],
)
def test_values_of_options_choose_the_demo_and_other_words_do_not(options, config):
    _, training_args, _ = parse_arguments("", CONFIGS / "demo.yaml", options.split(), task="boolq")
    assert training_args.output_dir == f"outputs/{config}"


@pytest.mark.parametrize("words", ["--list_tasks", "--list-tasks", "--list_tasks=true", "--seeds 1 --list_tasks true"])
def test_tasks_are_listed_by_an_option(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments("", CONFIGS / "demo.yaml", words.split(), AnyTaskArguments)
    assert ended.value.code == 0 and "boolq" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["--help", "-h", "--help all", "--help=all"])
@pytest.mark.parametrize(
    ("words", "default", "line"),
    [
        ("{}", "5e-05", "the embedded demo runs, with the values of `--config demo`"),
        ("{} --config qwen_72b", "5e-05", "The defaults are the values of qwen_72b.yaml."),
        ("--config demo {}", "0.003", "The defaults are the values of demo.yaml."),
        ("--wrong 1 {}", "5e-05", "`--config NAME --help` shows the values of a configuration"),
    ],
)
def test_help_shows_the_defaults_of_the_chosen_configuration(words, default, line, form, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments("", CONFIGS / "demo.yaml", words.format(form).split())
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and f"(default: {default})" in shown and line in shown
    assert ("(default: 2000)" in shown) == words.startswith("--config demo"), "the numbers are those of the demo"


def test_a_misspelt_option_is_named_before_a_missing_one(capsys):
    argv = ["--tsak", "boolq"]
    error = refused(parse_arguments, "", CONFIGS / "demo.yaml", argv, AnyTaskArguments, capsys=capsys)
    assert "Did you mean --task" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--weak_modles a", "Did you mean --weak_models"),
        ("--weak_modle a", "Did you mean --weak_models?"),
        ("--cell_config singel_gpu --weak_models a --student_models b", "Did you mean 'single_gpu'"),
        ("--engine rey", "Did you mean 'ray'?"),
        ("--config demo", "got 'demo', which is not an option of a grid"),
        ("--output_dir file", "--output_dir: got 'file', and 'file' is a file. Name another directory"),
        ("--output_dir file/below", "'file' is a file. Name another directory"),
    ],
)
def test_wrong_values_of_a_sweep_say_what_is_right(options, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert message in refused(parse_sweep, "", CONFIGS / "sweep_demo.yaml", options.split(), capsys=capsys)
