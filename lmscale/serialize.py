"""Typed dataclasses to JSON and back, with an error of one line for each value that is not valid.

The hash of a spec covers only the fields that differ from their defaults (`canonical_json`). So a
later version can add a field, with a default that means "as before", and existing runs keep their
names. The price is that a default, once released, is never changed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import sys
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

__all__ = [
    "DERIVED",
    "MOST",
    "Derived",
    "Spec",
    "SpecError",
    "canonical_json",
    "require",
    "require_fraction",
    "require_positive",
    "short",
]


_T = TypeVar("_T")
#: `Derived[int]` is the type of a field that may be given as None (`DERIVED`) and then follows from
#: other fields. `_check` fills it in, so a spec never has a None there.
Derived = Annotated[_T, "derived from other fields"]
#: The default of a `Derived` field. It is None, but has to pass for a value of the field's type.
DERIVED: Any = None


class SpecError(ValueError):
    """A spec that is not valid; one line that says what was wrong and what would be right."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


#: Largest values of counts, far above anything that was ever trained. A larger value is a mistake; it
#: would take minutes to plan, or overflow the 32-bit integers of a device.
MOST = {
    "n_layer": 10_000,
    "reuse": 10_000,
    "d_model": 2**20,
    "d_attn": 2**20,
    "d_hidden": 2**20,
    "d_embed": 2**20,
    "d_ff": 2**24,
    "n_head": 2**20,
    "n_ctx": 2**24,
    "vocab_size": 2**24,
    "batch_size": 2**24,
    "steps": 10**9,
}
#: Largest value of all other counts, such as the tokens of a corpus.
_MOST_TOKENS = 10**18


def require_positive(spec: Any, *fields: str) -> None:
    for field in fields:
        value, most = getattr(spec, field), MOST.get(field, _MOST_TOKENS)
        name = f"{type(spec).__name__}.{field}"
        require(value >= 1, f"{name} must be at least 1, not {short(value)}")
        require(value <= most, f"{name} must be at most {most:,}, not {short(value)}")


def short(value: Any) -> str:
    """A value as text for a message: one line of at most 80 characters."""
    if isinstance(value, int) and abs(value) >= 10**15:
        # Python does not print integers of thousands of digits.
        return f"{'-' * (value < 0)}1e{math.floor(math.log10(abs(value)))} or so"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def require_fraction(spec: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(spec, field)
        require(
            0.0 <= value < 1.0, f"{type(spec).__name__}.{field} must be in [0, 1), not {value!r}"
        )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all specs: a frozen dataclass that checks the types of its values.

    A base class of several kinds of spec returns the class of a kind from `class_of`. Each of these
    classes has a `kind`, which is part of its JSON.
    """

    kind: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        hints = _type_hints(type(self))  # type: ignore[arg-type]  # mypy asks if a Spec is hashable
        for field, hint in hints.items():
            value = _coerce(hint, getattr(self, field), f"{type(self).__name__}.{field}")
            object.__setattr__(self, field, value)
        self._check()

    def _check(self) -> None:
        """Fills in the defaults that depend on other fields, then checks the values."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary with every field, defaults included."""
        return _to_plain(self, keep_defaults=True)

    @classmethod
    def class_of(cls, values: dict[str, Any], where: str) -> type[Spec]:
        """The class for a JSON object; `where` names the object in errors."""
        del values, where
        return cls

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """The inverse of `to_dict`; raises `SpecError` for a field that does not exist."""
        return _from_plain(cls, values, cls.__name__)


def canonical_json(spec: Spec) -> str:
    """The JSON text that is hashed: the fields that differ from their defaults, sorted."""
    plain = _to_plain(spec, keep_defaults=False)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or a `SpecError`. Whole floats are accepted as ints, ints as floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return None if value is None else _coerce(args[0], value, where)
    if origin is Literal:
        require(
            value in args,
            f"{where} must be one of {', '.join(map(repr, args))}, not {short(value)}",
        )
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            require(type(None) in args, f"{where} must not be null")
            return None
        options = [arg for arg in args if arg is not type(None)]
        if len(options) == 1:
            return _coerce(options[0], value, where)
        require(
            isinstance(value, tuple(options)),
            f"{where} must be one of {', '.join(o.__name__ for o in options)}, not {short(value)}",
        )
        return value
    if origin is tuple:
        require(isinstance(value, (tuple, list)), f"{where} must be a list, not {short(value)}")
        return tuple(_coerce(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is bool:
        require(isinstance(value, bool), f"{where} must be true or false, not {short(value)}")
        return value
    if hint is int:
        whole = isinstance(value, float) and value.is_integer()
        require(
            (isinstance(value, numbers.Integral) or whole) and not isinstance(value, bool),
            f"{where} must be a whole number, not {short(value)}",
        )
        require(abs(value) <= _MOST_TOKENS, f"{where} must be at most 1e18, not {short(value)}")
        return int(value)
    if hint is float:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        require(
            number and abs(value) <= sys.float_info.max,
            f"{where} must be a finite number, not {short(value)}",
        )
        # Adding zero turns -0.0 into 0.0: they are equal, so they must have the same hash.
        return float(value) + 0.0
    require(isinstance(value, hint), f"{where} must be a {hint.__name__}, not {short(value)}")
    return value


def _to_plain(value: Any, keep_defaults: bool) -> Any:
    if isinstance(value, Spec):
        plain = {} if value.kind is None else {"kind": value.kind}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if keep_defaults or field.default is dataclasses.MISSING or item != field.default:
                plain[field.name] = _to_plain(item, keep_defaults)
        return plain
    if isinstance(value, tuple):
        return [_to_plain(item, keep_defaults) for item in value]
    return value


def _from_plain(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Spec):
        require(isinstance(value, dict), f"{where} must be an object, not {short(value)}")
        hint = hint.class_of(value, where)
        hints = _type_hints(hint)
        if hint.kind is not None and value.get("kind") == hint.kind:
            value = {name: item for name, item in value.items() if name != "kind"}
        unknown = sorted(set(value) - set(hints))
        require(
            not unknown,
            f"{where} has no field {', '.join(map(repr, unknown))}; its fields are "
            f"{', '.join(hints)}",
        )
        missing = [
            field.name
            for field in dataclasses.fields(hint)
            if field.default is dataclasses.MISSING and field.name not in value
        ]
        require(not missing, f"{where} lacks the field {', '.join(missing)}")
        return hint(
            **{
                name: _from_plain(hints[name], item, f"{where}.{name}")
                for name, item in value.items()
            }
        )
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and value is not None:
        # A union with a spec has only one other part, None.
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return _from_plain(parts[0], value, where) if len(parts) == 1 else value
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        item_hint = typing.get_args(hint)[0]
        return tuple(_from_plain(item_hint, item, f"{where}[{i}]") for i, item in enumerate(value))
    return value
