"""Loads objects from Python files of users, names the line of their errors, and hashes the code of functions."""

import ast
import builtins
import dataclasses
import dis
import functools
import hashlib
import importlib.util
import inspect
import linecache
import logging
import re
import runpy
import sys
import sysconfig
import tokenize
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GenericAlias,
    MappingProxyType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    UnionType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np

from .command_line import did_you_mean_path

__all__ = ["code_fingerprint", "described", "errors_with_lines", "find_in_file", "plain_code", "split_path"]


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
        with tokenize.open(path) as file:
            text = file.read()
        return _variables_of(str(path), text)
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
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    return runpy.run_path(path)


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


_LIBRARIES = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_LIBRARIES.append(Path(__file__).parent.resolve())


def _is_user_file(filename: str | None) -> bool:
    """Returns whether a file or a cell of a notebook is neither part of Python, a library nor this package."""
    return filename is not None and filename != "<string>" and not _is_library_file(filename)


@functools.cache
def _is_library_file(filename: str) -> bool:
    """Returns whether a file is part of Python, a library or this package."""
    path = Path(filename).resolve()
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return is_installed or filename.startswith("<frozen") or any(map(path.is_relative_to, _LIBRARIES))


def _unwrapped(function: Callable) -> Any:
    """Returns the function of a `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


# ---- The code of a function ----


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


def code_fingerprint(function: Callable) -> str:
    """
    Returns a hash of everything of a function that can change its result: 12 hexadecimal digits.

    The hash includes the code of the function without comments, docstrings and layout. It includes default values,
    the arguments bound by `functools.partial`, and all functions, classes and values of the user that the function
    refers to. It includes all files of imported modules and packages of the user. Functions of libraries and of this
    package count by their names, because the versions of libraries identify their code.

    Args:
        function (`Callable`): A function, or a `functools.partial` of a function.

    Raises:
        TypeError: The function depends on a value that cannot be hashed or is not defined yet, or is another kind of
            callable.
    """
    fingerprint = _Fingerprint()
    fingerprint.add(function, "")
    return hashlib.sha256("\n".join(fingerprint.parts).encode()).hexdigest()[:12]


# The `repr` of these values contains everything that can change a result.
_NUMBERS_AND_TEXT = (bool, int, float, complex, str, bytes, type(None), type(...), range, PurePath)
_BY_REPR = (*_NUMBERS_AND_TEXT, np.generic, np.dtype, GenericAlias, UnionType)
_BY_REPR_IN_LIBRARIES = ("torch.dtype", "torch.device", "decimal.Decimal", "fractions.Fraction")  # not imported here
_IN_C = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, np.ufunc)


class _Fingerprint:
    """
    Collects the text that is hashed.

    Attributes:
        parts (`list[str]`): The text.
    """

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._seen: dict[int, int] = {}  # functions and classes by their ids, in order
        self._files: set[Path] = set()

    def add(self, value: Any, name: str) -> None:
        """Adds a value; `name` describes it in errors."""
        kind = type(value)
        is_type_hint = kind.__module__ == "typing" and not isinstance(value, type)
        if isinstance(value, _BY_REPR) or is_type_hint or _full_name(kind) in _BY_REPR_IN_LIBRARIES:
            self.parts.append(repr(value))
        elif isinstance(value, logging.Logger):
            self.parts.append(f"logger {value.name}")
        elif isinstance(value, re.Pattern):
            self.parts.append(f"pattern {value.pattern!r} {value.flags}")
        elif isinstance(value, functools.partial):
            self.parts.append("partial")
            for part in (value.func, list(value.args), value.keywords):
                self.add(part, name)
        elif isinstance(value, set | frozenset) and all(isinstance(part, _BY_REPR) for part in value):
            self.parts += [f"set of {len(value)}", *sorted(map(repr, value))]
        elif isinstance(value, list | tuple):
            self._add_definition(kind, name)
            self.parts.append(f"{len(value)}")
            for part in value:
                self.add(part, name)
        elif isinstance(value, dict | MappingProxyType):
            self._add_definition(kind, name)
            self.parts.append(f"{len(value)}")
            self.add(getattr(value, "default_factory", None), name)
            for key, part in value.items():
                self.add(key, name)
                self.add(part, f"{name}[{key!r}]")
        elif isinstance(value, ModuleType):
            self._add_module(value.__name__)
        elif isinstance(value, FunctionType | type):
            self._add_definition(value, name)
        elif isinstance(value, MethodType):
            self.add(value.__func__, name)
            self.add(value.__self__, name)
        elif isinstance(value, Enum):
            self.add(kind, name)
            self.parts.append(value.name)
        elif dataclasses.is_dataclass(value):
            self.add(kind, name)
            self.add({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, name)
        elif isinstance(value, _IN_C) and isinstance(getattr(value, "__self__", None), type | ModuleType | None):
            self.parts.append(_full_name(value))
        elif callable(value) and hasattr(value, "__qualname__") and _is_of_library(value):  # compiled by Cython
            self.parts.append(_full_name(value))
        elif callable(value) and hasattr(value, "__wrapped__"):  # such as functools.cache
            self.parts.append(_full_name(kind))
            self.add(value.__wrapped__, name)
        else:
            raise TypeError(
                f"Got {name or 'a function'} with a value of type {kind.__name__}, expected a function, numbers or "
                "text, so that a change of the value is noticed. Create the value inside the function, or bind "
                "numbers and text with functools.partial."
            )

    def _add_definition(self, value: Any, name: str) -> None:
        """Adds a function or a class."""
        if _is_of_library(value):
            self.parts.append(_full_name(value))
        elif id(value) in self._seen:
            self.parts.append(f"definition {self._seen[id(value)]}")
        else:
            self._seen[id(value)] = len(self._seen)
            self.parts.append(value.__qualname__)
            if isinstance(value, type):
                self._add_class(value)
            else:
                self._add_function(value)

    def _add_function(self, function: FunctionType) -> None:
        name, code = function.__qualname__, function.__code__
        is_of_library = _is_library_file(code.co_filename)  # a decorator of a library has created the function
        nodes = [] if is_of_library else _nodes_of(function)
        self.parts += map(ast.dump, nodes)
        for part in (list(function.__defaults__ or ()), function.__kwdefaults__ or {}):
            self.add(part, f"{name}, default value")
        attributes = {key: part for key, part in vars(function).items() if key != "__doc__"}
        self.add(attributes, f"{name}, attribute")  # also the decorated function, `__wrapped__`
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if variable == "__class__":
                continue
            n_parts = len(self.parts)
            try:
                content = cell.cell_contents
            except ValueError as error:
                raise TypeError(_undefined(name, variable)) from error
            try:
                self.add(content, f"{name}, variable {variable}")
            except TypeError:
                if not (is_of_library and hasattr(function, "__wrapped__")):
                    raise
                del self.parts[n_parts:]  # an object of the decorator, such as torch.no_grad()
        if is_of_library:
            return
        for variable in sorted(_global_names(code)):
            if variable in function.__globals__:
                self.parts.append(variable)
                self.add(function.__globals__[variable], f"{name}, variable {variable}")
            elif not hasattr(builtins, variable):
                raise TypeError(_undefined(name, variable))
        for node in nodes:
            self._add_imports(node)

    def _add_class(self, cls: type) -> None:
        """Adds the bases, the methods and the values of a class. Its source code is not found in all notebooks."""
        for base in (*cls.__bases__, type(cls)):
            self._add_definition(base, cls.__qualname__)
        for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
            values = [value for value in (field.default, field.default_factory) if value is not dataclasses.MISSING]
            self.add([field.name, *values], f"{cls.__qualname__}, field {field.name}")
        if issubclass(cls, Enum):
            self.add({member.name: member.value for member in cls}, cls.__qualname__)
        for name, value in vars(cls).items():
            for part in _parts_of_attribute(value):
                if isinstance(part, FunctionType):
                    code = getattr(inspect.unwrap(part), "__code__", part.__code__)
                    if code.co_filename != "<string>":  # not a method that `dataclass` generates from the fields
                        self.add(part, f"{cls.__qualname__}, {name}")
                elif not (name.startswith("_") and (name.endswith("_") or name == "_abc_impl")):
                    if type(part) is not cls:  # the members of an enumeration are added above
                        self.parts.append(name)
                        self.add(part, f"{cls.__qualname__}, {name}")

    def _add_module(self, name: str) -> None:
        """Adds all files of a module of the user, or of its package. Adds a library by its name."""
        self.parts.append(name)
        try:
            spec = importlib.util.find_spec(name.partition(".")[0])
        except ValueError:  # a module without a specification, such as `__main__`
            spec = None
        if spec is None:
            return
        files = [Path(spec.origin)] if spec.has_location and spec.origin else []
        for folder in spec.submodule_search_locations or ():
            if not _is_library_file(folder):
                files += sorted(Path(folder).rglob("*.py"))
        for file in files:
            if file not in self._files and not _is_library_file(str(file)):
                self._files.add(file)
                try:
                    tree = _parsed(file.read_text(encoding="utf-8"))
                except (SyntaxError, ValueError):  # compiled code, or code of another version of Python
                    self.parts.append(hashlib.sha256(file.read_bytes()).hexdigest())
                else:
                    self.parts.append(ast.dump(tree))
                    self._add_imports(tree)

    def _add_imports(self, tree: ast.AST) -> None:
        """Adds the modules that code imports. A relative import is part of a package whose files are all added."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._add_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
                self._add_module(node.module)


