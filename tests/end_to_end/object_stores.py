"""Servers on this machine that speak the protocols of Amazon's and Google's object stores."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

#: Numbers of buckets: moto keeps what earlier servers of this process held.
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket: how commands reach it, and a view of it for the test itself."""

    scheme: str
    name: str
    #: What a command needs to find the server and to be let in.
    variables: Mapping[str, str]
    #: Of fsspec, without anything remembered.
    files: Any = field(repr=False)

    @property
    def path(self) -> str:
        return f"{self.scheme}://{self.name}"

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with the variables; nothing else of the user's clouds."""
        kept = {k: v for k, v in base.items() if not k.startswith(("AWS_", "GOOGLE_"))}
        return {**kept, **self.variables}

    def find(self, folder: str) -> dict[str, int]:
        """The objects below a folder of the bucket -> bytes."""
        root = f"{self.name}/{folder}/"
        found = self.files.find(root, detail=True)
        return {name.removeprefix(root): entry["size"] for name, entry in found.items()}

    def read(self, name: str) -> bytes:
        return self.files.cat_file(f"{self.name}/{name}")

    def remove(self, name: str) -> None:
        self.files.rm_file(f"{self.name}/{name}")

    def write(self, name: str, data: bytes) -> None:
        self.files.pipe_file(f"{self.name}/{name}", data)

    def mark(self, folder: str) -> None:
        """Makes the empty object by which the stores' consoles show a folder, named with a slash."""
        self.write(folder, b"")


def amazon() -> Iterator[Bucket]:
    """A bucket of moto's server, which speaks S3."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    s3fs = pytest.importorskip("s3fs")
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"key": "tester", "secret": "a secret"}
        files = s3fs.S3FileSystem(
            endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True, **keys
        )
        name = f"bucket-{next(_NUMBERS)}"
        files.mkdir(name)
        variables = {
            "AWS_ACCESS_KEY_ID": keys["key"],
            "AWS_SECRET_ACCESS_KEY": keys["secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            # No question to a cloud's machine who it is.
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield Bucket("s3", name, variables, files)
    finally:
        server.stop()


def google() -> Iterator[Bucket]:
    """A bucket of an emulator that speaks the JSON protocol of Google's store."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    gcsfs = pytest.importorskip("gcsfs.core")
    storage = emulator.Storage(use_memory_fs=True)
    name = "bucket"
    emulator.buckets.create_bucket(name, storage)
    one = threading.Lock()

    # Its own server would wait for ever on a connection that a client opens and does not use.
    class Requests(emulator.RequestHandler):
        def answer(self, method):
            with one:
                self.generation = _generation(storage, self.path)
                status = _refusal(self.path, self.generation)
                if status is None:
                    getattr(super(), method)()
                else:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

        def end_headers(self):
            """Google's store says which version of an object it sends; the emulator does not."""
            if self.command == "GET" and self.generation:
                self.send_header("X-Goog-Generation", str(self.generation))
            super().end_headers()

        do_GET = functools.partialmethod(answer, "do_GET")
        do_POST = functools.partialmethod(answer, "do_POST")
        do_PUT = functools.partialmethod(answer, "do_PUT")
        do_PATCH = functools.partialmethod(answer, "do_PATCH")
        do_DELETE = functools.partialmethod(answer, "do_DELETE")

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Requests, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        files = gcsfs.GCSFileSystem(
            endpoint_url=endpoint, token="anon", use_listings_cache=False, skip_instance_cache=True
        )
        variables = {
            "STORAGE_EMULATOR_HOST": endpoint,
            "TENSORSTORE_GCS_HTTP_URL": endpoint,
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",
            # The emulator does not speak the protocol by which buckets are asked for their kind.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        yield Bucket("gs", name, variables, files)
    finally:
        server.shutdown()
        server.server_close()


def _generation(storage: Any, url: str) -> int:
    """The version of the object that a request names; 0: there is none."""
    parts = urllib.parse.urlsplit(url)
    found = re.search(r"/b/([^/]+)/o(?:/([^/]+))?$", parts.path)
    if found is None:
        return 0
    # An upload names its object in the query.
    uploaded = urllib.parse.parse_qs(parts.query).get("name", [""])[0]
    name = urllib.parse.unquote(found[2]) if found[2] else uploaded
    held = storage.objects.get(found[1], {}).get(name)
    return 0 if held is None else int(held["generation"])


def _refusal(url: str, generation: int) -> int | None:
    """The status by which Google's store refuses, where a condition does not hold."""
    asked = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    if any(int(value) != generation for value in asked.get("ifGenerationMatch", [])):
        return 412
    if any(int(value) == generation for value in asked.get("ifGenerationNotMatch", [])):
        return 304
    return None


@contextlib.contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """What the Hugging Face hub answers about the data set owner/set: its address."""

    class Requests(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def send(self, data, code=200, kind="application/json"):
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def say(self, value, code=200):
            self.send(json.dumps(value).encode(), code)

        def do_GET(self):
            path = self.path.partition("?")[0]
            if re.fullmatch(r"/api/datasets/owner/set(/revision/\w+)?", path):
                self.say({"id": "owner/set", "sha": "0" * 40, "siblings": [], "tags": []})
            elif found := re.fullmatch(r"/api/datasets/owner/set/tree/\w+/?(.*)", path):
                self.say(_entries(files, found[1]))
            elif (found := re.fullmatch(r"/datasets/owner/set/resolve/\w+/(.*)", path)) and (
                found[1] in files
            ):
                begin, end = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
                self.send(files[found[1]][int(begin) : int(end) + 1], 206, "text/plain")
            else:
                self.say({"error": "not found"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _entries(files: Mapping[str, bytes], folder: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    start = f"{folder}/" if folder else ""
    for name in files:
        if name.startswith(start):
            first, _, deeper = name.removeprefix(start).partition("/")
            kind = {"type": "directory"} if deeper else {"type": "file", "size": len(files[name])}
            found[first] = {**kind, "path": start + first, "oid": "0" * 40}
    return list(found.values())


KINDS = {"s3": amazon, "gs": google}


def without_keys(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a user who is not logged in."""
    secret = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return {
        **{name: value for name, value in variables.items() if name not in secret},
        "HOME": os.devnull,
    }
