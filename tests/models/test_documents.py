"""Documents that are masked from each other: every one is computed as if it were alone in its window."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmscale.architectures import LlamaSpec, LSTMSpec, TransformerSpec
from lmscale.models.attention import causal_attention, document_numbers
from lmscale.serialize import SpecError
from tests.architectures.convolution import ConvolutionSpec
from tests.models import reference
from tests.models.reference import deviation
from tests.quick_compile import quick_jit as quick

SEPARATOR = 3
SHARED = {
    "n_layer": 2,
    "n_ctx": 12,
    "vocab_size": 40,
    "tied_head": False,
    "document_separator": SEPARATOR,
}
SPECS = {
    "transformer": TransformerSpec(d_model=16, n_head=2, **SHARED),
    "recurrent": TransformerSpec(
        d_model=16, n_head=2, reuse=2, step_signal="sinusoidal", norm="post", **SHARED
    ),
    "llama": LlamaSpec(d_model=16, n_head=2, n_kv_head=1, **SHARED),
    "lstm": LSTMSpec(d_hidden=10, d_embed=8, **SHARED),
}
#: Two windows of three documents each; no two documents share a token but the separator.
TOKENS = np.array(
    [
        [10, 11, 12, SEPARATOR, 13, 14, 15, 16, SEPARATOR, 17, 18, 19],
        [SEPARATOR, 20, 21, SEPARATOR, SEPARATOR, 22, 23, 24, 25, 26, 27, 28],
    ],
    np.int32,
)
#: (row, first, end) of each document with its separator; the first of a window has lost its own.
DOCUMENTS = [(0, 0, 3), (0, 3, 8), (0, 8, 12), (1, 0, 3), (1, 3, 4), (1, 4, 12)]
each_model = pytest.mark.parametrize("name", SPECS)


@functools.cache
def model(name):
    return reference.random_model(SPECS[name])


def logits(name, tokens, state=None):
    graphdef, own = model(name)
    return np.asarray(logits_of(graphdef, own if state is None else state, tokens))


#: (graphdef, state, tokens) -> logits.
logits_of = quick(
    lambda graphdef, state, tokens: nnx.merge(graphdef, state)(tokens), static_argnums=0
)


def from_position(state, first: int):
    """The state of a model whose first position is that of another's position `first`."""
    values = reference.numpy(state)
    values["position"] = np.roll(values["position"], -first, axis=0)
    return reference.with_values(state, values)


def test_a_separator_begins_a_document():
    expected = [[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3]]
    np.testing.assert_array_equal(document_numbers(TOKENS, SEPARATOR), expected)
    assert document_numbers(TOKENS, None) is None


# A step signal counts positions from the start of the window, so that of `recurrent` cannot be shifted.
@pytest.mark.parametrize("name", ["transformer", "llama", "lstm"])
def test_a_document_has_the_logits_that_it_has_alone(name):
    packed = logits(name, TOKENS)
    for row, first, end in DOCUMENTS:
        state = from_position(model(name)[1], first) if name == "transformer" else None
        alone = np.zeros_like(TOKENS)
        alone[0, : end - first] = TOKENS[row, first:end]
        # What follows the document does not reach it.
        expected = logits(name, alone, state)[0, : end - first]
        assert deviation(packed[row, first:end], expected) < 2e-6, (row, first)


@each_model
def test_what_other_documents_say_changes_nothing(name):
    before, changed = logits(name, TOKENS), TOKENS.copy()
    changed[0, :3], changed[0, 9:] = [30, 31, 32], [33, 34, 35]
    after = logits(name, changed)
    np.testing.assert_array_equal(after[0, 3:9], before[0, 3:9])
    np.testing.assert_array_equal(after[1], before[1])
    # It does without the mask.
    graphdef, _ = reference.random_model(dataclasses.replace(SPECS[name], document_separator=None))
    crossing = [np.asarray(logits_of(graphdef, model(name)[1], x)) for x in (TOKENS, changed)]
    assert (np.abs(crossing[0] - crossing[1])[0, 3:9].max(-1) > 1e-4).all()


