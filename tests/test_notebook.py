"""Tests that the notebook runs with the demo on a CPU, and is committed without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "weak_to_strong.ipynb"


def test_the_notebook_runs_with_the_demo(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install nbclient nbformat ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install nbclient nbformat ipykernel")
    pytest.importorskip("ipykernel", reason="needs ipykernel: pip install nbclient nbformat ipykernel")
    monkeypatch.setenv("W2S_HF_QUICK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    tables = [output["data"]["text/plain"] for output in outputs if "text/html" in output.get("data", {})]
    assert "PGR " in text
    assert any(all(name in table for name in ("weak supervisor", "student", "ceiling")) for table in tables)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_has_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
