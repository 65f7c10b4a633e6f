"""Tests of the hash of a user's code, and of the file and line in errors of a user's functions."""

import copy
import functools
import linecache
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils.memory import should_reduce_batch_size

from w2s_hf import transforms, user_code
from w2s_hf.code_fingerprint import code_fingerprint
from w2s_hf.user_code import errors_with_lines, find_in_file

# Each change of the tests below replaces one text.
FILE = """
    import functools
    import os
    from enum import IntEnum

    import numpy as np
    import torch

    FAST = os.environ["W2S_HF_TEST_FAST"] == "1"
    FACTOR = 3
    TABLE = {"a": [1, 2.5], "b": (None, {"c", "d"})}
    ARRAY = np.zeros(3)
    TENSOR = torch.zeros(3, dtype=torch.bfloat16)
    TOKENS = np.random.default_rng(0)  # an object of a library


    class Scale(float):
        __slots__ = ("unit",)

        def __mul__(self, other):
            return 2 * float(self) * other


    class Kind(IntEnum):
        A = 1


    class scaled:
        def __init__(self, function):
            functools.update_wrapper(self, function)
            self.factor = FACTOR

        def __call__(self, *values):
            return self.factor * self.__wrapped__(*values) + 100


    @scaled
    def power(x, n=2):
        return 1 if n == 0 else x * power(x, n - 1)


    def other(x):
        "A docstring."
        return x + 11


    @torch.no_grad()
    def without_gradient(x):
        return x - 6


    # the loss
    def loss(logits, soft_labels, step, *, band=0.75):
        'A docstring.'
        class Inner:
            table = TABLE

        values = [__file__, ARRAY, TENSOR, TOKENS, Scale(3), Kind.A, without_gradient]
        return [power(row) for row in step.rows], Inner, values


    choice = (lambda x: x * 1) if FAST else (lambda x: x * 2)
"""
CHANGES = {
    "default value": ("band=0.75", "band=0.7"),
    "value in the body of an inner class": ("2.5", "2.6"),
    "array": ("np.zeros(3)", "np.zeros((3, 1))"),
    "class of a number": ("return 2 *", "return 4 *"),
    "argument of a decorator": ("FACTOR = 3", "FACTOR = 4"),
    "code of a decorator": ("+ 100", "+ 200"),
    "another function": ("+ 11", "+ 12"),
    "function with a decorator of a library": ("x - 6", "x - 7"),
}
WITHOUT_EFFECT = {
    "comment": ("# the loss", "# another comment"),
    "docstring": ("'A docstring.'", "'Another docstring.'"),
    "docstring of a helper": ('"A docstring."', '"Another docstring."'),
    "layout": ("*, band=0.75):", "*,\n              band  =  0.75):"),
    "another line": ("# the loss", "\n\n\n\n"),
}


@pytest.fixture(autouse=True, scope="module")
def fast():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("W2S_HF_TEST_FAST", "1")
        yield


@pytest.fixture(autouse=True)
def other_modules(monkeypatch):
    """Each test may have modules of the same names."""
    monkeypatch.setattr(user_code, "_MODULES", {})


