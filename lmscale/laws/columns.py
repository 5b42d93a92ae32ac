"""The meaning of the columns of a table: common names, the user's mapping, counting conventions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from lmscale.laws.errors import TableError
from lmscale.laws.repeats import SETTINGS

__all__ = [
    "COLUMNS",
    "CONVENTIONS",
    "LABELS",
    "find_columns",
    "find_settings",
    "is_results",
    "mixed_conventions",
    "parse_mapping",
    "results_mapping",
    "suggested_mapping",
]

#: Columns of positive numbers, each with other names under which it is recognised.
COLUMNS: dict[str, tuple[str, ...]] = {
    "params": ("n_params", "N", "parameters", "model_size"),
    "tokens": ("n_tokens", "D", "training_tokens"),
    "flops": ("C", "compute", "training_flop", "training_flops"),
    "loss": ("L", "final_loss", "test_loss", "val_loss"),
    "unique_tokens": ("U", "unique"),
    "steps": ("S", "n_steps", "step"),
    "batch_tokens": ("B", "batch"),
    "position": ("T", "token_index"),
    "weight": (),
}

#: Columns of labels, which are not converted.
LABELS: dict[str, tuple[str, ...]] = {
    "group": ("family", "model"),
    "seed": (),
    "budget": ("flops_budget",),
}

#: How params and flops can be counted (`lmscale.flops`); results have columns for each.
CONVENTIONS = ("kaplan", "chinchilla", "standard", "exact")
#: The convention of budgets, and the default for reading results.
_NATIVE = "standard"

#: A part of a mapping: anything up to a comma; commas in quotes do not count.
_PIECE = re.compile(r"""(?:"[^"]*"|'[^']*'|[^,"'])+""")
_SCALED = re.compile(r"(.+?)\s*\*\s*([0-9][0-9_.]*(?:[eE][+-]?\d+)?)")


def parse_mapping(columns: Mapping[str, str] | Sequence[str] | str | None) -> dict[str, str]:
    """Our name -> the source's name, from "params=COL,loss=COL" or several of these.

    A part without = belongs to the name before it, so a single comma in a name needs no quotes.

    Raises:
      TableError: the text has another form, or one of our names does not exist.
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        texts = [columns] if isinstance(columns, str) else columns
        columns = {ours: theirs for text in texts for ours, theirs in _parse_text(text).items()}
    known = [*COLUMNS, *LABELS, *SETTINGS]
    for ours in columns:
        if ours not in known:
            raise TableError(
                f"there is no column {ours!r} to map; choose from {', '.join(dict.fromkeys(known))}"
            )
    return dict(columns)


def _parse_text(text: str) -> dict[str, str]:
    wrong = TableError(
        f"--columns must read params=COL,tokens=COL,..., not {text!r} (a name with commas or = "
        f'stands in quotes: params="N, total")'
    )
    pairs: list[list[str]] = []
    for piece in _PIECE.findall(text):
        if not piece.strip():
            continue
        ours, equals, theirs = piece.partition("=")
        if equals and not re.search("[\"']", ours):
            pairs.append([ours.strip(), theirs])
        elif pairs:
            pairs[-1][1] += f",{piece}"
        else:
            raise wrong
    found = {}
    for ours, theirs in pairs:
        name = theirs.strip()
        if len(name) > 1 and name[0] in "\"'" and name.count(name[0]) == 2:
            inner, _, rest = name[1:].partition(name[0])
            name = inner + rest
        if not name:
            raise wrong
        found[ours] = name
    return found


def find_columns(
    mapping: Mapping[str, str], header: Sequence[str]
) -> tuple[dict[str, str], dict[str, float]]:
    """Our name -> the source's column, for the columns that exist; and our name -> a scale.

    Raises:
      TableError: a mapped column is not there.
    """
    factors = {}
    named = {}
    for ours, theirs in mapping.items():
        scaled = _SCALED.fullmatch(theirs)
        if theirs in header:
            named[ours] = theirs
        elif scaled and scaled[1] in header:
            named[ours], factors[ours] = scaled[1], float(scaled[2])
        else:
            raise TableError(_not_there(ours, theirs, header))
    found = {}
    for name, aliases in (*COLUMNS.items(), *LABELS.items()):
        source = named.get(name) or _common(name, aliases, header, named.values())
        if source is not None:
            found[name] = source
    return found, factors


def find_settings(mapping: Mapping[str, str], header: Sequence[str]) -> tuple[str, ...]:
    """The columns of the source that a search varies, such as a learning rate."""
    found = [mapping[name] for name in SETTINGS if mapping.get(name) in header]
    for name, aliases in SETTINGS.items():
        for candidate in (name, *aliases):
            source = _common(candidate, (), header, ())
            if source is not None:
                found.append(source)
    return tuple(dict.fromkeys(found))


def _common(
    name: str, aliases: Sequence[str], header: Sequence[str], taken: Collection[str]
) -> str | None:
    """The source's column for `name`: by its own name, else by a common one."""
    folded: dict[str, str] = {}
    for name_in_header in header:
        folded.setdefault(name_in_header.strip().lower().replace(" ", "_"), name_in_header)
    for candidate in (name, *aliases):
        # A one-letter alias must match exactly, because "n" or "c" in a header can mean anything.
        column = candidate if candidate in header else folded.get(candidate.lower())
        if column is None or (len(candidate) == 1 and column != candidate) or column in taken:
            continue
        return column
    return None


