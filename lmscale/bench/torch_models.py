"""The same models in torch, as a user of torch would write them for speed: what we time against.

Parameters carry the names of torch's own modules, so that the parity tests load ours into them.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from lmscale.spec import LSTMSpec, ModelSpec, OptimizerSpec, TransformerSpec


class SelfAttention(nn.Module):
    """Causal attention through torch's fused kernels."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.n_head = spec.n_head
        self.in_proj_weight = nn.Parameter(0.02 * torch.randn(3 * spec.d_attn, spec.d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * spec.d_attn))
        self.out_proj = nn.Linear(spec.d_attn, spec.d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n_batch, n_time, _ = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.view(n_batch, n_time, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(n_batch, n_time, -1))


class Block(nn.Module):
    """GPT-2's block: pre-normalisation, GELU in its tanh form (Radford et al. 2019)."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.d_model)
        self.self_attn = SelfAttention(spec)
        self.norm2 = nn.LayerNorm(spec.d_model)
        self.linear1 = nn.Linear(spec.d_model, spec.d_ff)
        self.linear2 = nn.Linear(spec.d_ff, spec.d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """tokens [batch, time] -> logits [batch, time, vocab]; the plain Transformer alone."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        plain = spec.reuse == 1 and spec.norm == "pre" and spec.activation == "gelu"
        plain = plain and spec.positions == "learned"
        if not plain or spec.dropout or spec.document_separator is not None:
            raise ValueError(f"torch's reference is the plain Transformer, not {spec}")
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.position = nn.Embedding(spec.n_ctx, spec.d_model)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.n_layer))
        self.norm = nn.LayerNorm(spec.d_model)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=spec.init_std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


class LSTM(nn.Module):
    """The same around `torch.nn.LSTM`, which is cuDNN's on a GPU."""

    def __init__(self, spec: LSTMSpec):
        super().__init__()
        plain = spec.projection and spec.tied_head and spec.document_separator is None
        if not plain or spec.dropout:
            raise ValueError(f"torch's reference is the plain LSTM, not {spec}")
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_embed)
        self.lstm = nn.LSTM(spec.d_embed, spec.d_hidden, spec.n_layer, batch_first=True)
        self.projection = nn.Linear(spec.d_hidden, spec.d_embed)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return F.linear(self.projection(self.lstm(x)[0]), self.embedding.weight)


#: The references by architecture.
MODELS = {"transformer": Transformer, "lstm": LSTM}


def torch_model(spec: ModelSpec) -> nn.Module:
    """The reference for a spec.

    Raises:
      ValueError: when torch has none for its architecture.
    """
    if spec.kind not in MODELS:
        raise ValueError(f"there is a torch reference of {', '.join(MODELS)}, not of {spec.kind}")
    return MODELS[spec.kind](spec)


class Trainer:
    """A model and its AdamW, one update a call.

    Args:
      optimizer: AdamW's constants; a weight decay is not offered.
      compiled: through `torch.compile`.
      device: "cpu" or "cuda".
      bfloat16: arithmetic in bfloat16 by autocast, parameters in float32.
    """

    def __init__(
        self,
        spec: ModelSpec,
        optimizer: OptimizerSpec,
        *,
        compiled: bool,
        device: str,
        bfloat16: bool,
    ):
        if optimizer.name != "adamw" or optimizer.weight_decay:
            raise ValueError(f"torch's reference trains with AdamW without decay, not {optimizer}")
        self.model = torch_model(spec).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=optimizer.peak_lr,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            weight_decay=0.0,
            fused=True,
        )
        self._grad_clip = optimizer.grad_clip
        self._device, self._bfloat16 = device, bfloat16
        self._loss = torch.compile(self._mean_loss) if compiled else self._mean_loss

    def _mean_loss(self, windows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bfloat16):
            logits = self.model(windows[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())

    def step(self, windows: torch.Tensor, learning_rate: float | None = None) -> torch.Tensor:
        """One update on windows [batch, n_ctx + 1]; returns the loss, still on the device."""
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(windows)
        loss.backward()
        if self._grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._grad_clip)
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, windows: torch.Tensor) -> float:
        """Mean loss over windows [n, n_ctx + 1], 64 at a time."""
        self.model.eval()
        losses = [self._mean_loss(part) * len(part) for part in windows.split(64)]
        self.model.train()
        return float(torch.stack(losses).sum() / len(windows))
