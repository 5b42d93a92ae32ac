"""What a corpus is made of, as numbers and in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmscale.data.copies import LEAST_COMPARED
from lmscale.data.corpus import SPLITS, Corpus
from lmscale.data.inputs import kinds_in_words
from lmscale.data.token_copies import COPY_TOKENS

#: With fewer held-out documents than this, losses depend noticeably on which documents were held out.
FEW_DOCUMENTS = 100
#: A share of a mixture further from its weight than this is warned of.
MISSED_WEIGHT = 0.02
#: Most bytes of a piece that the warning proposes to cut documents into.
_LONGEST_PIECE = 1 << 16
_SHORTEST_PIECE = 1 << 10
#: A plan mentions a share of copies above this.
MANY_COPIES = 0.02
#: Tokens in which the beginning of a document is looked for.
_SAMPLED_TOKENS = 1 << 16


def describe(corpus: Corpus) -> dict[str, Any]:
    """A corpus as one JSON object: its splits, what was held out, copies, settings and sources."""
    manifest = corpus.manifest
    splits = {}
    for split in SPLITS:
        entry = manifest["splits"][split]
        splits[split] = {
            **{key: entry[key] for key in ("documents", "pieces", "bytes", "tokens")},
            "bytes_per_token": corpus.bytes_per_token(split) if entry["tokens"] else None,
            "largest_share": entry["largest"] / entry["tokens"] if entry["tokens"] else None,
            "copies": corpus.copies.get(split),
        }
    return {
        "name": corpus.name,
        "path": str(corpus.path),
        "fingerprint": corpus.fingerprint,
        "vocab_size": corpus.vocab_size,
        "tokenizer": {
            "kind": manifest["tokenizer"].get("kind", "learned"),
            "file": corpus.tokenizer_file,
            "eod_id": corpus.eod_id,
            "sha256": manifest["tokenizer"]["sha256"],
            **{
                what: sum(manifest["splits"][split].get(what, 0) for split in SPLITS)
                for what in ("changed", "unknown")
            },
        },
        "splits": splits,
        "mixture": manifest.get("mixture"),
        "cut_by_itself": manifest.get("cut_by_itself"),
        "held_out": manifest["held_out"],
        "dropped": manifest["dropped"],
        "settings": manifest["settings"],
        "sources": {k: v for k, v in manifest["sources"].items() if k != "files"},
        "versions": manifest["versions"],
    }


def summary_lines(corpus: Corpus) -> list[str]:
    """What `lmscale data build` prints about a corpus: its splits, what was held out, copies, warnings."""
    found = describe(corpus)
    header = ("", "documents", "bytes", "tokens", "bytes/token", "longest", "copied")
    rows = [
        (
            split,
            f"{values['documents']:,}",
            f"{values['bytes']:,}",
            f"{values['tokens']:,}",
            f"{values['bytes_per_token']:.2f}" if values["tokens"] else "-",
            f"{values['largest_share']:.1%}" if values["tokens"] else "-",
            f"{values['copies']['share']:.1%}" if values["copies"] else "-",
        )
        for split, values in found["splits"].items()
    ]
    lines = [_row(header), *map(_row, rows)]
    if found["mixture"]:
        lines.append(f"mixture: {mixture_sentence(found['mixture'])}")
        lines += _missed_weights(found)
    if whole := found["cut_by_itself"]:
        lines.append(
            f"cut: {_count(whole['documents'], 'document')} cannot be divided into splits well, so pieces of at "
            f"most {whole['bytes']:,} bytes are taken for documents (--separator names the line between the documents "
            "of a text file)"
        )
    lines += [_held_out_line(found), f"copied: {copies_sentence(corpus.copies)}"]
    dropped = found["dropped"]
    lines.append(
        f"left out: {_count(dropped['duplicates'], 'exact duplicate')}, "
        f"{_count(dropped['empty'], 'empty document')}, {_count(dropped['bad'], 'bad row')}"
        + (f" (the first: {dropped['first_bad']})" if dropped["bad"] else "")
    )
    if "filtered" in dropped:
        lines.append(
            f"filtered: {_count(dropped['filtered'], 'row')} did not meet the conditions (--where)"
        )
    if reasons := dropped.get("bad_by_reason"):
        lines.append(f"bad rows: {kinds_in_words(reasons)}")
    lines += _changed_lines(found["tokenizer"])
    if skipped := found["sources"].get("skipped"):
        files = _count(sum(skipped.values()), "file")
        lines.append(f"skipped {files} of other kinds: {kinds_in_words(skipped)}")
    return lines + _warnings(found)


def _missed_weights(found: dict[str, Any]) -> list[str]:
    """A warning where the training text of a mixture misses its weights, with the reason and the remedy."""
    mixture, train = found["mixture"], found["splits"]["train"]
    if not train["tokens"]:
        return []
    reached = [source["train"]["tokens"] / train["tokens"] for source in mixture]
    over = [share - source["weight"] for share, source in zip(reached, mixture, strict=True)]
    missed = [
        f"{share:.1%} of the training text is of {source['input']}, not the {source['weight']:.1%} asked for"
        for share, source, by in zip(reached, mixture, over, strict=True)
        if abs(by) > MISSED_WEIGHT
    ]
    if not missed:
        return []
    # Only a long document takes a source far above its weight.
    ahead = mixture[max(range(len(mixture)), key=over.__getitem__)]
    largest = ahead["train"].get("largest")
    # A manifest of an earlier version does not say how long it is.
    long = f" is {largest / train['tokens']:.1%} of all" if largest else " is too long"
    remedy = "give more text"
    if not found["cut_by_itself"]:
        # About a hundredth of the training text at most.
        about = 1 << max(0, (train["bytes"] // 100).bit_length() - 1)
        length = min(_LONGEST_PIECE, max(_SHORTEST_PIECE, about))
        remedy = f"store long documents in pieces (--cut-documents {length})"
    return [
        f"warning: {'; '.join(missed)}. The longest document of {ahead['input']}{long}: {remedy}"
    ]


def _changed_lines(tokenizer: dict[str, Any]) -> list[str]:
    """What the tokeniser of a file does not give back."""
    changed, unknown = tokenizer["changed"], tokenizer["unknown"]
    if not changed:
        return []
    lacks = f"; {_count(unknown, 'token')} stand for text that it lacks" if unknown else ""
    return [
        f"warning: {_count(changed, 'document')} do not come back from the tokeniser exactly as they were "
        f"(it normalises){lacks}; their bytes are counted as they come back"
    ]


def samples(corpus: Corpus, n: int, n_characters: int = 200) -> list[str]:
    """The beginnings of the first training documents of a corpus, which are in random order."""
    ids = np.asarray(corpus.tokens("train")[: n * _SAMPLED_TOKENS])
    found, start = [], 0
    for end in [*np.flatnonzero(ids == corpus.eod_id).tolist(), len(ids)][:n]:
        # A character is at most four tokens, its bytes.
        text = corpus.tokenizer.decode(ids[start : min(end, start + 4 * n_characters)])
        found.append(text[:n_characters])
        start = end + 1
    return [text for text in found if text]


def settings_lines(corpus: Corpus) -> list[str]:
    """How a corpus was built, for `lmscale data show`."""
    settings = {k: v for k, v in corpus.manifest["settings"].items() if v not in (None, False)}
    return [
        "settings: " + ", ".join(f"{key} {value}" for key, value in settings.items()),
        f"fingerprint: {corpus.fingerprint}",
    ]


def mixture_sentence(mixture: list[dict[str, Any]], epochs: float | None = None) -> str:
    """The sources of a mixture: the share of each, and how often its text is passed over.

    Args:
      mixture: of a manifest.
      epochs: how often a run passes over the training text of the mixture; by default the sentence is of
        that text itself.
    """
    total = sum(source["train"]["tokens"] for source in mixture)
    parts = []
    for source in mixture:
        train = source["train"]
        passes = train["epochs"] * (1.0 if epochs is None else epochs)
        parts.append(
            f"{train['tokens'] / max(1, total):.1%} {source['input']} ({passes:.2f} epochs of its "
            f"{train['available']:,} tokens)"
        )
    return ", ".join(parts)


def copies_sentence(copies: dict[str, dict[str, Any]]) -> str:
    """How much of the held-out text is copied from training text, in words."""
    parts = [
        f"{found['share']:.1%} of {split} ({_count(found['documents'], 'document')} by more than half)"
        for split, found in copies.items()
    ]
    if not parts:
        return "copies of training text were not measured"
    least = max(found.get("least_tokens", COPY_TOKENS) for found in copies.values())
    return f"{' and '.join(parts)}, in exact {least}-token copies of training text"


def has_many_copies(copies: dict[str, dict[str, Any]]) -> bool:
    """Whether there are so many copies that a model gains by memorising training text."""
    return any(found["share"] > MANY_COPIES for found in copies.values())


def _row(cells: tuple[str, ...]) -> str:
    widths = (6, 10, 15, 14, 12, 8, 7)
    return f"{cells[0]:<{widths[0]}}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True)
    )


def _held_out_line(found: dict[str, Any]) -> str:
    held_out = found["held_out"]
    shares = " and ".join(
        f"{held_out[f'{split}_fraction']:.3g} for {split}"
        for split in ("valid", "test")
        if held_out[f"{split}_fraction"]
    )
    if not shares:
        return "held out: nothing"
    # A manifest of an earlier version does not say how many were too short.
    short = held_out.get("too_short", 0)
    too_short = f", nor {short:,} of fewer than {LEAST_COMPARED} bytes" if short else ""
    return (
        f"held out: at most {held_out['max_bytes']:,} bytes a document, from these shares of the "
        f"documents: {shares}; {held_out['near_duplicates']:,} near-duplicates of other documents and "
        f"{held_out['copied']:,} largely copied ones were not held out{too_short}; "
        f"{held_out['dropped_bytes']:,} bytes are in no split"
    )


def _warnings(found: dict[str, Any]) -> list[str]:
    few = [
        f"{split} has {_count(found['splits'][split]['documents'], 'document')}"
        for split in ("valid", "test")
        if found["held_out"][f"{split}_fraction"]
        and found["splits"][split]["documents"] < FEW_DOCUMENTS
    ]
    if not few:
        return []
    warning = (
        f"warning: {' and '.join(few)}, fewer than {FEW_DOCUMENTS}: losses depend on which they are; "
        "give more text, or shorter documents"
    )
    return [warning]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
