"""Tokenisers of other tools, made by their own libraries as the well-known models have them."""

import io
import json

import sentencepiece

from tests.data.prose import documents

#: What goes wrong in tokenisers: borders, spaces, marks of their own, scripts, words without end.
NASTY = (
    "a",
    " ",
    "\x00a",
    "\t\tx\n\n\r\n y ",
    "   runs   of ",
    "<|endoftext|></s><unk><0x0A> <|endoftext|>",
    "😀 é e\u0301 日本語 ﷽ \ufeff \xa0",
    "x" * 500,
)


def sentencepiece_model(**options) -> bytes:
    """As Llama's, unless told otherwise: BPE, bytes for what it lacks, a space before the text."""
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 320,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
        "num_threads": 1,
        **options,
    }
    lines = [line for text in documents(40) for line in text.splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **settings
    )
    return model.getvalue()


def t5_model() -> bytes:
    """Unigram, NFKC, no bytes: it changes text and lacks characters."""
    return sentencepiece_model(
        model_type="unigram",
        vocab_size=60,
        byte_fallback=False,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
    )


def gpt2_json(normalizer=None) -> str:
    """Byte-level BPE, as GPT-2's; Qwen's with NFC as the normaliser."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    if normalizer is not None:
        found.normalizer = normalizer
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(documents(40), trainer)
    return found.to_str()


def llama_json() -> str:
    """BPE with bytes for what it lacks, spaces as U+2581 and one before the text, as Llama 2's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    found = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    found.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    found.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    marks = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*marks, *(f"<0x{byte:02X}>" for byte in range(256))],
        max_token_length=10,
        show_progress=False,
    )
    found.train_from_iterator(
        [line for text in documents(40) for line in text.splitlines()], trainer
    )
    content = json.loads(found.to_str())
    # In Llama's file bytes are pieces like others, not special tokens.
    content["added_tokens"] = content["added_tokens"][: len(marks)]
    return json.dumps(content)


def unigram_json() -> str:
    """Unigram with U+2581 by the pre-tokeniser, as XLM-R's: text that spells a mark becomes the mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    found.train_from_iterator(documents(40), trainer)
    return found.to_str()


def bert_json() -> str:
    """WordPiece: its tokens do not stand for fixed bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    found.train_from_iterator(documents(40), trainer)
    return found.to_str()
