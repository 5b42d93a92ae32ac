"""Tokenisers by file: ids, text and bytes as their own libraries have them, and files that are wrong."""

import json
from itertools import chain

import numpy as np
import pytest
import sentencepiece

from lmscale.cli import main
from lmscale.data import DataError, build_corpus, describe, read_tokenizer
from lmscale.data.catalog import evaluation_corpus
from lmscale.data.character_tokenizer import CharacterTokenizer, count_characters
from lmscale.data.describe import summary_lines
from tests.cli.answers import refused
from tests.data import tokenizer_files as made
from tests.data.prose import documents, write_text
from tests.data.test_build import SETTINGS, SPLITS, texts

tokenizers = pytest.importorskip("tokenizers")
MAKERS = {
    "llama.model": made.sentencepiece_model,
    "unigram.model": lambda: made.sentencepiece_model(model_type="unigram", add_dummy_prefix=False),
    "t5.model": made.t5_model,
    "gpt2.json": made.gpt2_json,
    "qwen.json": lambda: made.gpt2_json(tokenizers.normalizers.NFC()),
    "llama.json": made.llama_json,
    "unigram.json": made.unigram_json,
}
#: Those that give back every document of our prose exactly.
EXACT = ("llama.model", "unigram.model", "gpt2.json", "qwen.json", "llama.json", "unigram.json")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, make in MAKERS.items():
        content = make()
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "data"))


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt", documents(60))


def library(path):
    """(encode, decode) of the library that the file is of."""
    if path.suffix == ".model":
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return processor.encode, processor.decode
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.encode_special_tokens = True
    return lambda text: backend.encode(text, add_special_tokens=False).ids, backend.decode


@pytest.mark.parametrize("name", MAKERS)
def test_ids_and_text_are_the_library_s_own_and_bytes_are_counted(files, name):
    tokenizer = read_tokenizer(str(files / name))
    encode, decode = library(files / name)
    for text in (*documents(5), *made.NASTY):
        ids = tokenizer.encode(text)
        if name != "unigram.json" or "</s>" not in text:
            assert ids.tolist() == encode(text)
        assert tokenizer.eod_id not in ids
        back = tokenizer.decode_bytes(ids)
        known = [i for i in ids.tolist() if i != tokenizer.unknown_id]
        if len(known) == len(ids):
            assert decode(known) == back.decode(errors="replace")
        after_end = np.array([tokenizer.eod_id, *ids, tokenizer.eod_id])
        assert tokenizer.count_bytes(after_end) == len(back)
        assert tokenizer.decode_documents(after_end[1:], 0xFF).tobytes() == back + b"\xff"
        if name in ("gpt2.json", "unigram.model") or (name in EXACT and text in documents(5)):
            assert back == text.encode()


@pytest.mark.parametrize("name", MAKERS)
def test_a_corpus_is_built_with_a_tokeniser_of_a_file(files, text, name):
    corpus = build_corpus(
        "a", [text], tokenizer=str(files / name), valid_fraction=0.2, test_fraction=0.2
    )
    encode, _ = library(files / name)
    found = {split: texts(corpus, split) for split in SPLITS}
    ids = np.concatenate([corpus.tokens(split) for split in SPLITS])
    expected = [*chain.from_iterable([*encode(text), corpus.eod_id] for text in documents(60))]
    assert len(ids) == len(expected) and sorted(ids.tolist()) == sorted(expected)
    for split in SPLITS:
        assert corpus.n_bytes(split) == sum(len(text.encode()) for text in found[split])
        windows = np.concatenate([[corpus.eod_id], corpus.tokens(split)])
        assert corpus.tokenizer.count_bytes(windows) == corpus.n_bytes(split)
    tokenizer = describe(corpus)["tokenizer"]
    if name in EXACT:
        assert sorted(chain(*found.values())) == sorted(documents(60))
        assert tokenizer["changed"] == 0
    else:
        assert tokenizer["changed"] == 60
        assert "60 documents do not come back" in "\n".join(summary_lines(corpus))
    corpus.verify()
    # Another text in the same tokens, which is also found again as it is.
    other = build_corpus("b", [text], tokenizer_from="a", valid_fraction=0.5, test_fraction=0)
    assert (
        evaluation_corpus("b", corpus).tokenizer.hash
        == corpus.tokenizer.hash
        == other.tokenizer.hash
    )
    again = build_corpus(
        "a", [text], tokenizer=str(files / name), valid_fraction=0.2, test_fraction=0.2
    )
    assert again.fingerprint == corpus.fingerprint
    with pytest.raises(DataError, match=r"tokenizer \S+ \w{16} instead of None"):
        build_corpus("a", [text], valid_fraction=0.2, test_fraction=0.2, vocab_size=320)


