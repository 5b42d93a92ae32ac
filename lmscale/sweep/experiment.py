"""An experiment is a declaration: a list of runs, and the analyses that read them.

An experiment file holds a frozen dataclass that derives from `Experiment`, whose fields are what a
user may override on the command line, and `SCALES`, which names its instances:

    SCALES = {"cpu": IsoFLOP(...), "gpu": IsoFLOP(...), "paper": IsoFLOP(...)}
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lmscale.data import Corpus, evaluation_corpus
from lmscale.spec import DataSpec, EvalSpec, RunSpec
from lmscale.sweep.changed_recipe import KEYS, read_recipe
from lmscale.sweep.claims import Claim
from lmscale.sweep.fields import BOUNDS, Bounds, ExperimentError, FieldError, check_value, short
from lmscale.user_files import load_file, told_by
from lmscale.wording import suggestion

#: The package as which the folder experiments/ is installed.
PACKAGE = "lmscale_experiments"


@dataclass(frozen=True)
class Run:
    """A run and its place in the experiment.

    `labels` are the columns that the analyses group by: `family` (the curve it belongs to), `budget`
    (FLOPs), `lr_factor` (its place in a learning-rate search), and so on.
    """

    spec: RunSpec
    labels: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Base of all experiments.

    A field's metadata may hold its "help", and its "bounds" where those of `lmscale.sweep.fields` for a
    field of this name do not fit.

    Raises:
      FieldError: when a field is of another type, or outside its bounds.
    """

    #: One line, shown in the report.
    title: ClassVar[str] = ""
    #: Names of the analyses of `lmscale.report` that read the results, in the order of the page.
    analyses: ClassVar[tuple[str, ...]] = ()
    #: What the paper found; the report opens with a verdict on each.
    claims: ClassVar[tuple[Claim, ...]] = ()

    #: Whether it studies repeated or little text, so that many epochs need no warning.
    repeats_text: ClassVar[bool] = False

    vocab_size: int = dataclasses.field(
        default=4096, metadata={"help": "vocabulary of the built-in corpus (others bring theirs)"}
    )
    seeds: tuple[int, ...] = dataclasses.field(
        default=(0,), metadata={"help": "every cell is trained once per seed"}
    )
    eval_tokens: int = dataclasses.field(
        default=65_536, metadata={"help": "tokens of the evaluation set"}
    )
    eval: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata={
            "help": "more evaluation sets, NAME=CORPUS each, in the tokens of the training corpus"
        },
    )
    mask_documents: bool = dataclasses.field(
        default=False,
        metadata={
            "help": "a token sees only its own document; otherwise a window of several is seen as one text"
        },
    )

    recipe: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata={
            "help": "KEY=VALUE of every run, in place of what the experiment sets: "
            + ", ".join(KEYS)
        },
    )

    def __post_init__(self) -> None:
        for name, (kind, many) in field_types(self).items():
            value = getattr(self, name)
            if value is None and is_optional(self, name):
                continue
            if fault := check_value(value, kind, many, bounds_of(self, name)):
                raise self.wrong(name, fault)
        self._check_eval()
        try:
            read_recipe(self.recipe)
        except ValueError as error:
            raise self.wrong("recipe", str(error)) from error
        self.check()

    def check(self) -> None:
        """Raises `self.wrong(field, fault)` where the fields do not go together."""

    def wrong(self, field: str, fault: str) -> FieldError:
        """The error for a field. `fault` completes the sentence that begins with the field's name: "must be ..."."""
        return FieldError(type(self).__name__, field, fault)

    def runs(self, corpus: Corpus) -> list[Run]:
        """The runs, on a corpus that the user chooses."""
        raise NotImplementedError

    def data(self, corpus: Corpus, **fields: Any) -> DataSpec:
        return DataSpec(corpus=corpus.name, fingerprint=corpus.fingerprint, **fields)

    def evals(self, corpus: Corpus) -> tuple[EvalSpec, ...]:
        """Held-out documents of the training corpus, and the sets that `eval` names.

        Raises:
          DataError: when a named corpus is not there, or has another tokeniser than the training corpus.
        """
        return (
            EvalSpec(
                name="valid",
                corpus=corpus.name,
                fingerprint=corpus.fingerprint,
                tokens=self.eval_tokens,
                sampling="spread",
            ),
            *(self._named_eval(entry, corpus) for entry in self.eval),
        )

    def _named_eval(self, entry: str, training: Corpus) -> EvalSpec:
        """The evaluation set NAME=CORPUS: of its validation text, or of its test text where it has none."""
        name, _, other = entry.partition("=")
        corpus = evaluation_corpus(other, training)
        return EvalSpec(
            name=name,
            corpus=corpus.name,
            fingerprint=corpus.fingerprint,
            split="valid" if corpus.n_tokens("valid") else "test",
            tokens=self.eval_tokens,
            sampling="spread",
        )

    def _check_eval(self) -> None:
        names = [entry.partition("=")[0] for entry in self.eval]
        for entry, name in zip(self.eval, names, strict=True):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}=.+", entry):
                raise self.wrong(
                    "eval", f"must be NAME=CORPUS, such as wiki=wiki-test, not {entry!r}"
                )
            if name == "valid":
                raise self.wrong(
                    "eval", "must not name a set valid: that is of the training corpus"
                )
            if names.count(name) > 1:
                raise self.wrong("eval", f"names two sets {name}: give each a name of its own")


