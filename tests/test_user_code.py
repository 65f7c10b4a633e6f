"""Tests of the hash of a user's code, and of the file and line in errors of a user's functions."""

import functools
import linecache
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from w2s_hf import transforms
from w2s_hf.user_code import code_fingerprint, errors_with_lines, find_in_file

# A file with everything that a hash must contain. Each change of the tests below replaces one text.
FILE = """
    from __future__ import annotations

    import functools
    import logging
    import re
    from collections import defaultdict
    from dataclasses import dataclass, field
    from enum import Enum
    from pathlib import Path
    from types import SimpleNamespace
    from typing import Literal, NamedTuple, Protocol

    import numpy as np
    import torch
    import torch.nn.functional as F
    from scipy.special import expit
    from torch import exp

    logger = logging.getLogger(__name__)
    Kind = Literal["a", "b"]
    BAND = 0.75
    TABLE = {"a": [1, 2.5], "b": (None, {3, 4})}
    PATTERN = re.compile("yes")
    FOLDER = Path("here")
    DTYPE = torch.float32
    WEIGHTS = defaultdict(lambda: 0.5)
    unused = np.zeros(3)
    rows = torch.zeros(3)  # an attribute of the context has this name, but no function reads this variable


    class Colour(Enum):
        RED = 1


    class Pair(NamedTuple):
        low: float = 0.25


    class Base(Protocol):
        share = 0.1

        def scale(self):
            return 3


    @dataclass
    class Settings(Base):
        size: int = 7
        sizes: list = field(default_factory=lambda: [8])

        @property
        def twice(self):
            return 2 * self.size

        @staticmethod
        def one():
            return 1.5

        def recursive(self):
            return Settings


    CONFIG = Settings(size=9)
    PAIR = Pair(high := 0.5)


    def scaled(factor):
        def decorator(function):
            @functools.wraps(function)
            def inner(*args):
                return factor * function(*args) + 10

            return inner

        return decorator


    @scaled(4)
    @functools.cache
    def power(x: Kind, n=2) -> Undefined:
        "A docstring."
        return 1 if n == 0 else x * power(x, n - 1)


    @torch.no_grad()
    def without_gradient(x):
        return x - 6


    def other(x):
        return power(x) + 11


    power.table = 12
    # the loss
    def loss(logits, soft_labels, step, *, band=BAND):
        'A docstring.'
        import torch as t

        logger.debug("loss")
        values = [F.relu, exp, expit, np.exp, np.mean, t.sin, TABLE, PATTERN, FOLDER, DTYPE, WEIGHTS]
        values += [CONFIG, Colour.RED, PAIR, without_gradient]
        return [power(row) + 13 for row in step.rows]
"""
CHANGES = {
    "code": ("+ 13", "+ 14"),
    "default value": ("band=BAND", "band=0.1"),
    "value of a default value": ("BAND = 0.75", "BAND = 0.7"),
    "dictionary": ("2.5", "2.6"),
    "set": ("{3, 4}", "{3, 5}"),
    "pattern": ('compile("yes")', 'compile("no")'),
    "path": ('Path("here")', 'Path("there")'),
    "dtype": ("torch.float32", "torch.float64"),
    "default factory": ("lambda: 0.5", "lambda: 0.6"),
    "member of an enumeration": ("RED = 1", "RED = 2"),
    "named tuple": ("high := 0.5", "high := 0.6"),
    "base class": ("share = 0.1", "share = 0.2"),
    "method of a base class": ("return 3", "return 4"),
    "field": ("size: int = 7", "size: int = 8"),
    "factory of a field": ("[8]", "[9]"),
    "property": ("2 * self", "3 * self"),
    "static method": ("return 1.5", "return 1.6"),
    "value of a dataclass": ("size=9", "size=10"),
    "code of a decorator": ("+ 10", "+ 11"),
    "argument of a decorator": ("scaled(4)", "scaled(5)"),
    "recursive function": ("n == 0", "n == 1"),
    "default value of a helper": ("n=2", "n=3"),
    "function with a decorator of a library": ("x - 6", "x - 7"),
    "attribute of a function": ("table = 12", "table = 13"),
    "library": ("F.relu", "F.gelu"),
    "function of a library": ("scipy.special import expit", "scipy.special import ndtr as expit"),
}
WITHOUT_EFFECT = {
    "comment": ("# the loss", "# another comment"),
    "docstring": ("'A docstring.'", "'Another docstring.'"),
    "docstring of a helper": ('"A docstring."', '"Another docstring."'),
    "layout": ("*, band=BAND):", "*,\n              band  =  BAND):"),
    "another line": ("# the loss", "\n\n\n\n"),
    "another function": ("+ 11\n", "+ 12\n"),
    "an array that no function reads": ("zeros(3)", "ones(4)"),
}


