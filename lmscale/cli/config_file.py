"""The file that `lmscale run EXPERIMENT --print-config` prints, read as the experiment that it is.

lmscale run isoflop --budgets 1e11 4e11 --print-config > mine.yaml
lmscale run mine.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from lmscale.cli.argument_types import field_value
from lmscale.cli.errors import CommandError
from lmscale.serialize import short
from lmscale.wording import suggestion

__all__ = ["Config", "field_values", "is_config", "read_config"]

_KEYS = ("experiment", "scale", "data", "fields")
#: A configuration of an experiment has a few kB.
_MOST_BYTES = 2**20


class Config(NamedTuple):
    """What a file says. `experiment` may be a .py file; `fields` are as YAML has them."""

    path: str
    experiment: str
    scale: str
    data: str
    fields: dict[str, Any]


def is_config(named: str) -> bool:
    """Whether EXPERIMENT names such a file."""
    return Path(named).suffix in (".yaml", ".yml")


def read_config(path: str) -> Config:
    """The configuration in a file; what it leaves out is as on the command line.

    Raises:
      CommandError: there is no file, or it is no configuration of one experiment.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise CommandError(f"{path} cannot be read: {why}") from error
    if len(text) > _MOST_BYTES:
        raise CommandError(f"{path} has more than a MiB: it is no configuration")
    documents = _documents(path, text)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise CommandError(
            f"{path} must hold one experiment, as lmscale run EXPERIMENT --print-config prints it"
        )
    found = documents[0]
    for key in found:
        _check_known(path, key, _KEYS)
    experiment = _name(path, "experiment", found.get("experiment"))
    scale = _name(path, "scale", found.get("scale", "cpu"))
    data = _name(path, "data", found.get("data", "installed-python"))
    fields = found.get("fields") or {}
    if not isinstance(fields, dict):
        raise CommandError(f"{path}: fields must be a list of NAME: VALUE, indented")
    return Config(path, experiment, scale, data, fields)


def _documents(path: str, text: str) -> list[Any]:
    """The documents of a YAML file.

    Raises:
      CommandError: it is no YAML, or gives a key twice, of which `yaml` would take the last.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            known = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in known:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"{key.value!r} is given twice", key.start_mark
                        )
                    known.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        return list(yaml.load_all(text, Loader))
    # Of a date or a number that there is not, and of a value that is not what its tag says, `yaml` raises
    # whatever Python's own functions do.
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f", line {line + 1}"
        raise CommandError(
            f"{path}{where} is no YAML: {getattr(error, 'problem', error)}"
        ) from None


def _name(path: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise CommandError(f"{path}: {key} must be a name, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value for a message."""
    try:
        return short(value)
    except ValueError:  # Python prints no list of integers of thousands of digits either.
        return f"this {type(value).__name__}"


def _check_known(path: str, key: Any, known: Any) -> None:
    if key not in known:
        raise CommandError(
            f"{path} has no use for {_shown(key)}: {suggestion(key if isinstance(key, str) else '', known)}"
        )


def field_values(config: Config, experiment: Any) -> dict[str, Any]:
    """The values of an experiment's fields in a file, as the command line gives them.

    Returns:
      By field: a value, a list of values, or `lmscale.cli.argument_types.NONE`.

    Raises:
      CommandError: a field is none of the experiment's, or its value is of another kind.
    """
    from lmscale.sweep.experiment import field_types, is_optional

    types = field_types(experiment)
    found: dict[str, Any] = {}
    for field, value in config.fields.items():
        _check_known(config.path, field, types)
        kind, many = types[field]
        if many != isinstance(value, list):
            wanted = "a list, as [1, 2]" if many else "one value"
            raise CommandError(f"{config.path}: {field} must be {wanted}, not {_shown(value)}")
        parse = field_value(kind, is_optional(experiment, field))
        try:
            items = [_parsed(parse, item) for item in (value if many else [value])]
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            fault = (
                error if isinstance(error, argparse.ArgumentTypeError) else f"not {_shown(value)}"
            )
            name = {int: "whole number", float: "number"}.get(kind, kind.__name__)
            said = fault if fault is error else f"takes a {name}, {fault}"
            raise CommandError(f"{config.path}: {field} {said}") from None
        found[field] = items if many else items[0]
    return found


def _parsed(parse: Any, value: Any) -> Any:
    """A scalar of YAML by the parser of the command line: YAML 1.1 takes 2e10 for a text."""
    if value is None:
        return parse("none")
    if not isinstance(value, (str, int, float)):
        raise TypeError
    return parse(repr(value) if isinstance(value, float) else str(value))
