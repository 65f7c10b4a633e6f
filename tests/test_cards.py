"""Tests the content of model cards, and that values in them are escaped."""

import ast
import copy
import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.cards import CARDS, card_of, results
from huggingface_hub import ModelCard
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from transformers import TrainerControl, TrainerState

from w2s_hf import Score, StudentCard, WeakToStrongConfig
from w2s_hf.cards.markdown import as_text, markdown_table
from w2s_hf.experiments.report import write_report
from w2s_hf.labels import weak_labels_card
from w2s_hf.leaderboard import read_card
from w2s_hf.plots import PALETTE, plot_accuracies, plot_gap
from w2s_hf.trainers.student_card import StudentCardCallback

HOSTILE = [
    "a \"quoted\" 'name'",
    "{{ 7 * 7 }} {% raw %} {# no #}",
    "name: [1, 2]\n---\nlicense: mit",
    "<script>alert(1)</script><img src=x onerror=y>",
    "[click](http://evil.example) ![x](y) | a | **b** `c` # d",
    "- x: &a *b !!python/object:os.system",
    "www.evil.example @somebody $x^2$ ~~gone~~",
    "\u2028\x00\x1b[31m",
]


def front_and_text(card: str) -> tuple[dict, str]:
    begin, front, text = re.split(r"^---$", card, maxsplit=2, flags=re.M)
    assert begin == ""
    return yaml.safe_load(front), text


def test_a_card_says_what_the_results_say(tmp_path):
    card = card_of(results())
    front, text = front_and_text(card.render())
    (result,) = front["model-index"][0]["results"]
    metrics = {entry["type"]: entry for entry in result["metrics"]}
    assert metrics["accuracy"]["value"] == 0.7 and metrics["pgr"]["value"] == card.pgr == pytest.approx(0.5)
    assert metrics["pgr"]["args"] == {"weak": 0.6, "student": 0.7, "ceiling": 0.8}
    assert front["library_name"] == "peft" and front["pipeline_tag"] == "text-classification"
    assert {"weak-to-strong", "naive", "boolq"} <= set(front["tags"])
    assert "PGR): 0.50 [0.20, 0.80]" in text and "0.700 [0.100, 0.900]" in text
    assert "on 90 % of the rows where the supervisor is right, and on 25 % where it is wrong" in text
    assert "Time and hardware: 2 minutes, CPU." in text and "| learning_rate | 0.001 |" in text
    card.save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").data.eval_results[1].metric_value == card.pgr
    read = read_card(tmp_path)
    for name in ("task", "setting", "method", "seed", "weak", "student", "ceiling", "pgr", "pgr_ci95", "agreement"):
        assert getattr(read, name) == getattr(card, name), name


def test_card_and_report_have_the_accuracy_of_the_weak_labels(tmp_path):
    known = results()
    known["runs"][0]["weak"]["label_accuracy"] = 0.72
    assert (
        "wrong on 40 % of the test rows and on 28 % of the training rows. The student may" in card_of(known).render()
    )
    assert "wrong on 40 % of the test rows. The student may" in card_of(results()).render()
    for name, values in {"known": known, "unknown": results()}.items():
        write_report(values, tmp_path / name, notes=[])
        report = (tmp_path / name / "report.md").read_text()
        assert ("trained on are correct for 72.0 % of the training rows." in report) == (name == "known")


def test_the_report_has_the_accuracy_of_the_labels_of_a_method(tmp_path):
    changed = results()
    changed["runs"][0]["weak"] |= {"label_accuracy": 0.72, "label_confidence": 0.875}
    (student,) = changed["runs"][0]["students"]
    student["labels"] = {"n_train": 40, "accuracy": 0.75, "confidence": 0.625, "weights": {"mean": 0.5, "n_zero": 7}}
    student["supervisor_weights"] = [0.25, 0.75]
    write_report(changed, tmp_path / "changed", notes=[])
    report = (tmp_path / "changed" / "report.md").read_text()
    n_half, method = changed["dataset"]["n_student_half"], student["method"]
    header = "| labels | training rows | correct | confidence | mean weight | rows with weight 0 | learned weights of"
    assert header in report and f"| weak labels | {n_half} | 0.720 | 0.875 |  |  |  |" in report
    assert f"| {method} | 40 | 0.750 | 0.625 | 0.500 | 7 | 0.25 / 0.75 |" in report
    assert "larger probability of a label. Both include rows with weight 0. No method" in report
    del student["labels"]["weights"]
    write_report(changed, tmp_path / "unweighted", notes=[])
    assert "weight 0" not in (tmp_path / "unweighted" / "report.md").read_text()
    write_report(results(), tmp_path / "same", notes=[])
    assert "Training labels" not in (tmp_path / "same" / "report.md").read_text()


