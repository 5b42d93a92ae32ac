"""Weights of transformers scored here: the same loss, and refusals of what we have not."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.architectures import LlamaSpec, TransformerSpec
from lmscale.architectures.base import of_hugging_face
from lmscale.export import ExportError, read, read_weights, score_weights
from lmscale.serialize import SpecError
from lmscale.sweep.rescore import evaluation_set
from tests.cli.answers import answer, refused
from tests.export.test_export import LLAMA, MODELS, logits, trained  # noqa: F401
from tests.training.specs import TRANSFORMER

load_file = pytest.importorskip("safetensors.numpy").load_file
save_file = pytest.importorskip("safetensors.numpy").save_file


@pytest.fixture(autouse=True)
def jax_as_it_is(monkeypatch):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):  # noqa: F811
    from lmscale.export import export_run

    folder, params = trained(TRANSFORMER)
    out = tmp_path_factory.mktemp("weights") / "out"
    export_run(folder.path, out, "hf")
    return out, params


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_config_gives_its_model_back(model):
    found = of_hugging_face(dict(model.hugging_face().config))
    # Initial weights and biases that are zero are no part of a config.
    same = {"init_std": found.init_std} | ({"bias": True} if model.kind == "transformer" else {})
    assert dataclasses.replace(model, **same) == found


def test_configs_of_published_models_are_read():
    gpt2 = {
        "model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024,
        "vocab_size": 50257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_ctx": 1024,
    }  # fmt: skip
    assert of_hugging_face(gpt2) == TransformerSpec(
        n_layer=12, n_head=12, d_model=768, n_ctx=1024, vocab_size=50257
    )
    llama = {
        "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
        "intermediate_size": 128, "max_position_embeddings": 32, "vocab_size": 99, "rms_norm_eps": 1e-6,
        "rope_theta": 5e5, "num_key_value_heads": 2,
    }  # fmt: skip
    assert of_hugging_face(llama) == LlamaSpec(
        n_layer=2, n_head=4, n_kv_head=2, d_model=64, d_ff=128, n_ctx=32, vocab_size=99, epsilon=1e-6,
        rope_theta=5e5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "bert"}, "no architecture here is a 'bert'"),
        ({"activation_function": "swish"}, "'swish' is not had here"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon must be 1e-05, not 1e-06"),
        ({"n_layer": None}, "n_layer"),
        ({"n_embd": None, "n_inner": None}, "its values make no transformer: unsupported operand"),
        ({"n_embd": "64"}, "d_model"),
    ],
)
def test_what_we_have_not_is_named(changes, says):
    config = {**TRANSFORMER.hugging_face().config, **changes}
    with pytest.raises(SpecError, match=says):
        of_hugging_face(config)
    del config["n_embd"]
    if "model_type" not in changes and "n_layer" in changes:
        with pytest.raises(SpecError, match="it has no 'n_embd'"):
            of_hugging_face({**config, "n_layer": 2})


NEOX = {
    "model_type": "gpt_neox", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
    "intermediate_size": 128, "max_position_embeddings": 32, "vocab_size": 99, "rotary_pct": 1.0,
    "use_parallel_residual": False, "hidden_act": "gelu_new",
}  # fmt: skip
OTHER_POSITIONS = [
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "of the type 'linear' are not had here"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "of the type 'yarn' are not had here"),
    ({"rope_scaling": "x"}, "rope_scaling must be one set of values for all layers, not 'x'"),
    (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "rope_parameters must be one set",
    ),
    (
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "dynamic"}},
        "of the type 'dynamic'",
    ),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "must be 1.0, not 0.5"),
]


@pytest.mark.parametrize("base", [dict(LLAMA.hugging_face().config), NEOX], ids=["llama", "neox"])
@pytest.mark.parametrize(("changes", "says"), OTHER_POSITIONS)
def test_other_rotary_positions_are_refused(base, changes, says):
    """Those of the old spelling were read as plain ones, and the weights scored as another model."""
    unscaled = {"rope_parameters": None, "rope_scaling": None}
    assert of_hugging_face(base | unscaled).n_layer == base["num_hidden_layers"]
    assert of_hugging_face(base | unscaled | {"rope_scaling": {"type": "default"}})
    with pytest.raises(SpecError, match=says):
        of_hugging_face(base | unscaled | changes)


@pytest.mark.parametrize("heads", [0, None, "4"])
def test_a_config_whose_numbers_make_no_model_is_refused(heads):
    config = {**LLAMA.hugging_face().config, "num_attention_heads": heads, "head_dim": None}
    with pytest.raises(SpecError, match="its values make no llama: "):
        of_hugging_face(config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be silu, not 'gelu'"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor must be 1.0, not 0.25"),
    ],
)
def test_a_llama_with_other_layers_is_refused(changes, says):
    with pytest.raises(SpecError, match=says):
        of_hugging_face({**LLAMA.hugging_face().config, **changes})


@pytest.mark.slow
def test_weights_are_scored_by_position(exported, corpus, capsys):
    out, params = exported
    evaluation = evaluation_set(corpus, "valid", 512)
    scores = score_weights(out, corpus, evaluation)
    from lmscale.data.loader import evaluation_windows

    windows, _ = evaluation_windows(
        corpus, "valid", TRANSFORMER.n_ctx, evaluation.tokens, evaluation.sampling
    )
    logp = jax.nn.log_softmax(
        jnp.asarray(logits(TRANSFORMER, params, windows[:, :-1].astype(np.int32)))
    )
    losses = -np.take_along_axis(np.asarray(logp), windows[:, 1:, None].astype(np.int64), -1)[
        ..., 0
    ]
    assert scores["by_position"] == pytest.approx(losses.mean(0).tolist(), rel=1e-5)
    assert scores["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)

    argv = ("eval", "--weights", out, "--data", "tiny", "--split", "valid", "--tokens", 512)
    code, said, _ = answer(capsys, *argv, "--json")
    assert code == 0 and json.loads(said)["by_position"] == scores["by_position"]
    code, said, _ = answer(capsys, *argv)
    assert code == 0 and f"loss {scores['loss']:.4f}" in said and "9-16" not in said
    assert "8-15" in said and said.splitlines()[-1].startswith("16 ")


def test_names_of_the_bare_model_and_masks_are_read(exported, corpus, tmp_path):
    out, _ = exported
    arrays = {
        k.removeprefix("transformer."): x for k, x in load_file(out / "model.safetensors").items()
    }
    arrays["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    model, found = read_weights(tmp_path)
    assert (
        model.kind == "transformer" and found.keys() == load_file(out / "model.safetensors").keys()
    )


def test_a_tokeniser_that_transformers_wrote_again_is_the_same():
    ours = {
        "normalizer": None,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
        "added_tokens": [{"id": 2, "content": "<|endoftext|>"}],
        "post_processor": None,
    }

    def same(**changes):
        return read._encodes_alike(json.dumps(ours).encode(), json.dumps(ours | changes).encode())

    template = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}
    assert same() and same(post_processor=template) and same(version="1.0")
    assert not same(model=ours["model"] | {"vocab": {"a": 1, "b": 0}})
    assert not same(normalizer={"type": "Lowercase"}) and not same(added_tokens=[])
    for other in (b"", b"[]", b"\x00\xff", b'{"added_tokens": [1]}', b"3"):
        assert not read._encodes_alike(json.dumps(ours).encode(), other)
        assert read._encodes_alike(other, other)


def test_weights_that_cannot_be_scored_are_one_line(exported, corpus, tmp_path, capsys):
    out, _ = exported
    data = ("--data", "tiny")
    assert "needs --data CORPUS" in refused(capsys, "eval", "--weights", out)
    assert "must hold config.json" in refused(capsys, "eval", "--weights", tmp_path, *data)
    assert "not allowed with" in refused(capsys, "eval", "store", "--weights", out, *data)
    refused(capsys, "eval")
    broken = tmp_path / "broken"
    broken.mkdir()
    arrays = load_file(out / "model.safetensors")
    save_file(
        {k: x for k, x in arrays.items() if "ln_f.weight" not in k}, broken / "model.safetensors"
    )
    (broken / "config.json").write_bytes((out / "config.json").read_bytes())
    assert "the weights have no transformer.ln_f.weight" in refused(
        capsys, "eval", "--weights", broken, *data
    )
    extra = {**arrays, "transformer.h.9.ln_1.weight": np.ones(3, np.float32)}
    save_file(extra, broken / "model.safetensors")
    assert "has no transformer.h.9.ln_1.weight, which the weights have" in refused(
        capsys, "eval", "--weights", broken, *data
    )
    nan = {**arrays, "transformer.ln_f.weight": np.full(32, np.nan, np.float32)}
    save_file(nan, broken / "model.safetensors")
    assert "transformer.ln_f.weight holds numbers that are not finite" in refused(
        capsys, "eval", "--weights", broken, *data
    )
    save_file(arrays, broken / "model.safetensors")
    (broken / "tokenizer.model").write_bytes(b"other")
    assert "is another tokeniser than that of tiny" in refused(
        capsys, "eval", "--weights", broken, *data
    )
    config = json.loads((broken / "config.json").read_text()) | {"vocab_size": 50257}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="a vocabulary of 50,257, and tiny one of 300"):
        score_weights(broken, corpus, evaluation_set(corpus, "valid", 512))
    (broken / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be read" in refused(capsys, "eval", "--weights", broken, *data)


def test_llama_weights_are_read_too(trained, corpus, tmp_path):  # noqa: F811
    from lmscale.export import export_run

    folder, _ = trained(LLAMA)
    export_run(folder.path, tmp_path / "out", "hf", tokenizer=False)
    model, arrays = read_weights(tmp_path / "out")
    assert model == dataclasses.replace(LLAMA, init_std=model.init_std)
    assert len(arrays) == 3 + 2 * 9
