"""Hashes what can change the result of a user's function: whole files, the values that it uses, and local modules."""

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
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np

__all__ = ["SOURCES", "code_fingerprint", "is_library_file", "plain_code"]

# The first text of each file or cell that this process has read. The process keeps running this version.
SOURCES: dict[str, str | bytes] = {}


def code_fingerprint(function: Callable) -> str:
    """
    Returns a hash of everything of a function that can change its result: 12 hexadecimal digits.

    The hash includes the whole file or notebook cell of the function, and all files of local modules and packages that
    it imports. Every change of them changes the hash, except changes of comments, docstrings and layout. A change of a
    file therefore trains all methods of this file again.

    The hash also includes values: default values, closures, the arguments bound by `functools.partial`, and the global
    variables that the function uses. Arrays and tensors count by their content, and objects of the user by class and
    attributes. Functions and classes of libraries and of this package count by their names. Other objects of libraries
    count by their class if a file creates them. The keys of cached stages have the versions of the libraries that this
    package uses. An upgrade of another library is not noticed.

    The hash does not notice data files that the function reads, modules that it imports with
    `importlib.import_module`, and code that it runs with `eval`. In a notebook, it does not notice the arguments of
    decorators of libraries.

    Args:
        function (`Callable`): A function, or a `functools.partial` of a function.

    Raises:
        TypeError: The function is another kind of callable. A bound argument, a closure, or a variable of a notebook
            is an object of a library, whose change would not be noticed. A function of a notebook uses a variable
            that is not defined yet.
    """
    called = function
    while isinstance(called, functools.partial):
        called = called.func
    if not isinstance(inspect.unwrap(called), FunctionType):
        raise TypeError(
            f"Got a callable of type {type(called).__name__}, expected a function or a functools.partial of a "
            "function. Define a function with def."
        )
    return _digest(function, getattr(called, "__qualname__", type(called).__qualname__))


def _digest(value: Any, place: str | None) -> str:
    fingerprint = _Fingerprint()
    fingerprint.add(value, place)
    return hashlib.sha256("\n".join(fingerprint.parts).encode()).hexdigest()[:12]


# The `repr` of these values contains everything that can change a result.
_BY_REPR = (bool, int, float, complex, str, bytes, type(None), type(...), range, PurePath, np.generic, np.dtype)
_BY_REPR_IN_TORCH = ("torch.dtype", "torch.device")
_BY_NAME = (MethodDescriptorType, WrapperDescriptorType, np.ufunc)


