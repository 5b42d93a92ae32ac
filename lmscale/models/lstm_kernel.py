"""An LSTM layer's recurrence in one launch forward and one backward: two kernels for NVIDIA GPUs.

As a scan, every time step is some ten launches, and reads the recurrent weights anew. Here a program takes
a tile of the batch of one run through all time steps, and loads the weights once, before the first.

- `_forward_kernel` writes the hidden states, and for the backward pass the cell states and gates.
- `_backward_kernel` walks the steps in reverse and writes the gradients of what enters the gates. The
  gradient of the weights is one matmul over all steps, outside.

The gates are saved, and not computed again: within one kernel that costs no launch, and the backward pass
needs the weights in one orientation only.

Tiles are powers of two. What does not fill them is never read from memory but taken as zero, and not
written: a hidden unit whose inputs and weights are zero has c = f c + i tanh(0) = 0 and h = 0 at every step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lmscale.compat import load_tile, pallas, store_tile, triton_params
from lmscale.environment import choice
from lmscale.parallel.partition import on_each_run_device

#: The variable that switches the kernels on, and its values.
SWITCH, CHOICES = "LMSCALE_LSTM", ("scan", "kernel")
#: Most hidden units, by the type of the weights: 4 x 128 x 128 of two bytes are 128 kB, beside which a program
#: needs up to 20 kB. A multiprocessor's shared memory has 227 kB on an H100, 163 kB on an A100.
WIDEST = {"bfloat16": 128, "float32": 64}
#: Sequences of a program: the fewest rows that the matrix unit takes, so that there are many programs.
_TILE = 16
_LOG2_E = math.log2(math.e)


def is_asked() -> bool:
    """Whether the environment asks for the kernels. By default it does not: no GPU has run them yet.

    Raises:
      SpecError: when the variable has another value.
    """
    return choice(SWITCH, CHOICES) == "kernel"


def refuses(d_hidden: int, dtype: str, split: int) -> str | None:
    """Why the kernels do not take a layer, or None where they do.

    Args:
      d_hidden: hidden units.
      dtype: of the weights in products.
      split: devices that share a run.
    """
    widest = WIDEST.get(dtype, 0)
    if d_hidden > widest:
        return f"the kernel takes at most {widest} hidden units in {dtype}"
    return None if split == 1 else "the kernel takes runs of one device"


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def kernel_recurrence(
    gates: jax.Array,
    kernel: jax.Array,
    keep: jax.Array | None = None,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`lmscale.models.lstm.recurrence`, by kernels; where it is differentiated, it saves cells and gates.

    Args:
      gates: [time, batch, 4 d_hidden].
      kernel: [d_hidden, 4 d_hidden], of the same dtype. Products are summed in float32.
      keep: float32 [time, batch, 1] or None.
      mesh: whose devices have runs of their own; None for one device.
      interpret: run the kernels by XLA, on any platform, slowly.

    Returns:
      Hidden states [time, batch, d_hidden].
    """
    return _forward(gates, kernel, keep, mesh, interpret, save=False)[0]


def _forward(gates, kernel, keep, mesh, interpret, save=True):
    (n_time, n_batch, _), d_hidden = gates.shape, kernel.shape[0]

    def run(gates, kernel, *keep):
        outputs = [jax.ShapeDtypeStruct((n_time, n_batch, d_hidden), gates.dtype)]
        if save:
            outputs += [_like(outputs[0], jnp.float32), _like(gates)]
        return _call(_forward_kernel, [gates], kernel, keep, outputs, interpret)

    gates = gates.reshape(n_time, n_batch, 4, d_hidden)
    kernel = kernel.reshape(d_hidden, 4, d_hidden)
    masks = () if keep is None else (keep[..., 0],)
    hidden, *saved = on_each_run_device(run, mesh)(gates, kernel, *masks)
    return hidden, (hidden, *saved, kernel, masks)