def test_a_score_may_be_of_numpy(tmp_path):
    card = StudentCard(pgr_ci95=(np.float64(0.1), np.float32(0.5)), agreement={"overall": np.float32(0.5)})
    card.weak, card.student = Score("a", np.float32(0.5), np.int64(10)), Score("b", np.float64(0.6), 10, np.ones(2))
    card.ceiling = Score("b", np.mean([0.5, 1.0]), 10)
    card.agreement |= {"supervisor_right": None, "supervisor_wrong": None}
    front, _ = front_and_text(card.render())  # the safe loader refuses Python objects
    assert front["weak_to_strong"]["student"] == {
        "model": "b", "accuracy": 0.6, "n": 10, "ci95": [1.0, 1.0], "revision": None
    }  # fmt: skip
    card.save(tmp_path / "README.md")
    assert read_card(tmp_path).pgr == card.pgr


UNREADABLE = "not a valid student card"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: re.sub(r"(type: pgr\n *value: )0\.[0-9]+", r"\g<1>0.99", text),
         "has PGR 0.99, and its scores give 0.4999"),
        (lambda text: text.replace("accuracy: 0.6", "accuracy: half", 1), UNREADABLE),
        (lambda text: text.replace("ci95:", "cii95:"), UNREADABLE),
        (lambda text: "---\na: [\n---\n", UNREADABLE),
        (lambda text: "---\ntags: [a]\n---\n# Another model\n", "has no `weak_to_strong` of schema 1"),
    ],
    ids=["another PGR", "a word", "another key", "no YAML", "another model"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["", "README.md"], ids=["directory", "file"])
def test_a_card_whose_numbers_were_changed_by_hand_is_not_believed(name, change, message, tmp_path):
    (tmp_path / "README.md").write_text(change(card_of(results()).render()))
    with pytest.raises(ValueError, match=message):
        read_card(tmp_path / name)


@pytest.mark.parametrize("weak", [0.8, 0.9])
def test_an_undefined_pgr_is_no_number_and_has_a_reason(weak, tmp_path):
    undefined = results(pgr=None, pgr_ci95=None)
    undefined["runs"][0]["weak"]["accuracy"] = weak
    card = card_of(undefined)
    front, text = front_and_text(card.render())
    (result,) = front["model-index"][0]["results"]
    assert [entry["type"] for entry in result["metrics"]] == ["accuracy"]
    reason = f"the ceiling (0.8000) is not above the weak supervisor ({weak:.4f})"
    assert f"undefined**, because {reason}" in text and reason in front["weak_to_strong"]["pgr_undefined"]
    assert "nan" not in card.render().lower()
    card.save(tmp_path / "README.md")
    assert read_card(tmp_path).pgr is None
    plot_gap(card.weak, card.student, card.ceiling, None, tmp_path / "pgr.png")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_the_front_matter_or_becomes_markup(name, tmp_path):
    hostile = results(name)
    card = card_of(hostile)
    card.base_is_on_hub = card.dataset_is_on_hub = True
    front, text = front_and_text(card.render())
    plain, plain_text = front_and_text(card_of(results()).render())
    assert front["weak_to_strong"]["task"] == name and front["tags"][2:4] == ["naive", name]
    assert front["weak_to_strong"]["weak"]["model"] == name and front["datasets"] == [name]
    assert set(plain) <= set(front) <= set(plain) | {"base_model", "datasets"}, "a name has added a key"
    code = re.compile(r"```.*?```", flags=re.S)
    prose = code.sub("", text)
    for markup in "<script|<img|](http://evil|![x]|**b**|`c`|{{|{%|www.evil|@some|~~gone".split("|"):
        assert markup not in prose, markup
    # Headings, tables and code are the same as for a plain name.
    for pattern in (r"^#+ ", r"^\|", r"^```", r"^- "):
        assert len(re.findall(pattern, text, flags=re.M)) == len(re.findall(pattern, plain_text, flags=re.M)), pattern
    assert [len(line.split("|")) for line in prose.splitlines() if line.startswith("|")] == [
        len(line.split("|")) for line in code.sub("", plain_text).splitlines() if line.startswith("|")
    ]
    for snippet in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        compile(snippet, "card", "exec")
    card.save(tmp_path / "README.md")
    assert read_card(tmp_path).weak.model == name
    provenance = {"task": name, "model": name, "n_rows": 3, "dataset": {"id": name}}
    front, _ = front_and_text(weak_labels_card(provenance, ["id"]))
    assert set(front) == {"tags", "configs"} and name in front["tags"]


