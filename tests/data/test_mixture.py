"""Mixtures: the order of their documents, their weights, what is repeated, and what is refused."""

import json
import re

import numpy as np
import pytest

from lmscale.cli import main
from lmscale.data import DataError, build_corpus, describe, inputs, open_corpus
from lmscale.data.describe import summary_lines
from lmscale.data.mixture import interleaved, parse_weights
from tests.cli.answers import refused
from tests.data.prose import document, write_text
from tests.data.test_build import SPLITS, texts

SETTINGS = {"vocab_size": 320, "valid_fraction": 0.1, "test_fraction": 0.1}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "data"))


@pytest.fixture
def sources(tmp_path):
    """wiki: 150 documents of one size; books: 40 of three; the first word of a line tells which."""
    wiki = write_text(tmp_path / "wiki.txt", [document(f"wiki{i}", 10) for i in range(150)])
    books = write_text(
        tmp_path / "books.txt", [document(f"book{i}", 8 * (1 + i % 3)) for i in range(40)]
    )
    return wiki, books


def test_the_next_document_comes_from_the_source_that_is_furthest_behind():
    def of(mark, *lengths):
        return lambda: (np.full(n, mark) for n in lengths)

    found = [number for number, _ in interleaved([of(0, 1, 1, 1, 1), of(1, 1, 1)], [0.75, 0.25])]
    assert found == [0, 1, 0, 0, 0, 1]  # the next would be of the first, which has no more
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 100, 400), rng.integers(1, 400, 400), rng.integers(1, 30, 4000)]
    weights = [0.5, 0.3, 0.2]
    taken, largest = np.zeros(3), np.array([x.max() for x in lengths])
    for number, doc in interleaved([of(i, *x) for i, x in enumerate(lengths)], weights, 50_000):
        taken[number] += len(doc)
        assert (np.abs(taken - np.array(weights) * taken.sum()) <= largest.sum()).all()
        lead = taken / weights - (taken / weights).min()
        assert (lead <= largest / weights).all()
    assert 50_000 <= taken.sum() < 50_000 + 400


def test_weights_are_met_in_every_beginning_and_epochs_are_counted(sources):
    wiki, books = sources
    corpus = build_corpus("mix", {wiki: 3, books: 1}, tokens=120_000, **SETTINGS)
    assert corpus.n_tokens("train") >= 120_000
    found = texts(corpus, "train")
    sizes = [len(corpus.tokenizer.encode(text)) + 1 for text in found]
    is_book = [text.startswith("book") for text in found]
    tokens = np.cumsum(sizes)
    of_books = np.cumsum(np.where(is_book, sizes, 0))
    assert (np.abs(of_books - 0.25 * tokens) <= max(sizes)).all()
    for mark, source in (("wiki", 0), ("book", 1)):
        own = [text for text in found if text.startswith(mark)]
        told = corpus.manifest["mixture"][source]["train"]
        different = list(dict.fromkeys(own))
        # Epoch after epoch in one order, each document once in each.
        assert own == (different * 100)[: len(own)]
        own_tokens = sum(n for n, text in zip(sizes, found, strict=True) if text.startswith(mark))
        assert told["tokens"] == own_tokens and told["documents"] == len(own)
        assert told["epochs"] == pytest.approx(told["tokens"] / told["available"])
        assert len(own) / len(different) == pytest.approx(told["epochs"], rel=0.1)
    for split in SPLITS:
        assert corpus.n_bytes(split) == sum(len(text.encode()) for text in texts(corpus, split))
        assert corpus.n_documents(split) == len(texts(corpus, split))
    # What is held out follows the weights too, is never repeated and not in the training text.
    for split in ("valid", "test"):
        held_out = texts(corpus, split)
        assert len(set(held_out)) == len(held_out) and not set(held_out) & set(found)
    corpus.verify()
    said = "\n".join(summary_lines(corpus))
    share = corpus.manifest["mixture"][0]["train"]["tokens"] / corpus.n_tokens("train")
    assert f"mixture: {share:.1%} {wiki}" in said
    assert f"{corpus.manifest['mixture'][1]['train']['epochs']:.2f} epochs" in said


def test_without_a_length_nothing_is_repeated(sources):
    wiki, books = sources
    corpus = build_corpus("mix", {wiki: 0.9, books: 0.1}, **SETTINGS)
    epochs = [source["train"]["epochs"] for source in corpus.manifest["mixture"]]
    assert epochs[0] == 1.0 and 0 < epochs[1] < 1
    found = texts(corpus, "train")
    assert len(set(found)) == len(found)
    # The same mixture is the same bytes, and another one is another corpus.
    again = build_corpus("again", {wiki: 9, books: 1}, **SETTINGS)
    assert again.fingerprint == corpus.fingerprint
    with pytest.raises(DataError, match="exists with mixture"):
        build_corpus("mix", {wiki: 0.5, books: 0.5}, **SETTINGS)
    with pytest.raises(DataError, match="exists with other inputs, mixture"):
        build_corpus("mix", [wiki, books], **SETTINGS)