def _not_there(ours: str, theirs: str, header: Sequence[str]) -> str:
    folded = {name.lower(): name for name in header}
    close = difflib.get_close_matches(theirs.lower(), folded, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(folded[name]) for name in close)}? " if close else ""
    return (
        f"{ours} was mapped to {theirs!r}, which is not a column; {hint}"
        f"the columns are {', '.join(header)}"
    )


#: A name followed by a unit: N (M), tokens [B], params, millions.
_WITH_UNIT = re.compile(r"(.+?)\s*(?:[(\[]\s*([^)\]]*?)\s*[)\]]|,\s*(\w+))")
_UNITS = {
    "k": "1e3", "thousand": "1e3", "thousands": "1e3", "m": "1e6", "million": "1e6",
    "millions": "1e6", "b": "1e9", "g": "1e9", "billion": "1e9", "billions": "1e9", "t": "1e12",
    "trillion": "1e12", "trillions": "1e12",
}  # fmt: skip


def suggested_mapping(ours: str, header: Sequence[str]) -> str:
    """A value of --columns for `ours`: columns whose names are followed by a unit, or COL."""
    found = []
    # Two of the three counts are enough, so others that are recognised are suggested as well.
    counts = ("params", "tokens", "flops")
    for name in (ours, *(count for count in counts if ours in counts and count != ours)):
        if _common(name, COLUMNS.get(name, ()), header, ()) is not None:
            continue
        for column in header:
            parts = _WITH_UNIT.fullmatch(column.strip())
            if parts and _common(name, COLUMNS.get(name, ()), [parts[1]], ()) is not None:
                factor = _UNITS.get((parts[2] or parts[3] or "").lower())
                quoted = f'"{column}"' if "," in column or "=" in column else column
                found.append(f"{name}={quoted}" + (f"*{factor}" if factor else ""))
                break
    if not any(item.startswith(f"{ours}=") for item in found) and len(found) < 2:
        return f"{ours}=COL"
    return f"'{','.join(found)}'"


# --- Conventions ----------------------------------------------------------------------------------


def is_results(header: Sequence[str]) -> bool:
    """Whether the table is one of `Store.table`, with params and flops by every convention."""
    return (
        "best_lr" in header
        and all(
            f"{count}_{convention}" in header
            for count in ("params", "flops")
            for convention in CONVENTIONS
        )
        and not {"params", "flops"}.intersection(header)
    )


def results_mapping(
    mapping: Mapping[str, str], convention: str, header: Sequence[str]
) -> tuple[dict[str, str], str]:
    """The mapping for a table of results, completed by one convention, and that convention.

    Columns that the caller mapped are kept. A mapping of params or flops to the column of one
    convention chooses this convention for the other as well.

    Raises:
      TableError: the convention is none of `CONVENTIONS`.
    """
    mapped = [_convention_of(mapping[name]) for name in ("params", "flops") if name in mapping]
    named = {of for of in mapped if of is not None}
    if convention == "given" and len(named) == 2:
        # Both are mapped, by different conventions; `mixed_conventions` warns of that.
        return {"tokens": "tokens", "loss": "loss", **mapping}, convention
    if convention == "given":
        convention = named.pop() if named else _NATIVE
    if convention not in CONVENTIONS:
        raise TableError(
            f"there is no convention {convention!r}; choose from {', '.join(CONVENTIONS)}"
        )
    own = {
        "params": f"params_{convention}",
        "tokens": "tokens",
        "loss": "loss",
        "flops": f"flops_{convention}",
    }
    return {**own, **mapping}, convention


def mixed_conventions(sources: Mapping[str, str]) -> tuple[str, ...]:
    """A warning where params are counted by one convention and flops by another."""
    of = {name: _convention_of(sources[name]) for name in ("params", "flops") if name in sources}
    if None in of.values() or len(set(of.values())) < 2:
        return ()
    warning = (
        f"params are counted as {of['params']} ({sources['params']}) and flops as {of['flops']} "
        f"({sources['flops']}), so exponents mix the two; map both to one convention"
    )
    return (warning,)


def _convention_of(column: str) -> str | None:
    if column == "n_params":
        # Without embeddings, as in the papers.
        return "kaplan"
    count, _, convention = column.rpartition("_")
    known = count in ("params", "flops", "n_params") and convention in CONVENTIONS
    return convention if known else None
