"""Studies by name, from this package and from users' own files."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from lmscale.laws import FitResult
from lmscale.studies.estimate import Estimate
from lmscale.studies.results import Results

__all__ = ["Findings", "find", "names", "register"]


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
_STUDIES: dict[str, Study] = {}


def register(name: str) -> Callable[[_Study], _Study]:
    """Registers a function as the study of that name, which an experiment lists in its `analyses`.

        @studies.register("wave")
        def study(results: studies.Results) -> Wave: ...

    A file of your own is read with the experiment in it, or by `--load FILE`.

    Raises:
      ValueError: when another function has the name.
    """

    def add(study: _Study) -> _Study:
        known = _STUDIES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (
            study.__module__,
            study.__qualname__,
        ):
            raise ValueError(f"the name {name!r} is taken by {known.__module__}: choose another")
        _STUDIES[name] = study
        return study

    return add


def names() -> list[str]:
    """What an experiment may list in its `analyses`: every study, in alphabetical order."""
    package = importlib.import_module("lmscale.studies")
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