def hash_of(text: str, directory, name: str = "loss") -> str:
    """Returns the hash of a function of a file."""
    path = directory / "mine.py"
    path.write_text(textwrap.dedent(text))
    return code_fingerprint(find_in_file(path, name, object, what="method", kind_name="w2s_hf.Method"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return hash_of(FILE, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_changes_with_all_that_changes_a_result(change, whole, tmp_path):
    before, after = CHANGES[change]
    assert FILE.count(before) == 1
    assert hash_of(FILE.replace(before, after), tmp_path) != whole


@pytest.mark.parametrize("change", WITHOUT_EFFECT)
def test_the_hash_stays_without_a_change_of_results(change, whole, tmp_path):
    before, after = WITHOUT_EFFECT[change]
    assert before in FILE
    assert hash_of(FILE.replace(before, after), tmp_path) == whole


def test_the_hash_is_the_same_in_every_process(whole, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(FILE))
    script = f"""
        import runpy
        from w2s_hf.user_code import code_fingerprint
        print(code_fingerprint(runpy.run_path({str(path)!r})["loss"]))
    """
    environment = {**os.environ, "PYTHONHASHSEED": "12"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert process.stdout.split() == [whole]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("np.zeros(3)", "ndarray"),
        ("torch.zeros(3)", "Tensor"),
        ("[torch.zeros(3)]", "Tensor"),
        ("np.random.default_rng(0)", "Generator"),
        ("[].append", "builtin_function_or_method"),
        ("np.random.default_rng(0).random", "Generator"),
        ("SimpleNamespace(band=0.5)", "SimpleNamespace"),
        ("torch.nn.ReLU()", "ReLU"),
        ("torch.nn.ReLU().forward", "ReLU"),
        ("{frozenset([1])}", "set"),
        ("object()", "object"),
        ("iter([])", "list_iterator"),
    ],
)
def test_a_value_whose_change_would_not_be_noticed_is_an_error(value, kind, tmp_path):
    text = """
        from types import SimpleNamespace
        import numpy as np
        import torch
        value = VALUE
        def loss(logits, soft_labels, step, default=None):
            return value
        def with_default(logits, default=value):
            return default
        class Table:
            attribute = value
        def with_class():
            return Table
    """.replace("VALUE", value)
    for name, variable in (
        ("loss", "loss, variable value"),
        ("with_default", "with_default, default value"),
        ("with_class", "Table, attribute"),
    ):
        with pytest.raises(TypeError, match=rf"Got {variable}.* with a value of type {kind}, .* Create the value"):
            hash_of(text, tmp_path, name)


def test_a_function_that_is_defined_below_the_method_is_an_error(tmp_path):
    text = """
        from w2s_hf.user_code import code_fingerprint
        def loss(logits):
            return later(logits)
        code_fingerprint(loss)
        def later(logits):
            return logits
    """
    with pytest.raises(ValueError, match="line 5 with TypeError: Got loss, which uses later, .* Define later above"):
        hash_of(text, tmp_path)


def test_other_callables_are_an_error():
    class Loss:
        def __call__(self, logits):
            return logits

        def loss(self, logits):
            return logits

    for function in (Loss(), Loss().loss, torch.nn.ReLU()):
        with pytest.raises(TypeError, match="Got a function with a value of type "):
            code_fingerprint(function)
    names = {}
    exec("def loss(logits):\n    return logits", names)  # has no source code
    with pytest.raises(TypeError, match="Got loss, whose source code was not found in <string>"):
        code_fingerprint(names["loss"])


def test_closures_and_arguments_are_part_of_the_hash():
    def make(factor, inner=None):
        def loss(logits):
            return factor * logits

        return loss

    hashes = [code_fingerprint(function) for function in (make(1), make(2), make(make(1)), make(make(2)))]
    assert len(set(hashes)) == 4 and code_fingerprint(make(1)) == hashes[0]
    bound = [functools.partial(make(1), x=1), functools.partial(make(1), x=2), functools.partial(make(1), 1)]
    assert len({code_fingerprint(function) for function in bound} | {hashes[0]}) == 4
    with pytest.raises(TypeError, match="variable factor with a value of type ndarray"):
        code_fingerprint(make(np.zeros(2)))
    first, second = transforms.confident, transforms.most_confident
    assert code_fingerprint(first) != code_fingerprint(second), "functions of the package count by their names"


def test_functions_that_refer_to_each_other_and_to_themselves_end():
    functions = {}

    def even(n):
        return n == 0 or functions["odd"](n - 1)

    def odd(n):
        return n > 0 and even(n - 1)

    functions |= {"even": even, "odd": odd}
    assert code_fingerprint(even) != code_fingerprint(odd)


def test_lambda_functions(tmp_path):
    text = """
        loss = functools.partial(
            lambda logits, soft_labels, step:
                logits.sum(),  # a comment
            1,
        )
    """
    text = "import functools\n" + textwrap.dedent(text)
    assert hash_of(text, tmp_path) == hash_of(text.replace("a comment", "another"), tmp_path)
    assert hash_of(text, tmp_path) != hash_of(text.replace("sum", "mean"), tmp_path)


def test_functions_of_a_notebook():
    """A notebook registers the code of its cells in `linecache`."""

    def run(number: int, text: str) -> dict:
        name = f"/tmp/ipykernel_1/{number}.py"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        variables = {"__name__": "__main__", "labels": np.zeros(3)}
        exec(compile(text, name, "exec"), variables)
        return variables

    text = "class Table:\n    x = 1\n\n    def f(self):\n        return 2\n\ndef loss(logits):\n    return Table\n"
    changes = ("x = 1", "x = 1"), ("x = 1", "x = 2"), ("2\n", "3\n")
    changed = [run(number, text.replace(*change)) for number, change in enumerate(changes)]
    assert len({code_fingerprint(variables["loss"]) for variables in changed}) == 3
    assert code_fingerprint(run(9, "# A cell\n\n" + text)["loss"]) == code_fingerprint(changed[0]["loss"])


MODULES = {
    "pack/__init__.py": "from . import inner\nfrom .inner import *\n",
    "pack/inner.py": "from neighbour import SHARE\nVALUE = 1\n\ndef function():\n    return 2\n",
    "pack/deep/part.py": "VALUE = 3\n",
    "neighbour.py": "import beyond\nSHARE = 4\n",
    "beyond.py": "X = 5\n",
    "inside.py": "Y = 6\n",
    "starred.py": "def of_star():\n    return 7\n\ndef another():\n    return 8\n",
}
USES_MODULES = """
    import pack
    import pack.deep.part
    from starred import *

    def loss(logits):
        from inside import Y
        return pack.VALUE + pack.deep.part.VALUE + of_star()
"""


@pytest.mark.parametrize("value", range(9))
def test_modules_of_the_user_are_part_of_the_hash(value, tmp_path, monkeypatch):
    """Each module has another value. Value 0 occurs nowhere, and no function refers to value 8."""

    def hash_with(directory, replacement) -> str:
        for name, text in MODULES.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text.replace(str(value), str(replacement)))
        monkeypatch.setattr(sys, "path", list(sys.path))
        modules = {"pack", "neighbour", "beyond", "inside", "starred"}
        for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
            monkeypatch.delitem(sys.modules, name)
        result = hash_of(USES_MODULES, directory)
        monkeypatch.undo()
        for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
            del sys.modules[name]
        return result

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    is_same = hash_with(tmp_path / "a", value) == hash_with(tmp_path / "b", 9)
    assert is_same == (value in (0, 8))


def test_a_file_that_changes_during_a_run_does_not_change_the_hash(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def loss(logits):\n    return 1\n")
    loss = find_in_file(path, "loss", object, what="method", kind_name="")
    before = code_fingerprint(loss)
    path.write_text("\n\ndef loss(logits):\n    return 100000\n")
    assert code_fingerprint(loss) == before, "the process still runs the first version"


# ---- Errors ----


def test_errors_of_a_user_have_file_and_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def helper(x):\n    return {}[x]\n\ndef loss(x):\n    return helper(x)\n")
    loss = find_in_file(path, "loss", object, what="method", kind_name="")
    for function in (loss, functools.partial(loss)):
        with pytest.raises(ValueError) as error, errors_with_lines("loss mine", function):
            function("a b")
        assert str(error.value) == (
            f"loss mine: {path}, line 2 raised KeyError: 'a b' W2S_HF_DEBUG=1 shows the traceback."
        )
        assert isinstance(error.value.__cause__, KeyError)


def test_an_error_inside_a_library_has_the_line_of_the_user(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import torch\n\ndef loss(x):\n    return torch.nn.functional.cross_entropy(x, x[0])\n")
    loss = find_in_file(path, "loss", object, what="method", kind_name="")
    with pytest.raises(ValueError, match=f"^loss mine: {path}, line 4 raised RuntimeError: "):
        with errors_with_lines("loss mine", loss):
            loss(torch.zeros(2, 2))


@dataclass
class Rows:
    """The part of a context that `confident` reads."""

    probabilities: np.ndarray
    is_train: np.ndarray


def test_an_error_of_the_package_is_unchanged():
    transform = functools.partial(transforms.confident, band=0.9)
    with pytest.raises(ValueError, match="^confident: got no training row"):
        with errors_with_lines("method confident", transform):
            transform(Rows(np.full((3, 2), 0.5), np.ones(3, dtype=bool)))


def test_an_interrupt_is_unchanged():
    def loss(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), errors_with_lines("loss", loss):
        loss(1)
