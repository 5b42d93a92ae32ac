"""The same model in Hugging Face's transformers: its config, and its arrays by our names and theirs.

An architecture that transformers has says so by `ModelSpec.hugging_face`; both directions are made of
what it returns. Arrays are NumPy's; ours have dotted names (`blocks.attention.qkv.kernel`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmscale.serialize import require, short

__all__ = ["HuggingFace", "Renamed", "from_theirs", "require_values", "rotary_of", "to_theirs"]


@dataclass(frozen=True)
class Renamed:
    """One of our arrays under their name.

    Attributes:
      ours: its name; arrays of stacked layers have their layer dimension first.
      theirs: its name there, with {layer} for stacked layers.
      n_in: leading axes (after the layer's) that are joined to the input dimension of a matrix; the
        others are joined to the output dimension. 0 for a vector, or an array that stays as it is.
      transposed: whether theirs is [output, input], as torch's Linear has it.
      swapped: two axes of ours (after the layer's) that are in the other order there.
    """

    ours: str
    theirs: str
    n_in: int = 0
    transposed: bool = False
    swapped: tuple[int, int] | None = None

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.theirs


@dataclass(frozen=True)
class HuggingFace:
    """A model in transformers.

    Attributes:
      config: of config.json, but for what the tokeniser decides.
      arrays: ours that have a counterpart, which are all.
      zeros: theirs that we do not have -> their shape; as zeros they change nothing.
    """

    config: Mapping[str, Any]
    arrays: tuple[Renamed, ...]
    zeros: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def require_values(config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises `SpecError` unless a config, where it has these fields, has these values of them."""
    for name, value in own.items():
        found = config.get(name, value)
        require(found == value, f"{name} must be {value}, not {short(found)}")


def rotary_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary positions in a config.json: `rope_parameters` or, before version 5, `rope_scaling`.

    Returns:
      Its fields: `rope_theta`, `partial_rotary_factor`, as far as it has them; {} where it has neither.

    Raises:
      SpecError: the angles are scaled, or differ by kind of layer.
    """
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if rope is None:
            continue
        is_flat = isinstance(rope, Mapping) and not any(
            isinstance(value, Mapping) for value in rope.values()
        )
        require(is_flat, f"{name} must be one set of values for all layers, not {short(rope)}")
        # Older versions name the type otherwise.
        kind = rope.get("rope_type") or rope.get("type") or "default"
        require(kind == "default", f"rotary positions of the type {short(kind)} are not had here")
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def to_theirs(form: HuggingFace, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our arrays under their names and in their shapes.

    Raises:
      ValueError: an array of ours has no counterpart.
    """
    left = set(arrays) - {one.ours for one in form.arrays}
    if left:
        raise ValueError(f"no counterpart is known for {', '.join(sorted(left))}")
    found = {name: np.zeros(shape, np.float32) for name, shape in form.zeros.items()}
    for one in form.arrays:
        x = arrays[one.ours]
        for layer, own in enumerate(x if one.stacked else [x]):
            found[one.theirs.format(layer=layer)] = _their_shape(one, own)
    return {name: np.ascontiguousarray(x) for name, x in found.items()}


def from_theirs(
    form: HuggingFace,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """Their arrays under our names and in our shapes.

    Args:
      form: of the model.
      arrays: theirs, all of which the model must have; those of `form.zeros` must be zero.
      shapes: ours, by name.

    Raises:
      ValueError: an array is missing, has another shape, cannot be left out, or is not of the model.
    """
    found: dict[str, np.ndarray] = {}
    known = set(form.zeros)
    for one in form.arrays:
        shape = shapes[one.ours]
        own = shape[1:] if one.stacked else shape
        parts = []
        for name in _their_names(one, shape):
            if name not in arrays:
                raise ValueError(f"the weights have no {name}")
            x = np.asarray(arrays[name], np.float32)
            x = x.T if one.transposed and one.n_in else x
            if x.size != int(np.prod(own)):
                raise ValueError(f"{name} has {x.size:,} numbers, not {int(np.prod(own)):,}")
            parts.append(_our_shape(one, x, own))
            known.add(name)
        found[one.ours] = np.stack(parts) if one.stacked else parts[0]
    for name in form.zeros:
        if name in arrays and np.any(arrays[name]):
            raise ValueError(f"{name} is not zero, and a model without biases cannot have it")
    if unknown := sorted(name for name in arrays if name not in known):
        raise ValueError(f"the model of config.json has no {unknown[0]}, which the weights have")
    return found


def _their_names(one: Renamed, shape: tuple[int, ...]) -> Iterator[str]:
    for layer in range(shape[0] if one.stacked else 1):
        yield one.theirs.format(layer=layer)


def _our_shape(one: Renamed, x: np.ndarray, own: tuple[int, ...]) -> np.ndarray:
    if one.swapped is None:
        return x.reshape(own)
    theirs, (a, b) = list(own), one.swapped
    theirs[a], theirs[b] = own[b], own[a]
    return x.reshape(theirs).swapaxes(a, b)


def _their_shape(one: Renamed, x: np.ndarray) -> np.ndarray:
    if one.swapped is not None:
        x = x.swapaxes(*one.swapped)
    if not one.n_in:
        return x if "bias" not in one.theirs else x.ravel()
    matrix = x.reshape(int(np.prod(x.shape[: one.n_in])), -1)
    return matrix.T if one.transposed else matrix
