"""Dataclasses from the JSON that `dataclasses.asdict` turns them into."""

import dataclasses
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.errors import SfmError

Value = TypeVar("Value")


def from_json(kind: type[Value], value: Any) -> Value:
    """Returns a value of a type from what `dataclasses.asdict` and JSON made of it.

    Args:
        kind: A dataclass; `tuple[T, ...]`, `Mapping[str, T]` or `T | None` of one; or what JSON
            holds as it is.
        value: What JSON holds.

    Raises:
        KeyError: If a dataclass has no such field.
        TypeError: If a dataclass lacks a field.
    """
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_json(hints[name], value[name]) for name in value})
    origin, (inner, *_) = typing.get_origin(kind), typing.get_args(kind) or (None,)
    if origin is tuple:
        return tuple(from_json(inner, each) for each in value)
    if origin is Mapping:
        _, inner = typing.get_args(kind)
        return {name: from_json(inner, each) for name, each in value.items()}
    return from_json(inner, value) if origin is types.UnionType and value is not None else value


def read_typed(kind: type[Value], path: pathlib.Path) -> Value:
    """Returns the value of a type that a JSON file holds, as `from_json` does.

    Raises:
        SfmError: If the file is missing, damaged or of another version.
    """
    value = read_json(path)
    try:
        return from_json(kind, value)
    except (AttributeError, KeyError, TypeError) as error:
        raise SfmError(f"Cannot read {path} ({error}); run the evaluation again.") from error
