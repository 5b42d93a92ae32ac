"""How arrays are sharded over the mesh, by the architecture's rules for its parameter paths.

FSDP splits a dimension of every large matrix over `data`; tensor parallelism splits another over
`model` (Megatron's pattern: columns first, rows after). A dimension that the axis does not divide
stays whole; `data` then splits another one, since a state that is not split may not fit. The path of
an optimizer's moment ends with its parameter's path, so the same rules place it.

Shardings of parameters alone do not determine those of activations: XLA then splits features over
`data` and sums partial logits of the whole batch over all devices. So models constrain their
activations (`constrain_activations`), and a weight is gathered where it is used
(`unshard_data_axis`).
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

#: (pattern searched at the end of the path, mesh axis of each dimension), see
#: `lmscale.architectures.parts.Array`. The first match wins; what matches nothing is replicated.
Rules = tuple[tuple[str, tuple[str | None, ...]], ...]


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as "blocks/attention/qkv/kernel"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


#: The mesh of the program that is being traced, and the rules of its architecture.
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)
_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=())


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: Rules = ()) -> Iterator[None]:
    """Sets the mesh and the rules that the functions of this module use while a model is traced."""
    tokens = _mesh.set(mesh), _rules.set(rules)
    try:
        yield
    finally:
        _mesh.reset(tokens[0])
        _rules.reset(tokens[1])


def splits_layers() -> bool:
    """Whether the program that is being traced splits its layers over `model`."""
    mesh = _mesh.get()
    return mesh is not None and mesh.shape["model"] > 1


def run_devices() -> int:
    """Devices that share a run in the program that is being traced."""
    mesh = _mesh.get()
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["model"]


def on_gpu() -> bool:
    """Whether the program that is being traced is for GPUs."""
    mesh = _mesh.get()
    return mesh is not None and mesh.devices.flat[0].platform in ("gpu", "cuda")


def constrain_activations(
    x: jax.Array, over_model: int | None = None, batch_axis: int = 0
) -> jax.Array:
    """Shards activations over `data` by their batch axis, and over `model` by another.

    Args:
      x: activations.
      over_model: the axis to split over `model`; none when None.
      batch_axis: the axis to split over `data`.
    """
    axes: list[str | None] = [None] * x.ndim
    axes[batch_axis] = "data"
    if over_model is not None:
        axes[over_model] = "model"
    return _constrained(x, tuple(axes))


def on_each_device(function: Callable, axes: tuple[tuple[str | None, ...], ...]) -> Callable:
    """A function that each device applies to its own shards.

    Args:
      function: of arrays, whose result has the shape of the first.
      axes: for each array, the mesh axis that splits each of its dimensions, or None.
    """

    def apply(*arrays: jax.Array) -> jax.Array:
        mesh = _mesh.get()
        if mesh is None or mesh.size == 1:
            return function(*arrays)
        specs = tuple(_fitting(a, x.shape, mesh) for a, x in zip(axes, arrays, strict=True))
        # Kernels do not declare which outputs vary over the mesh, so JAX cannot check it.
        split = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=specs,
            out_specs=specs[0],
            check_vma=False,
        )
        return split(*arrays)

    return apply


def traced_mesh() -> Mesh | None:
    """The mesh of the program that is being traced; None outside of `on_mesh`."""
    return _mesh.get()


def on_each_run_device(function: Callable, mesh: Mesh | None = None) -> Callable:
    """A function of one run that each device applies to its own runs.

    XLA cannot split a kernel of our own: without this every device would compute all runs of a pack. For
    meshes that split nothing but runs.

    Args:
      function: of arrays.
      mesh: by default that of the program that is being traced. A backward pass is traced outside of
        `on_mesh`, so its functions need it.
    """

    def apply(*arrays: jax.Array) -> Any:
        split = mesh or _mesh.get()
        if split is None or split.size == 1:
            return function(*arrays)
        # The run axis is that of the vmap around it. See `on_each_device`.
        return jax.shard_map(
            function,
            mesh=split,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(*arrays)

    return apply


def summed_over_data(function: Callable, mesh: Mesh) -> Callable:
    """A function of a batch that each device applies to its own part, and the sum of what they find.

    Args:
      function: of arrays that have the batch first.
      mesh: the one that the batch is split over.
    """

    def part(*arrays: jax.Array) -> jax.Array:
        return jax.lax.psum(function(*arrays), "data")

    def apply(*arrays: jax.Array) -> jax.Array:
        if mesh.shape["data"] == 1 or arrays[0].shape[0] % mesh.shape["data"]:
            return function(*arrays)
        # The run axis is that of the vmap around it. See `on_each_device`.
        return jax.shard_map(
            part,
            mesh=mesh,
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(*arrays)

    return apply


def unshard_data_axis(name: str, x: jax.Array) -> jax.Array:
    """A parameter, gathered over `data` and still split over `model` as the rules say.

    Args:
      name: its path.
      x: its values.
    """
    axes = _axes_of(name, x.ndim, _rules.get())
    if axes is None:
        return x
    return _constrained(x, tuple(None if axis == "data" else axis for axis in axes))


def head_params(params: dict[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """The parameters of the output head: its own, or the embedding's where they are tied.

    Args:
      params: of the model.
      whole: gather the matrix over `data`.
    """
    name = "head" if "head" in params else "embed"

    def gather(path, x):
        return unshard_data_axis(f"{name}/{path_name(path)}", x)

    head = jax.tree_util.tree_map_with_path(gather, params[name]) if whole else params[name]
    return {name: head}


def _constrained(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    mesh = _mesh.get()
    if mesh is None or mesh.shape["data"] * mesh.shape["model"] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _fitting(axes, x.shape, mesh)))


def _fitting(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The axes, without those that do not divide their dimension."""
    return PartitionSpec(
        *(
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def run_spec(
    name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules
) -> PartitionSpec:
    """The sharding of one run's array of this path and shape, without a run axis."""
    axes = _axes_of(name, len(shape), rules)
    return PartitionSpec() if axes is None else _with_data(axes, shape, mesh)


def _axes_of(name: str, n_axes: int, rules: Rules) -> tuple[str | None, ...] | None:
    """What the rules say of an array of this path and number of dimensions."""
    for pattern, axes in rules:
        if len(axes) == n_axes and re.search(pattern, name):
            return axes
    return None


def _with_data(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The axes that fit. Where `data` does not divide its dimension, it splits the largest that fits."""
    placed = list(_fitting(axes, shape, mesh))
    if "data" in placed or "data" not in axes:
        return PartitionSpec(*placed)
    # The first axis of a stack numbers its layers, which the loop takes one by one.
    inside = range(axes[0] is None, len(shape))
    for i in sorted(inside, key=lambda i: -shape[i]):
        split = (placed[i], "data") if placed[i] else ("data",)
        if shape[i] % math.prod(mesh.shape[axis] for axis in split) == 0:
            placed[i] = split if placed[i] else "data"
            break
    return PartitionSpec(*placed)


def run_shardings(tree: Any, mesh: Mesh, rules: Rules, *, packed: bool) -> Any:
    """Shardings for every array of one run's state, or of a pack's with its leading run axis.

    Args:
      tree: pytree of one run's arrays (or their shapes), without a run axis.
      mesh: with axes run, data, model.
      rules: of the architecture.
      packed: prepend the run axis.
    """

    def sharding(path, leaf):
        spec = run_spec(path_name(path), leaf.shape, mesh, rules)
        return NamedSharding(mesh, PartitionSpec("run", *spec) if packed else spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)
