"""Buckets in this process's memory, reached as s3:// paths are."""

from typing import ClassVar

import pytest
from etils.epath import backend

from lmscale.remote import PACKAGES


def mount(monkeypatch) -> None:
    """Makes s3:// an empty object store that needs neither a network nor the package of a real one."""
    memory = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem

    class Buckets(memory):
        store: ClassVar = {}
        pseudo_dirs: ClassVar = [""]
        cachable = False

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(str(path).removeprefix("s3://"))

        def glob(self, path, **options):
            return [name.lstrip("/") for name in super().glob(path, **options)]

    buckets = Buckets()
    monkeypatch.setitem(PACKAGES, "s3", ("fsspec",))
    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: buckets)
