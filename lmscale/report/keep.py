"""Keeps the results of a finished store in a small folder, from which its page is made again.

The folder has experiment.json, results.csv, summary.json and kept.json.xz (`lmscale.sweep.kept`), the
figures that matter most as SVG, and README.md, a page about the experiment. Before it is done, everything
that the report says is made from the kept results too, and compared with that of the full store.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from lmscale.files import write_atomically, write_json
from lmscale.remote import is_remote
from lmscale.report.claims import Verdict
from lmscale.report.command import repeat_command
from lmscale.report.kept_page import chosen_charts, kept_index, kept_page
from lmscale.report.section import Section
from lmscale.report.summary import read_summary
from lmscale.report.write import Report, fits_of, read_results, summary_of
from lmscale.studies.registry import check_known
from lmscale.studies.results import WAITING, Results
from lmscale.sweep.kept import KEPT, pack
from lmscale.sweep.store import Store, StoreError
from lmscale.wording import listed, plural, statuses

__all__ = ["Kept", "keep", "write_index"]

#: Tried in turn until every number is there: decimals of the training losses (None: exactly), and whether
#: losses by position during training are kept.
_TRIED = ((4, False), (4, True), (None, False), (None, True))


@dataclass(frozen=True)
class Kept:
    """What was kept of a store.

    Attributes:
      path: the folder.
      runs: how many.
      bytes: of experiment.json, results.csv, summary.json and kept.json.xz.
      exact_curves: whether training losses are kept to the last digit, because a number needs it.
      fits, verdicts: how many were made again from the kept results, all equal.
    """

    path: epath.Path
    runs: int
    bytes: int
    exact_curves: bool
    fits: int
    verdicts: int


def keep(store: Store, folder: epath.PathLike, machine: str = "") -> Kept:
    """Writes what is kept of a store into a folder, replacing what was kept of that store before.

    Args:
      folder: made where it is missing.
      machine: what the runs were trained on, in words, for the page.

    Raises:
      StoreError: runs of the store are not finished or damaged, the folder is remote or holds another
        store, or an analysis of a user's file is not known here or fails.
    """
    if is_remote(folder):
        raise StoreError(f"results are kept in a folder of this machine, not in {folder}")
    check_known(store)
    folder, results = epath.Path(folder), Results.read(store)
    _check(store, folder, results)
    # Beside its place until it is whole: what is kept is there as a whole or not at all.
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    new.mkdir(parents=True)
    try:
        kept = _write(store, results, new, folder.name, machine)
        _replace(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return dataclasses.replace(kept, path=folder)


def _replace(folder: epath.Path, new: epath.Path) -> None:
    """Puts a folder in the place of another, whose other files are copied first; on failure the old one stays."""
    if not folder.exists():
        new.rename(folder)
        return
    # A user's own files there, and a report that was made of what was kept.
    for path in folder.iterdir():
        place = new / path.name
        if place.exists() or path.suffix == ".svg":
            continue
        if path.is_dir():
            shutil.copytree(path, place)
        else:
            shutil.copy2(path, place)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(store: Store, results: Results, folder: epath.Path, name: str, machine: str) -> Kept:
    """Writes what is kept into an empty folder; `name` is that of its later place."""
    sections, verdicts = read_results(results)
    for failure in (section.failure for section in sections if section.failure):
        raise StoreError(f"{store.path} is not kept: {failure}")
    said = _said(sections, verdicts)
    write_json(
        folder / "experiment.json", _for_anybody(results.experiment, repeat_command), sealed=True
    )
    _copy_forecasts(store, folder, name)
    runs = [run for run, _ in store.declared()]
    for decimals, positions in _TRIED:
        write_atomically(folder / KEPT, pack(runs, decimals, positions))
        there = Store.open(folder)
        again, again_verdicts = read_results(Results.read(there))
        if _said(again, again_verdicts) == said:
            break
    else:
        differ = [
            ours.name
            for ours, theirs in zip(sections, again, strict=True)
            if _said([ours], ()) != _said([theirs], ())
        ]
        raise StoreError(
            f"{store.path} is not kept: {listed(differ) or 'its verdicts'} would say another thing "
            "without the full store: it reads something that is not kept (see lmscale.sweep.kept)"
        )
    there.write_table()
    report = Report(results, sections, verdicts)
    write_json(folder / "summary.json", summary_of(folder, report), sealed=True)
    charts = chosen_charts(sections)
    for chart in charts:
        write_atomically(folder / f"{chart.name}.svg", chart.svg)
    page = kept_page(name, results, sections, verdicts, charts, machine)
    write_atomically(folder / "README.md", page)
    files = ("experiment.json", "results.csv", "summary.json", KEPT)
    return Kept(
        path=folder,
        runs=len(runs),
        bytes=sum(os.path.getsize(folder / name) for name in files),
        exact_curves=decimals is None,
        fits=sum(len(section.fits) for section in sections),
        verdicts=len(verdicts),
    )


def write_index(folder: epath.PathLike) -> epath.Path:
    """Writes FOLDER/README.md: what each experiment kept in the folder found, linked to its page."""
    folder = epath.Path(folder)
    found = []
    for path in sorted(folder.iterdir()):
        summary = read_summary(path) if (path / KEPT).exists() else None
        if summary is not None:
            found.append((path.name, summary))
    write_atomically(folder / "README.md", kept_index(found))
    return folder / "README.md"


def _check(store: Store, folder: epath.Path, results: Results) -> None:
    if damage := results.damage:
        raise StoreError(f"{store.path} has damaged files ({damage[0]}): `lmscale run` mends it")
    if not len(results.table):
        raise StoreError(f"{store.path} declares no runs")
    for verification in results.verifications:
        if verification["problem"]:
            raise StoreError(verification["problem"])
    waiting = results.table[results.table["status"].isin(WAITING)]
    if len(waiting):
        left = statuses(waiting["status"])
        raise StoreError(
            f"{store.path} is not finished ({left}): keep it when `lmscale run` is done"
        )
    if (folder / "experiment.json").exists() and not (folder / KEPT).exists():
        raise StoreError(f"{folder} is a store that trains: give another --out")
    if (folder / KEPT).exists():
        there = Store.open(folder).experiment()
        if why := _difference(there, results.experiment):
            raise StoreError(
                f"{folder} holds kept results of {why}: give another --out, or remove that folder first"
            )


def _difference(kept: dict[str, Any], store: dict[str, Any]) -> str:
    """Of what else results were kept than of a store, which may have been extended since; "" if of nothing else."""
    if kept["name"] != store["name"]:
        return kept["name"]
    texts = [values.get("corpus", {}).get("fingerprint") for values in (kept, store)]
    if texts[0] != texts[1]:
        return f"{kept['name']} on other text"
    runs = [{entry["run"] for entry in values["runs"]} for values in (kept, store)]
    if gone := len(runs[0] - runs[1]):
        return f"{kept['name']} with {plural(gone, 'run')} that the store has not"
    return ""


def _said(sections: Sequence[Section], verdicts: Sequence[Verdict]) -> list[Any]:
    """All that a page says in words and numbers; figures are drawn from the same."""
    # As text, in which every digit and the order count.
    fits = json.dumps(fits_of(sections))
    said: list[Any] = [fits, [verdict.to_json() for verdict in verdicts]]
    for section in sections:
        said += [section.finding, list(section.details), list(section.warnings)]
        # In which NaN equals NaN too.
        said += [repr(section.key_numbers), repr(section.grids), repr(section.measures)]
        said += [[(chart.name, chart.caption) for chart in section.charts]]
    return said


def _for_anybody(
    experiment: dict[str, Any], command_of: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """experiment.json without the paths of the machine that trained.

    Args:
      command_of: gives the command of an experiment that has its "command" as recorded.
    """
    values = {**experiment, "command": command_of(experiment)}
    if "declarations" in experiment:
        values["declarations"] = [
            {**one, "command": command_of({**experiment, "command": one.get("command")})}
            for one in experiment["declarations"]
        ]
    return values


def _copy_forecasts(store: Store, folder: epath.Path, name: str) -> None:
    """The forecasts of `lmscale verify` and their outcomes, without the runs that tested them."""
    for path in store.path.glob("verify/*/*.json"):
        place = folder / "verify" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        if path.name == "experiment.json":
            tested = Store.open(path.parent).experiment()
            values = _for_anybody(tested, lambda one: _verify_of(one.get("command"), name))
            write_json(place / path.name, values, sealed=True)
        else:
            # The store may be in a bucket.
            (place / path.name).write_bytes(path.read_bytes())


def _verify_of(command: object, name: str) -> str:
    """A recorded `lmscale verify`, of the kept folder in place of the store, and without the paths of its machine."""
    words = shlex.split(command) if isinstance(command, str) else []
    files = {word: epath.Path(word) for word in words if "/" in word}
    return shlex.join(
        word if word not in files else files[word].name if files[word].suffix == ".py" else name
        for word in words
    )
