"""Loads objects from Python files of users, names the line of their errors, and hashes the code of functions."""

import ast
import builtins
import functools
import hashlib
import inspect
import runpy
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .command_line import did_you_mean_path

__all__ = ["code_fingerprint", "errors_with_lines", "find_in_file", "plain_code", "split_path"]


def split_path(name: str) -> tuple[Path, str] | None:
    """
    Returns the file and the variable of a name such as `my_file.py:NAME` or `my_file.py` (the variable is then empty),
    or `None` for other names.
    """
    if name.endswith(".py"):
        return Path(name), ""
    path, _, variable = name.rpartition(":")
    return (Path(path), variable) if path.endswith(".py") else None


def find_in_file(path: Path, variable: str, kind: type, *, what: str, kind_name: str) -> Any:
    """
    Returns an object that a Python file defines.

    Args:
        path (`Path`): The file.
        variable (`str`): Name of the object. Empty for the only object of this kind in the file.
        kind (`type`): The class of the object.
        what (`str`): The word for the object in messages, such as `"task"`.
        kind_name (`str`): The public name of the class in messages, such as `"w2s_hf.Task"`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file raises an error (the message names the line), or it does not define the object.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{what}: got {str(path)!r}, expected an existing file. Correct the path.{did_you_mean_path(str(path))}"
        )
    sys.path.insert(0, str(path.parent.resolve()))  # lets the file import modules of its directory
    objects = {name: value for name, value in _run(path, what).items() if isinstance(value, kind)}
    if variable and variable not in objects or not variable and len(objects) != 1:
        expected = f"a {what} {variable!r}" if variable else f"one {what}"
        example = f"`{path}:{next(iter(objects), None)}`"
        action = f"Add the name of a {what}: {example}." if objects else "Define one in this file."
        raise ValueError(
            f"{what}: got {str(path)!r}, which defines {', '.join(objects) or f'no {kind_name}'}, expected "
            f"{expected}. {action}"
        )
    return objects[variable] if variable else next(iter(objects.values()))


def _run(path: Path, what: str) -> dict[str, Any]:
    """Returns the variables that a Python file defines. Raises `ValueError` with the line of an error."""
    try:
        return runpy.run_path(str(path))
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        line = lines[-1] if lines else None
        reason = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        raise ValueError(
            f"{what}: got {str(path)!r}, which fails{f' in line {line}' if line else ''} with "
            f"{type(error).__name__}{f': {reason}' if reason else ''}. Run `python {path}` to see the traceback."
        ) from error


# ---- Errors ----


@contextmanager
def errors_with_lines(what: str, function: Callable) -> Iterator[None]:
    """
    Raises the errors of a user's function as `ValueError` with the file and the line in which they occurred.

    Args:
        what (`str`): The role of the function in the message, such as `"method my_method: loss"`.
        function (`Callable`): The function that is called inside the context.
    """
    try:
        yield
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user_file(frame.filename)]
        if not frames or _unwrapped(function).__module__.startswith("w2s_hf."):
            raise  # an error of this package, which has its own message
        place = f"{frames[-1].filename}, line {frames[-1].lineno}"
        reason = " ".join(str(error).split())
        advice = ""
        if "ground_truth" in reason:
            advice = " Methods do not get the true labels of rows that students are trained or scored on."
        raise ValueError(
            f"{what}: {place} raised {type(error).__name__}: {reason}{advice} W2S_HF_DEBUG=1 shows the traceback."
        ) from error


_LIBRARIES = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_LIBRARIES.append(Path(__file__).parent.resolve())


def _is_user_file(filename: str | None) -> bool:
    """Returns whether a file or a cell of a notebook is neither part of Python, a library nor this package."""
    if filename is None or filename == "<string>" or filename.startswith("<frozen"):  # generated code
        return False
    return not any(Path(filename).resolve().is_relative_to(library) for library in _LIBRARIES)


def _unwrapped(function: Callable) -> Any:
    """Returns the function of a `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


# ---- The code of a function ----


def code_fingerprint(function: Callable) -> str:
    """
    Returns a hash of everything of a function that can change its result: 12 hexadecimal digits.

    The hash includes the code of the function without comments, docstrings and layout, the arguments bound by
    `functools.partial`, default values, and all functions, classes and values of the user that it refers to. Functions
    of libraries and of this package count by their names, because the versions of libraries identify their code.

    Args:
        function (`Callable`): A function, or a `functools.partial` of a function.

    Raises:
        TypeError: The function depends on a value that cannot be hashed, or is another kind of callable.
    """
    parts: list[str] = []
    _add_value(function, parts, set(), "")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def _add_value(value: Any, parts: list[str], seen: set[int], name: str) -> None:
    """Adds the parts of a value to the text that is hashed; `name` describes the value in errors."""
    if isinstance(value, _PLAIN):
        parts.append(repr(value))
    elif isinstance(value, functools.partial):
        parts.append("partial")
        _add_value(value.func, parts, seen, name)
        _add_value(list(value.args), parts, seen, name)
        _add_value(value.keywords, parts, seen, name)
    elif isinstance(value, list | tuple | set | frozenset):
        values = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        parts.append(f"{type(value).__name__} of {len(value)}")
        for part in values:
            _add_value(part, parts, seen, name)
    elif isinstance(value, dict):
        parts.append(f"dict of {len(value)}")
        for key, part in value.items():
            parts.append(repr(key))
            _add_value(part, parts, seen, f"{name}[{key!r}]")
    elif isinstance(value, ModuleType):
        _add_module(value, parts, seen)
    elif isinstance(value, FunctionType | type):
        _add_definition(value, parts, seen)
    elif callable(value) and hasattr(value, "__qualname__"):  # a function of a library that is written in C
        parts.append(f"{value.__module__}.{value.__qualname__}")
    else:
        raise TypeError(
            f"Got {name or 'a function'} with a value of type {type(value).__name__}, expected a function, numbers or "
            "text, so that a change of the value is noticed. Create the value inside the function, or bind numbers "
            "and text with functools.partial."
        )


def _add_definition(value: Any, parts: list[str], seen: set[int]) -> None:
    """Adds a function or a class."""
    parts.append(f"{value.__module__}.{value.__qualname__}")
    if id(value) in seen or not _is_user_defined(value):
        return
    seen.add(id(value))
    parts.append(_source(value))
    if isinstance(value, type):
        functions = [
            part for part in vars(value).values() if isinstance(part, FunctionType) and _is_user_defined(part)
        ]
        for base in value.__bases__:
            _add_definition(base, parts, seen)
    else:
        functions = [value]
    for function in functions:
        _add_value(list(function.__defaults__ or ()), parts, seen, f"{function.__qualname__}, default value")
        _add_value(function.__kwdefaults__ or {}, parts, seen, f"{function.__qualname__}, default value")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                parts.append(name)
                _add_value(cell.cell_contents, parts, seen, f"{function.__qualname__}, variable {name}")
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__ and not hasattr(builtins, name):
                parts.append(name)
                _add_global(function.__globals__[name], parts, seen, f"{function.__qualname__}, variable {name}")


def _add_global(value: Any, parts: list[str], seen: set[int], name: str) -> None:
    """Adds a global variable. Objects of libraries, such as a logger, count by their class."""
    if not isinstance(value, (*_PLAIN, list, tuple, set, frozenset, dict, ModuleType, FunctionType, type)):
        if not callable(value) and not _is_user_defined(type(value)) and not hasattr(value, "__array__"):
            parts.append(f"{type(value).__module__}.{type(value).__qualname__}")
            return
    _add_value(value, parts, seen, name)


def _add_module(module: ModuleType, parts: list[str], seen: set[int]) -> None:
    """Adds a module of the user with its whole code, and a library by its name."""
    parts.append(module.__name__)
    file = getattr(module, "__file__", None)
    if id(module) not in seen and file is not None and file.endswith(".py") and _is_user_file(file):
        seen.add(id(module))
        parts.append(plain_code(Path(file).read_text(encoding="utf-8")))


def _is_user_defined(value: Any) -> bool:
    """Returns whether a function or a class is defined in a file or a notebook of the user."""
    if isinstance(value, FunctionType):
        return _is_user_file(value.__code__.co_filename)
    module = sys.modules.get(value.__module__)
    if value.__module__ in ("__main__", "<run_path>") or module is None:
        return True
    return _is_user_file(getattr(module, "__file__", None))


def _names(code: CodeType) -> set[str]:
    """Returns the names that a function and its inner functions use."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _source(value: Any) -> str:
    """Returns the code of a function or a class without comments, docstrings and layout."""
    try:
        return plain_code(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError) as error:
        if isinstance(value, type):
            # inspect cannot find the classes of a file that runpy has run. Their methods have code of their own.
            return ""
        raise TypeError(
            f"Got {value.__qualname__}, whose source code was not found ({error}), expected a function in a file or a "
            "notebook. Define it in a Python file."
        ) from error


def plain_code(text: str) -> str:
    """
    Returns Python code without comments, docstrings and layout. Text that is only a part of a statement, such as the
    source of a lambda function, is returned with single spaces.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return " ".join(text.split())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A statement that consists of a text is a docstring, or has no effect.
            vars(node)["body"] = [part for part in body if not _is_text(part)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
