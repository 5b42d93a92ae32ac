"""Finds the files of text that a user names: files, folders and patterns.

Only regular files are read, directly or through links, because a pipe or a device has no end. Other
entries of a folder are counted by kind, so that nothing is left out silently.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from lmscale.data.errors import DataError
from lmscale.data.formats import UTF8_MARK, is_parquet
from lmscale.data.formats import compression as compression_of
from lmscale.data.remote import check_scheme, remote_error
from lmscale.remote import entries, is_remote, unreachable

#: Formats that a folder is searched for.
_FORMATS = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
#: Read as JSON lines: compressed files always, because large sets of text use that name; plain files only
#: when they are named.
_JSON = ".json"
#: Read as text only when a file or a pattern names them: in a folder they may be anything.
_NAMED_TEXT = frozenset(
    (
        *(".bib", ".cfg", ".css", ".html", ".ini", ".md", ".org", ".rst", ".tex", ".toml", ".xml"),
        *(".c", ".cc", ".cpp", ".cu", ".go", ".h", ".hpp", ".java", ".jl", ".js", ".lua", ".php"),
        *(".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts"),
        *(".yaml", ".yml"),
    )
)
_COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
#: File kinds without an end or without content.
_SPECIAL = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
_CHUNK = 1 << 20
_HEAD_BYTES = 1 << 12

#: Called with the kind of each file that a folder or pattern holds and that is not read: its suffix,
#: "pipe", "dangling link", ...
OnSkipped = Callable[[str], None]


def find_inputs(
    inputs: Sequence[str], on_skipped: OnSkipped = lambda kind: None
) -> list[epath.Path]:
    """The files that some files, folders and glob patterns stand for, each once.

    Folders are searched through for .txt, .jsonl, .ndjson and .parquet, compressed or not, for compressed
    .json, and for files without a suffix that are JSON lines or Parquet by their content; other text is
    read when its file or a pattern names it. Links are followed to regular files
    and to folders, to each folder once.

    Raises:
      DataError: when an input matches nothing, cannot be read, or names a file of an unknown kind.
    """
    if not inputs:
        raise DataError("no input given: name files, folders or patterns of text")
    found: dict[str, epath.Path] = {}
    for name in inputs:
        for file in _find(str(name), on_skipped):
            format_by_name(file)
            # Several links, or a loop of links, may lead to the same file.
            found.setdefault(str(file) if is_remote(file) else os.path.realpath(file), file)
    return list(found.values())


def is_there(name: str) -> bool:
    """Whether a file or folder has this name, or a pattern meets one; False where that cannot be found out."""
    if unreachable(name, text=True):
        return False
    path = epath.Path(name).expanduser()
    try:
        return _kind(path) != "nothing" or bool(_glob(path))
    except Exception:  # Each remote store has its own errors; what reads the input will say which.
        return False


def checksum(path: epath.Path) -> dict[str, Any]:
    """{"file", "bytes", "sha256"} of an input as it lies there."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise unreadable(path, error) from None
    return {"file": as_text(path.name), "bytes": size, "sha256": digest.hexdigest()}


def as_text(name: str) -> str:
    """A name as JSON can hold it: bytes of it that are not UTF-8 are written \\xe9."""
    return os.fsencode(name).decode(errors="backslashreplace")


def unreadable(path: epath.PathLike, error: OSError) -> DataError:
    """The error for a file that the system refuses to read."""
    return DataError(f"{path} cannot be read: {error.strerror or error}")


def suffixes(path: epath.Path) -> tuple[str, str]:
    """(".jsonl", ".gz") of a.jsonl.gz; the second is empty for a file that is not compressed."""
    compression = path.suffix.lower()
    if compression in _COMPRESSIONS:
        return path.with_suffix("").suffix.lower(), compression
    return compression, ""


def format_by_name(path: epath.Path) -> str:
    """ "text", "jsonl" or "parquet", by the name of a file; text where the name says nothing.

    Raises:
      DataError: when it is named otherwise, and is none of these by its content either.
    """
    suffix, compression = suffixes(path)
    kind = _FORMATS.get(suffix) or ("text" if suffix in _NAMED_TEXT or not suffix else None)
    if suffix == _JSON:
        kind = "jsonl"
    if kind is None:
        kind = _format_by_content(path)
    if kind is None or (kind == "parquet" and compression):
        raise DataError(
            f"{path} is of an unknown kind: known are .txt, .jsonl, .ndjson, .json (one object a line) and "
            f"plain text such as .md or .py, each also with {', '.join(_COMPRESSIONS)}, and .parquet"
        )
    return kind


