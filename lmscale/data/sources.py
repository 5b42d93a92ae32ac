"""Where documents come from: files of text, JSON lines or Parquet, plain or compressed.

A document is a `bytes` object of valid UTF-8. Files are streamed, so their size does not matter.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from lmscale.data.errors import DataError

try:
    import zstandard
except ImportError:
    zstandard = None

#: Formats that a folder is searched for.
_FORMATS = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
#: Read as JSON lines when compressed, as large sets of text have it; a plain one, when it is named.
_JSON = ".json"
#: Read as text when a file or a pattern names them; a folder's may be anything but prose.
_NAMED_TEXT = frozenset(
    (
        *(".bib", ".cfg", ".css", ".html", ".ini", ".md", ".org", ".rst", ".tex", ".toml", ".xml"),
        *(".c", ".cc", ".cpp", ".cu", ".go", ".h", ".hpp", ".java", ".jl", ".js", ".lua", ".php"),
        *(".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts"),
        *(".yaml", ".yml"),
    )
)
_COMPRESSIONS = (".gz", ".xz", ".zst")
_DECOMPRESSION_ERRORS = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) + (
    (zstandard.ZstdError,) if zstandard else ()
)
#: Lines that end a document, where no other is asked for.
_SEPARATORS = ("\f", "<|endoftext|>")
_CHUNK = 1 << 20

#: Called with one line that says what is wrong with a document; by default it is an error.
OnBad = Callable[[str], None]


def find_inputs(inputs: Sequence[str]) -> list[epath.Path]:
    """The files that some files, folders and glob patterns stand for, each once.

    Folders are searched through for .txt, .jsonl and .parquet, compressed or not, and for compressed
    .json; other text is read when its file or a pattern names it.

    Raises:
      DataError: when an input matches nothing, or names a file of an unknown kind.
    """
    if not inputs:
        raise DataError("no input given: name files, folders or patterns of text")
    found: dict[str, epath.Path] = {}
    for name in inputs:
        path = epath.Path(name).expanduser()
        if path.is_dir():
            files = [file for file in _walk(path) if _is_text_of_folder(file)]
            missing = f"no .txt, .jsonl, .json.gz or .parquet file in the folder {name}"
        elif path.exists():
            files = [path]
        else:
            files = [file for file in _glob(path) if file.is_file()]
            missing = f"nothing matches {name}"
        if not files:
            raise DataError(missing)
        for file in files:
            _format(file)
            found[str(file)] = file
    return list(found.values())


def checksum(path: epath.Path) -> dict[str, Any]:
    """{"file", "bytes", "sha256"} of an input as it lies there."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"file": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _raise(message: str) -> None:
    raise DataError(message)


def read_documents(
    path: epath.Path,
    text_field: str = "text",
    separator: str | None = None,
    on_bad: OnBad = _raise,
) -> Iterator[tuple[bytes, int]]:
    """Every document of a file, with the position in the file (bytes) reached by then.

    A text file is one document, or several with a separating line between them: one that holds a
    form feed or <|endoftext|> alone, or another that is asked for. JSON lines and Parquet give the
    field `text_field` of every row. Empty documents come out too.

    Args:
      separator: the separating line of text files; "" for an empty line.
      on_bad: called for every document that is no text; it is then left out.

    Raises:
      DataError: one line that names the file, and the line or document where reading failed.
    """
    with path.open("rb") as raw:
        match _format(path):
            case "text":
                texts = _read_text(path, raw, _separating(separator), on_bad)
            case "jsonl":
                texts = _read_jsonl(path, raw, text_field, on_bad)
            case _:
                texts = _read_parquet(path, raw, text_field, on_bad)
        try:
            for text in texts:
                yield text, raw.tell()
        except _DECOMPRESSION_ERRORS as error:
            raise DataError(f"{path} cannot be decompressed: {error}") from None


def cut(text: bytes, length: int) -> Iterator[bytes]:
    """Cuts a text into pieces of at most `length` bytes: at line ends, else between characters."""
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


def _read_text(
    path: epath.Path, raw: BinaryIO, separating: _Separating, on_bad: OnBad
) -> Iterator[bytes]:
    for number, text in enumerate(_split(_decompressed(path, raw), separating), 1):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            on_bad(
                f"{path} is not UTF-8: byte 0x{text[error.start]:02x} at position {error.start} of "
                f"document {number}"
            )
            continue
        yield text


class _Separating(NamedTuple):
    """How documents are separated in a stream that begins with a line end.

    The line end behind a separating line is left to the next document: it may begin one more.
    """

    between: re.Pattern
    at_end: re.Pattern
    #: Bytes at the end of a chunk that may be the beginning of a separator.
    longest: int