class _Fingerprint:
    """
    Collects the text that is hashed.

    Attributes:
        parts (`list[str]`): The text.
    """

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._seen: dict[int, tuple[int, Any]] = {}  # keeps the objects, so that no other object gets their id
        self._files: set[str] = set()

    def add(self, value: Any, place: str | None) -> None:
        """
        Adds a value.

        Args:
            value (`Any`): The value.
            place (`str`, *optional*): The place of the value, for errors. `None` if a file that is hashed creates the
                value. The class of a library's object is then enough.
        """
        kind = type(value)
        is_of_library = _is_library_class(kind)
        if isinstance(value, _BY_REPR) and is_of_library or _full_name(kind) in _BY_REPR_IN_TORCH:
            self.parts.append(hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value))
        elif isinstance(value, functools.partial):
            self.parts.append("partial")
            self.add(value.func, place)
            called = getattr(value.func, "__qualname__", place)
            for argument, part in (*enumerate(value.args), *value.keywords.items()):
                self.parts.append(f"argument {argument}")
                self.add(part, place and f"{called}, argument {argument}")
        elif isinstance(value, set | frozenset):
            # Sets have another order in each process.
            self.parts += [_full_name(kind), *sorted(_digest(part, place) for part in value), "end"]
        elif isinstance(value, list | tuple | dict | MappingProxyType) and is_of_library:
            self.parts.append(f"{_full_name(kind)} {len(value)}")
            self.add(getattr(value, "default_factory", None), place)
            for part in value if isinstance(value, list | tuple) else value.items():
                self.add(part, place)
        elif isinstance(value, ModuleType):
            self._add_module(value.__name__)
        elif id(value) in self._seen:
            self.parts.append(f"object {self._seen[id(value)][0]}")
        else:
            self._seen[id(value)] = len(self._seen), value
            self._add_object(value, place)

    def _add_object(self, value: Any, place: str | None) -> None:
        kind = type(value)
        torch: Any = sys.modules.get("torch")  # not imported here
        if isinstance(value, FunctionType):
            self._add_function(value, place)
        elif isinstance(value, type):
            self.parts.append(_full_name(value))
            if not _is_library_class(value):
                self._add_class(value, place)
        elif isinstance(value, MethodType):
            self.add([value.__func__, value.__self__], place)
        elif isinstance(value, BuiltinFunctionType):
            self.parts.append(_full_name(value))
            if not isinstance(value.__self__, type | ModuleType | None):  # the method of an object
                self.add(value.__self__, place)
        elif isinstance(value, np.ndarray):
            self.parts.append(f"array {value.dtype} {value.shape}")
            self.add(value.tolist() if value.dtype.hasobject else value.tobytes(), place)
        elif torch is not None and isinstance(value, torch.Tensor):
            self.parts.append(f"tensor {value.dtype} {value.shape}")
            self.add(value.detach().cpu().reshape(-1).view(torch.uint8).numpy(), place)
        elif isinstance(value, re.Pattern):
            self.add([value.pattern, value.flags], place)
        elif isinstance(value, property):
            self.add([value.fget, value.fset, value.fdel], place)
        elif isinstance(value, functools.cached_property):
            self.add(value.func, place)
        elif not _is_library_class(kind):
            # As in pickle: the class, attributes, slots, and the content of a subclass of list or float.
            content = value.__reduce_ex__(2)
            self.add([list(part) if isinstance(part, Iterator) else part for part in content], place)
        else:
            self.parts.append(_full_name(kind))
            if hasattr(value, "__wrapped__"):  # such as functools.cache and staticmethod
                self.add(value.__wrapped__, place)
            elif isinstance(value, _BY_NAME) or _can_be_imported(value):
                self.parts.append(_full_name(value))
            elif place is not None and not isinstance(value, logging.Logger) and not inspect.isdatadescriptor(value):
                raise TypeError(
                    f"Got {place} with a value of type {kind.__name__}, expected a function, numbers, text or an "
                    "array. A change of the value would not be noticed. Create the value inside the function, or as a "
                    "variable of a Python file that defines the function."
                )

    def _add_function(self, function: FunctionType, place: str | None) -> None:
        name, code = function.__qualname__, function.__code__
        is_of_library = is_library_file(code.co_filename)
        self.parts.append(name)
        if is_of_library and _can_be_imported(function):
            self.parts.append(function.__module__)
        elif is_of_library and hasattr(function, "__wrapped__"):  # a decorator of a library has created the function
            self.add(function.__wrapped__, place)
        else:
            variables = function.__globals__
            is_of_cell = "__file__" not in variables
            place = name if is_of_cell else place
            self._add_code(code)
            for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
                if cell != CellType():  # not a variable without a value
                    self.add(cell.cell_contents, place and f"{name}, variable {variable}")
            if is_of_library:
                return
            self._add_file(code.co_filename)
            self._add_module(function.__module__)
            defaults = [function.__defaults__, function.__kwdefaults__]
            self.add(defaults, f"{name}, default value" if is_of_cell else None)
            attributes = {key: part for key, part in vars(function).items() if key != "__wrapped__"}
            self.add(attributes, f"{name}, attribute" if is_of_cell else None)
            for variable, operation in sorted(_global_names(code)):
                if variable == "__file__":  # the same file has the same hash in every directory
                    continue
                if variable in variables:
                    self.parts.append(variable)
                    self.add(variables[variable], f"{name}, variable {variable}" if is_of_cell else None)
                    self._add_attributes(variables[variable], code)
                elif is_of_cell and operation == "LOAD_GLOBAL" and not hasattr(builtins, variable):
                    raise TypeError(
                        f"Got {name}, which uses {variable}, a variable without a value, expected a value whose "
                        f"change can be noticed. Define {variable} above the method."
                    )

    def _add_attributes(self, module: Any, code: CodeType) -> None:
        """Adds the attributes of a local module that code may read. They may have changed since the import."""
        if not isinstance(module, ModuleType) or is_library_file(getattr(module, "__file__", None) or "<frozen>"):
            return
        for name in sorted(_all_names(code) & vars(module).keys()):
            self.parts.append(name)
            self.add(vars(module)[name], None)

    def _add_code(self, code: CodeType) -> None:
        """Adds the instructions, which distinguish functions of one name in one file, such as lambda functions."""
        for instruction in dis.get_instructions(code):
            # The positions of constants depend on the docstring, which is a constant without an instruction.
            is_constant = instruction.opcode in dis.hasconst
            self.parts.append(f"{instruction.opname} {'' if is_constant else instruction.argrepr}")
            if is_constant and not isinstance(instruction.argval, CodeType):
                self.add(instruction.argval, None)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._add_code(constant)

    def _add_class(self, cls: type, place: str | None) -> None:
        """Adds the file, the bases and the attributes of a class. The cell of a class in a notebook is not known."""
        is_of_cell = cls.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
        place = cls.__qualname__ if is_of_cell else None
        self._add_module(cls.__module__)
        for base in (*cls.__bases__, type(cls)):
            self.add(base, place)
        for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
            defaults = [value for value in (field.default, field.default_factory) if value is not dataclasses.MISSING]
            self.add([field.name, *defaults], place and f"{place}, field {field.name}")
        for name, value in vars(cls).items():
            is_function = isinstance(value, FunctionType | classmethod | staticmethod)
            is_generated = (
                isinstance(value, FunctionType) and value.__code__.co_filename == "<string>"
            )  # by `dataclass`
            if is_function and not is_generated or not (name.startswith("__") or name == "_abc_impl"):
                self.parts.append(name)
                self.add(value, place and f"{place}, {name}")

    def _add_module(self, name: str) -> None:
        """Adds the file of a local module, or all files of its package, so that relative imports are included."""
        try:
            spec = importlib.util.find_spec(name.partition(".")[0])
        except ValueError:  # a module without a specification, such as `__main__`
            return
        if spec is None:
            return
        if spec.has_location and spec.origin:
            self._add_file(spec.origin)
        for folder in spec.submodule_search_locations or ():
            if not is_library_file(folder):
                for file in sorted(Path(folder).rglob("*.py")):
                    self._add_file(str(file))

    def _add_file(self, file: str) -> None:
        if file in self._files or is_library_file(file):
            return
        self._files.add(file)
        if file not in SOURCES:
            is_file = Path(file).is_file()
            SOURCES[file] = Path(file).read_bytes() if is_file else "".join(linecache.getlines(file))
        digest, modules = _digest_and_imports(SOURCES[file])
        self.parts.append(digest)
        for module in modules:
            self._add_module(module)


