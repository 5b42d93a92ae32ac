"""What is held out: enough documents, a bounded part of each, nothing that is copied elsewhere."""

import random
from collections import Counter

import numpy as np
import pytest

from lmscale.data import DataError, build_corpus, encode, held_out, open_corpus
from lmscale.data.buckets import scatter
from lmscale.data.describe import summary_lines
from lmscale.data.held_out import _stretch, _whole_lines
from tests.data.prose import document, long_document, write_text

SPLITS = ("train", "valid", "test")
SETTINGS = {"vocab_size": 400, "valid_fraction": 0.1, "test_fraction": 0.1}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("LMSCALE_DATA", str(folder))
    return folder


def texts(corpus, split):
    ids = corpus.tokens(split)
    ends = np.flatnonzero(ids == corpus.eod_id)
    starts = [0, *(ends + 1)[:-1]]
    return [corpus.tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)]


def names(corpus, split):
    """The documents that lie in a split, wholly or in part."""
    lines = (line for text in texts(corpus, split) for line in text.splitlines())
    return {line.split(":")[0] for line in lines if ":" in line}


def build(tmp_path, name, documents, **settings):
    return build_corpus(name, [write_text(tmp_path / f"{name}.txt", documents)], **settings)


def test_pieces_of_a_document_lie_on_one_side_and_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "_ENOUGH_BYTES", 0)
    n_lines = [random.Random(i).choice([3, 30, 500]) for i in range(120)]
    documents = [long_document(f"d{i}", n) for i, n in enumerate(n_lines)]
    corpus = build(tmp_path, "a", documents, cut_documents=1000, **SETTINGS)
    found = {split: names(corpus, split) for split in SPLITS}
    assert not found["train"] & found["valid"]
    assert not found["train"] & found["test"]
    assert not found["valid"] & found["test"]
    assert set.union(*found.values()) == {f"d{i}" for i in range(120)}
    assert any(len(documents[int(name[1:])]) > 20_000 for name in found["valid"])
    limit = corpus.manifest["held_out"]["max_bytes"]
    for split in ("valid", "test"):
        assert corpus.n_documents(split) == len(found[split])
        size = Counter()
        for piece in texts(corpus, split):
            assert len(piece.encode()) <= 1000
            size[piece.split(":")[0]] += len(piece.encode())
        for name, n_bytes in size.items():
            assert n_bytes <= limit
            # Whole, or a bounded part in whole lines.
            whole = len(documents[int(name[1:])])
            assert n_bytes == whole or limit - 200 < n_bytes <= limit
    # Nothing is lost but the rest of held-out documents.
    total = sum(len(text) for text in documents)
    kept = sum(corpus.n_bytes(split) for split in SPLITS)
    assert total - kept == corpus.manifest["held_out"]["dropped_bytes"] > 0
    trained = sum(len(documents[int(name[1:])]) for name in found["train"])
    assert corpus.n_bytes("train") == trained
    assert corpus.n_documents("train") == len(found["train"])


def test_few_documents_contribute_more_of_each(tmp_path):
    documents = [long_document(f"d{i}", 800) for i in range(20)]
    corpus = build(tmp_path, "a", documents, **SETTINGS)
    limit = corpus.manifest["held_out"]["max_bytes"]
    assert limit == 2**20 // 2
    assert corpus.n_bytes("valid") == sum(
        len(documents[int(n[1:])]) for n in names(corpus, "valid")
    )


def edited(text, share, seed):
    rng = random.Random(seed)
    return " ".join("edit" if rng.random() < share else word for word in text.split(" "))


def test_near_duplicates_never_cross_a_split(tmp_path):
    documents = [document(f"d{i}") for i in range(200)]
    # Of half of the documents there are two or three versions.
    copies = [edited(documents[i % 100], 0.08, i) for i in range(150)]
    corpus = build(tmp_path, "a", documents + copies, **SETTINGS)
    original = {f"d{i}" for i in range(100)}
    for split in ("valid", "test"):
        held_out_names = names(corpus, split)
        assert len(held_out_names) >= 5
        assert not held_out_names & original
    assert original <= names(corpus, "train")
    assert corpus.manifest["held_out"]["near_duplicates"] > 20
    assert corpus.copies == {s: {"share": 0.0, "documents": 0} for s in ("valid", "test")}


@pytest.mark.parametrize("length", [12, 16, 24, 40, 64])
def test_short_documents_with_a_near_duplicate_are_not_held_out(tmp_path, length):
    """Rows that differ in their last byte, as numbered rows do."""
    rng = random.Random(length)
    rows = ["".join(rng.choices("abcdefghijklmnop", k=length - 1)) for _ in range(600)]
    alone = [document(f"d{i}", 3) for i in range(300)]
    corpus = build(tmp_path, "a", [row + last for row in rows for last in "01"] + alone, **SETTINGS)
    found = corpus.manifest["held_out"]
    for split in ("valid", "test"):
        assert corpus.n_documents(split) >= 20
        assert all(text.startswith("d") for text in texts(corpus, split))
    assert found["too_short" if length < 24 else "near_duplicates"] > 180
    assert ("of fewer than 24 bytes" in "".join(summary_lines(corpus))) == (length < 24)


