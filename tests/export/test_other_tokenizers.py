"""Runs on corpora in the tokens of other tools: `sample`, `eval` and `export` with each kind of tokeniser."""

import json

import numpy as np
import pytest

from lmscale.architectures import TransformerSpec
from lmscale.data import build_corpus
from lmscale.training.checkpoint import Checkpoints
from lmscale.training.run_folder import RunFolder
from tests.cli.answers import answer
from tests.data import tokenizer_files as made
from tests.data.prose import documents, write_text
from tests.export.test_export import random_state
from tests.training.specs import run_spec

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors.numpy")
KINDS = {
    "tokenizer.model": made.sentencepiece_model,
    "gpt2.json": made.gpt2_json,
    "llama.json": made.llama_json,
    "characters": None,
}


@pytest.fixture(autouse=True)
def jax_as_it_is(monkeypatch):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)


def run_on(name, folder):
    """(corpus, run with a checkpoint of random weights) in the tokens of one kind."""
    file = folder / name
    if make := KINDS[name]:
        content = make()
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = write_text(folder / "text.txt", documents(80))
    chosen = str(file) if make else name
    corpus = build_corpus(
        "own-tokens", [text], tokenizer=chosen, valid_fraction=0.2, test_fraction=0.1
    )
    model = TransformerSpec(n_layer=1, d_model=16, n_ctx=16, vocab_size=corpus.vocab_size)
    spec = run_spec(corpus, model=model)
    run = RunFolder(folder / "runs" / spec.run_id, spec)
    run.create()
    checkpoints = Checkpoints(run.checkpoints, run.run_id)
    checkpoints.save(12, random_state(spec), {})
    checkpoints.wait()
    checkpoints.close()
    return corpus, run


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_sample_eval_and_export_work_in_the_tokens_of_a_file(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "data"))
    corpus, run = run_on(name, tmp_path)
    prompt = "the Größe of a model\n"
    code, said, _ = answer(capsys, "sample", run.path, "--prompt", prompt, "--tokens", 4)
    assert code == 0 and said.startswith(prompt) and len(said) > len(prompt) + 1

    out = tmp_path / "out"
    code, said, _ = answer(capsys, "export", run.path, "--format", "hf", "--out", out)
    assert code == 0 and "the same ids on" in said
    assert (out / corpus.tokenizer_file).read_bytes() == corpus.tokenizer.content
    theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    ids = theirs.encode(prompt, add_special_tokens=False).ids
    assert ids == corpus.tokenizer.encode(prompt).tolist() and theirs.decode(ids) == prompt
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert theirs.token_to_id(config["eos_token"]) == corpus.eod_id
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == corpus.eod_id

    argv = ("eval", "--weights", out, "--data", "own-tokens", "--split", "valid", "--json")
    code, said, _ = answer(capsys, *argv)
    scores = json.loads(said)
    assert code == 0 and np.isfinite(scores["loss"])
    # Bits a byte by the definition: the bits of all targets over the bytes that they are.
    n_ctx = run.spec.model.n_ctx
    windows = corpus.tokens("valid")[: scores["n_windows"] * n_ctx + 1]
    text = corpus.tokenizer.decode_documents(windows, 0)
    first = corpus.tokenizer.decode_documents(windows[:1], 0)
    n_ends = int((windows[1:] == corpus.eod_id).sum())
    n_bytes = len(text) - len(first) - n_ends
    bits = scores["loss"] / np.log(2) * scores["n_windows"] * n_ctx
    assert scores["bits_per_byte"] == pytest.approx(bits / n_bytes)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_transformers_reads_the_tokeniser_of_an_export(name, tmp_path, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "data"))
    corpus, run = run_on(name, tmp_path)
    assert answer(capsys, "export", run.path, "--format", "hf", "--out", tmp_path / "out")[0] == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("the Größe of a\n  model é 漢", " ", "  the"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == corpus.tokenizer.encode(text).tolist()
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == corpus.eod_id