def _backward(mesh, interpret, saved, d_hidden_states):
    hidden, cell, gates, kernel, masks = saved

    def run(d_hidden_states, cell, gates, kernel, *keep):
        # Transposed once, in memory.
        transposed = kernel.transpose(2, 1, 0)
        inputs = [gates, cell, d_hidden_states]
        return _call(_backward_kernel, inputs, transposed, keep, [_like(gates)], interpret)[0]

    dz = on_each_run_device(run, mesh)(d_hidden_states, cell, gates, kernel, *masks)
    earlier = jnp.concatenate([jnp.zeros_like(hidden[:1]), hidden[:-1]])
    if masks:
        earlier = earlier * masks[0][..., None].astype(earlier.dtype)
    dz = dz.reshape(*dz.shape[:2], -1)
    return dz, jnp.tensordot(earlier, dz, ((0, 1), (0, 1))).astype(dz.dtype), None


kernel_recurrence.defvjp(_forward, _backward)


def _like(x: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)


def padded(d_hidden: int) -> int:
    """Hidden units of a tile."""
    return max(16, 1 << (d_hidden - 1).bit_length())


def _call(
    kernel: Callable, arrays: list, weights: Any, keep: tuple, outputs: list, interpret: bool
) -> list[jax.Array]:
    """A kernel over tiles of the batch, the second axis of all arrays but the weights [d, 4, d]."""
    pl = pallas()
    d_hidden = weights.shape[0]
    n_batch, width = arrays[0].shape[1], padded(d_hidden)

    def in_tiles(array):
        n_time, _, *others = array.shape
        shape = (n_time, _TILE, *others[:-1], width) if others else (n_time, _TILE)
        return pl.BlockSpec(shape, lambda i: (0, i, *(0 for _ in others)))

    inputs = [*arrays, *keep]
    return pl.pallas_call(
        functools.partial(kernel, n_batch=n_batch, d_hidden=d_hidden, masks=len(keep)),
        out_shape=outputs,
        grid=(-(-n_batch // _TILE),),
        in_specs=[
            pl.BlockSpec((width, 4, width), lambda i: (0, 0, 0)),
            *map(in_tiles, inputs),
        ],
        out_specs=[in_tiles(array) for array in outputs],
        compiler_params=triton_params(warps=max(1, width // 16), stages=1),
        interpret=interpret,
        name=f"lstm{kernel.__name__.removesuffix('_kernel')}",
    )(weights, *inputs)


class _Tile:
    """Reads and writes a program's part of a time step: [_TILE, width], zero beyond the arrays."""

    def __init__(self, n_batch: int, d_hidden: int):
        width = padded(d_hidden)
        rows = pallas().program_id(0) * _TILE + jnp.arange(_TILE)
        units = jnp.arange(width) < d_hidden
        self.rows = rows < n_batch
        self.mask = self.rows[:, None] & units[None, :]
        self.square = units[:, None] & units[None, :]

    def load(self, ref: Any, t: jax.Array) -> jax.Array:
        return load_tile(ref.at[t], self.mask)

    def load_gates(self, ref: Any, t: jax.Array) -> list[jax.Array]:
        return [load_tile(ref.at[t, :, k], self.mask) for k in _gates()]

    def load_keep(self, refs: tuple, t: jax.Array) -> list[jax.Array]:
        return [load_tile(ref.at[t, :], self.rows)[:, None] for ref in refs]

    def store(self, ref: Any, value: jax.Array, t: jax.Array) -> None:
        store_tile(ref.at[t], value.astype(ref.dtype), self.mask)

    def store_gates(self, ref: Any, values: tuple, t: jax.Array) -> None:
        for k, value in zip(_gates(), values, strict=True):
            store_tile(ref.at[t, :, k], value.astype(ref.dtype), self.mask)

    def weights(self, ref: Any) -> list[jax.Array]:
        """The weights of each gate, [width, width]."""
        return [load_tile(ref.at[:, k, :], self.square) for k in _gates()]


def _gates() -> list[jax.Array]:
    # The interpreter takes no plain int as an index.
    return [jnp.int32(k) for k in range(4)]


def _forward_kernel(w_ref, gates_ref, *refs, n_batch, d_hidden, masks):
    keep_refs, (h_ref, *saved_refs) = refs[:masks], refs[masks:]
    tile = _Tile(n_batch, d_hidden)
    w = tile.weights(w_ref)
    n_time = gates_ref.shape[0]

    def read(t):
        return tile.load_gates(gates_ref, t), tile.load_keep(keep_refs, t)

    def step(t, carry):
        h, c, (gates, keep) = carry
        # Read one step ahead: otherwise each read would be waited for in turn.
        ahead = read(jnp.minimum(t + 1, n_time - 1))
        for keep_t in keep:
            h = h * keep_t
        h = h.astype(w_ref.dtype)
        z = [x.astype(jnp.float32) + _dot(h, w_k) for x, w_k in zip(gates, w, strict=True)]
        i, f, o = (_sigmoid(z[k]) for k in (0, 1, 3))
        g = _tanh(z[2])
        for keep_t in keep:
            # A forget gate of zero drops the cell state, here and in the backward pass.
            f = f * keep_t
        c = f * c + i * g
        h = o * _tanh(c)
        tile.store(h_ref, h, t)
        if saved_refs:
            c_ref, saved_ref = saved_refs
            tile.store(c_ref, c, t)
            tile.store_gates(saved_ref, (i, f, g, o), t)
        return h, c, ahead

    zeros = jnp.zeros(tile.mask.shape, jnp.float32)
    jax.lax.fori_loop(0, n_time, step, (zeros, zeros, read(jnp.int32(0))))


def _backward_kernel(w_ref, gates_ref, c_ref, dh_ref, *refs, n_batch, d_hidden, masks):
    keep_refs, (dz_ref,) = refs[:masks], refs[masks:]
    tile = _Tile(n_batch, d_hidden)
    w = tile.weights(w_ref)
    n_time = gates_ref.shape[0]

    def read(t):
        """What the step t needs, and the cell state before it."""
        t = jnp.maximum(t, 0)
        earlier = tile.load(c_ref, jnp.maximum(t - 1, 0))
        return tile.load(dh_ref, t), tile.load_gates(gates_ref, t), earlier

    def step(s, carry):
        dh, dc, c, (d_out, gates, earlier) = carry
        t = n_time - 1 - s
        ahead, keep = read(t - 1), tile.load_keep(keep_refs, t)
        earlier = jnp.where(t > 0, earlier, 0.0)
        i, f, g, o = (gate.astype(jnp.float32) for gate in gates)
        tanh_c = _tanh(c)
        dh = dh + d_out.astype(jnp.float32)
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        dz = (
            dc * g * i * (1 - i),
            dc * earlier * f * (1 - f),
            dc * i * (1 - g * g),
            dh * tanh_c * o * (1 - o),
        )
        dz = tuple(x.astype(dz_ref.dtype) for x in dz)
        tile.store_gates(dz_ref, dz, t)
        dh = sum(_dot(dz_k, w_k) for dz_k, w_k in zip(dz, w, strict=True))
        for keep_t in keep:
            dh = dh * keep_t
        return dh, dc * f, earlier, ahead

    zeros = jnp.zeros(tile.mask.shape, jnp.float32)
    last = jnp.int32(n_time - 1)
    start = zeros, zeros, tile.load(c_ref, last), read(last)
    jax.lax.fori_loop(0, n_time, step, start)


def _sigmoid(x: jax.Array) -> jax.Array:
    # A power of two is one instruction, an exponential is five.
    return 1 / (1 + jnp.exp2(-_LOG2_E * x))


def _tanh(x: jax.Array) -> jax.Array:
    """Within 2e-7, in a third of the instructions of a tanh that is exact near zero too."""
    return 2 * _sigmoid(2 * x) - 1


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)
