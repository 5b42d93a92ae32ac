"""Where documents come from: files of text, JSON lines or Parquet, plain or compressed.

A document is a `bytes` object of valid UTF-8. Files are streamed, so their size does not matter.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from lmscale.data.errors import BadDocument, DataError
from lmscale.data.formats import (
    UTF8_MARK,
    compression,
    is_json_array,
    is_json_lines,
    is_parquet,
    other_encoding,
)
from lmscale.data.inputs import format_by_name, names_in_words, unreadable
from lmscale.data.rows import read_parquet, utf8
from lmscale.data.where import RowFilter

try:
    import zstandard
except ImportError:
    zstandard = None

_DECOMPRESSION_ERRORS = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) + (
    (zstandard.ZstdError,) if zstandard else ()
)
#: Lines that separate documents by default.
_SEPARATORS = ("\f", "<|endoftext|>")
_CHUNK = 1 << 20
#: Bytes by which a format is told.
_HEAD_BYTES = 1 << 13

#: Largest document of a text file, and largest row. A text without line ends must not fill the memory.
MAX_DOCUMENT_BYTES = 1 << 28
MAX_ROW_BYTES = 1 << 26
#: Largest ratio of decompressed to compressed bytes that still counts as text: prose and code compress
#: 3 to 10 times, logs 100 times, zeros 1,000 times. Small files may exceed it.
MAX_RATIO = 200
_SMALL_BYTES = 1 << 24
#: Compressed bytes of zstd that are decompressed at once. Four of them become at most 128 KiB: 32 MiB in all.
_ZSTD_BYTES = 1 << 10

#: Called with what is wrong with a document. By default that is an error.
OnBad = Callable[[BadDocument], None]


def _raise(error: BadDocument) -> None:
    raise error


def read_documents(
    path: epath.Path,
    text_field: str = "text",
    separator: str | None = None,
    on_bad: OnBad = _raise,
    max_bytes: int | None = None,
    where: RowFilter | None = None,
) -> Iterator[tuple[bytes, int]]:
    """Every document of a file, with the position in the file (bytes) reached by then.

    What a file is, its content says (see `formats`). A text file is one document, or several with a
    separating line between them: one that holds a form feed or <|endoftext|> alone, or another that is
    asked for. JSON lines and Parquet give the field `text_field` of every row. Empty documents come out
    too.

    Args:
      separator: the separating line of text files; "" for an empty line.
      on_bad: called for every document that is no text; it is then left out.
      max_bytes: of a document of a text file (MAX_DOCUMENT_BYTES).
      where: which rows are read; all by default.

    Raises:
      DataError: one line that names the file, and the line or document where reading failed.
    """
    try:
        with path.open("rb") as raw:
            kind, stream = _opened(path, raw, text_field, on_bad)
            match kind:
                case "text":
                    if where is not None:
                        raise DataError(
                            f"{path} is text, which has no fields: conditions (--where) are for JSON lines and "
                            "Parquet"
                        )
                    most = max_bytes or MAX_DOCUMENT_BYTES
                    texts = _read_text(path, stream, _separating(separator), on_bad, most)
                case "jsonl":
                    texts = _read_jsonl(path, stream, text_field, on_bad, where)
                case "parquet":
                    texts = read_parquet(path, stream, text_field, MAX_ROW_BYTES, on_bad, where)
                case _:
                    texts = iter(())
            for text in texts:
                yield text, raw.tell()
    except _DECOMPRESSION_ERRORS as error:
        raise DataError(f"{path} cannot be decompressed: {error}") from None
    except OSError as error:
        raise unreadable(path, error) from None


def cut(text: bytes, length: int) -> Iterator[bytes]:
    """Cuts a text into pieces of at most `length` bytes, at line ends or else between characters."""
    start = 0
    while len(text) - start > length:
        end = text.rfind(b"\n", start, start + length) + 1
        if end <= start:
            end = start + length
            # Bytes 10xxxxxx continue a character.
            while end > start + 1 and text[end] & 0xC0 == 0x80:
                end -= 1
        yield text[start:end]
        start = end
    yield text[start:]


def _opened(
    path: epath.Path, raw: BinaryIO, text_field: str, on_bad: OnBad
) -> tuple[str | None, BinaryIO]:
    """(format, decompressed content) of a file: "text", "jsonl", "parquet", or None for other text."""
    head = raw.read(_HEAD_BYTES)
    raw.seek(0)
    by_name = format_by_name(path)
    if is_parquet(head) or by_name == "parquet":
        return "parquet", raw
    stream = _decompressed(path, raw, compression(head))
    head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if encoding := other_encoding(head):
        on_bad(
            BadDocument(
                f"{path} is {encoding}, not UTF-8: convert it (iconv -f {encoding} -t UTF-8)",
                "not UTF-8",
            )
        )
        return None, stream
    is_rows = by_name == "jsonl" or is_json_lines(head, text_field)
    if is_rows and is_json_array(head):
        raise DataError(
            f"{path} is one JSON array: write it with one object a line (jq -c '.[]' {path.name})"
        )
    if is_parquet(head):
        raise DataError(f"{path} is compressed Parquet: decompress it first")
    if head.startswith(UTF8_MARK):
        stream.read(len(UTF8_MARK))
    return "jsonl" if is_rows else "text", stream


def _read_text(
    path: epath.Path, stream: BinaryIO, separating: _Separating, on_bad: OnBad, most: int
) -> Iterator[bytes]:
    for number, text in enumerate(_split(stream, separating, most), 1):
        if text is None:
            on_bad(
                BadDocument(
                    f"{path}, document {number} is longer than {most:,} bytes: name the line that "
                    "separates documents (separator), or put it into several files",
                    "too long",
                )
            )
            continue
        try:
            text.decode()
        except UnicodeDecodeError as error:
            on_bad(
                BadDocument(
                    f"{path} is not UTF-8: byte 0x{text[error.start]:02x} at position "
                    f"{error.start} of document {number}",
                    "not UTF-8",
                )
            )
            continue
        yield text


class _Separating(NamedTuple):
    """How documents are separated in a stream that begins with a line end.

    The line end after a separating line stays with the next document, because it may begin the next separator.
    """

    #: Without the carriage return that may come before it: a pattern that must begin with a line feed is
    #: found ten times as fast.
    line: re.Pattern
    at_end: re.Pattern
    #: Bytes at the end of a chunk that may be the start of a separator.
    longest: int

    def split(self, data: bytes) -> list[bytes]:
        """What lies before, between and after the separators."""
        *before, last = self.line.split(data)
        return [*(text.removesuffix(b"\r") for text in before), last]


def _separating(separator: str | None) -> _Separating:
    lines = _SEPARATORS if separator is None else (separator.rstrip("\r\n"),)
    line = b"|".join(re.escape(line.encode()) for line in lines)
    before = rb"\n(?:" + line + rb")"
    return _Separating(
        re.compile(before + rb"(?=\r?\n)"),
        # A line end at the end of a file is not an empty line.
        re.compile(rb"\r?" + before + rb"\r?\Z" if any(lines) else rb"(?!)"),
        max(len(line.encode()) for line in lines) + len(b"\r\n\r\n"),
    )


def _split(file: BinaryIO, separating: _Separating, most: int) -> Iterator[bytes | None]:
    """The documents of a stream; None for one of more than `most` bytes, which is not kept."""
    # A line end is put in front of the stream, so that every document begins with one.
    pieces, size, tail = [], 0, b"\n"
    is_long = False

    def ended(last: bytes) -> Iterator[bytes | None]:
        if is_long:
            return
        too_long = size + len(last) > most + len(b"\r\n")
        yield None if too_long else _without_line_end(b"".join([*pieces, last]))

    while chunk := file.read(_CHUNK):
        head, *following = separating.split(tail + chunk)
        for text in following:
            yield from ended(head)
            pieces, size, is_long, head = [], 0, False, text
        # Keep the bytes in which a separator may have begun for the next chunk.
        piece = head[: -separating.longest]
        tail = head[-separating.longest :]
        size += len(piece)
        if not is_long:
            pieces.append(piece)
        if size > most and not is_long:
            # Reported at once: this ends the reading, unless bad documents are left out.
            yield None
            is_long = True
            pieces.clear()
    yield from ended(separating.at_end.sub(b"", tail, count=1))


def _without_line_end(text: bytes) -> bytes:
    """Drops the end of the separating line that a document begins with."""
    return text[2:] if text.startswith(b"\r\n") else text[1:]


def _read_jsonl(
    path: epath.Path,
    stream: BinaryIO,
    text_field: str,
    on_bad: OnBad,
    where: RowFilter | None,
) -> Iterator[bytes]:
    for number, line in enumerate(_lines(stream, MAX_ROW_BYTES), 1):
        if line is not None and not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            if line is None:
                raise BadDocument(f"{place} is longer than {MAX_ROW_BYTES:,} bytes", "too long")
            row = _row(line, text_field, place)
            if where is not None and not where.keeps(row):
                continue
            text = _text_of_row(row, text_field, place)
        except BadDocument as error:
            on_bad(error)
            continue
        yield text


def _lines(file: BinaryIO, most: int) -> Iterator[bytes | None]:
    """The lines of a stream; None for one of more than `most` bytes, which is not kept."""
    while line := file.readline(most + 1):
        if len(line) <= most:
            yield line
            continue
        yield None
        while line and not line.endswith(b"\n"):
            line = file.readline(_CHUNK)


def _row(line: bytes, text_field: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadDocument(
            f"{where} is not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}",
            "not UTF-8",
        ) from None
    except json.JSONDecodeError as error:
        raise BadDocument(
            f"{where} is not JSON: {error.msg} at column {error.colno}", "not JSON"
        ) from None
    except RecursionError:
        raise BadDocument(f"{where} is JSON that is nested too deeply", "not JSON") from None
    except ValueError:
        # Python refuses to read integers of more than a few thousand digits.
        raise BadDocument(f"{where} holds a number that is too long", "not JSON") from None
    if not isinstance(row, dict):
        raise BadDocument(f"{where} is not a JSON object with a field {text_field!r}", "no field")
    return row


def _text_of_row(row: dict[str, Any], text_field: str, where: str) -> bytes:
    if text_field not in row:
        raise BadDocument(
            f"{where} has no field {text_field!r}; its fields are {names_in_words(row)} (--text-field, or "
            "text_field, names the one that holds the text)",
            "no field",
        )
    return utf8(row[text_field], f"{where}, field {text_field!r}")


def _decompressed(path: epath.Path, raw: BinaryIO, kind: str) -> io.BufferedReader:
    match kind:
        case "":
            if isinstance(raw, io.BufferedReader):
                return raw
            stream = raw  # a remote file, which may be able to do no more than read
        case ".bz2":
            stream = bz2.BZ2File(raw)
        case ".gz":
            stream = gzip.open(raw)  # noqa: SIM115 (ends with `raw`)
        case ".xz":
            stream = lzma.LZMAFile(raw)  # noqa: SIM115
        case _:
            if zstandard is None:
                raise DataError(f"{path} needs zstandard to be read: pip install 'lmscale[data]'")
            # A zstd frame may ask for a window of gigabytes.
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            stream = _ZstdFrames(raw, decompressor)
    return io.BufferedReader(_Bounded(path, raw, stream), _CHUNK)


class _ZstdFrames:
    """The content of a file of zstd, which is one frame or several.

    zstandard's own reader takes the end of the file for the end of a frame: a file that was cut off would
    pass for a whole one.
    """

    def __init__(self, raw: BinaryIO, decompressor: Any):
        self._raw, self._new_frame = raw, decompressor.decompressobj
        self._frame: Any = None
        self._waiting = memoryview(b"")

    def read(self, size: int) -> memoryview:
        """At most `size` bytes; none at the end.

        Raises:
          EOFError: the file ends within a frame.
        """
        while not self._waiting:
            rest = self._frame.unused_data if self._frame else b""
            data = rest or self._raw.read(_ZSTD_BYTES)
            if not data:
                if self._frame and not self._frame.eof:
                    raise EOFError("Compressed file ended before the end of its last frame")
                break
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            self._waiting = memoryview(self._frame.decompress(data))
        found, self._waiting = self._waiting[:size], self._waiting[size:]
        return found


class _Bounded(io.RawIOBase):
    """The decompressed content of a file. It raises an error once that is too much to be text."""

    def __init__(self, path: epath.Path, raw: BinaryIO, stream: BinaryIO):
        self._path, self._raw, self._stream = path, raw, stream
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._size += len(data)
        # The decompressor reads ahead, so this is an upper bound on the compressed bytes behind what was read.
        if self._size > max(_SMALL_BYTES, MAX_RATIO * self._raw.tell()):
            raise DataError(
                f"{self._path} decompresses to more than {MAX_RATIO} times its size, which no text "
                "does: if this is right, decompress it first"
            )
        return len(data)