def test_code_of_the_card_keeps_the_line_breaks_of_the_training_texts():
    form = 'Message: {message}\nIs it "spam"? \U0001f914'
    card = card_of(results() | {"text_form": form})
    (line,) = re.findall(r"^# This is the format .*\ntext = (.+)$", card.render(), flags=re.MULTILINE)
    assert ast.literal_eval(line) == form and ast.literal_eval(line).encode() == form.encode()
    for changes in (
        {"example_prompt": "Hi"},
        {"text_form": None},
        {"task_type": "REWARD"},
        {"task_type": "CAUSAL_LM"},
    ):
        code = replace(card, **changes).render()
        assert "This is the format" not in code and "{message}" not in code


def test_text_is_quoted_where_it_could_be_markup():
    assert as_text("Qwen/Qwen2.5-7B, cosmos_qa (50 %): it's 0.5") == "Qwen/Qwen2.5-7B, cosmos_qa (50 %): it's 0.5"
    assert as_text("a\n# b") == "a &#35; b"
    assert as_text("_a_") == "&#95;a&#95;" and as_text("http://x") == "http&#58;//x"
    assert as_text(Markup("**a**")) == "**a**"
    assert markdown_table(["a"], [["b|c\nd <e>"]]).splitlines()[2] == "| b&#124;c d &lt;e> |"


def test_a_link_of_a_chain_has_no_ceiling_and_no_pgr():
    chain = results()
    run, (student,) = chain["runs"][0], chain["runs"][0]["students"]
    chain["summary"][0]["method"] = student["method"] = "bootstrap"
    link = {name: value for name, value in student.items() if not name.startswith("pgr")} | {"n_train": 10}
    student["links"] = [link | {"taught_by": "weakest"}, link | {"taught_by": "the first link"}]
    card = StudentCard.from_results(chain, run, student)
    assert replace(card, links=student["links"], summary=chain["summary"][0]) == card, "JSON values are taken, too"
    front, text = front_and_text(card.render())
    assert "was trained on labels of the first link, the model before it" in text
    assert "| 1 | boolq | weakest | 10 | 0.700 [0.100, 0.900] |" in text
    assert front["weak_to_strong"]["taught_by"] == "the first link"
    _, text = front_and_text(StudentCard.from_results(chain, run, student["links"][0]).render())
    assert "undefined**, because no ceiling was trained for this link" in text and "strong ceiling" not in text


def test_several_seeds_an_unbounded_interval_and_a_demo():
    several = results(pgr_ci95=None)
    several["summary"][0] |= {"n_seeds": 3, "n_undefined": 1, "pgr_median": 0.4, "pgr_ci95": [0.1, 0.6]}
    several["preset"] = "demo"
    _, text = front_and_text(card_of(several).render())
    assert "(unbounded: on these test rows the ceiling is not clearly better than the supervisor)" in text
    assert "Over the 3 seeds of this experiment the median PGR of this method is 0.40 [0.10, 0.60]" in text
    assert "it is undefined in 1 of these seeds." in text and "a student of the embedded demo" in text


def test_a_demo_says_that_its_rows_are_generated(monkeypatch, tmp_path):
    demo, real = (results("boolq") | {"preset": preset, "controls": []} for preset in ("demo", "custom"))
    name = "boolq (demo: generated rows)"
    front, text = front_and_text(card_of(demo).render())
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == name and name in text.splitlines()[2]
    assert front["weak_to_strong"]["task"] == "boolq" and front["weak_to_strong"]["preset"] == "demo"
    assert "boolq" not in front["tags"] and "demo" not in card_of(real).render()
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **kwargs: titles.append(text))
    for made in (demo, real):
        card = card_of(made)
        plot_accuracies(made, tmp_path / "accuracy.png")
        plot_gap(card.weak, card.student, card.ceiling, card.pgr, tmp_path / "pgr.png", title=card.subject)
    assert [name in title for title in titles] == [True, True, False, False]
    for dataset, is_demo in {"w2s_hf demo": True, "google/boolq": False}.items():
        provenance = {"task": "boolq", "model": "m", "n_rows": 1, "dataset": {"id": dataset}}
        card = weak_labels_card(provenance, ["id", "probabilities"])
        assert ("# Weak labels for " + (name if is_demo else "boolq") + " by m\n") in card
        assert ("\n- boolq\n" in card) != is_demo


def test_what_a_trainer_does_not_know_is_left_out():
    card = StudentCard(base_model="gpt2", base_is_on_hub=True)
    front, text = front_and_text(card.render())
    assert "model-index" not in front and front["base_model"] == "gpt2"
    assert "undefined**, because the card has no accuracy of: weak, student, ceiling" in text
    assert "None" not in text and "{" not in text.split("```bibtex")[0]
    card.weak, card.student = Score("a", 0.5, 10), Score("b", 0.6, 10)
    front, text = front_and_text(card.render())
    assert "the card has no accuracy of: ceiling" in text and front["model-index"]