def _all_names(code: CodeType) -> set[str]:
    """Returns all names in the code of a function and of its inner functions, including attributes."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_all_names, inner))


def _full_name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value.__name__)}"


def _is_library_class(cls: type) -> bool:
    """Returns whether a class is part of Python, a library or this package."""
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "__main__":
        return False
    return is_library_file(getattr(module, "__file__", None) or "<frozen")


def _can_be_imported(value: Any) -> bool:
    """Returns whether a function of a library is found by its name."""
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is value


def _global_names(code: CodeType) -> set[tuple[str, str]]:
    """
    Returns the global variables that a function and its inner functions read, with the operation. The body of an inner
    class reads global variables and its own variables with `LOAD_NAME`.
    """
    operations = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
    names = {(part.argval, part.opname) for part in dis.get_instructions(code) if part.opname in operations}
    return names.union(*(_global_names(part) for part in code.co_consts if isinstance(part, CodeType)))


_LIBRARIES = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_LIBRARIES.append(Path(__file__).parent.resolve())


@functools.cache
def is_library_file(filename: str) -> bool:
    """Returns whether a file is part of Python, a library or this package."""
    path = Path(filename).resolve()
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return is_installed or filename.startswith("<frozen") or any(map(path.is_relative_to, _LIBRARIES))


@functools.cache
def _digest_and_imports(source: str | bytes) -> tuple[str, list[str]]:
    """Returns the hash of a file or cell, and the modules that it imports. Relative imports are of its package."""
    try:
        tree = _parsed(source)
    except (SyntaxError, ValueError):  # a compiled module, or code of another version of Python
        return hashlib.sha256(source.encode() if isinstance(source, str) else source).hexdigest(), []
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.append(node.module)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), modules


def plain_code(text: str) -> str:
    """Returns Python code without comments, docstrings and layout."""
    return ast.dump(_parsed(text))


def _parsed(source: str | bytes) -> ast.Module:
    """Returns the syntax tree of Python code without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A statement that consists of a text is a docstring, or has no effect.
            vars(node)["body"] = [part for part in body if not _is_text(part)]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
