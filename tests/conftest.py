"""Settings that must come before jax looks for devices, and a small corpus that tests share."""

import os
import random
import signal
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

# The same examples each time, so that a suite that passed passes again; campaigns ask for more.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
if "LMSCALE_EXAMPLES" not in os.environ:
    hypothesis.settings.load_profile("suite")

#: Virtual devices, so that meshes are real.
N_DEVICES = 8
jax.config.update("jax_num_cpu_devices", N_DEVICES)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Many tests compile equal programs: each is compiled once a session, whichever worker it is."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist have folders of their own in a common one.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session", autouse=True)
def programs_once():
    """Packs of many tests have equal programs: each is traced and compiled once in a process."""
    from lmscale.planner import programs
    from tests.built_programs import build_once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "build_program", build_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Tests write thousands of small files in their own process, and none of them cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory):
    """No test reads or writes what the user has, whichever test comes first."""
    for name in ("LMSCALE_DATA", "LMSCALE_CACHE"):
        os.environ[name] = str(tmp_path_factory.mktemp(name.removeprefix("LMSCALE_").lower()))


@pytest.fixture
def compile_quickly(monkeypatch):
    """For tests whose programs run a few steps each."""
    from tests.quick_compile import quick_jit

    monkeypatch.setattr(jax, "jit", quick_jit)


@pytest.fixture(autouse=True)
def process_settings():
    """Puts back what a command sets for its process, as the next test is in the same one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    compiled = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", compiled)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_files():
    """Files of a user's own that a test loads are forgotten, since workers would load them too."""
    from lmscale import user_files

    known = [dict(kept) for kept in (user_files._FILES, user_files._DIGESTS)]
    yield
    for kept, before in zip((user_files._FILES, user_files._DIGESTS), known, strict=True):
        kept.clear()
        kept.update(before)


_WORDS = [
    "the",
    "of",
    "a",
    "model",
    "token",
    "loss",
    "layer",
    "step",
    "data",
    "batch",
    "scale",
    "law",
    "rate",
    "width",
    "depth",
    "head",
    "state",
    "function",
    "value",
    "return",
    "import",
    "class",
    "array",
    "index",
    "float",
    "shape",
    "tree",
    "key",
    "run",
    "pack",
    "mesh",
    "slot",
]


def write_text(path: Path, n_documents: int = 300, seed: int = 0) -> Path:
    """Documents of a little language with structure to learn: words, repeats, line breaks."""
    rng = random.Random(seed)
    documents = []
    for number in range(n_documents):
        theme = rng.sample(_WORDS, 6)
        lines = (
            " ".join(rng.choice(theme if rng.random() < 0.8 else _WORDS) for _ in range(12))
            for _ in range(20)
        )
        documents.append(f"document {number}\n" + "\n".join(lines))
    path.write_text("\n\f\n".join(documents))
    return path


@pytest.fixture(scope="session")
def data_root(own_folders) -> Path:
    """A data folder of the test session's own."""
    return Path(os.environ["LMSCALE_DATA"])


@pytest.fixture(scope="session")
def corpus(data_root, tmp_path_factory):
    """The corpus `tiny`: 300 short documents, a vocabulary of 300."""
    from lmscale.data import build_corpus

    text = write_text(tmp_path_factory.mktemp("text") / "tiny.txt")
    return build_corpus(
        "tiny", [str(text)], vocab_size=300, valid_fraction=0.05, test_fraction=0.05
    )
