"""A user's architecture is compared with what its class says of it, before anything is planned."""

import json
from pathlib import Path

import pytest

from lmscale.architectures import base, kinds
from lmscale.cli import main
from lmscale.serialize import SpecError
from lmscale.training.check_model import check_model
from lmscale.user_files import UserFileError, load_file
from tests.architectures.test_contract import model_of

FILE = (Path(__file__).parents[1] / "architectures" / "convolution.py").read_text()
#: What of the file is replaced, by what, and what is then said when a model is checked.
BAD_MODELS = {
    "wide logits": (
        "return self.embed.attend(hidden)",
        "return jnp.concatenate([self.embed.attend(hidden)] * 2, axis=-1)",
        "logits(hidden(tokens)) gives float32 [2, 32, 608], and must give logits float32 [batch, time",
    ),
    "a short output": (
        "return self.logits(self.hidden(tokens, dropout_key=dropout_key))",
        "return self.logits(self.hidden(tokens, dropout_key=dropout_key))[:, -1]",
        "module(tokens) gives float32 [2, 304]",
    ),
    "no rule": (
        'r"(now|before)/kernel$"',
        'r"(now|befor)/kernel$"',
        "ConvolutionSpec.ARRAYS has no rule for the parameter blocks/before/kernel",
    ),
    "axes": (
        '(None, "data", "model")',
        '("data", "model")',
        "ARRAYS has 2 axes for the parameter blocks/before/kernel, whose shape is [2, 8, 8]: give one for",
    ),
    "an ignored rule": (
        'Array(r"norm/scale$", None, decays=False),',
        'Array(r"scale$", None, decays=True), Array(r"norm/scale$", None, decays=False),',
        "the rule 'norm/scale$' with decays=False is never used, because an earlier one matches all",
    ),
    "an error": (
        "earlier = jnp.pad",
        "earlier = jnp.pod",
        "cannot be trained: AttributeError: module 'jax.numpy' has no attribute 'pod' (convolution.py:24)",
    ),
    "an option": (
        "def module(self, rngs, **options):",
        "def module(self, rngs):",
        "module() got an unexpected keyword argument 'dtype' (convolution.py)",
    ),
}
BAD_CLASSES = {
    "a mesh axis": (
        '"data", "model"), decays',
        '"dta", "model"), decays',
        "must be 'data', 'model' or N",
    ),
    "a field": (
        '("n_layer", "channels")',
        '("n_layer", "chanels")',
        "SHAPE_FIELDS names 'chanels', wh",
    ),
    "a text": ('("convolution",)', '"convolution"', "NON_EMBEDDING must be a tuple of names, as"),
    "a kind": (
        'kind = "convolution"',
        'kind = "my/conv"',
        "kind begins the names of runs: give it lett",
    ),
    "an expression": ('r"norm/scale$"', 'r"norm/(scale$"', "is no regular expression: missing )"),
    "a taken kind": ('kind = "convolution"', 'kind = "lstm"', "are both of the kind 'lstm'"),
    "the order": (
        "@dataclass(frozen=True, kw_only=True)\nclass ConvolutionSpec",
        "class ConvolutionSpec",
        "SHAPE_FIELDS names 'channels', which is no field of it",
    ),
}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    base._REGISTRY.pop("convolution", None)


def own_file(folder, old="", new=""):
    assert old in FILE
    path = folder / "convolution.py"
    path.write_text(FILE.replace(old, new, 1))
    return path


def own_model(path):
    return load_file(path).ConvolutionSpec(n_layer=2, channels=8, n_ctx=32, vocab_size=304)


@pytest.mark.parametrize("kind", kinds())
def test_the_architectures_of_lmscale_are_what_they_say(kind):
    if kind in base._REGISTRY:
        assert check_model(model_of(kind)) == []


@pytest.mark.parametrize("fault", BAD_MODELS)
def test_a_model_that_is_not_what_its_class_says_is_one_line(tmp_path, fault):
    old, new, says = BAD_MODELS[fault]
    with pytest.raises(SpecError) as error:
        check_model(own_model(own_file(tmp_path, old, new)))
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fault", BAD_CLASSES)
def test_a_class_that_cannot_be_is_refused_with_its_line(tmp_path, fault):
    old, new, says = BAD_CLASSES[fault]
    with pytest.raises(UserFileError) as error:
        load_file(own_file(tmp_path, old, new))
    assert says in str(error.value) and "convolution.py, line " in str(error.value)


def test_wrong_counts_are_a_line_of_the_plan(tmp_path, capsys, corpus, monkeypatch):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    old, new = "parts.matmul(2 * n * d * d)", "parts.matmul(n * d * d)"
    path = own_file(tmp_path, old, new)
    assert main(["plan", str(path), "--data", "tiny", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["left_out"]
    assert "ConvolutionSpec.operations() counts " in line and "every law reads N and C" in line
    wide = own_file(tmp_path, *BAD_MODELS["wide logits"][:2])
    assert main(["plan", str(wide), "--data", "tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "gives float32 [2, 32, 600], and must give logits" in line


def test_the_same_file_may_be_loaded_again_and_another_of_its_kind_not(tmp_path):
    load_file(own_file(tmp_path))
    load_file(own_file(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserFileError, match="are both of the kind 'convolution'"):
        load_file(own_file(tmp_path / "other"))
