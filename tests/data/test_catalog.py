import json
import os

import pytest

from lmscale.data import (
    DataError,
    build_corpus,
    catalog,
    evaluation_corpus,
    installed,
    list_corpora,
    open_corpus,
    summary,
)
from lmscale.data.installed import find_installed, read_installed
from lmscale.files import DamagedError
from tests.data.prose import document, documents, long_document, write_text


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("LMSCALE_DATA", str(folder))
    return folder


def build(tmp_path, name, seed=0):
    text = write_text(tmp_path / f"{name}.txt", documents(80, seed))
    return build_corpus(name, [text], vocab_size=320, valid_fraction=0.1, test_fraction=0.1)


@pytest.fixture
def few_sources(tmp_path, monkeypatch):
    """Stands for the installed sources: 40 small modules, one of them not UTF-8."""
    folder = tmp_path / "site"
    folder.mkdir()
    for i, text in enumerate(documents(400)):
        (folder / f"m{i}.py").write_text(text)
    (folder / "latin.py").write_bytes(b"# na\xefve\n")
    files = sorted(folder.iterdir())
    monkeypatch.setattr(
        "lmscale.data.build.find_installed", lambda: (files, {"python": "3", "distributions": {}})
    )
    return files


def test_open_by_name_and_by_path(tmp_path, root, monkeypatch):
    corpus = build(tmp_path, "a")
    assert open_corpus("a").name == open_corpus(str(root / "a")).name == "a"
    assert open_corpus("a", 320).fingerprint == corpus.fingerprint
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "elsewhere"))
    moved = open_corpus(str(root / "a"))
    assert moved.name == str(root / "a")
    assert open_corpus(moved.name).fingerprint == corpus.fingerprint
    monkeypatch.chdir(root)
    assert open_corpus("a").name == str(root / "a")


def test_another_vocabulary_is_refused(tmp_path):
    build(tmp_path, "a")
    with pytest.raises(DataError, match="corpus a has a vocabulary of 320, not 4096"):
        open_corpus("a", vocab_size=4096)


def test_an_unknown_name_lists_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"no corpus wiki .*there: none yet.*lmscale data build"):
        open_corpus("wiki")
    build(tmp_path, "a")
    build(tmp_path, "b", seed=1)
    with pytest.raises(DataError, match=r"there: a, b\)") as error:
        open_corpus("wiki")
    assert "\n" not in str(error.value)


def test_summary_lists_every_corpus(tmp_path, root):
    assert summary() == []
    corpus = build(tmp_path, "b")
    build(tmp_path, "a", seed=1)
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "manifest.json").write_text("{")
    (root / "old").mkdir()
    (root / "old" / "manifest.json").write_text('{"format": 1}')
    assert [corpus.name for corpus in list_corpora()] == ["a", "b"]
    row = summary()[1]
    assert row["name"] == "b"
    assert row["fingerprint"] == corpus.fingerprint
    assert row["train_tokens"] == corpus.n_tokens("train")
    assert row["documents"] == 80
    json.dumps(row)
    with pytest.raises(DamagedError, match=r"broken/manifest.json is damaged: it is no JSON"):
        open_corpus("broken")
    with pytest.raises(
        DataError, match=r"old has format 1, .* remove that folder and build it again"
    ):
        open_corpus("old")


def test_the_built_in_corpus_is_built_on_first_use(few_sources, monkeypatch):
    corpus = open_corpus("installed-python", vocab_size=320)
    assert corpus.name == "installed-python-v320"
    assert sum(corpus.n_documents(split) for split in ("train", "valid", "test")) == 400
    monkeypatch.setattr(catalog, "build_installed", None)
    assert open_corpus("installed-python-v320").fingerprint == corpus.fingerprint
    assert open_corpus("installed-python", 320).fingerprint == corpus.fingerprint
    with pytest.raises(DataError, match="has a vocabulary of 320, not 512"):
        open_corpus("installed-python-v320", vocab_size=512)


def test_the_built_in_corpus_has_1024_ids_by_default(few_sources):
    assert open_corpus("installed-python").vocab_size == 1024
    with pytest.raises(DataError, match="vocab_size 9999 is too large for this text"):
        open_corpus("installed-python-v9999")
    with pytest.raises(DataError, match="at least 300"):
        open_corpus("installed-python", 16)


def test_more_text_than_wanted_is_sampled_by_content(few_sources, monkeypatch):
    everything = {text for text, _ in read_installed(few_sources)}
    assert len(everything) == 400
    half = sum(map(len, everything)) // 2
    monkeypatch.setattr(installed, "MAX_BYTES", half)
    sample = {text for text, _ in read_installed(few_sources)}
    assert 0.8 * half < sum(map(len, sample)) < 1.2 * half
    assert sample == {text for text, _ in read_installed(few_sources[::-1])}


