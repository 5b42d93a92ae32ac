"""`lmscale export`: what it writes, what others read, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmscale.architectures import LlamaSpec, LSTMSpec, TransformerSpec
from lmscale.architectures.hugging_face import from_theirs, to_theirs
from lmscale.cli import main
from lmscale.data import read_tokenizer
from lmscale.data.character_tokenizer import CharacterTokenizer
from lmscale.data.learned_tokenizer import train_tokenizer
from lmscale.export import ExportError, export_run, write
from lmscale.export.tokenizer_json import differing_text, tokenizer_json
from lmscale.serialize import SpecError
from lmscale.training.checkpoint import Checkpoints
from lmscale.training.run_folder import RunFolder
from lmscale.training.state import single_device_like
from lmscale.training.trained import named_arrays
from tests.cli.answers import answer, refused
from tests.data import tokenizer_files as made
from tests.data.prose import documents
from tests.training.specs import LSTM, TRANSFORMER, VOCAB, run_spec

tokenizers = pytest.importorskip("tokenizers")
load_file = pytest.importorskip("safetensors.numpy").load_file
LLAMA = LlamaSpec(n_layer=2, d_model=32, n_head=4, n_kv_head=2, n_ctx=16, vocab_size=VOCAB)
MODELS = {
    "gpt2": TRANSFORMER,
    "without biases": dataclasses.replace(TRANSFORMER, bias=False, activation="relu"),
    "untied": dataclasses.replace(TRANSFORMER, tied_head=False, d_ff=40),
    "gpt-neox": dataclasses.replace(TRANSFORMER, positions="rotary"),
    "gpt-neox, untied, without biases": dataclasses.replace(
        TRANSFORMER, positions="rotary", tied_head=False, bias=False, activation="relu"
    ),
    "llama": LLAMA,
    "tied llama": dataclasses.replace(LLAMA, tied_head=True, d_head=6, rope_theta=50.0),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True),
}


def random_state(spec):
    """A run's state; its numbers are not computed, so that nothing is compiled for it."""
    rng = np.random.default_rng(0)

    def value(x):
        integers = not jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(
            np.zeros(x.shape) if integers else 0.3 * rng.standard_normal(x.shape), x.dtype
        )

    return jax.tree.map(value, single_device_like(spec))