@pytest.mark.parametrize(
    ("loading", "snippet"),
    [
        ({"dtype": "bfloat16", "load_in_4bit": True}, 'load_student("me/x", dtype="bfloat16", load_in_4bit=True)'),
        (
            {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}},
            'load_student("me/x", quantization_config='
            'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"))',
        ),
    ],
)
@pytest.mark.parametrize("task_type", ["SEQ_CLS", "REWARD", "CAUSAL_LM"])
def test_snippets_load_in_the_precision_of_the_training(loading, snippet, task_type):
    card = StudentCard(repo_id="me/x", task_type=task_type, loading=loading, base_is_on_hub=True)
    (code,) = re.findall(r"```python\n(.*?)```", card.render(), flags=re.S)
    compile(code, "card", "exec")
    extra = "" if task_type == "SEQ_CLS" else f'task_type="{task_type}", '
    assert snippet.replace('"me/x", ', f'"me/x", {extra}') in code
    assert ("BitsAndBytesConfig" in code.splitlines()[1] + code.splitlines()[0]) == ("quantization_config" in loading)


def test_a_snippet_of_adapters_names_the_classes():
    """Adapters are saved without the configuration of their base; a full model has it."""
    card = StudentCard(repo_id="me/x", class_names=["it's", 'a "b"'], base_is_on_hub=True)
    (code,) = re.findall(r"```python\n(.*?)```", card.render(), flags=re.S)
    assert ast.literal_eval(re.search(r"id2label=(\{.*?\})", code)[1]) == {0: "it's", 1: 'a "b"'}
    for whole in ({"library_name": "transformers"}, {"task_type": "REWARD"}):
        assert "id2label" not in dataclasses.replace(card, **whole).render()


def test_a_trainer_fills_in_what_nobody_has_set(tmp_path):
    card = StudentCard(settings={"learning_rate": "mine"})
    callback = StudentCardCallback(card)
    for loss_type, max_steps in (("confidence", 10), ("xent", 500)):  # as the links of a chain, one after another
        args = WeakToStrongConfig(
            str(tmp_path), loss_type=loss_type, max_steps=max_steps, seed=3, use_cpu=True, run_name="mine",
            adam_beta1=0.8,
        )  # fmt: skip
        state = TrainerState(max_steps=max_steps)
        callback.on_train_begin(args, state, TrainerControl())
        callback.on_train_end(args, state, TrainerControl())
    assert card.settings["optimizer steps"] == card.settings["max_steps"] == 500
    assert card.settings["loss_type"] == "xent" and "aux_coef" not in card.settings
    assert card.settings["learning_rate"] == "mine" and card.seed == 3 and card.method == "confidence"
    assert card.settings["adam_beta1"] == 0.8 and card.run_name == "mine"
    assert card.hardware == "CPU" and 0 <= card.seconds < 1
    callback.on_train_begin(args, TrainerState(global_step=7, max_steps=500), TrainerControl())
    callback.on_train_end(args, state, TrainerControl())
    assert card.seconds is None, "the duration of a resumed training is unknown"


def filled_share(figure: Path) -> float:
    """Returns the filled share of the gap in a figure, measured by the pixels of both colours."""
    pixels = imread(figure)[..., :3]
    filled, empty = (
        (abs(pixels - np.array(to_rgb(colour))) < 0.01).all(axis=-1).sum() for colour in (PALETTE["sky"], "#E6E6E6")
    )
    return filled / (filled + empty)


@pytest.mark.parametrize("file", sorted(CARDS.glob("*/results.json")), ids=lambda file: file.parent.name)
def test_the_cards_of_real_runs_are_those_of_their_results(file, tmp_path):
    written = json.loads(file.read_text())
    untouched = copy.deepcopy(written)
    seen = set()
    for run in written["runs"]:
        for student in run["students"]:
            folder = file.parent / Path(student["output"]).name
            card = StudentCard.from_results(written, run, student)
            card.has_figure = True
            assert card.render() == (folder / "README.md").read_text(), "run model_cards/render.py"
            plot_gap(card.weak, card.student, card.ceiling, card.pgr, tmp_path / "pgr.png")
            for figure in (folder / "pgr.png", tmp_path / "pgr.png"):
                assert filled_share(figure) == pytest.approx(min(student["pgr"], 1), abs=0.04), figure
            assert read_card(folder).pgr == student["pgr"]
            seen.add(folder.name)
    assert seen == {folder.parent.name for folder in file.parent.glob("*/README.md")} and written == untouched


def test_there_are_cards_of_all_settings():
    settings = {json.loads(file.read_text())["setting"] for file in CARDS.glob("*/results.json")}
    assert settings == {"classification", "reward", "chess"}
