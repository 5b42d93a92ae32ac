"""An experiment on its corpus: its runs, its store, and what to say of them before they are trained.

`run` and `plan` share this, so that a plan says what the run will do.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmscale.cli.errors import CommandError
from lmscale.cli.places import open_corpus
from lmscale.terminal import plural

__all__ = [
    "Declared",
    "badly_centered_lines",
    "declare",
    "default_store_name",
    "earlier_store",
    "plan_line",
    "prior_source",
    "refusal",
    "repeated_text",
]


class Declared(NamedTuple):
    """An experiment on its corpus; `lines` say what its grid leaves out and cannot support."""

    name: str
    experiment: Any
    corpus: Any
    runs: list[Any]
    lines: list[str]


def declare(args: argparse.Namespace, name: str, experiment: Any) -> Declared:
    """The runs of an experiment on the corpus that --data names, which is built if need be.

    Raises:
      DataError: there is no such corpus, or one has less text than one context of a run.
      ExperimentError: the experiment of a user's file names an analysis that there is not.
      SpecError: the architecture of a user's file cannot be trained.
    """
    _check_analyses(name, experiment)
    from lmscale.sweep.dropped import declared_runs
    from lmscale.sweep.enough_text import check_enough_text
    from lmscale.sweep.support import unsupported

    corpus = open_corpus(args.data, experiment.vocab_size)
    runs, dropped = declared_runs(name, experiment, corpus)
    check_enough_text(
        (run.spec for run in runs), corpus, lambda name: open_corpus(name, experiment.vocab_size)
    )
    lines = [*dropped, *unsupported(experiment.analyses, runs), *_wrong_counts(runs)]
    return Declared(name, experiment, corpus, runs, lines)


def _wrong_counts(runs: Sequence[Any]) -> list[str]:
    """Checks the architectures of users' files; a line for each that counts itself wrongly."""
    first = {type(run.spec.model): run.spec.model for run in reversed(runs)}
    own = [model for cls, model in first.items() if not cls.__module__.startswith("lmscale.")]
    if not own:
        return []
    from lmscale.training.check_model import check_model

    return [line for model in own for line in check_model(model)]


def _check_analyses(name: str, experiment: Any) -> None:
    from lmscale.sweep.fields import ExperimentError
    from lmscale.user_files import file_of

    if file_of(type(experiment)) is None:
        # A test looks at those of lmscale, whose studies take seconds to import.
        return
    from lmscale import studies

    known = studies.names()
    for analysis in experiment.analyses:
        if analysis not in known:
            close = difflib.get_close_matches(analysis, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ExperimentError(
                f"{name} names an analysis {analysis!r}, which is none: {hint} (one of your own is known when "
                "its file is loaded: add --load FILE.py)"
            )


def default_store_name(args: argparse.Namespace, name: str, experiment: Any) -> str:
    """The name of an experiment's folder, if the user gives none."""
    from lmscale.sweep.declaration import default_folder

    shipped = experiment if args.many else args.loaded[1]
    return default_folder(name, args.scale, experiment, shipped, args.data)


def refusal(args: argparse.Namespace, declared: Declared, store: Any) -> str | None:
    """Why a store does not take these runs, in a line, or None if it does."""
    from lmscale.sweep.declaration import Declaration

    name, experiment, corpus, runs, _ = declared
    here = Declaration.of(name, args.scale, experiment, corpus, runs)
    return store.refusal(here, args.extend)


def prior_source(prior: str | None) -> Any:
    """What --prior names: a store, a published law by its name, or None.

    Raises:
      CommandError: it is neither.
      StoreError: the folder is no store, or cannot be reached.
    """
    from lmscale import laws
    from lmscale.sweep.store import Store

    if prior is None or prior in laws.PUBLISHED:
        return prior
    # A path of a bucket is no path of `pathlib`, which takes one slash out of s3://.
    if not Store(prior).path.is_dir():
        raise CommandError(
            f"--prior {prior} is neither a folder nor a published law ({', '.join(laws.PUBLISHED)})"
        )
    return Store.open(prior)


def earlier_store(args: argparse.Namespace, name: str, store: Any) -> Any:
    """The store whose results tell where minima are: its own, or that of the experiment as shipped."""
    from lmscale.sweep.store import Store

    return store if store.holds_experiment() else Store(Path("results") / f"{name}-{args.scale}")


def badly_centered_lines(prior: Any, runs: list[Any], earlier: Any) -> list[str]:
    """A line for each badly centred budget of an isoflop grid."""
    if all("budget" not in run.labels for run in runs):
        return []
    from lmscale.sweep.centering import badly_centered

    return badly_centered(runs, prior, earlier)


def repeated_text(declared: Declared) -> tuple[Any, str | None]:
    """How often the runs pass over their text, and a line where that is too often."""
    from lmscale.sweep.epochs import epochs_of_specs

    corpus = declared.corpus
    epochs = epochs_of_specs((run.spec for run in declared.runs), corpus.n_tokens("train"))
    return epochs, epochs.line(corpus.name, declared.experiment.repeats_text)


def plan_line(plan: Any) -> str:
    """A plan in a line: runs, packs, FLOPs, time and devices."""
    hours = plan.seconds / 3600
    time = f"{hours:.1f} h" if hours >= 1 else f"{plan.seconds / 60:.1f} min"
    return (
        f"{plural(plan.n_runs, 'run')} in {plural(len(plan.packs), 'pack')}, {plan.flops:.3g} FLOPs, "
        f"about {time} on {plan.devices.count} x {plan.devices.kind}"
    )