def _undefined(function: str, variable: str) -> str:
    return (
        f"Got {function}, which uses {variable}, a variable without a value, expected a value whose change can be "
        f"noticed. Define {variable} above the method."
    )


def _full_name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value.__name__)}"


def _is_of_library(value: Any) -> bool:
    """Returns whether a function or a class can be imported from a module of Python, a library or this package."""
    module = sys.modules.get(value.__module__)
    if module is None or value.__module__ == "__main__" or _is_user_file(getattr(module, "__file__", None)):
        return False
    if isinstance(value, type):
        return True
    found: Any = module
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def _parts_of_attribute(value: Any) -> list[Any]:
    """Returns the functions or values of an attribute of a class."""
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.cached_property):
        return [value.func]
    if inspect.isdatadescriptor(value) and _is_of_library(type(value)):  # a slot, or a field of a named tuple
        return []
    return [value]


def _global_names(code: CodeType) -> set[str]:
    """Returns the names of global variables that a function and its inner functions read."""
    names = {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname.startswith("LOAD_") and "GLOBAL" in instruction.opname
    }
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _global_names(constant)
    return names


def _nodes_of(function: FunctionType) -> list[ast.AST]:
    """
    Returns the code of a function without docstrings. Several lambda functions that begin in one line cannot be
    distinguished, and are all returned.

    Raises:
        TypeError: The source code was not found.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    try:
        tree = _parsed("".join(linecache.getlines(code.co_filename, function.__globals__)))
    except SyntaxError:
        tree = ast.Module([], [])
    nodes: list[ast.AST] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        and getattr(node, "name", "<lambda>") == code.co_name
        and min(part.lineno for part in (node, *getattr(node, "decorator_list", ()))) == code.co_firstlineno
    ]
    if not nodes:
        raise TypeError(
            f"Got {function.__qualname__}, whose source code was not found in {code.co_filename}, expected a function "
            "in a file or a notebook. Define it in a Python file."
        )
    return nodes


def plain_code(text: str) -> str:
    """Returns Python code without comments, docstrings and layout."""
    return ast.dump(_parsed(text))


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> ast.Module:
    """Returns the syntax tree of Python code without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A statement that consists of a text is a docstring, or has no effect.
            vars(node)["body"] = [part for part in body if not _is_text(part)]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
