"""Fixtures with tiny models, which are created once, and the environment of all tests."""

import copy
import gc
import os
from multiprocessing import forkserver

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # small models are no faster with two threads, and much slower on a busy machine
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # the same kernels, and therefore the same numbers, on every machine

import pytest
from helpers import running
from helpers.models import make_model, make_tokenizer


def pytest_collection_modifyitems(items):
    """Marks tests with a fixture of a whole run as slow, because each would start the run if it was the only test."""
    for item in items:
        if running.WHOLE_RUNS.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def imported_modules_are_no_garbage():
    """Excludes imported modules from garbage collection, which would take longer than the small trainings."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _server_of_forks(request):
    """Starts the server of forks early if a test needs it, so that it imports while other tests run."""
    uses = (running.forked, running.start)
    if any(getattr(item.module, use.__name__, None) is use for item in request.session.items for use in uses):
        forkserver.ensure_running()


@pytest.fixture(scope="session")
def _models():
    return {kind: make_model(kind) for kind in ("llama", "gpt2", "bert")}


@pytest.fixture
def model_of(_models):
    """Returns a function that copies a tiny classifier: `model_of("llama")`."""
    return lambda kind="llama": copy.deepcopy(_models[kind])


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def world():
    """The world that generates the rows of all tasks."""
    from w2s_hf.demo.worlds import DemoWorld

    return DemoWorld(seed=0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache in which the models of the demo are pretrained once for all recipes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def figures(monkeypatch):
    """The list of all figures that are drawn. They are not laid out or saved."""
    from matplotlib.figure import Figure

    from w2s_hf import plots

    figures_drawn = []

    class Recorded(Figure):
        def savefig(self, path, **_):
            if path.suffix == ".png":
                figures_drawn.append(self)

    monkeypatch.setattr(plots, "Figure", Recorded)
    return figures_drawn
