"""The options of each law, read from its fit function: names, types, defaults and meanings.

A command line gives their values as text. This module knows no law: a new keyword argument of a fit
function is an option as soon as it is written.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from lmscale.laws.result import FitError

__all__ = ["Option", "check_options", "options_of", "parse_option", "unknown_option"]

#: Arguments of every fit, which are not options of a law.
_COMMON = ("table", "columns", "bootstrap", "redrawn", "level", "seed")
#: Names that `lmscale fit` and `lmscale.fit` have for themselves.
_TAKEN = (
    *(
        "at",
        "cells",
        "convention",
        "help",
        "json",
        "law",
        "load",
        "split",
        "where",
        "source",
        "share",
    ),
    *("options", "laws"),
)

#: The words of help texts for types, and what they mean.
_SAID = {
    "NUMBER": "a number of at least 0",
    "COUNT": "a whole number of at least 1",
    "NAME": "a name",
    "NAME,..": "names with commas between them",
    "NAME=NUMBER,..": "NAME=NUMBER with commas between them",
}


@dataclass(frozen=True)
class Option:
    """One keyword argument of a fit function.

    `kind` is its type, `meaning` its entry in the docstring, which may be empty.
    """

    law: str
    name: str
    kind: Any
    default: Any
    meaning: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone turns it on."""
        return self.kind is bool and self.default is False

    @property
    def choices(self) -> str:
        """The values that it accepts, in words."""
        return "|".join(dict.fromkeys(_words(self.kind)))


def options_of(law: Any) -> dict[str, Option]:
    """Name -> option of a `Law`, for the options whose values can be written as text."""
    hints = typing.get_type_hints(law.fit)
    meanings = _meanings(inspect.getdoc(law.fit) or "")
    found = {}
    for name, parameter in inspect.signature(law.fit).parameters.items():
        if name in _COMMON or parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        option = Option(law.name, name, hints[name], parameter.default, meanings.get(name, ""))
        if option.choices:
            found[name] = option
    return found


def check_options(law: Any) -> None:
    """Raises a `FitError` where a fit function cannot be called, or an option has no type or default."""
    parameters = inspect.signature(law.fit).parameters
    hints = typing.get_type_hints(law.fit)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name in ("bootstrap", "level", "seed"):
        if name not in parameters and not takes_any:
            raise FitError(f"the fit of the law {law.name} lacks the keyword argument {name}")
    for place, (name, parameter) in enumerate(parameters.items()):
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in _COMMON:
            continue
        if parameter.kind is not parameter.KEYWORD_ONLY:
            if place and parameter.default is parameter.empty:
                raise FitError(
                    f"the fit of the law {law.name} takes one table, and options after a *: {name} is neither"
                )
            continue
        if name in _TAKEN:
            raise FitError(
                f"the option {name} of the law {law.name} has a name that `lmscale fit` has itself: choose "
                "another"
            )
        lacks = [
            what
            for what, is_there in (
                ("a type hint", name in hints),
                ("a default", parameter.default is not parameter.empty),
            )
            if not is_there
        ]
        if lacks:
            raise FitError(
                f"the option {name} of the law {law.name} lacks {' and '.join(lacks)}: write "
                f"{name}: int | None = None, or another type and default"
            )


def parse_option(option: Option, text: str) -> Any:
    """The value that `text` means.

    Raises:
      FitError: the text is not of the option's type; one line that says what would be right.
    """
    for member in _members(option.kind):
        try:
            return _convert(member, text.strip())
        except ValueError:
            continue
    right = " or ".join(_SAID.get(word, word) for word in option.choices.split("|"))
    raise FitError(f"{option.flag} of {option.law} must be {right}, not {text!r}")


def unknown_option(flag: str, laws: Sequence[Any]) -> str:
    """The error for a flag that none of these laws has."""
    own = {law.name: [option.flag for option in options_of(law).values()] for law in laws}
    close = difflib.get_close_matches(flag, sorted({f for flags in own.values() for f in flags}))
    hint = f": did you mean {' or '.join(close)}?" if close else ""
    takes = "; ".join(f"{name} takes {', '.join(flags) or 'none'}" for name, flags in own.items())
    return f"there is no option {flag or repr(flag)} for {', '.join(own)}{hint} ({takes})"


def _members(kind: Any) -> list[Any]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        return [part for member in typing.get_args(kind) for part in _members(member)]
    return [kind]


def _words(kind: Any) -> list[str]:
    """The text form of each part of a type; a part without a text form has none."""
    words = []
    for member in _members(kind):
        origin = typing.get_origin(member)
        if origin is Literal:
            words += [str(value) for value in typing.get_args(member)]
        elif origin is tuple and set(typing.get_args(member)) == {float}:
            words.append(",".join(["NUMBER"] * len(typing.get_args(member))))
        elif origin is Sequence:
            words.append("NAME,..")
        elif origin is Mapping:
            words.append("NAME=NUMBER,..")
        else:
            plain = {bool: "true|false", int: "COUNT", float: "NUMBER", str: "NAME"}
            plain[type(None)] = "none"
            words += [plain[member]] if member in plain else []
    return words


def _convert(member: Any, text: str) -> Any:
    """`text` as one member of a union; ValueError if it is not of that type."""
    origin, arguments = typing.get_origin(member), typing.get_args(member)
    if origin is Literal:
        by_text = {str(value): value for value in arguments}
        if text not in by_text:
            raise ValueError
        return by_text[text]
    if member is type(None) or member is bool:
        known = {"none": None} if member is not bool else {"true": True, "false": False}
        if text.lower() not in known:
            raise ValueError
        return known[text.lower()]
    if member is str:
        # Text with = is for a member of the union that is a mapping.
        if "=" in text or not text:
            raise ValueError
        return text
    if member is int:
        value = float(text)
        if not (value.is_integer() and value >= 1):
            raise ValueError
        return int(value)
    if member is float:
        value = float(text)
        # No option of a law has a sign: they are tolerances, widths, factors and noise.
        if not (math.isfinite(value) and value >= 0):
            raise ValueError
        return value
    items = [item.strip() for item in text.split(",")]
    if origin is tuple and set(arguments) == {float} and len(items) == len(arguments):
        return tuple(float(item) for item in items)
    if origin is Sequence and all(items):
        return tuple(items)
    if origin is Mapping:
        pairs = [item.split("=") for item in items]
        if all(len(pair) == 2 for pair in pairs):
            return {name.strip(): float(value) for name, value in pairs}
    raise ValueError


def _meanings(doc: str) -> dict[str, str]:
    """Name -> text of the entries under Args: of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?:^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(
        r"^  (\w+(?:, \w+)*): (.*?)(?=^  \w|\Z)", section[1], re.DOTALL | re.MULTILINE
    )
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