def test_short_rows_that_are_no_copies_are_held_out(tmp_path):
    rng = random.Random(0)
    rows = ["".join(rng.choices("abcdefghijklmnop", k=24 + i % 60)) for i in range(600)]
    corpus = build(tmp_path, "a", rows, **SETTINGS)
    assert min(corpus.n_documents(split) for split in ("valid", "test")) > 40
    with pytest.raises(DataError, match=r"none fell to .* \(\d+ that are shorter than 24 bytes"):
        build(tmp_path, "b", [row[:20] for row in rows], **SETTINGS)


def test_the_built_in_corpora_hold_out_what_they_did(tmp_path):
    rng = random.Random(0)
    rows = ["".join(rng.choices("abcdefghijklmnop", k=12)) for _ in range(300)]
    scatter(((row.encode(), 0) for row in rows), tmp_path / "documents", lambda done: None)
    paths = sorted((tmp_path / "documents").iterdir())
    assert not held_out.choose_held_out(paths, 0.1, 0.1).texts
    assert len(held_out.choose_held_out(paths, 0.1, 0.1, only_samples=True).texts) > 40


def test_long_copies_never_cross_a_split(tmp_path):
    licence = document("licence", 12)
    rng = random.Random(0)
    # A licence on top of most, and a page of another document in the middle of some.
    documents = []
    for i in range(300):
        text = document(f"d{i}", 60)
        if rng.random() < 0.7:
            text = licence + text
        if rng.random() < 0.3:
            lines = text.splitlines(keepends=True)
            lines[40:40] = document(f"d{(i + 7) % 300}", 60).splitlines(keepends=True)[:25]
            text = "".join(lines)
        documents.append(text)
    corpus = build(tmp_path, "a", documents, **SETTINGS)
    train = set("".join(texts(corpus, "train")).splitlines())
    for split in ("valid", "test"):
        assert corpus.n_documents(split) >= 20
        lines = "".join(texts(corpus, split)).splitlines()
        assert sum(line in train for line in lines) <= 0.01 * len(lines)
        assert corpus.copies[split]["share"] < 0.01
        assert corpus.copies[split]["documents"] == 0
        assert sum(line.startswith("licence") for line in lines) <= 0.01 * len(lines)
    assert "licence" in names(corpus, "train")


def test_the_measured_share_is_the_one_planted(tmp_path, monkeypatch):
    # With the rule switched off, copies stay where they were planted.
    monkeypatch.setattr(held_out, "NEAR_DUPLICATE", 2.0)
    monkeypatch.setattr(held_out, "MAX_COPIED", 1.0)
    documents = [document(f"d{i}", 40) for i in range(150)]
    common = document("common", 10)
    corpus = build(tmp_path, "a", [common + text for text in documents], **SETTINGS)
    eod = corpus.eod_id
    n_common = len(corpus.tokenizer.encode(common))
    for split in ("valid", "test"):
        ids = np.array(corpus.tokens(split))
        n_documents = int((ids == eod).sum())
        # The next line begins with "d", which every document has behind the common text.
        expected = n_documents * n_common / (len(ids) - n_documents)
        assert corpus.copies[split]["share"] == pytest.approx(expected, abs=2e-3)
        assert corpus.copies[split]["documents"] == 0
    reopened = open_corpus("a")
    assert reopened.copies == corpus.copies == corpus.manifest["copies"]


@pytest.mark.slow
def test_order_and_processes_change_nothing(tmp_path, monkeypatch):
    documents = [document(f"d{i}", 5 + i % 50) for i in range(150)]
    documents += [edited(text, 0.1, 0) for text in documents[:40]]
    first = build(tmp_path, "a", documents, **SETTINGS)
    random.Random(0).shuffle(documents)
    monkeypatch.setattr(held_out, "_BATCH_BYTES", 5000)
    monkeypatch.setattr(encode, "_BYTES_PER_PROCESS", 1000)
    monkeypatch.setattr(encode, "n_cores", lambda: 2)
    second = build(tmp_path, "b", documents, **SETTINGS)
    assert first.fingerprint == second.fingerprint
    for key in ("splits", "held_out", "copies", "dropped"):
        assert first.manifest[key] == second.manifest[key]


