"""The models against torch's own modules: outputs and the gradients of every parameter.

Torch computes in float64, so the deviations (largest difference over largest value) are those of
our float32, near 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest

from lmscale.spec import LSTMSpec, ModelSpec, TransformerSpec
from tests.models import reference
from tests.models.reference import Parameters, deviation, evaluated

torch = pytest.importorskip(
    "torch",
    reason="parity compares with torch, which is not installed: pip install lmscale[parity]",
)
from lmscale.bench import torch_models  # noqa: E402  # needs torch

pytestmark = pytest.mark.parity
nn = torch.nn


class GPT2Block(nn.Module):
    """Radford et al. 2019: pre-normalisation, GELU in its tanh form."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.d_model)
        self.self_attn = nn.MultiheadAttention(spec.d_model, spec.n_head, batch_first=True)
        self.norm2 = nn.LayerNorm(spec.d_model)
        self.linear1 = nn.Linear(spec.d_model, spec.d_ff)
        self.gelu = nn.GELU(approximate="tanh")
        self.linear2 = nn.Linear(spec.d_ff, spec.d_model)

    def forward(self, x, mask):
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.linear2(self.gelu(self.linear1(self.norm2(x))))


class UniversalBlock(nn.TransformerEncoderLayer):
    """Torch's own block, as Vaswani et al. 2017 and Dehghani et al. 2018 have it."""

    def __init__(self, spec: TransformerSpec):
        super().__init__(
            spec.d_model,
            spec.n_head,
            spec.d_ff,
            dropout=0.0,
            activation=spec.activation,
            norm_first=False,
            batch_first=True,
        )


class Transformer(nn.Module):
    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.position = nn.Embedding(spec.n_ctx, spec.d_model)
        block = GPT2Block if spec.norm == "pre" else UniversalBlock
        self.blocks = nn.ModuleList(block(spec) for _ in range(spec.n_layer))
        self.norm = nn.LayerNorm(spec.d_model) if spec.norm == "pre" else nn.Identity()
        self.reuse = spec.reuse

    def forward(self, tokens):
        n_time = tokens.shape[1]
        mask = torch.ones(n_time, n_time, dtype=torch.bool).triu(1)  # True where not allowed
        x = self.embedding(tokens) + self.position(torch.arange(n_time))
        for _ in range(self.reuse):
            for block in self.blocks:
                x = block(x, mask)
        return self.norm(x) @ self.embedding.weight.T


def lstm_layout(p: Parameters) -> Parameters:
    """Our parameters (or gradients) under torch's names, in torch's shapes."""
    ours = {"embedding.weight": p["embed.embedding"], **linear(p, "projection", "projection")}
    for layer in range(1 + len(p["rest.input_bias"])):
        for torch_name, name in (
            ("weight_ih", "input_kernel"),
            ("weight_hh", "recurrent_kernel"),
            ("bias_ih", "input_bias"),
            ("bias_hh", "recurrent_bias"),
        ):
            leaf = p[f"first.{name}"] if layer == 0 else p[f"rest.{name}"][layer - 1]
            leaf = leaf.reshape(*leaf.shape[:-2], -1).T
            ours[f"lstm.{torch_name}_l{layer}"] = leaf
    return ours


def transformer_layout(p: Parameters) -> Parameters:
    """Our parameters (or gradients) under torch's names, in torch's shapes."""
    ours = {"embedding.weight": p["embed.embedding"], "position.weight": p["position"]}
    if "norm_final.scale" in p:
        ours |= norm(p, "norm_final", "norm")
    names = [name for name in p if name.startswith("blocks.")]
    for layer in range(len(p[names[0]])):
        block = {name.removeprefix("blocks."): p[name][layer] for name in names}
        d_model, d_attn = (
            len(block["attention.out.bias"]),
            block["attention.qkv.bias"].size // 3,
        )
        there = f"blocks.{layer}"
        ours |= norm(block, "norm_attention", f"{there}.norm1")
        ours |= norm(block, "norm_feed_forward", f"{there}.norm2")
        ours |= linear(block, "feed_forward.up", f"{there}.linear1")
        ours |= linear(block, "feed_forward.down", f"{there}.linear2")
        ours |= {
            f"{there}.self_attn.in_proj_weight": block["attention.qkv.kernel"]
            .reshape(d_model, 3 * d_attn)
            .T,
            f"{there}.self_attn.in_proj_bias": block["attention.qkv.bias"].ravel(),
            f"{there}.self_attn.out_proj.weight": block["attention.out.kernel"]
            .reshape(d_attn, d_model)
            .T,
            f"{there}.self_attn.out_proj.bias": block["attention.out.bias"],
        }
    return ours


def linear(p: Parameters, here: str, there: str) -> Parameters:
    return {f"{there}.weight": p[f"{here}.kernel"].T, f"{there}.bias": p[f"{here}.bias"]}


def norm(p: Parameters, here: str, there: str) -> Parameters:
    return {f"{there}.weight": p[f"{here}.scale"], f"{there}.bias": p[f"{here}.bias"]}


def compare(model: nn.Module, spec: ModelSpec) -> dict[str, float]:
    """Deviation of the logits and of the gradient of each of torch's parameters."""
    layout = lstm_layout if isinstance(spec, LSTMSpec) else transformer_layout
    p, _, logits, gradients = evaluated(spec)
    model = model.double()
    model.load_state_dict({name: torch.tensor(np.array(leaf)) for name, leaf in layout(p).items()})
    tokens, targets = (torch.tensor(x, dtype=torch.long) for x in reference.batch(spec))
    theirs = model(tokens)
    nn.functional.cross_entropy(theirs.flatten(0, 1), targets.flatten()).backward()
    ours = layout(gradients)
    deviations = {"logits": deviation(logits, theirs.detach())}
    for name, parameter in model.named_parameters():
        deviations[name] = deviation(ours[name], parameter.grad)
    return deviations


def test_lstm_equals_torch():
    spec = LSTMSpec(n_layer=3, d_hidden=9, d_embed=6, n_ctx=8, vocab_size=13)
    deviations = compare(torch_models.LSTM(spec), spec)
    assert sum(name.startswith("lstm.") for name in deviations) == 3 * 4
    assert max(deviations.values()) < 1e-5, deviations


TRANSFORMERS = {
    "gpt2": {"n_layer": 2},
    "universal": {"n_layer": 1, "reuse": 3, "norm": "post", "activation": "relu"},
}


@pytest.mark.parametrize("switches", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_transformer_equals_torch(switches):
    spec = TransformerSpec(**switches, d_model=12, n_head=3, d_ff=20, n_ctx=8, vocab_size=13)
    deviations = compare(Transformer(spec), spec)
    assert max(deviations.values()) < 1e-5, deviations


def test_the_reference_for_timings_is_the_same_transformer():
    """What the benchmark times must compute what we compute."""
    spec = TransformerSpec(n_layer=2, d_model=12, n_head=3, d_ff=20, n_ctx=8, vocab_size=13)
    deviations = compare(torch_models.Transformer(spec), spec)
    assert max(deviations.values()) < 1e-5, deviations
