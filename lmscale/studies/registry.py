"""Studies by name, from this package and from users' own files."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import shlex
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from lmscale.foreign_text import is_plain_name
from lmscale.laws import FitResult
from lmscale.studies.estimate import Estimate
from lmscale.studies.results import Results
from lmscale.sweep.store import Store, StoreError
from lmscale.user_files import source_of
from lmscale.wording import listed

__all__ = ["Findings", "check_known", "find", "names", "register"]


class Findings(Protocol):
    """What a study returns: a frozen dataclass with at least these two.

    Attributes:
      estimates: name -> number, for the claims of experiments ("STUDY/NAME").
      fits: "FAMILY/CONVENTION" -> fit; fits.json has them under "STUDY/FAMILY/CONVENTION".
    """

    @property
    def estimates(self) -> Mapping[str, Estimate]: ...

    @property
    def fits(self) -> Mapping[str, FitResult]: ...


Study = Callable[[Results], Findings]
_Study = TypeVar("_Study", bound=Study)
_PACKAGE = "lmscale.studies"
_STUDIES: dict[str, Study] = {}


def register(name: str) -> Callable[[_Study], _Study]:
    """Registers a function as the study of that name, which an experiment lists in its `analyses`.

        @studies.register("wave")
        def study(results: studies.Results) -> Wave: ...

    A file of your own is read with the experiment in it, or by `--load FILE`.

    Raises:
      ValueError: when another function has the name, or it cannot be a name.
    """
    if not (isinstance(name, str) and is_plain_name(name)):
        raise ValueError(f"a study has a name, as in @studies.register('wave'), not {name!r}")

    def add(study: _Study) -> _Study:
        ours = f"{_PACKAGE}.{name}"
        if name not in _STUDIES and study.__module__ != ours and importlib.util.find_spec(ours):
            # It registers its own study, if it has one.
            importlib.import_module(ours)
        known = _STUDIES.get(name)
        if known is not None and source_of(known) != source_of(study):
            raise ValueError(f"the name {name!r} is taken by {known.__module__}: choose another")
        _STUDIES[name] = study
        return study

    return add


def names() -> list[str]:
    """What an experiment may list in its `analyses`: every study, in alphabetical order."""
    package = importlib.import_module(_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return sorted(_STUDIES)


def find(name: str) -> Study:
    """The study of that name.

    Raises:
      KeyError: when there is none; the message lists those that there are.
    """
    if name not in _STUDIES and name not in names():
        raise KeyError(f"there is no study {name!r}; there are {', '.join(names())}")
    return _STUDIES[name]


def check_known(store: Store) -> None:
    """Raises a `StoreError` where a page would lose an analysis because its file is not loaded.

    A store without a page whose analyses are those of another version of lmscale gets one that says so.
    """
    experiment = store.experiment()
    missing = sorted(set(experiment.get("analyses", [])) - set(names()))
    files = experiment.get("needs", {}).get("files", [])
    if missing and (files or (store.path / "report.html").exists()):
        options = " ".join(f"--load {shlex.quote(path)}" for path in files) or "--load FILE.py"
        raise StoreError(
            f"{store.path} has the {'analysis' if len(missing) == 1 else 'analyses'} "
            f"{listed([repr(one) for one in missing])}, known when the file is loaded: add {options} to "
            "the command"
        )