@pytest.fixture(autouse=True)
def jax_as_it_is(monkeypatch):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Makes a run with a checkpoint of random weights: initial ones would hide mistakes."""
    made = {}

    def make(model) -> RunFolder:
        if model not in made:
            spec = run_spec(corpus, model=model)
            folder = RunFolder(tmp_path_factory.mktemp("runs") / spec.run_id, spec)
            folder.create()
            state = random_state(spec)
            checkpoints = Checkpoints(folder.checkpoints, folder.run_id)
            checkpoints.save(12, state, {})
            checkpoints.wait()
            checkpoints.close()
            made[model] = folder, state["params"]
        return made[model]

    return make


def logits(model, params, tokens):
    graphdef = nnx.split(nnx.eval_shape(lambda: model.module(nnx.Rngs(params=0))))[0]
    return np.asarray(nnx.merge(graphdef, params)(tokens))


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_transformers_gives_the_same_logits_and_tokens(model, trained, corpus, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, params = trained(model)
    export_run(folder.path, tmp_path / "out", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == model.hugging_face().config["architectures"][0]
    tokens = np.asarray(corpus.tokens("valid")[: 2 * model.n_ctx]).reshape(2, -1).astype(np.int32)
    found = theirs(torch.tensor(tokens, dtype=torch.long)).logits.detach().numpy()
    ours = logits(model, params, tokens)
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(found, ours, atol=1e-4)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("the model of a law\n  and é 漢字 \u2581 <0x41> end", " ", "  the", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids == corpus.tokenizer.encode(text).tolist()
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == corpus.eod_id == theirs.generation_config.eos_token_id
    more = theirs.generate(**tokenizer("the ", return_tensors="pt"), max_new_tokens=3)
    assert more.shape[1] <= len(tokenizer("the ")["input_ids"]) + 3


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_both_directions_are_inverse(model):
    form = model.hugging_face()
    shapes = jax.eval_shape(lambda: nnx.state(model.module(nnx.Rngs(params=0)), nnx.Param))
    rng = np.random.default_rng(0)
    ours = {
        name: rng.standard_normal(x.shape).astype(np.float32)
        for name, x in named_shapes(shapes).items()
    }
    theirs = to_theirs(form, ours)
    back = from_theirs(form, theirs, {name: x.shape for name, x in ours.items()})
    assert back.keys() == ours.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(back[name], x)
    lost = next(name for name in theirs if name not in form.zeros)
    rest = {name: x for name, x in theirs.items() if name != lost}
    with pytest.raises(ValueError, match=f"the weights have no {lost}"):
        from_theirs(form, rest, {name: x.shape for name, x in ours.items()})
    with pytest.raises(ValueError, match="no counterpart is known for other"):
        to_theirs(form, {**ours, "other": np.zeros(1)})


def test_a_bias_that_we_cannot_have_is_refused():
    model = MODELS["without biases"]
    form = model.hugging_face()
    shapes = jax.eval_shape(lambda: nnx.state(model.module(nnx.Rngs(params=0)), nnx.Param))
    ours = {name: np.zeros(x.shape, np.float32) for name, x in named_shapes(shapes).items()}
    theirs = to_theirs(form, ours)
    theirs["transformer.ln_f.bias"] = theirs["transformer.ln_f.bias"] + 1
    with pytest.raises(ValueError, match=r"ln_f\.bias is not zero"):
        from_theirs(form, theirs, {name: x.shape for name, x in ours.items()})


def named_shapes(state):
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {".".join(str(k.key) for k in path if hasattr(k, "key")): x for path, x in leaves}


@pytest.mark.parametrize("vocab_size", [300, 420])
def test_the_tokeniser_is_given_exactly(corpus, vocab_size):
    text = corpus.tokenizer.decode(np.asarray(corpus.tokens("train")[:20_000]))
    tokenizer = train_tokenizer([text + "aaa aaaa abab ababab   "], vocab_size)
    content = tokenizer_json(tokenizer)
    rng = random.Random(0)
    alphabet = [
        *"abtheo ",
        "  ",
        "\n",
        "model",
        "\u2581",
        "é",
        "漢",
        "\x00",
        "<0x41>",
        "1",
        ".",
        "aaa",
    ]
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(500)]
    texts += text[:20_000].splitlines(keepends=True)
    assert differing_text(tokenizer, content, texts) is None
    other = tokenizers.Tokenizer.from_str(content)
    assert all(other.decode(tokenizer.encode(t).tolist()) == t for t in texts)


def test_a_tokeniser_that_differs_is_found(corpus):
    values = json.loads(tokenizer_json(corpus.tokenizer))
    values["model"]["merges"] = values["model"]["merges"][:5]
    assert differing_text(corpus.tokenizer, json.dumps(values), ["x", "the model"]) == "the model"


@pytest.mark.parametrize("model", [LSTM, LLAMA], ids=["lstm", "llama"])
def test_safetensors_are_our_arrays_by_our_names(model, trained, corpus, tmp_path, capsys):
    folder, params = trained(model)
    out = tmp_path / "out"
    argv = ("export", folder.path, "--format", "safetensors", "--out", out, "--json")
    code, printed, _ = answer(capsys, *argv)
    assert code == 0 and json.loads(printed)["step"] == 12
    found, ours = load_file(out / "model.safetensors"), named_arrays(params)
    assert found.keys() == ours.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(found[name], x)
    assert (out / "spec.json").read_bytes() == (folder.path / "spec.json").read_bytes()
    assert (out / "tokenizer.model").read_bytes() == corpus.tokenizer.content
    # The run has not ended.
    assert "the run is pending" in json.loads(printed)["notes"][0]


def test_a_run_with_masked_documents_is_exported_with_a_note(trained, corpus, tmp_path, capsys):
    masked = dataclasses.replace(TRANSFORMER, document_separator=corpus.eod_id)
    folder, params = trained(masked)
    out = tmp_path / "out"
    argv = ("export", folder.path, "--format", "hf", "--out", out, "--json")
    code, printed, _ = answer(capsys, *argv)
    assert code == 0
    notes = json.loads(printed)["notes"]
    assert any("documents masked from each other, which only lmscale does" in n for n in notes)
    found, form = load_file(out / "model.safetensors"), TRANSFORMER.hugging_face()
    for name, x in to_theirs(form, named_arrays(params)).items():
        np.testing.assert_array_equal(found[name], x)
    code, printed, _ = answer(capsys, "sample", folder.path, "--prompt", "the ", "--tokens", "3")
    assert code == 0 and printed.startswith("the ")


def test_an_export_is_whole_and_replaces_only_its_own(trained, tmp_path, capsys):
    folder, _ = trained(TRANSFORMER)
    out = tmp_path / "out"
    argv = ("export", folder.path, "--format", "hf", "--out", out)
    code, printed, _ = answer(capsys, *argv)
    assert code == 0 and "AutoModelForCausalLM" in printed and "the same ids on" in printed
    files = {path.name for path in out.iterdir()}
    assert files == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "tokenizer.model", "lmscale.json",
    }  # fmt: skip
    assert "is not empty: give another --out, or --force" in refused(capsys, *argv)
    (out / "old").write_text("")
    assert answer(capsys, *argv, "--force", "--without-tokenizer")[0] == 0
    assert {path.name for path in out.iterdir()} == files - {
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.stat().st_mode for path in out.iterdir()} == {(out / "config.json").stat().st_mode}
    (tmp_path / "link").symlink_to(out)
    assert answer(capsys, *argv[:-1], tmp_path / "link", "--force")[0] == 0
    assert (tmp_path / "link").is_symlink() and (out / "tokenizer.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


def test_of_two_exports_at_once_one_is_there_whole(trained, tmp_path, monkeypatch, capsys):
    folder, _ = trained(TRANSFORMER)
    out = tmp_path / "out"
    argv = ("export", folder.path, "--format", "safetensors", "--out", out, "--without-tokenizer")
    arrays = write.named_arrays

    def meanwhile(*args):
        # Another export of the same run begins and ends while this one reads its checkpoint.
        monkeypatch.setattr(write, "named_arrays", arrays)
        export_run(folder.path, out, "safetensors", tokenizer=False, force=(out / "mine").exists())
        (out / "first").write_text("")
        return arrays(*args)

    monkeypatch.setattr(write, "named_arrays", meanwhile)
    assert "is not empty: give another --out, or --force" in refused(capsys, *argv)
    assert (out / "first").exists() and (out / "model.safetensors").exists()
    (out / "mine").write_text("")
    monkeypatch.setattr(write, "named_arrays", meanwhile)
    assert answer(capsys, *argv, "--force")[0] == 0
    # With --force the last one stays.
    assert not (out / "first").exists() and (out / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_without_room_is_one_line(trained, tmp_path, monkeypatch, capsys):
    import safetensors.numpy

    def full(*args, **options):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    folder, _ = trained(TRANSFORMER)
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    out = tmp_path / "out"
    code, _, said = answer(capsys, "export", folder.path, "--format", "hf", "--out", out)
    assert code == 1 and "the weights cannot be written: I/O error: No space left" in said
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_one_line(trained, tmp_path, capsys):
    folder, _ = trained(TRANSFORMER)
    other, _ = trained(LSTM)

    def line(run, *more, out=tmp_path / "out"):
        return refused(capsys, "export", run, "--out", out, *more)

    hf = ("--format", "hf")
    assert "architecture lstm: use --format safetensors" in line(other.path, *hf)
    assert "choose from hf, safetensors" in line(folder.path, "--format", "onnx")
    assert "give a folder of DIR/runs" in line(tmp_path, *hf)
    assert "is part of the store" in line(folder.path, *hf, out=folder.path / "hf")
    store = folder.path.parents[1]
    (store / "experiment.json").write_text("{}")
    for name in ("runs", "runs/mymodel", "checkpoints", "mine/model"):
        assert "is part of the store" in line(folder.path, *hf, out=store / name)
    (store / "experiment.json").unlink()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    assert "was not written by lmscale export" in line(folder.path, *hf, "--force", out=foreign)
    assert "is a file" in line(folder.path, *hf, out=foreign / "mine.txt")
    spec = run_spec(model=TRANSFORMER)
    empty = RunFolder(tmp_path / spec.run_id, spec)
    empty.create()
    assert "has no checkpoint yet" in line(empty.path, *hf, "--without-tokenizer")
    assert "a folder of this machine, not 'gs://a/b'" in line(folder.path, *hf, out="gs://a/b")
    assert "a folder of this machine, not ''" in line(folder.path, *hf, out="")
    said = line(empty.path, *hf)
    assert "no corpus none" in said and "leave the tokeniser out: --without-tokenizer" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"reuse": 2}, "no recurrence"),
        ({"norm": "post"}, "no post-normalisation"),
        (
            {"d_attn": 16, "step_signal": "sinusoidal"},
            r"no step signals, no attention of another width \(16\)",
        ),
    ],
)
def test_what_gpt2_lacks_is_named(fields, says):
    with pytest.raises(SpecError, match=says):
        dataclasses.replace(TRANSFORMER, **fields).hugging_face()
    with pytest.raises(SpecError, match="no model of the architecture lstm"):
        LSTMSpec(n_layer=1, d_hidden=4, n_ctx=4, vocab_size=9).hugging_face()


def test_a_damaged_checkpoint_is_named(corpus, trained, tmp_path, capsys):
    spec = run_spec(corpus, model=TRANSFORMER, seed=1)
    folder = RunFolder(tmp_path / spec.run_id, spec)
    folder.create()
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id)
    checkpoints.save(3, random_state(spec), {})
    checkpoints.wait()
    checkpoints.close()
    largest = max(Path(folder.checkpoints / "3").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))
    argv = ["export", str(folder.path), "--format", "hf", "--out", str(tmp_path / "out")]
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert "checkpoints/3 is damaged" in said and "doesn't match its digest" in said
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ExportError, match=r"pip install 'lmscale\[hf\]'"):
        export_run(trained(TRANSFORMER)[0].path, tmp_path / "out", "hf")


def test_a_gpt2_of_any_depth_has_every_array():
    spec = TransformerSpec(n_layer=3, d_model=8, n_head=2, n_ctx=4, vocab_size=11)
    shapes = named_shapes(
        jax.eval_shape(lambda: nnx.state(spec.module(nnx.Rngs(params=0)), nnx.Param))
    )
    theirs = to_theirs(spec.hugging_face(), {n: np.zeros(x.shape) for n, x in shapes.items()})
    assert theirs["transformer.h.2.attn.c_attn.weight"].shape == (8, 24)
    assert theirs["transformer.h.0.attn.c_attn.bias"].shape == (24,)
    assert theirs["transformer.wpe.weight"].shape == (4, 8)
    assert len(theirs) == 4 + 3 * 12


@pytest.mark.parametrize(
    "name", ["llama.model", "unigram.model", "gpt2.json", "llama.json", "characters"]
)
def test_tokenisers_of_files_are_given_exactly(name, tmp_path):
    if name == "characters":
        tokenizer = CharacterTokenizer.of("éö漢")
    else:
        options = {"model_type": "unigram", "add_dummy_prefix": False} if "uni" in name else {}
        makers = {"gpt2.json": made.gpt2_json, "llama.json": made.llama_json}
        content = makers[name]() if name in makers else made.sentencepiece_model(**options)
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        tokenizer = read_tokenizer(str(path))
    content = tokenizer_json(tokenizer)
    if name.endswith(".json"):
        assert content.encode() == tokenizer.content
    texts = [*documents(5), "a é 漢字 😀", "  the\n\tx "]
    if name == "unigram.model":
        # What the note of an export says of these models.
        assert differing_text(tokenizer, content, ["<0x41>"]) == "<0x41>"
    else:
        texts.append("<0x41>")
    assert differing_text(tokenizer, content, texts) is None
    other = tokenizers.Tokenizer.from_str(content)
    assert other.token_to_id(tokenizer.end_piece) == tokenizer.eod_id
    assert all(other.decode(tokenizer.encode(t).tolist()) == t for t in texts)