def test_installed_sources_are_the_library_and_what_lmscale_needs():
    files, record = find_installed()
    assert len(files) > 1000
    assert {"jax", "numpy", "flax", "scipy"} <= set(record["distributions"])
    assert "torch" not in record["distributions"]
    names = {"/".join(file.parts[-2:]) for file in files}
    assert {"jax/__init__.py", "json/decoder.py"} <= names
    assert not any("/lmscale/" in os.fspath(file) for file in files)


def test_other_installed_text_takes_the_tokeniser_of_the_training_text(tmp_path, monkeypatch):
    training = build(tmp_path, "mytext")
    folder = tmp_path / "site"
    folder.mkdir()
    for i, text in enumerate(documents(30, seed=2)):
        (folder / f"README{i}.md").write_text(text)
    files = sorted(folder.iterdir())
    asked = []

    def find(patterns):
        asked.append(patterns)
        return files, {"python": "3"}

    monkeypatch.setattr("lmscale.data.build.find_installed", find)
    prose = evaluation_corpus("installed-prose", training)
    assert asked == [installed.OTHER_KINDS["prose"]]
    assert prose.tokenizer.hash == training.tokenizer.hash
    assert prose.n_tokens("valid") > 0 and prose.n_tokens("train") == prose.n_tokens("test") == 0
    prose.verify()
    # A second call builds nothing, and its name is one that a run can hold.
    assert evaluation_corpus("installed-prose", training).fingerprint == prose.fingerprint
    assert len(asked) == 1
    assert open_corpus(prose.name).fingerprint == prose.fingerprint
    other = build(tmp_path, "other", seed=5)
    assert evaluation_corpus("installed-prose", other).name != prose.name


def test_other_installed_text_is_bounded_and_holds_nothing_of_the_training_text(
    tmp_path, monkeypatch
):
    known = [document(f"k{i}") for i in range(80)]
    text = write_text(tmp_path / "mytext.txt", known)
    training = build_corpus("mytext", [text], vocab_size=400, valid_fraction=0.1, test_fraction=0.1)
    folder = tmp_path / "site"
    folder.mkdir()
    fresh = [document(f"f{i}") for i in range(30)]
    licence = document("licence", 60)
    # Some are training documents but for a line, some are a licence with a little more.
    texts = [*fresh, *("more\n" + text for text in known)]
    texts += [licence + document(f"l{i}", 10) for i in range(5)]
    long = long_document("long", 3000)
    for i, text in enumerate([*texts, long]):
        (folder / f"README{i}.md").write_text(text)
    monkeypatch.setattr(
        "lmscale.data.build.find_installed", lambda patterns: (sorted(folder.iterdir()), {})
    )
    prose = evaluation_corpus("installed-prose", training)
    kept = prose.tokenizer.decode(prose.tokens("valid")).splitlines()
    heads = {line.split(":")[0] for line in kept if ":" in line}
    assert {f"f{i}" for i in range(30)} <= heads
    # The licence is there once.
    assert sum(line.startswith("licence:") for line in kept) == 60
    trained = training.tokenizer.decode(training.tokens("train"))
    assert not any(line in trained for line in kept if line.startswith("k"))
    assert prose.copies == {"valid": {"share": 0.0, "documents": 0}}
    limit = prose.manifest["held_out"]["max_bytes"]
    assert 1000 < sum(len(line) + 1 for line in kept if line.startswith("long")) <= limit
    assert limit < len(long)


def test_evaluation_text_of_another_tokeniser_is_refused(tmp_path):
    training = build(tmp_path, "a")
    build(tmp_path, "b", seed=1)
    assert evaluation_corpus("a", training).name == "a"
    with pytest.raises(DataError, match=r"b has another tokeniser than a: .*--tokenizer-from a"):
        evaluation_corpus("b", training)
    with pytest.raises(DataError, match="reserved for a built-in corpus"):
        build_corpus("installed-prose", [tmp_path / "a.txt"])


def test_every_kind_of_installed_text_is_there_and_apart_from_the_others():
    names = set()
    for kind, patterns in installed.OTHER_KINDS.items():
        files, _ = find_installed(patterns)
        assert sum(file.stat().st_size for file in files if file.is_file()) > 300_000, kind
        assert names.isdisjoint(files)
        names |= set(files)
    assert not any(file.suffix == ".py" for file in names)


def test_a_vocabulary_that_cannot_be_is_one_line():
    for digits in ("9" * 5000, "9" * 9, "0"):
        with pytest.raises(
            DataError, match=r"vocab_size must be at|no corpus|cannot be read"
        ) as error:
            open_corpus(f"installed-python-v{digits}")
        assert "\n" not in str(error.value)


def test_a_root_that_is_a_file_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match="file cannot be read: Not a directory"):
        list_corpora()
    with pytest.raises(DataError, match="Not a directory"):
        open_corpus("a")
    monkeypatch.setenv("LMSCALE_DATA", "https://a.org/corpora")
    with pytest.raises(DataError, match=r"https://a.org/corpora is not read in place"):
        open_corpus("a")