def test_a_long_document_that_misses_the_weights_is_said_with_its_remedy(tmp_path, capsys):
    a = write_text(tmp_path / "a.txt", [document(f"a{i}") for i in range(60)])
    long = "\n".join(document(f"long{i}") for i in range(90))
    b = write_text(tmp_path / "b.txt", [long, *(document(f"b{i}") for i in range(3))])
    settings = ["--tokenizer", "bytes", "--valid-fraction", "0", "--test-fraction", "0"]
    argv = ["data", "build", "mix", *settings, "--input", f"{a}=0.8", f"{b}=0.2"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    mixture = describe(open_corpus("mix"))["mixture"]
    total = sum(source["train"]["tokens"] for source in mixture)
    shares = [source["train"]["tokens"] / total for source in mixture]
    assert shares[1] > 0.3
    (line,) = [line for line in said.splitlines() if "asked for" in line]
    assert f"{shares[0]:.1%} of the training text is of {a}, not the 80.0% asked for" in line
    assert f"{shares[1]:.1%} of the training text is of {b}, not the 20.0% asked for" in line
    largest = mixture[1]["train"]["largest"] / total
    assert f"The longest document of {b} is {largest:.1%} of all" in line
    assert main(["data", "show", "mix"]) == 0
    assert line in capsys.readouterr().out
    # The remedy that is named is one.
    remedy = re.search(r"--cut-documents \d+", line)[0].split()
    assert main([*argv[:2], "cut", *argv[3:], *remedy]) == 0
    assert "asked for" not in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [None, 500_000])
def test_pieces_of_a_mixture_are_not_counted_as_documents(tmp_path, tokens):
    names = {}
    for name in "ab":
        some = [document(f"{name}{i}", 30 + i) for i in range(60)]
        names[write_text(tmp_path / f"{name}.txt", some)] = 0.5
    corpus = build_corpus("mix", names, cut_documents=500, tokens=tokens, **SETTINGS)
    for split in SPLITS:
        found = texts(corpus, split)
        counts = corpus.manifest["splits"][split]
        assert counts["pieces"] == len(found)
        different = len({text.split(":")[0] for text in found})
        if split == "train":
            epochs = [source["train"]["epochs"] for source in corpus.manifest["mixture"]]
            different = max(1, np.mean(epochs)) * different
            assert counts["documents"] == pytest.approx(different, rel=0.1)
        else:
            assert counts["documents"] == different < len(found) / 3
        assert counts["documents"] == sum(
            source[split]["documents"] for source in corpus.manifest["mixture"]
        )
    assert "fewer than 100" in "\n".join(summary_lines(corpus))


def test_a_document_of_two_sources_is_of_the_first(tmp_path):
    shared = [document(f"both{i}") for i in range(40)]
    a = write_text(tmp_path / "a.txt", [*shared, *(document(f"a{i}") for i in range(40))])
    b = write_text(tmp_path / "b.txt", [*shared, *(document(f"b{i}") for i in range(40))])
    corpus = build_corpus("mix", {b: 1, a: 1}, **SETTINGS)
    n = [
        sum(source[split]["available"] for split in SPLITS) for source in corpus.manifest["mixture"]
    ]
    assert n[0] > 1.7 * n[1]
    assert corpus.manifest["dropped"]["duplicates"] == 40


def test_the_command_takes_weights_and_says_what_is_wrong(sources, tmp_path, capsys):
    wiki, books = sources
    command = ["data", "build", "mix", "--vocab-size", "320", "--input"]
    assert main([*command, f"{wiki}=70%", f"{books}=0.3", "--tokens", "5e4"]) == 0
    assert "mixture: " in capsys.readouterr().out
    assert main(["data", "show", "mix", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["mixture"]
    assert [source["weight"] for source in told] == [pytest.approx(0.7), pytest.approx(0.3)]
    assert (
        told
        == describe(build_corpus("mix", {wiki: 0.7, books: 0.3}, vocab_size=320, tokens=50_000))[
            "mixture"
        ]
    )

    def line(*inputs):
        return refused(capsys, *command[:2], "b", *command[3:], *inputs)

    assert "has no weight" in line(f"{wiki}=0.7", books)
    assert "must be a positive number, not 0" in line(f"{wiki}=0", f"{books}=1")
    assert "is no share of all" in line(f"{wiki}=1e-300", f"{books}=1e300")
    assert "is no share of all" in line(f"{wiki}=1e308", f"{books}=1e308")
    assert "2,000,000 GB, and " in line(f"{wiki}=1", f"{books}=1", "--tokens", "1e15")
    assert "is not a number" in line(f"{wiki}=0.1.2")
    assert "has two weights" in line(f"{wiki}=0.1", f"{wiki}=0.2")
    assert "to one source only" in line(f"{wiki}=0.1", f"{tmp_path}/*.txt=0.2")
    assert "give every input a weight" in line(wiki, "--tokens", "1000")
    assert "nothing matches" in line(f"{tmp_path}/none.txt=0.3", f"{wiki}=0.7")


def test_a_file_may_be_named_like_a_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "year=2024").mkdir()
    assert parse_weights(["year=2024", "b"]) == ["year=2024", "b"]
    monkeypatch.setenv("HOME", str(tmp_path))
    kind = inputs._kind
    monkeypatch.setattr(inputs, "unreachable", lambda name, text: None)
    monkeypatch.setattr(
        inputs, "_kind", lambda path: "folder" if str(path) == "s3://b/year=2024" else kind(path)
    )
    for name in ("~/year=2024", str(tmp_path / "*=2024"), "*=2024", "s3://b/year=2024"):
        assert parse_weights([name, "b"]) == [name, "b"]
        assert parse_weights([f"{name}=3", "b=1"]) == {name: 3.0, "b": 1.0}
    assert parse_weights(["year=2024=3", "b=1"]) == {"year=2024": 3.0, "b": 1.0}
