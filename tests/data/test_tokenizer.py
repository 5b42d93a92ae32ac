import random
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from lmscale.data import DataError
from lmscale.data.learned_tokenizer import LearnedTokenizer, train_tokenizer
from tests.data.prose import documents

NASTY = [
    "",
    " ",
    "\x00",
    "a\x00b \x00",
    "\t\tindented\n\t\twith tabs\t",
    "line\r\nline\rline\n\n\n\n",
    "   runs   of    spaces     ",
    "\u2581",
    "a \u2581 b\u2581\u2581c \u2581",
    "\u2585\u2047 \u2423",
    "<|endoftext|><unk></s><0x0A> <0xE2>",
    "😀👩\u200d👩\u200d👧 e\u0301 é ﷽ \ufeff \ufffd \u2028 \xa0 \u3000",
    "日本語のテキスト Größe naïve x²y λx.x Ωmega_1",
    "".join(map(chr, range(256))),
    "\U0010ffff\U00010000\ue000\ud7ff",
    "x" * 10_000 + " " * 10_000 + "é(" * 1000,
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(documents(100), 500)


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_strings_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.eod_id not in ids


def test_random_strings_come_back(tokenizer):
    rng = random.Random(0)
    planes = [(0, 0x7F), (0x80, 0x7FF), (0x2580, 0x2590), (0x4E00, 0x9FFF), (0x1F300, 0x1F700)]
    for _ in range(200):
        text = "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(50))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sources_of_the_standard_library_come_back_as_sentencepiece_encodes_them():
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:30]
    texts = [file.read_bytes().decode() for file in files]
    texts += NASTY[-5:]
    for vocab_size in (400, 2000):
        tokenizer = train_tokenizer(texts[:10], vocab_size)
        plain = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.content)
        for text in texts:
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert ids.tolist() == plain.encode(text)


def test_training_is_reproducible_and_quiet(capfd):
    models = {train_tokenizer(documents(30), 400).content for _ in range(2)}
    assert len(models) == 1
    assert capfd.readouterr() == ("", "")


def test_the_vocabulary_has_the_size_that_was_asked_for(tokenizer):
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) == 500
    assert tokenizer.token_bytes[tokenizer.eod_id] == 0
    assert tokenizer.dtype == np.uint16
    assert LearnedTokenizer(tokenizer.content).hash == tokenizer.hash


def test_many_scripts_leave_room_for_merges():
    # 2,000 different characters cannot all be among 300 ids: the rare ones become bytes.
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    tokenizer = train_tokenizer([text, *documents(100)], 300)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the loss")) < len("the loss")


def test_a_byte_of_a_character_shows_as_the_replacement(tokenizer):
    assert tokenizer.decode(tokenizer.encode("\u2581")[:2]) == "\ufffd"


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"character 2 .* U\+D800") as error:
        tokenizer.encode("ab\ud800")
    assert "\n" not in str(error.value)


def test_the_word_cache_starts_afresh(monkeypatch, tokenizer):
    before = tokenizer.encode("model of data")
    monkeypatch.setattr("lmscale.data.learned_tokenizer._MAX_WORDS", 3)
    text = "one two three four five six seven eight"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer._words) <= 3
    assert tokenizer.encode("model of data").tolist() == before.tolist()


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (["short"], 4096, "vocab_size 4096 is too large for this text .* at most 271"),
        (documents(3), 100, "at least 300, not 100"),
        ([], 500, "no text"),
    ],
)
def test_impossible_vocabularies_are_one_line(texts, vocab_size, message):
    with pytest.raises(DataError, match=message) as error:
        train_tokenizer(texts, vocab_size)
    assert "\n" not in str(error.value)


def test_wide_vocabularies_use_four_bytes():
    from lmscale.data.tokenizer import token_dtype

    assert token_dtype(65_536).itemsize == 2
    assert token_dtype(65_537).itemsize == 4
    assert sys.byteorder == "big" or token_dtype(65_537) == np.uint32


@pytest.mark.parametrize("letters", ["一二三四五六七八九十", "abcde"])
def test_a_vocabulary_without_a_space_gives_spaces_back(letters):
    tokenizer = train_tokenizer(["".join(random.Random(0).choices(letters, k=3000))], 300)
    for written in ("a b", " ", "   一  二 ", "\u2581 \u2581", "a\u2581 b\n c", " <|endoftext|> "):
        ids = tokenizer.encode(written)
        assert tokenizer.decode(ids) == written
        assert tokenizer.token_bytes[ids].sum() == len(written.encode())
