"""JSON objects as dataclasses, in both directions, without a loss."""

import dataclasses
import numbers
import types
import typing
from typing import Any, Self

__all__ = ["Record", "always", "named", "rest"]


def always(default: Any = None, factory: Any = None) -> Any:
    """A field that JSON has in any case, also where it is null or empty."""
    kwargs = {"default": default} if factory is None else {"default_factory": factory}
    return dataclasses.field(**kwargs, metadata={"always": True})


def named(key: str) -> Any:
    """An optional field that has another name in JSON."""
    return dataclasses.field(default=None, metadata={"key": key})


def rest() -> Any:
    """The field for all keys that have no field of their own; in JSON they stand among the others."""
    return dataclasses.field(default_factory=dict, metadata={"rest": True})


@dataclasses.dataclass
class Record:
    """
    The base class of JSON objects as dataclasses. A field without a default is required. An optional field is left out
    of the JSON where it is `None` or empty. No key is lost: unknown keys go to one field of the class, and back.
    """

    @classmethod
    def from_dict(cls, content: dict) -> Self:
        """
        Makes a record of JSON values.

        Raises:
            ValueError: a required key is missing, or a value is not what the field holds.
        """
        values: dict[str, Any] = {}
        left, kinds = dict(content), typing.get_type_hints(cls)
        for part in dataclasses.fields(cls):
            key = part.metadata.get("key", part.name)
            if part.metadata.get("rest"):
                values[part.name] = left  # by the other fields
            elif key in left:
                values[part.name] = _read(kinds[part.name], left.pop(key), f"{cls.__name__}.{key}")
            elif _is_required(part):
                raise ValueError(f"{cls.__name__}: got no {key!r}, expected it as in a results.json of schema 1.")
        return cls(**values)

    def to_dict(self) -> dict:
        """Returns the record as JSON values, in the order of the fields."""
        content: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if part.metadata.get("rest"):
                content |= _plain(value)
            elif value not in (None, [], {}) or part.metadata.get("always") or _is_required(part):
                content[part.metadata.get("key", part.name)] = _plain(value)
        return content


def _is_required(part: dataclasses.Field) -> bool:
    return part.default is part.default_factory is dataclasses.MISSING


# What a field of a type may hold in JSON, and its name in errors. NumPy's numbers are taken, too.
_JSON: dict[Any, tuple[Any, str]] = {
    list: (list, "a list"),
    dict: (dict, "a mapping"),
    str: (str, "a text"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    bool: (bool, "true or false"),
}


def _read(kind: Any, value: Any, key: str) -> Any:
    """Returns JSON values as the type of a field says."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and types.NoneType in kinds:
        return None
    (kind,) = [part for part in kinds if part is not types.NoneType]
    is_record = isinstance(kind, type) and issubclass(kind, Record)
    container = dict if is_record else typing.get_origin(kind)
    expected, name = _JSON.get(container or kind, (object, ""))
    if not isinstance(value, expected):
        raise ValueError(f"{key}: got {str(value)[:60]!r}, expected {name}.")
    if is_record:
        return kind.from_dict(value)
    if container is list:
        return [_read(typing.get_args(kind)[0], part, key) for part in value]
    if container is dict:
        return {name: _read(typing.get_args(kind)[1], part, key) for name, part in value.items()}
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
