"""EXPERIMENT, --scale, --data, and an option for every field of the experiment: of `run` and `plan`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmscale.cli.argument_types import NONE, field_value
from lmscale.cli.config_file import Config, field_values, is_config, read_config
from lmscale.cli.parser import Parser

__all__ = ["add_experiment", "chosen_experiments", "config_lines"]


def add_experiment(
    parser: Parser, words: Sequence[str], add_options: Callable[[Parser], None]
) -> None:
    """Declares EXPERIMENT, --scale and --data, the command's options, and the fields of the experiment in `words`.

    Args:
      words: the command line after the command.
      add_options: declares the options that the command has for every experiment. The first look at `words`
        must know which of them take values, or it would take the value of one for EXPERIMENT.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    name = parser.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="a name, a .py file, a .yaml file as --print-config prints it, a folder of .py files, or all",
    )
    name.completer = _names_for_shell  # type: ignore[attr-defined]  # of argcomplete
    parser.set_defaults(many=[], files={})
    parser.add_argument("--scale", default="cpu", help="cpu, gpu, paper; some have cpu-hour")
    parser.add_argument("--data", metavar="CORPUS", default="installed-python")
    add_options(parser)
    named, scale = _named(parser.prog, words, add_options)
    if named is not None and is_config(named):
        config = read_config(named)
        parser.set_defaults(scale=config.scale, data=config.data)
        if scale not in (None, config.scale):
            parser.error(f"{named} is of the scale {config.scale}: leave --scale out")
        _add_fields(parser, config.experiment, config.scale, config)
        return
    scale = scale or "cpu"
    if named is None:
        from lmscale.sweep.experiment import experiment_names

        parser.epilog = "experiments: " + ", ".join(experiment_names())
    elif named == "all" or Path(named).is_dir():
        parser.description = "Runs every experiment, the cheapest first, and links their reports."
        files, found = _experiments_in(named, scale)
        parser.set_defaults(many=found, files=files)
    else:
        _add_fields(parser, named, scale)


def _names_for_shell(prefix: str, **_: Any) -> list[str]:
    """The experiments that come with lmscale, and the files and folders that are here."""
    from lmscale.sweep.experiment import experiment_names

    here = [path.name for path in Path.cwd().iterdir() if path.is_dir() or path.suffix == ".py"]
    return [*experiment_names(), "all", *here]


def _named(
    prog: str, words: Sequence[str], add_options: Callable[[Parser], None]
) -> tuple[str | None, str | None]:
    """EXPERIMENT and --scale as far as they are given, which decide what else may be given."""
    first_look = Parser(prog=prog, add_help=False)
    first_look.keeps_unknown = True
    first_look.add_argument("experiment", nargs="?")
    first_look.add_argument("--scale")
    first_look.add_argument("--data")
    add_options(first_look)
    known = first_look.parse_args([word for word in words if word not in ("-h", "--help")])
    return known.experiment, known.scale


def _add_fields(parser: Parser, named: str, scale: str, config: Config | None = None) -> None:
    """An option for each field of one experiment, with the value of a configuration file as default."""
    from lmscale.sweep.experiment import ExperimentError, field_types, is_optional, load_scales

    name, doc, scales = load_scales(named)
    if scale not in scales:
        raise ExperimentError(f"{name} has no scale {scale!r}: choose from {', '.join(scales)}")
    experiment = scales[scale]
    parser.description = doc
    parser.set_defaults(loaded=(name, experiment), files={name: named})
    group = parser.add_argument_group(f"fields of {name} at scale {scale}")
    helps = _helps(experiment)
    if config is not None:
        values = field_values(config, experiment)
        parser.set_defaults(**{f"field_{field}": value for field, value in values.items()})
    for field, (kind, many) in field_types(experiment).items():
        default = getattr(experiment, field)
        flag, dest = f"--{field.replace('_', '-')}", f"field_{field}"
        if kind is bool and not many and not is_optional(experiment, field):
            text = f"{helps[field]} [{'yes' if default else 'no'}]".strip().replace("%", "%%")
            group.add_argument(flag, dest=dest, action=argparse.BooleanOptionalAction, help=text)
            continue
        shown = (
            " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in default)
            if many
            else default
        )
        group.add_argument(
            flag,
            dest=dest,
            type=field_value(kind, is_optional(experiment, field)),
            nargs="+" if many else None,
            metavar=kind.__name__.upper(),
            help=f"{helps[field]} [{shown}]".strip().replace("%", "%%"),
        )


def _helps(experiment: Any) -> dict[str, str]:
    return {field.name: field.metadata.get("help", "") for field in dataclasses.fields(experiment)}


def _experiments_in(folder: str, scale: str) -> tuple[dict[str, str], list[tuple[str, Any]]]:
    """The experiments of lmscale ("all") or of a folder that have this scale, and by name what loads them."""
    from lmscale.sweep.experiment import ExperimentError, experiment_names, load_scales

    files = sorted(str(file) for file in Path(folder).glob("[!_]*.py"))
    names, found = {}, []
    for file in experiment_names() if folder == "all" else files:
        name, _, scales = load_scales(file)
        if scale in scales:
            found.append((name, scales[scale]))
            names[name] = file
    if not found:
        raise ExperimentError(f"{folder} holds no experiment with a scale {scale!r}")
    return names, found


def chosen_experiments(args: argparse.Namespace) -> list[tuple[str, Any]]:
    """Names and experiments: one with the user's overrides, or many as they are.

    Raises:
      ExperimentError: an override is not a value of its field; names the option.
    """
    if args.many:
        return args.many
    from lmscale.sweep.fields import ExperimentError, FieldError
    from lmscale.user_files import told_by

    name, experiment = args.loaded
    changes = {
        key.removeprefix("field_"): (
            tuple(value) if isinstance(value, list) else None if value is NONE else value
        )
        for key, value in vars(args).items()
        if key.startswith("field_") and value is not None
    }
    try:
        with told_by(ExperimentError, type(experiment)):
            return [(name, dataclasses.replace(experiment, **changes))]
    except FieldError as error:
        flag = f"--{error.field.replace('_', '-')}"
        raise ExperimentError(f"{flag} {error.fault}") from error


def config_lines(name: str, experiment: Any, args: argparse.Namespace) -> list[str]:
    """An experiment as a YAML document: each field with its value, under its help as a comment."""
    lines = [f"# {experiment.title}"] if experiment.title else []
    heads = (
        ("experiment", args.files[name]),
        ("scale", args.scale),
        ("data", args.data),
    )
    lines += [f"{key}: {_yaml(value)}" for key, value in heads]
    lines.append("fields:")
    for field, text in _helps(experiment).items():
        if text:
            lines.append(f"  # {text}")
        lines.append(f"  {field}: {_yaml(getattr(experiment, field))}")
    return lines


def _yaml(value: Any) -> str:
    """A scalar or a list of scalars in YAML's notation, which is JSON's but for large floats."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        return "".join(map(_yaml_character, json.dumps(value, ensure_ascii=False)))
    text = json.dumps(value)
    # YAML 1.1 reads 1e+16 as text and 1.0e+16 as a number.
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def _yaml_character(char: str) -> str:
    """A character of a quoted text. YAML forbids or folds some, and joins no halves of a pair, as JSON does."""
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
