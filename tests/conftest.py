"""Fixtures of tiny models, made once; the environment that all tests share."""

import copy
import gc
import os
from multiprocessing import forkserver

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # models this small run no faster on two threads, and far slower on a busy machine
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # the same kernels, and so the same numbers and buffers, on every machine

import pytest
from helpers import running
from helpers.models import make_model, make_tokenizer


def pytest_collection_modifyitems(items):
    """Marks the tests of a whole run as slow: alone, each would start it."""
    for item in items:
        if running.WHOLE_RUNS.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def imported_modules_are_no_garbage():
    """Every training collects garbage, and looking through all that the stack imports takes longer than training."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _server_of_forks(request):
    """Where a test forks, what it forks is imported on another core from the start, while other tests run."""
    uses = (running.forked, running.start)
    if any(getattr(item.module, use.__name__, None) is use for item in request.session.items for use in uses):
        forkserver.ensure_running()


@pytest.fixture(scope="session")
def _models():
    return {kind: make_model(kind) for kind in ("llama", "gpt2", "bert")}


@pytest.fixture
def model_of(_models):
    """A fresh copy of a tiny classifier: `model_of("llama")`."""
    return lambda kind="llama": copy.deepcopy(_models[kind])


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def world():
    """Where generated rows of every task come from."""
    from w2s_hf.demo.worlds import DemoWorld

    return DemoWorld(seed=0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the demo's models are built once, for all recipes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, none of which is laid out or saved."""
    from matplotlib.figure import Figure

    from w2s_hf import plots

    drawn = []

    class Recorded(Figure):
        def savefig(self, path, **_):
            if path.suffix == ".png":
                drawn.append(self)

    monkeypatch.setattr(plots, "Figure", Recorded)
    return drawn
