"""Tests that the minimal recipe runs on few rows, and that `load_demo` returns the documented objects."""

import runpy
import shutil
from functools import partial
from pathlib import Path

import pytest

import w2s_hf
from w2s_hf import load_demo

RECIPE = Path(__file__).parents[1] / "recipes" / "minimal.py"
SIZES = {"n_weak": 60, "n_train": 120, "n_validation": 20, "n_test": 80, "n_documents": 64}


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(w2s_hf, "load_demo", partial(load_demo, **SIZES), raising=False)


def test_the_recipe_prints_the_three_accuracies_and_pgr(small_demo, capsys):
    names = runpy.run_path(str(RECIPE))
    output = capsys.readouterr().out
    for name, score in names["scores"].items():
        assert f"{name}: accuracy {score:.3f} on 80 test rows" in output
    assert list(names["scores"]) == ["weak", "student", "ceiling"] and "PGR: " in output
    assert names["student"].train_dataset["id"][:] == names["ceiling"].train_dataset["id"][:]
    assert "ground_truth" not in names["student"].train_dataset.column_names


def test_the_recipe_uses_public_names_only():
    code = RECIPE.read_text()
    used = {part.split("(")[0].split(".")[0].strip() for part in code.split("w2s_hf.")[1:]}
    assert used <= set(w2s_hf.__all__), used - set(w2s_hf.__all__)
    assert len(code.splitlines()) <= 60


def test_the_models_of_the_demo_are_built_once(small_demo, tmp_path):
    splits, weak_model, student_model = w2s_hf.load_demo(directory=tmp_path / "models")
    assert [len(splits.weak_half), len(splits.student_half), len(splits.test)] == [60, 120, 80]
    for model in (weak_model, student_model):
        assert w2s_hf.load_student(model, num_labels=2).config.num_labels == 2
    built = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*.safetensors")}
    again = w2s_hf.load_demo(directory=tmp_path / "models")
    assert again[1:] == (weak_model, student_model) and again.splits.fingerprint == splits.fingerprint
    assert built and built == {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*.safetensors")}
    other = w2s_hf.load_demo(directory=tmp_path / "models", seed=1)
    assert other.student_model != student_model and other.splits.fingerprint != splits.fingerprint
    shutil.rmtree(tmp_path / "models")
