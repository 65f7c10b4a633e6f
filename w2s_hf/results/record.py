"""Converts JSON objects to dataclasses and back without loss."""

import dataclasses
import numbers
import types
import typing
from typing import Any, Self

__all__ = ["Record", "always", "named", "rest"]


def always(default: Any = None, factory: Any = None) -> Any:
    """Returns a field that is always written to JSON, even if it is null or empty."""
    kwargs = {"default": default} if factory is None else {"default_factory": factory}
    return dataclasses.field(**kwargs, metadata={"always": True})


def named(key: str) -> Any:
    """Returns an optional field that has another name in JSON."""
    return dataclasses.field(default=None, metadata={"key": key})


def rest() -> Any:
    """Returns the field for all keys without a named field. In JSON, they are at the same level as the named keys."""
    return dataclasses.field(default_factory=dict, metadata={"rest": True})


@dataclasses.dataclass
class Record:
    """
    The base class of dataclasses that represent JSON objects.

    Fields without a default are required. Optional fields that are `None` or empty are left out of the JSON. No key is
    lost: one field of the class holds all unknown keys and writes them back.
    """

    @classmethod
    def from_dict(cls, content: dict) -> Self:
        """
        Creates a record from JSON values.

        Raises:
            ValueError: A required key is missing, or a value has another type than its field.
        """
        values: dict[str, Any] = {}
        remaining, kinds = dict(content), typing.get_type_hints(cls)
        for part in dataclasses.fields(cls):
            key = part.metadata.get("key", part.name)
            if part.metadata.get("rest"):
                values[part.name] = remaining  # the keys that have no separate field
            elif key in remaining:
                values[part.name] = _read(kinds[part.name], remaining.pop(key), f"{cls.__name__}.{key}")
            elif _is_required(part):
                raise ValueError(f"{cls.__name__}: got no {key!r}, expected this key of schema 1.")
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


# The keys are types of fields. The values are the accepted JSON values and their name in errors. NumPy numbers are
# accepted, too.
_JSON: dict[Any, tuple[Any, str]] = {
    list: (list, "a list"),
    dict: (dict, "a mapping"),
    str: (str, "a text"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    bool: (bool, "true or false"),
}


def _read(kind: Any, value: Any, key: str) -> Any:
    """Returns JSON values converted to the type of a field."""
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
