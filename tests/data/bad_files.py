"""Random files that a user might give as text: a few are fine, most are damaged or no text at all."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable

from tests.data.prose import documents

TEXTS = documents(40, n_words=40)
SUFFIXES = (".txt", ".jsonl", ".json", ".md", ".parquet")
COMPRESSIONS = ("", "", ".gz", ".xz", ".zst")


def bad_file(rng: random.Random) -> tuple[str, bytes]:
    """(suffix, content) of a file; the same for the same state of the generator."""
    suffix = rng.choice(SUFFIXES)
    content = rng.choice(_KINDS)(rng)
    if suffix == ".parquet" and rng.random() < 0.8:
        content = _damaged(rng, _parquet(rng))
    compression = "" if suffix == ".parquet" else rng.choice(COMPRESSIONS)
    if compression and rng.random() < 0.85:
        content = _compressed(rng, compression, content)
        if rng.random() < 0.7:
            content = _damaged(rng, content)
    return suffix + compression, content


def _random_bytes(rng):
    return rng.randbytes(rng.choice((0, 1, 7, 300, 20_000)))


def _zeros(rng):
    return bytes(rng.choice((1, 100, 100_000)))


def _text(rng):
    return rng.choice(("\n\x0c\n", "\n<|endoftext|>\n", "\r\n\x0c\r\n")).join(TEXTS).encode()


def _damaged_text(rng):
    return _damaged(rng, _text(rng))


def _encodings(rng):
    encoding = rng.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-16-le", "cp500"))
    return "\n\x0c\n".join(TEXTS).encode(encoding, errors="replace")


def _white(rng):
    return rng.choice((b" ", b"\n", b"\t", b"\r\n", b"\x0c\n", "\u2581".encode(), b"\x00\n")) * (
        rng.choice((1, 50, 5000))
    )


def _few_characters(rng):
    return rng.choice(("a", "\x00", "é", "\U0001f600", "\u0301", "a\x00", "\x7f")).encode() * (
        rng.choice((1, 10, 3000, 300_000))
    )


def _any_text(rng):
    """Characters of any kind, unassigned ones too."""
    ranges = ((0, 0x80), (0x80, 0xD800), (0xE000, 0x110000))
    low, high = rng.choice(ranges)
    n = rng.choice((1, 20, 3000))
    texts = ("".join(chr(rng.randrange(low, high)) for _ in range(n)) for _ in range(20))
    return "\n\x0c\n".join(texts).encode()


def _rows(rng):
    return [json.dumps({"text": text, "n": i}).encode() for i, text in enumerate(TEXTS)]


def _jsonl(rng):
    return _damaged(rng, b"\n".join(_rows(rng)))


def _odd_rows(rng):
    rows = _rows(rng)
    for _ in range(rng.randint(1, 5)):
        rows[rng.randrange(len(rows))] = rng.choice(_ODD_ROWS)(rng)
    return b"\n".join(rows)


def _deep(rng):
    depth = rng.choice((10, 1000, 100_000))
    return rng.choice((b"[", b'{"text":', b'[{"a":')) * depth


_ODD_ROWS: tuple[Callable, ...] = (
    _deep,
    lambda rng: b"[" * 50_000 + b"]" * 50_000,
    lambda rng: b'{"text": ' + b"1" * rng.choice((10, 5000)) + b"}",
    lambda rng: b'{"text": 1e999}',
    lambda rng: b'{"text": NaN}',
    lambda rng: b'{"text": null}',
    lambda rng: b'{"text": ["a", "b"]}',
    lambda rng: b'{"text": "\\ud800"}',
    lambda rng: b'{"text": "\\u0000"}',
    lambda rng: b'{"text": "\xff"}',
    lambda rng: b'{"other": "a"}',
    lambda rng: json.dumps({f"field {i}" * 9: i for i in range(500)}).encode(),
    lambda rng: json.dumps({"a\nb\x1b[2J": 1}).encode(),
    lambda rng: b'"text"',
    lambda rng: b"null",
    lambda rng: b"\x00" * 1000,
    lambda rng: b'{"text": "a"',
    lambda rng: b'{"text": "a"} {"text": "b"}',
    lambda rng: b"\xef\xbb\xbf{}",
    lambda rng: b'{"text": "' + b"word " * 100_000 + b'"}',
)


def _long_line(rng):
    return rng.choice((b"a", b"word ", b"\x00", "é ".encode())) * rng.choice((10**5, 10**6))


def _archive(rng):
    """What is no text but may be named so."""
    return rng.choice(
        (
            b"PK\x03\x04" + rng.randbytes(200),
            b"%PDF-1.7\n" + rng.randbytes(500),
            b"\x89PNG\r\n\x1a\n" + rng.randbytes(300),
            b"\x7fELF" + rng.randbytes(900),
            b"SQLite format 3\x00" + rng.randbytes(900),
            bz2.compress(b"text " * 1000),
            gzip.compress(b"text " * 1000),
            b"PAR1" + rng.randbytes(100) + b"PAR1",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            b"<html><body>404 Not Found</body></html>",
        )
    )


def _parquet(rng):
    import io

    import pyarrow
    from pyarrow import parquet

    columns = rng.choice(
        (
            {"text": TEXTS},
            {"text": [*TEXTS, None]},
            {"text": [text.encode() for text in TEXTS]},
            {"text": list(range(30))},
            {"text": [[text] for text in TEXTS]},
            {"other": TEXTS},
            {"text": []},
        )
    )
    out = io.BytesIO()
    compression = rng.choice(("snappy", "zstd", "gzip", "none"))
    parquet.write_table(pyarrow.table(columns), out, compression=compression)
    return out.getvalue()


def _compressed(rng, compression, content):
    if compression == ".gz":
        return gzip.compress(content, 1)
    if compression == ".xz":
        return lzma.compress(content, preset=0)
    import zstandard

    return zstandard.compress(content)


def _damaged(rng, content):
    """Cut short, with bytes changed, with a part put in or taken out, or as it was."""
    content = bytearray(content)
    if not content:
        return b""
    at = rng.randrange(len(content))
    match rng.randrange(6):
        case 0:
            del content[at:]
        case 1:
            for _ in range(rng.choice((1, 1, 4, 100))):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case 2:
            del content[at : at + rng.randint(1, 200)]
        case 3:
            content[at:at] = rng.randbytes(rng.randint(1, 200))
        case 4:
            content[at : at + 100] = bytes(100)
    return bytes(content)


_KINDS = (
    *(_random_bytes, _zeros, _text, _damaged_text, _encodings, _white, _few_characters, _any_text),
    *(_jsonl, _odd_rows, _deep, _long_line, _archive),
)