def hash_of(text: str, directory, name: str = "loss") -> str:
    """Returns the hash of a function of a file."""
    path = directory / "mine.py"
    path.write_text(textwrap.dedent(text))
    return code_fingerprint(find_in_file(path, name, object, what="method", kind_name="w2s_hf.Method"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return hash_of(FILE, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_changes_with_the_file(change, whole, tmp_path):
    before, after = CHANGES[change]
    assert FILE.count(before) == 1
    assert hash_of(FILE.replace(before, after), tmp_path) != whole


@pytest.mark.parametrize("change", WITHOUT_EFFECT)
def test_the_hash_stays_without_a_change_of_code(change, whole, tmp_path):
    before, after = WITHOUT_EFFECT[change]
    assert before in FILE
    assert hash_of(FILE.replace(before, after), tmp_path) == whole


def test_a_docstring_that_is_added_does_not_change_the_hash(tmp_path):
    hashes = set()
    for number, text in enumerate(("", "'A docstring.'", "# a comment")):
        (tmp_path / str(number)).mkdir()
        code = f"def loss(x, y=1):\n    {text}\n    z = None\n    return x, y, z, 2.5\n"
        hashes.add(hash_of(code, tmp_path / str(number)))
    assert len(hashes) == 1


def test_attributes_of_functions_and_local_modules_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "settings_of_mine.py").write_text("SHARE = 1.0\n")
    text = "import settings_of_mine\ndef loss(x):\n    return x * settings_of_mine.SHARE\nloss.factor = 2\n"
    (tmp_path / "mine.py").write_text(text)
    loss = find_in_file(tmp_path / "mine.py", "loss", object, what="method", kind_name="w2s_hf.Method")
    hashes = [code_fingerprint(loss)]
    loss.factor = 3
    hashes.append(code_fingerprint(loss))
    sys.modules["settings_of_mine"].SHARE = 0.5
    assert len({*hashes, code_fingerprint(loss)}) == 3


def test_the_hash_is_the_same_in_every_process_and_depends_on_values(tmp_path):
    """The order of a set differs between processes. The environment decides which of two lambda functions is used."""
    loss, choice = (hash_of(FILE, tmp_path, name) for name in ("loss", "choice"))
    script = f"""
        import runpy
        from w2s_hf.code_fingerprint import code_fingerprint
        variables = runpy.run_path({str(tmp_path / "mine.py")!r})
        print(*(code_fingerprint(variables[name]) for name in ("loss", "choice")))
    """
    environment = {**os.environ, "PYTHONHASHSEED": "12", "W2S_HF_TEST_FAST": "0"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    loss_there, choice_there = process.stdout.split()
    assert loss_there == loss and choice_there != choice


def of_values(**values):
    """Returns the hash of a function that names variables of a notebook."""
    names = {"__name__": "__main__", **values}
    exec(f"def loss(logits):\n    return {', '.join(values)}", names)
    return code_fingerprint(names["loss"])


class Settings:
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def attribute(self):
        return self.a


class Table(dict):
    pass


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 1.0),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": 2}),
        (frozenset({(1, "a")}), frozenset({(1, "b")})),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (np.zeros(2), np.ones(2)),
        (np.array([None, "a"]), np.array([None, "b"])),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (torch.float32, torch.float16),
        (re.compile("a"), re.compile("b")),
        (Settings(a=1), Settings(a=2)),
        (Settings(a=Settings(b=np.zeros(1))), Settings(a=Settings(b=np.ones(1)))),
        (Table(a=1), Table(a=2)),
        (torch.nn.functional.relu, torch.nn.functional.gelu),
        (np.exp, np.log),
        (torch.exp, torch.log),
        (np.float64, np.float32),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (transforms.confident, transforms.most_confident),
        ([1].index, [2].index),
        (Settings(a=1).attribute, Settings(a=2).attribute),
    ],
)
def test_values_count_by_their_content(first, second):
    assert of_values(value=first) == of_values(value=copy.deepcopy(first)) != of_values(value=second)


def test_one_object_twice_differs_from_two_objects():
    a, b = Settings(a=1), Settings(a=2)
    assert of_values(x=a, y=b, z=a) != of_values(x=a, y=b, z=b)


@pytest.mark.parametrize(
    "value", [np.random.default_rng(0), torch.nn.ReLU(), object(), np.random.default_rng(0).random]
)
def test_an_object_of_a_library_that_no_file_creates_is_an_error(value):
    match = "with a value of type .*, expected a function, numbers, text or an array. .* Create the value inside the"
    with pytest.raises(TypeError, match=f"Got loss, variable value {match}"):
        of_values(value=value)
    with pytest.raises(TypeError, match=f"Got loss, variable value {match}"):
        of_values(value=[Settings(a=value)])

    def loss(logits, value=None):
        return value

    with pytest.raises(TypeError, match=f"loss, argument value {match}"):
        code_fingerprint(functools.partial(loss, value=value))
    with pytest.raises(TypeError, match=f"variable value {match}"):
        code_fingerprint(lambda logits: value)


def test_other_callables_are_an_error():
    for function in (Settings().__init__, torch.nn.ReLU(), max):
        with pytest.raises(TypeError, match="Got a callable of type .*, expected a function"):
            code_fingerprint(function)


def test_closures_and_arguments_are_part_of_the_hash():
    def make(factor, inner=None):
        def loss(logits):
            return factor * logits

        return loss

    values = (1, 2, make(1), make(2), np.zeros(2), np.ones(2))
    hashes = [code_fingerprint(make(value)) for value in values]
    assert len(set(hashes)) == len(values) and code_fingerprint(make(1)) == hashes[0]
    bound = [functools.partial(make(1), x=1), functools.partial(make(1), x=2), functools.partial(make(1), 1)]
    assert len({code_fingerprint(function) for function in bound} | {hashes[0]}) == 4


def test_functions_that_refer_to_each_other_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n > 0 and even(n - 1)

    assert code_fingerprint(even) != code_fingerprint(odd)


def run_cell(number: int, text: str, variables: dict) -> None:
    """Runs a cell of a notebook, which registers its code in `linecache`."""
    name = f"/tmp/ipykernel_1/{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), variables)