@pytest.mark.parametrize("name", ["llama.model", "gpt2.json", "unigram.json"])
def test_processes_that_encode_use_the_same_tokeniser(files, text, name, monkeypatch):
    chosen = {"tokenizer": str(files / name), "valid_fraction": 0.2, "test_fraction": 0.2}
    alone = build_corpus("alone", [text], **chosen)
    monkeypatch.setattr("lmscale.data.encode._BYTES_PER_PROCESS", 10_000)
    assert build_corpus("many", [text], **chosen).fingerprint == alone.fingerprint


def test_the_end_of_a_document_is_named_beside_the_file_or_by_the_user(files, tmp_path):
    content = json.loads((files / "gpt2.json").read_text())
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": 378, "content": "<|im_end|>"}
    )
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert read_tokenizer(str(folder)).eod_id == 0
    assert read_tokenizer(str(folder), "<|im_end|>").eod_id == 378
    config = {"eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_tokenizer(str(folder)).eod_id == 378
    assert read_tokenizer(str(folder)).vocab_size == 379
    with pytest.raises(DataError, match="has no token 'stop'"):
        read_tokenizer(str(folder), "stop")
    assert read_tokenizer(str(files / "llama.model"), "<s>").eod_id == 1
    with pytest.raises(DataError, match="has no piece 'stop'"):
        read_tokenizer(str(files / "llama.model"), "stop")


def test_files_that_are_no_tokenisers_are_refused_in_one_line(files, text, tmp_path, capsys):
    def line(content, *more):
        path = tmp_path / "file"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return refused(capsys, "data", "build", "a", "--input", text, "--tokenizer", path, *more)

    assert "is no SentencePiece model; known are" in line("some text")
    assert "is no SentencePiece model" in line(b"")
    assert "is no SentencePiece model" in line((files / "llama.model").read_bytes()[:100])
    assert "is no tokenizer.json of tokenizers" in line('{"hello": 1}')
    assert "is no tokenizer.json of tokenizers" in line("{")
    assert "its decoder is WordPiece" in line(made.bert_json())
    gpt2 = json.loads((files / "gpt2.json").read_text())
    assert "tokenizers cannot read it" in line(
        json.dumps({**gpt2, "model": {"type": "?", "vocab": {}}})
    )
    assert "whose tokens do not stand for fixed bytes" in line(
        json.dumps({**gpt2, "decoder": None})
    )
    for decoder in (
        "ByteLevel",
        ["ByteLevel"],
        3,
        {"type": "Sequence"},
        {"type": "Sequence", "decoders": 3},
        {"type": "Sequence", "decoders": ["Fuse"]},
        {"type": "Sequence", "decoders": []},
        {"type": ["Fuse"]},
        {"type": "Replace", "pattern": {"String": "a"}},
        {"type": "Replace", "pattern": {"String": "a"}, "content": 3},
        {"type": "Replace", "pattern": {"String": 3}, "content": "a"},
        {"type": "Replace", "pattern": {"String": ["a"]}, "content": "a"},
        {"type": "Metaspace", "replacement": 3},
    ):
        said = line(json.dumps({**gpt2, "decoder": decoder}))
        assert "cannot be the tokeniser: " in said and "ecoder" in said, decoder
    for deep in ('{"model":' * 100_000, '{"model": {"vocab": ' + "[" * 100_000):
        assert "is no tokenizer.json of tokenizers" in line(deep)
    nameless = json.dumps(gpt2).replace("<|endoftext|>", "<|stop|>")
    assert "name the one that ends a document" in line(nameless)
    assert "ids, not 500: leave vocab_size out" in line(json.dumps(gpt2), "--vocab-size", 500)
    assert "exclude each other" in line(json.dumps(gpt2), "--tokenizer-from", "b")
    missing = ("data", "build", "a", "--input", text, "--tokenizer", tmp_path / "none.model")
    assert "there is no tokeniser" in refused(capsys, *missing)
    lost = ("data", "build", "a", "--input", text, "--tokenizer", "~nosuch/x")
    assert "there is no tokeniser ~nosuch/x" in refused(capsys, *lost)
    for name in ("gpt2.json", "llama.model"):
        with pytest.raises(DataError, match="is not UTF-8"):
            read_tokenizer(str(files / name), "\udcff")
    folder = ("data", "build", "a", "--input", text, "--tokenizer", tmp_path)
    assert "holds none of tokenizer.json" in refused(capsys, *folder)
    argv = ("data", "build", "a", "--input", text)
    assert "give both" in refused(capsys, *argv, "--end-token", "</s>")
    taken = refused(capsys, *argv, "--tokenizer-from", files / "gpt2.json")
    assert "give the file of a tokeniser as tokenizer (--tokenizer)" in taken


def test_a_missing_library_is_named_with_its_extra(files, text, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    argv = ("data", "build", "a", "--input", text, "--tokenizer", files / "gpt2.json")
    assert "pip install 'lmscale[hf]'" in refused(capsys, *argv)


# Bytes and characters ---------------------------------------------------------------------------

MIXED = (
    "",
    "a\x00\n",
    "naïve 日本語 😀 é",
    "".join(map(chr, range(300))),
    "\U0010ffff\ud7ff",
    "語語a語",
)


@pytest.mark.parametrize("characters", ["", "é語日", "é"])
def test_bytes_and_characters_give_every_text_back(characters):
    tokenizer = CharacterTokenizer.of(characters)
    assert tokenizer.vocab_size == 257 + len(characters)
    for text in MIXED:
        ids = tokenizer.encode(text)
        expected = chain.from_iterable(
            [257 + sorted(characters).index(c)] if c in characters else [1 + b for b in c.encode()]
            for c in text
        )
        assert ids.tolist() == [*expected]
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("\ud800")


def test_the_most_frequent_characters_are_kept():
    assert count_characters(["ééé öö ß", "a"]).characters == "ßéö"
    assert count_characters(["ééé öö ß", "a"], 259).characters == "éö"
    with pytest.raises(DataError, match="at least 257 ids"):
        count_characters(["é"], 200)


def test_every_character_of_the_training_text_has_an_id(tmp_path):
    """Also where the text is longer than the sample from which other tokenisers are learnt."""
    rare = [chr(0x4E00 + i) for i in range(60)]
    path = write_text(
        tmp_path / "a.txt", [f"{d} {c}" for d, c in zip(documents(60), rare, strict=True)]
    )
    corpus = build_corpus(
        "a", [path], tokenizer="characters", sample_bytes=1000, valid_fraction=0.2
    )
    assert set("".join(texts(corpus, "train"))) - {*map(chr, range(128))} == {
        *corpus.tokenizer.characters
    }


@pytest.mark.parametrize("name", ["bytes", "characters"])
def test_corpora_of_bytes_and_of_characters(text, name):
    assert (
        main(
            ["data", "build", "a", "--input", text, "--tokenizer", name, "--valid-fraction", "0.2"]
        )
        == 0
    )
    corpus = build_corpus("a", [text], tokenizer=name, valid_fraction=0.2)
    assert corpus.vocab_size == (257 if name == "bytes" else 260)  # with ö, ß and é
    assert sorted(chain(*(texts(corpus, s) for s in SPLITS))) == sorted(documents(60))
    corpus.verify()
    settings = {**SETTINGS, "vocab_size": None}
    other = build_corpus("b", [text], tokenizer_from="a", **settings)
    assert evaluation_corpus("b", corpus).vocab_size == other.vocab_size == corpus.vocab_size
