"""Loads objects from Python files of users, and names the line of their errors."""

import ast
import functools
import linecache
import logging
import runpy
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

from .code_fingerprint import SOURCES, is_library_file
from .command_line import did_you_mean_path

__all__ = ["described", "errors_with_lines", "find_in_file", "split_path", "warn_of_change"]

logger = logging.getLogger(__name__)


_FIRST: dict[Path, tuple[bytes, dict[str, Any]]] = {}  # content and variables of files that a process runs only once


def split_path(name: str) -> tuple[Path, str] | None:
    """
    Returns the file and the variable of a name such as `my_file.py:NAME` or `my_file.py` (the variable is then empty),
    or `None` for other names.
    """
    if name.endswith(".py"):
        return Path(name), ""
    path, _, variable = name.rpartition(":")
    return (Path(path), variable) if path.endswith(".py") else None


def find_in_file(
    path: Path, variable: str, kind: type, *, what: str, kind_name: str, is_run_once: bool = False
) -> Any:
    """
    Returns an object that a Python file defines.

    Args:
        path (`Path`): The file.
        variable (`str`): Name of the object. Empty for the only object of this kind in the file.
        kind (`type`): The class of the object.
        what (`str`): The word for the object in messages, such as `"task"`.
        kind_name (`str`): The public name of the class in messages, such as `"w2s_hf.Task"`.
        is_run_once (`bool`, *optional*): Whether to use the version of the file that this process has loaded first,
            although the file may have changed.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file raises an error (the message names the line), or it does not define the object.
    """
    is_known = is_run_once and path in _FIRST
    if not is_known and not path.is_file():
        raise FileNotFoundError(
            f"{what}: got {str(path)!r}, expected an existing file. Correct the path.{did_you_mean_path(str(path))}"
        )
    if is_known:
        _, variables = _FIRST[path]
    else:
        sys.path.insert(0, str(path.parent.resolve()))  # lets the file import modules of its directory
        content = path.read_bytes()
        variables = _run(path, what)
        if is_run_once:
            _FIRST[path] = content, variables
    objects = {name: value for name, value in variables.items() if isinstance(value, kind)}
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
    """Returns the variables of a Python file. Raises `ValueError` with the line of an error."""
    try:
        with tokenize.open(path) as file:
            return _variables_of(str(path), file.read())
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


@functools.cache
def _variables_of(path: str, text: str) -> dict[str, Any]:
    """Runs a file once per process."""
    # Later changes of the file change neither the functions of this process, nor their hashes and tracebacks.
    _refuse_mixed_modules(Path(path), text)
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    SOURCES[path] = text
    return runpy.run_path(path)


_MODULES: dict[str, Path] = {}  # the local modules that the files of this process import, by name


def _refuse_mixed_modules(path: Path, text: str) -> None:
    """
    Raises `ImportError` if two directories have a module of one name, and the file imports it, also indirectly. Python
    has one module of each name, and would use the wrong one.
    """
    for name, file in _local_modules(path.resolve(), text, {}).items():
        loaded = getattr(sys.modules.get(name), "__file__", None)
        for other in (_MODULES.setdefault(name, file), loaded):
            if other is not None and Path(other).resolve() != file.resolve():
                raise ImportError(
                    f"the module {name!r} of this directory has the name of a module of another directory. Rename one "
                    "of them."
                )


def _local_modules(path: Path, text: str, found: dict[str, Path]) -> dict[str, Path]:
    """Returns the modules of the directory of a file that it imports, also indirectly and inside functions."""
    for node in ast.walk(ast.parse(text, filename=str(path))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names = [node.module]
        for name in (name.partition(".")[0] for name in names):
            for file in (path.parent / f"{name}.py", path.parent / name / "__init__.py"):
                if name not in found and file.is_file():
                    found[name] = file
                    _local_modules(path.parent / file.name, file.read_text(encoding="utf-8"), found)
    return found


def warn_of_change(path: Path) -> None:
    """Logs a warning, once per change, if a file that this process runs only once has changed."""
    if path in _FIRST and path.is_file():
        _warn_of_content(path, path.read_bytes())


@functools.cache
def _warn_of_content(path: Path, content: bytes) -> None:
    if content != _FIRST[path][0]:
        logger.warning(
            f"{path.name} has changed since this process loaded it, and the loaded version is used. Restart the "
            "process (in a notebook, the kernel)."
        )


# ---- Errors ----


@contextmanager
def errors_with_lines(what: str, function: Callable) -> Iterator[None]:
    """
    Raises the errors of a user's function as `ValueError` with the file and the line in which they occurred. Errors of
    full memory are not changed.

    Args:
        what (`str`): The role of the function in the message, such as `"method my_method: loss"`.
        function (`Callable`): The function that is called inside the context.
    """
    try:
        yield
    except Exception as error:
        # The classes of memory errors tell accelerate to try a smaller batch.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user_file(frame.filename)]
        called = _unwrapped(function)
        if (called.__module__ or "").startswith("w2s_hf."):
            raise  # an error of this package, which has its own message
        if frames:
            place = f"{frames[-1].filename}, line {frames[-1].lineno}"
        elif isinstance(called, FunctionType) and _is_user_file(called.__code__.co_filename):
            # The function has other parameters.
            place = f"{called.__code__.co_filename}, line {called.__code__.co_firstlineno}"
        else:
            raise
        reason = " ".join(str(error).split())
        advice = ""
        if "ground_truth" in reason:
            advice = " Methods do not get the true labels of rows that students are trained or scored on."
        raise ValueError(
            f"{what}: {place} raised {type(error).__name__}: {reason}{advice} W2S_HF_DEBUG=1 shows the traceback."
        ) from error


def _is_user_file(filename: str | None) -> bool:
    """Returns whether a file or a cell of a notebook is neither part of Python, a library nor this package."""
    return filename is not None and filename != "<string>" and not is_library_file(filename)


def _unwrapped(function: Callable) -> Any:
    """Returns the function of a `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def described(function: Callable) -> str:
    """
    Returns the name of a function, with the arguments that `functools.partial` binds. The text is the same in every
    process, and has no paths of this machine.
    """
    if not isinstance(function, functools.partial):
        return getattr(function, "__name__", type(function).__name__)
    named = (f"{name}={_shown(value)}" for name, value in function.keywords.items())
    return f"{described(function.func)}({', '.join([*map(_shown, function.args), *named])})"


def _shown(value: object) -> str:
    if isinstance(value, str):
        return repr(Path(value).name if Path(value).is_absolute() else value)
    if isinstance(value, bool | int | float | None):
        return repr(value)
    return described(value) if callable(value) else type(value).__name__