def test_functions_of_a_notebook(monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    text = """
        from dataclasses import dataclass, field
        from enum import Enum
        class Kind(Enum):
            A = 1
        @dataclass
        class Table:
            x: int = 2
            y: list = field(default_factory=lambda: [3])
            _z_ = 4
            @property
            def f(self):
                return 5
        def scaled(factor):
            return lambda function: lambda x: factor * function(x) + 6
    """
    loss = "@scaled(7)\ndef loss(logits):\n    return Table, Kind.A, 8\n"
    hashes = []
    for value in range(9):  # value 0 is not in the text
        cells = [textwrap.dedent(text), loss]
        variables = {"__name__": "__main__"}
        for n, cell in enumerate(cells):
            run_cell(2 * value + n, cell.replace(str(value), "9"), variables)
        hashes.append(code_fingerprint(variables["loss"]))
    assert len(set(hashes)) == 9
    run_cell(30, "# A cell\n\n" + loss, variables := {"__name__": "__main__"} | {"scaled": lambda _: lambda f: f})
    with pytest.raises(TypeError, match="Got loss, which uses Kind, a variable without a value.* Define Kind above"):
        code_fingerprint(variables["loss"])


MODULES = {
    "pack/__init__.py": "from . import inner\nfrom .inner import *\n",
    "pack/inner.py": "from neighbour import SHARE\nVALUE = 1\n\ndef function():\n    from .lazy import Z\n",
    "pack/lazy.py": "Z = 2\n",
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
    """Each module has another value. Value 0 occurs nowhere."""

    def hash_with(directory, replacement) -> str:
        for name, text in MODULES.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text.replace(str(value), str(replacement)))
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(user_code, "_MODULES", {})
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
    assert is_same == (value == 0)


def test_a_file_that_changes_during_a_run_does_not_change_the_hash(tmp_path, monkeypatch):
    """The process still runs the first version of the file and of its module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    path, module = tmp_path / "mine.py", tmp_path / "module_of_mine.py"
    module.write_text("X = 1\n")
    path.write_text("from module_of_mine import X\n\ndef loss(logits):\n    return 1\n")
    loss = find_in_file(path, "loss", object, what="method", kind_name="")
    before = code_fingerprint(loss)
    path.write_text("\n\ndef loss(logits):\n    return 100000\n")
    module.write_text("X = 200000\n")
    linecache.checkcache()
    assert code_fingerprint(loss) == before


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


def test_errors_of_full_memory_are_unchanged():
    for kind in (MemoryError, torch.OutOfMemoryError):

        def loss(x, kind=kind):
            raise kind("CUDA out of memory.")

        with pytest.raises(kind) as error, errors_with_lines("loss", loss):
            loss(1)
        assert type(error.value) is kind
        assert should_reduce_batch_size(error.value) == (kind is torch.OutOfMemoryError)


def test_modules_with_one_name_in_two_directories_are_refused(tmp_path):
    for folder, factor in (("first", 1), ("second", -1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helpers_of_both.py").write_text(f"FACTOR = {factor}\n")
        (tmp_path / folder / "mine.py").write_text("from helpers_of_both import FACTOR\n")
    assert find_in_file(tmp_path / "first" / "mine.py", "FACTOR", int, what="number", kind_name="int") == 1
    with pytest.raises(ValueError, match="which fails with ImportError: the module 'helpers_of_both' of this"):
        find_in_file(tmp_path / "second" / "mine.py", "FACTOR", int, what="number", kind_name="int")


def test_modules_that_functions_and_modules_import_are_compared_too(tmp_path):
    for folder in ("third", "fourth"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "inner_of_both.py").write_text("FACTOR = 1\n")
        (tmp_path / folder / f"outer_{folder}.py").write_text("import inner_of_both\n")
        text = f"FACTOR = 1\ndef f():\n    import outer_{folder}\n    return outer_{folder}.FACTOR\n"
        (tmp_path / folder / "mine.py").write_text(text)
    find_in_file(tmp_path / "third" / "mine.py", "FACTOR", int, what="number", kind_name="int")
    with pytest.raises(ValueError, match="the module 'inner_of_both' of this directory has the name of a module"):
        find_in_file(tmp_path / "fourth" / "mine.py", "FACTOR", int, what="number", kind_name="int")


def test_modules_are_compared_by_their_place_in_the_file_system(tmp_path, monkeypatch):
    folder = tmp_path / "fifth"
    folder.mkdir()
    (folder / "helper_of_fifth.py").write_text("FACTOR = 5\n")
    (folder / "mine.py").write_text("from helper_of_fifth import FACTOR\n")
    for place, path in ((tmp_path, "fifth/mine.py"), (folder, "mine.py")):
        monkeypatch.chdir(place)
        assert find_in_file(Path(path), "FACTOR", int, what="number", kind_name="int") == 5
    folder.rename(tmp_path / "sixth")
    with pytest.raises(ValueError, match="the module 'helper_of_fifth' of this directory has the name of a module"):
        find_in_file(tmp_path / "sixth" / "mine.py", "FACTOR", int, what="number", kind_name="int")