@pytest.mark.parametrize(
    ("n", "share", "least"), [(40, 0.05, 4), (800, 0.08, 80), (2500, 0.06, 200)]
)
def test_small_text_holds_out_a_larger_share(tmp_path, n, share, least):
    documents = [document(f"d{i}", 3, 4) for i in range(n)]
    corpus = build(tmp_path, "a", documents, vocab_size=400)
    for split in ("valid", "test"):
        assert share <= corpus.manifest["held_out"][f"{split}_fraction"] <= 0.2
        assert least <= corpus.n_documents(split) <= max(least + 3, 0.12 * n)


def test_copies_are_made_up_for_by_looking_at_more(tmp_path):
    documents = [document(f"d{i}", 3, 4) for i in range(1200)]
    documents += [edited(documents[i % 600], 0.04, i) for i in range(1200)]
    corpus = build(tmp_path, "a", documents, vocab_size=400)
    assert corpus.manifest["held_out"]["valid_fraction"] == 0.2
    assert 80 < corpus.n_documents("valid") < 160


def test_a_handful_of_documents_holds_out_one_each(tmp_path):
    documents = [document(f"d{i}", 60) for i in range(10)]
    corpus = build(tmp_path, "a", documents, vocab_size=400)
    assert [corpus.n_documents(split) for split in SPLITS] == [8, 1, 1]


def test_one_share_may_be_given(tmp_path):
    documents = [document(f"d{i}", 3, 4) for i in range(200)]
    corpus = build(tmp_path, "a", documents, vocab_size=400, valid_fraction=0)
    assert corpus.n_documents("valid") == 0 and 20 <= corpus.n_documents("test") <= 30
    corpus = build(tmp_path, "b", documents, vocab_size=400, valid_fraction=0.9)
    assert corpus.manifest["held_out"]["test_fraction"] == pytest.approx(0.05)
    assert min(corpus.n_documents(split) for split in SPLITS) >= 1
    # What the given share takes is chosen first.
    assert corpus.n_documents("valid") >= 160


def test_the_chosen_share_gives_enough_documents_and_no_more():
    shares = held_out._shares(6000)
    assert shares[0] == 0.01 and 0.05 in shares
    # A large text holds out no more than it needs.
    assert held_out._shares(10**7)[0] == 0.0002
    assert held_out._shares(10)[0] == 0.01


@pytest.mark.slow
def test_a_share_that_is_given_keeps_documents_where_they_are(tmp_path):
    documents = [document(f"d{i}", 4) for i in range(300)]
    small = build(tmp_path, "small", documents[:200], **SETTINGS)
    large = build(tmp_path, "large", documents, **SETTINGS)
    for split in SPLITS:
        assert names(small, split) <= names(large, split)
    # A smaller share moves documents to the training text only.
    less = build(
        tmp_path, "less", documents, vocab_size=400, valid_fraction=0.05, test_fraction=0.07
    )
    for split in ("valid", "test"):
        assert names(less, split) < names(large, split)
        assert less.n_documents(split) == len(names(less, split))


def test_evaluation_text_is_no_copy_of_the_training_text(tmp_path):
    documents = [document(f"d{i}", 20) for i in range(150)]
    training = build(tmp_path, "training", documents, **SETTINGS)
    others = [document(f"o{i}", 20) for i in range(150)]
    trained = sorted(names(training, "train"), key=lambda name: int(name[1:]))[:100]
    known = [edited(documents[int(name[1:])], 0.08, 1) for name in trained]
    name = "evaluation"
    text = write_text(tmp_path / "more.txt", others + known)
    corpus = build_corpus(
        name, [text], tokenizer_from="training", valid_fraction=0.3, test_fraction=0.3
    )
    for split in ("valid", "test"):
        assert corpus.n_documents(split) >= 20
        assert all(found.startswith("o") for found in names(corpus, split))
        assert corpus.copies[split] == {"share": 0.0, "documents": 0}


def test_the_stretch_is_the_one_with_least_copies():
    copied = np.zeros(1000, bool)
    copied[:200] = True
    assert _stretch(copied, 2000, 0) == (200, 1000)
    copied[600:610] = True
    # Ten copied bytes weigh as much as 190 others: they stay, as both sides have more.
    assert _stretch(copied, 2000, 0) == (200, 1000)
    copied[600:640] = True
    assert _stretch(copied, 2000, 0) == (200, 600)
    assert _stretch(np.ones(10, bool), 5, 0) == (0, 0)
    # Where there is a choice, the document's hash makes it.
    starts = {_stretch(np.zeros(100, bool), 10, number)[0] for number in range(500)}
    assert starts == set(range(91))


def test_parts_are_whole_lines_or_characters():
    text = "eins\nzwei ä\ndrei\n".encode()
    assert _whole_lines(text, 2, len(text)) == "zwei ä\ndrei\n".encode()
    assert _whole_lines(text, 0, 15) == "eins\nzwei ä\n".encode()
    assert _whole_lines(text, 0, len(text)) == text
    letters = "ä".encode() * 10
    assert _whole_lines(letters, 3, 9) == "ä".encode() * 2