def _separating(separator: str | None) -> _Separating:
    lines = _SEPARATORS if separator is None else (separator.rstrip("\r\n"),)
    line = b"|".join(re.escape(line.encode()) for line in lines)
    before = rb"\r?\n(?:" + line + rb")"
    return _Separating(
        re.compile(before + rb"(?=\r?\n)"),
        # A line end at the end of a file is not an empty line.
        re.compile(before + rb"\r?\Z" if any(lines) else rb"(?!)"),
        max(len(line.encode()) for line in lines) + len(b"\r\n\r\n"),
    )


def _split(file: BinaryIO, separating: _Separating) -> Iterator[bytes]:
    # With a line end put in front, every document begins with the end of the line before it.
    pieces, tail = [], b"\n"
    while chunk := file.read(_CHUNK):
        head, *following = separating.between.split(tail + chunk)
        for text in following:
            pieces.append(head)
            yield _without_line_end(b"".join(pieces))
            pieces, head = [], text
        # What a separator may have begun in is looked at again with the next chunk.
        pieces.append(head[: -separating.longest])
        tail = head[-separating.longest :]
    yield _without_line_end(separating.at_end.sub(b"", b"".join([*pieces, tail]), count=1))


def _without_line_end(text: bytes) -> bytes:
    """Drops the end of the separating line that a document begins with."""
    return text[2:] if text.startswith(b"\r\n") else text[1:]


def _read_jsonl(path: epath.Path, raw: BinaryIO, text_field: str, on_bad: OnBad) -> Iterator[bytes]:
    for number, line in enumerate(_decompressed(path, raw), 1):
        if not line.strip():
            continue
        try:
            text = _text_of_row(line, text_field, f"{path}, line {number}")
        except DataError as error:
            on_bad(str(error))
            continue
        yield text


def _text_of_row(line: bytes, text_field: str, where: str) -> bytes:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object with a field {text_field!r}")
    if text_field not in row:
        raise DataError(
            f"{where} has no field {text_field!r}; its fields are {', '.join(row) or 'none'}"
        )
    return _utf8(row[text_field], f"{where}, field {text_field!r}")


def _read_parquet(
    path: epath.Path, raw: BinaryIO, text_field: str, on_bad: OnBad
) -> Iterator[bytes]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow to be read: pip install 'lmscale[data]'") from None
    try:
        file = parquet.ParquetFile(raw)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from None
    names = file.schema_arrow.names
    if text_field not in names:
        raise DataError(f"{path} has no column {text_field!r}; its columns are {', '.join(names)}")
    batches = file.iter_batches(batch_size=1024, columns=[text_field])
    values = (value for batch in batches for value in batch.column(0).to_pylist())
    for row, value in enumerate(values, 1):
        try:
            text = _utf8(value, f"{path}, row {row}, column {text_field!r}")
        except DataError as error:
            on_bad(str(error))
            continue
        yield text


def _utf8(value: Any, where: str) -> bytes:
    if value is None:
        raise DataError(f"{where} is null, not text")
    if not isinstance(value, str):
        raise DataError(f"{where} is not text but {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds the lone surrogate U+{ord(value[error.start]):04X}, which is no "
            "character"
        ) from None


def _decompressed(path: epath.Path, raw: BinaryIO) -> BinaryIO:
    match _suffixes(path)[1]:
        case ".gz":
            return gzip.open(raw)
        case ".xz":
            return lzma.open(raw)
        case ".zst":
            if zstandard is None:
                raise DataError(f"{path} needs zstandard to be read: pip install 'lmscale[data]'")
            stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            return io.BufferedReader(stream, _CHUNK)
    return raw


def _suffixes(path: epath.Path) -> tuple[str, str]:
    """(".jsonl", ".gz") of a.jsonl.gz; the second is empty for a file that is not compressed."""
    compression = path.suffix.lower()
    if compression in _COMPRESSIONS:
        return path.with_suffix("").suffix.lower(), compression
    return compression, ""


def _format(path: epath.Path) -> str:
    suffix, compression = _suffixes(path)
    kind = _FORMATS.get(suffix) or ("text" if suffix in _NAMED_TEXT else None)
    if suffix == _JSON:
        kind = "jsonl"
    if kind is None or (kind == "parquet" and compression):
        raise DataError(
            f"{path} is of an unknown kind: known are .txt, .jsonl, .json (one object a line) and "
            f"plain text such as .md or .py, each also with {', '.join(_COMPRESSIONS)}, and .parquet"
        )
    return kind


def _is_text_of_folder(path: epath.Path) -> bool:
    suffix, compression = _suffixes(path)
    return suffix in _FORMATS or (suffix == _JSON and bool(compression))


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _glob(path: epath.Path) -> list[epath.Path]:
    name = str(path)
    if not glob.has_magic(name):
        return []
    if "://" not in name:
        return [epath.Path(file) for file in sorted(glob.glob(name, recursive=True))]
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = epath.Path(*parts[:fixed])
    return sorted(folder.glob("/".join(parts[fixed:])))