def kinds_in_words(kinds: dict[str, int]) -> str:
    """Counted kinds, the most frequent first: "2 .pdf, 1 .png"; beyond eight, how many others."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{n:,} {kind}" for kind, n in ordered[:8]]
    if others := sum(n for _, n in ordered[8:]):
        words.append(f"{others:,} others")
    return ", ".join(words)


def names_in_words(names: Iterable[str]) -> str:
    """The names of fields for an error: the first eight, each cut short."""
    names = [name if len(name) <= 40 else f"{name[:40]}..." for name in names]
    more = [f"{len(names) - 8:,} more"] if len(names) > 8 else []
    return ", ".join(names[:8] + more) or "none"


def _find(name: str, on_skipped: OnSkipped) -> list[epath.Path]:
    """The files that one input stands for."""
    skipped: dict[str, int] = {}

    def skip(kind: str) -> None:
        kind = as_text(kind)  # it may be the suffix of a name
        skipped[kind] = skipped.get(kind, 0) + 1
        on_skipped(kind)

    check_scheme(name, text=True)
    path = epath.Path(name).expanduser()
    try:
        kind = _kind(path)
        if kind == "folder":
            files = [file for file in _walk(path, skip, set()) if _is_read(file, skip)]
            missing = f"no .txt, .jsonl, .ndjson, .json.gz or .parquet file in the folder {name}"
        elif kind == "file":
            return [path]
        elif kind == "nothing":
            files = [file for file in _glob(path) if _is_file(file, skip)]
            missing = f"nothing matches {name}"
        else:
            raise DataError(f"{name} is a {kind}, not a file of text: give a regular file")
    except DataError:
        raise
    except Exception as error:
        if is_remote(name):
            raise remote_error(name, error) from None
        if isinstance(error, OSError):
            raise unreadable(error.filename or name, error) from None
        if isinstance(error, ValueError | re.error):  # a zero byte, or an invalid pattern
            raise DataError(f"{name!r} is no path: {error}") from None
        raise
    if not files:
        raise DataError(f"{missing} (it holds {kinds_in_words(skipped)})" if skipped else missing)
    return files


def _kind(path: epath.Path, *, listed: bool = False) -> str:
    """What lies at a path, after links: "file", "folder", "nothing" or another kind.

    Of what a folder has just listed, an object store is asked one thing fewer: a folder may hold thousands.
    """
    if is_remote(path):
        return "folder" if path.is_dir() else "file" if listed or path.exists() else "nothing"
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "dangling link" if os.path.islink(path) else "nothing"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "link in a loop"
        if error.errno == errno.ENAMETOOLONG:
            return "nothing"  # a pattern may be longer than a name
        raise
    if stat.S_ISDIR(mode):
        return "folder"
    return _SPECIAL.get(stat.S_IFMT(mode), "file")


def _is_file(path: epath.Path, skip: OnSkipped) -> bool:
    kind = _kind(path)
    if kind not in ("file", "folder"):
        skip(kind)
    return kind == "file"


def _is_read(path: epath.Path, skip: OnSkipped) -> bool:
    """Whether a search of a folder takes this file."""
    suffix, compression = suffixes(path)
    read = suffix in _FORMATS or (suffix == _JSON and bool(compression))
    if _FORMATS.get(suffix) == "parquet" and compression:
        read = False
    if not suffix:
        read = _format_by_content(path) is not None
    if not read:
        skip(f"{suffix}{compression}" or "without a suffix")
    return read


def _format_by_content(path: epath.Path) -> str | None:
    """ "jsonl" or "parquet", where a file begins so; None for anything else."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from None
    if is_parquet(head):
        return "parquet"
    # Compressed rows are told apart when they are read.
    is_rows = compression_of(head) or head.removeprefix(UTF8_MARK).lstrip().startswith(b'{"')
    return "jsonl" if is_rows else None


def _walk(folder: epath.Path, skip: OnSkipped, seen: set[tuple[int, int]]) -> Iterator[epath.Path]:
    if not is_remote(folder):
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in seen:
            return
        seen.add((found.st_dev, found.st_ino))
    for path in entries(folder):
        kind = _kind(path, listed=True)
        if kind == "folder":
            yield from _walk(path, skip, seen)
        elif kind == "file":
            yield path
        else:
            skip(kind)


def _glob(path: epath.Path) -> list[epath.Path]:
    name = str(path)
    if not glob.has_magic(name):
        return []
    if not is_remote(name):
        return [epath.Path(file) for file in sorted(glob.glob(name, recursive=True))]
    parts = path.parts
    if any("**" in part for part in parts):
        raise DataError(
            f"{name}: ** is not read in an object store: give the folder, which is searched through, or "
            "a pattern with *"
        )
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = epath.Path(*parts[:fixed])
    return sorted(folder.glob("/".join(parts[fixed:])))