@each_model
def test_no_gradient_crosses_a_boundary(name):
    """Of the logits of the middle document, by the embeddings of all tokens."""
    graphdef, state = model(name)

    def total(state):
        return nnx.merge(graphdef, state)(TOKENS[:1])[0, 3:8].sum()

    gradient = reference.numpy(quick(jax.grad(total))(state))["embed.embedding"]
    inside = [SEPARATOR, 13, 14, 15, 16]
    assert (np.abs(gradient[inside]).max(-1) > 1e-3).all()
    outside = np.setdiff1d(np.arange(40), inside)
    np.testing.assert_array_equal(gradient[outside], 0.0)


@each_model
def test_a_window_without_a_separator_is_as_without_the_mask(name):
    tokens = TOKENS + 1
    graphdef, _ = reference.random_model(dataclasses.replace(SPECS[name], document_separator=None))
    expected = np.asarray(logits_of(graphdef, model(name)[1], tokens))
    assert deviation(logits(name, tokens), expected) < 2e-6


def test_layers_apart_or_recomputed_mask_alike():
    for name in ("transformer", "llama"):
        spec, expected = SPECS[name], logits(name, TOKENS)
        graphdef, state = reference.random_model(spec, unroll=True, remat=True)
        assert deviation(logits_of(graphdef, state, TOKENS), expected) < 2e-6, name


def test_attention_equals_that_of_torch_with_a_block_diagonal_mask():
    torch = pytest.importorskip("torch")
    documents = np.asarray(document_numbers(TOKENS, SEPARATOR))
    given = np.random.default_rng(0).standard_normal((4, 2, 12, 3, 8)).astype(np.float32)
    query, key, value, weight = given

    def ours(query, key, value):
        mixed = causal_attention(query, key, value, "xla", documents)
        return (mixed * weight).sum(), mixed

    (_, mixed), gradients = quick(jax.value_and_grad(ours, argnums=(0, 1, 2), has_aux=True))(
        query, key, value
    )

    mask = np.zeros((2, 1, 12, 12), bool)
    for row, first, end in DOCUMENTS:
        for t in range(first, end):
            mask[row, 0, t, first : t + 1] = True
    # theirs: [batch, head, time, width].
    theirs = [torch.tensor(x.swapaxes(1, 2), requires_grad=True) for x in (query, key, value)]
    found = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=torch.tensor(mask))
    (found * torch.tensor(weight.swapaxes(1, 2))).sum().backward()
    assert deviation(mixed, found.detach().numpy().swapaxes(1, 2)) < 2e-6
    for one, other in zip(gradients, theirs, strict=True):
        assert deviation(one, other.grad.numpy().swapaxes(1, 2)) < 5e-6


def test_lstm_equals_that_of_torch_with_a_state_of_zeros_at_each_document():
    """torch has no such switch, so its LSTM runs over each document by itself."""
    torch = pytest.importorskip("torch")
    from lmscale.bench import torch_models
    from tests.models.test_parity import lstm_layout

    spec = dataclasses.replace(SPECS["lstm"], tied_head=True)
    graphdef, state = reference.random_model(spec)
    theirs = torch_models.LSTM(dataclasses.replace(spec, document_separator=None))
    arrays = lstm_layout(reference.numpy(state))
    theirs.load_state_dict({name: torch.tensor(np.array(x)) for name, x in arrays.items()})
    found = np.asarray(logits_of(graphdef, state, TOKENS))
    for row, first, end in DOCUMENTS:
        tokens = torch.tensor(TOKENS[row : row + 1, first:end], dtype=torch.long)
        assert deviation(found[row, first:end], theirs(tokens).detach().numpy()[0]) < 2e-5


def test_the_flash_kernel_of_gpus_refuses_documents():
    query = jnp.zeros((1, 16, 1, 64), jnp.bfloat16)
    with pytest.raises(ValueError, match="cudnn: the flash kernel has no mask between documents"):
        causal_attention(query, query, query, "cudnn", jnp.zeros((1, 16), jnp.int32))


def test_an_architecture_that_cannot_mask_refuses_in_a_line():
    model = ConvolutionSpec.of_shape(2, 32, n_ctx=16, vocab_size=304)
    with pytest.raises(SpecError, match="architecture convolution cannot hide documents"):
        dataclasses.replace(model, document_separator=1)


@pytest.mark.parametrize("separator", [-1, 40])
def test_a_separator_is_a_token(separator):
    with pytest.raises(SpecError, match=f"must be a token id from 0 to 39, not {separator}"):
        dataclasses.replace(SPECS["llama"], document_separator=separator)