def experiment_names() -> list[str]:
    """The experiments that come with lmscale."""
    package = importlib.import_module(PACKAGE)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_scales(name: str) -> tuple[str, str, dict[str, Experiment]]:
    """The experiment of a file or of a module in experiments/: its name, docstring and scales.

    Raises:
      ExperimentError: when there is none, or it declares no scales.
      UserFileError: when the file cannot be loaded.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise ExperimentError(f"there is no experiment file {name}")
        module, short = load_file(path), path.stem
    else:
        names = experiment_names()
        if name not in names:
            hint = suggestion(name, names)
            raise ExperimentError(f"there is no experiment {name!r}: {hint} (or give a .py file)")
        module = importlib.import_module(f"{PACKAGE}.{name}")
        short = name
    scales = getattr(module, "SCALES", None)
    if not isinstance(scales, dict) or not scales:
        raise ExperimentError(f"{name} declares no SCALES: a dictionary of scale to experiment")
    for scale, experiment in scales.items():
        with told_by(ExperimentError, type(experiment)):
            _check_declared(f"{name}: SCALES[{scale!r}]", experiment)
    return short, module.__doc__ or "", scales


def _check_declared(where: str, experiment: Any) -> None:
    """Raises an `ExperimentError` where a scale is no experiment that can be run."""
    if isinstance(experiment, type):
        raise ExperimentError(
            f"{where} is the class {experiment.__name__}, not an experiment: write {experiment.__name__}()"
        )
    if not isinstance(experiment, Experiment):
        raise ExperimentError(
            f"{where} is a {type(experiment).__name__}: it must be an instance of a class that derives "
            "from lmscale.sweep.Experiment"
        )
    cls = type(experiment)
    if cls.runs is Experiment.runs:
        raise ExperimentError(f"{where}: {cls.__name__} has no method runs(self, corpus)")
    _check_fields(cls)
    for what, kind in (("analyses", str), ("claims", Claim)):
        items = getattr(experiment, what)
        if not isinstance(items, (tuple, list)) or not all(isinstance(x, kind) for x in items):
            wanted = (
                'names, such as ("curves",)'
                if kind is str
                else "finding(..) and published_number(..)"
            )
            raise ExperimentError(
                f"{where}: {cls.__name__}.{what} must be a tuple of {wanted}, not {short(items)}"
            )
    for claim in experiment.claims:
        study = claim.measure.split("/")[0]
        if study not in experiment.analyses and study != "forecast":
            raise ExperimentError(
                f"{where}: a claim is held against {claim.measure}, and {study} is not among the analyses "
                f"({', '.join(experiment.analyses) or 'none'})"
            )


def _check_fields(cls: type[Experiment]) -> None:
    """Raises an `ExperimentError` where what looks like a field of the class is none."""
    fields = {field.name for field in dataclasses.fields(cls)}
    for owner in cls.__mro__[: cls.__mro__.index(Experiment)]:
        hints = inspect.get_annotations(owner)
        for name, hint in hints.items():
            if name not in fields and "ClassVar" not in str(hint):
                raise ExperimentError(
                    f"{owner.__name__}.{name} is no field: write @dataclass(frozen=True, kw_only=True) above "
                    f"class {owner.__name__}"
                )
        for name in fields & vars(owner).keys() - hints.keys():
            raise ExperimentError(
                f"{owner.__name__}.{name} sets a field without its type: write {name}: TYPE = ..., or it is "
                "left out"
            )


def field_types(experiment: Experiment) -> dict[str, tuple[type, bool]]:
    """For every field that can be overridden: the type of its values, and whether it is a list."""
    return _field_types(type(experiment))


def bounds_of(experiment: Experiment, name: str) -> Bounds:
    """The bounds of a field: those in its metadata, else those of its name."""
    (found,) = [field for field in dataclasses.fields(experiment) if field.name == name]
    return found.metadata.get("bounds") or BOUNDS.get(name, Bounds())


def is_optional(experiment: Experiment, field: str) -> bool:
    """Whether a field can be None."""
    return type(None) in typing.get_args(_hints(type(experiment))[field])


#: Class -> the types of its fields, which take time to find.
_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type[Experiment]) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _field_types(cls: type[Experiment]) -> dict[str, tuple[type, bool]]:
    found = {}
    for field in dataclasses.fields(cls):
        hint = _hints(cls)[field.name]
        kind, many = _value_type(hint)
        if kind not in (int, float, str, bool):
            said = hint.__name__ if type(hint) is type else hint
            raise ExperimentError(
                f"{cls.__name__}.{field.name} has the type {said}: a field is an int, a float, a str, a "
                "bool, a tuple[int, ...] of one of these, or one of these or None"
            )
        found[field.name] = (kind, many)
    return found


def _value_type(hint: Any) -> tuple[Any, bool]:
    """The type of a field's values, and whether it is a list; None for what cannot be a field."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        members = [one for one in typing.get_args(hint) if one is not type(None)]
        return _value_type(members[0]) if len(members) == 1 else (None, False)
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False
