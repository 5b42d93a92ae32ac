"""The optimizers: one entry for each, with all that is known of it, and their registry.

To add one, make an `Optimizer` in a file (also one of your own) and call `register`. No other code in
lmscale asks which optimizer a run has. This module does not import jax, so commands that do not train
start without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmscale.serialize import require, short
from lmscale.user_files import source_of

if TYPE_CHECKING:
    import jax
    import optax

    from lmscale.architectures import ModelSpec

    #: (architecture, constants as traced numbers) -> the direction of the update, before weight decay
    #: and learning rate. The shape of its state must not depend on the constants.
    Direction = Callable[[type[ModelSpec], Mapping[str, jax.Array]], optax.GradientTransformation]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and its properties.

    Attributes:
      name: in specs.
      direction: see `Direction`.
      constants: fields of `OptimizerSpec` that it reads, apart from peak_lr and grad_clip.
      elementwise: whether every parameter is updated independently of the others. Its moments may then
        be stored as a few long vectors, which is faster on a CPU.
      moments: numbers that an elementwise optimizer keeps for each parameter.
      lr_factor: its best learning rate in units of AdamW's; learning-rate rules are multiplied by it.
    """

    name: str
    direction: Direction
    constants: tuple[str, ...] = ("beta1", "beta2", "eps", "weight_decay")
    elementwise: bool = False
    moments: int = 2
    lr_factor: float = 1.0


_REGISTRY: dict[str, Optimizer] = {}
_NAME = re.compile(r"[A-Za-z][\w.-]*")
#: Constants of `OptimizerSpec` that an optimizer may read, apart from peak_lr and grad_clip.
CONSTANTS = ("beta1", "beta2", "eps", "weight_decay", "momentum")


def register(optimizer: Optimizer) -> Optimizer:
    """Registers an optimizer under its name; a file that is loaded again replaces its own.

    Raises:
      SpecError: another optimizer has the name, or it reads a constant that no run has.
    """
    require(
        isinstance(optimizer.name, str) and bool(_NAME.fullmatch(optimizer.name)),
        f"an optimizer has a name of letters, digits and dashes, not {short(optimizer.name)}",
    )
    require(
        not isinstance(optimizer.constants, str) and set(optimizer.constants) <= set(CONSTANTS),
        f"the constants of the optimizer {optimizer.name} must be some of {', '.join(CONSTANTS)}, not "
        f"{short(optimizer.constants)}",
    )
    known = _REGISTRY.get(optimizer.name)
    require(
        known is None or source_of(known.direction) == source_of(optimizer.direction),
        f"the name {short(optimizer.name)} is taken by another optimizer: choose another",
    )
    _REGISTRY[optimizer.name] = optimizer
    return optimizer


def optimizer(name: str) -> Optimizer:
    """The optimizer of a name.

    Raises:
      SpecError: there is none.
    """
    require(
        name in _REGISTRY,
        f"OptimizerSpec.name must be one of {', '.join(names())}, not {short(name)}",
    )
    return _REGISTRY[name]


def names() -> tuple[str, ...]:
    """The names of all registered optimizers."""
    return tuple(sorted(_REGISTRY))


def _adam(model: type[ModelSpec], constants: Mapping[str, Any]) -> optax.GradientTransformation:
    """Kingma & Ba 2015; AdamW (Loshchilov & Hutter 2019) adds a decoupled weight decay."""
    import optax

    del model
    return optax.scale_by_adam(b1=constants["beta1"], b2=constants["beta2"], eps=constants["eps"])


def _adafactor(
    model: type[ModelSpec], constants: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Shazeer & Stern 2018; see `lmscale.optimizers.adafactor`."""
    from lmscale.optimizers.adafactor import scale_by_adafactor

    del constants
    return scale_by_adafactor(model.STACKS)


def _muon(model: type[ModelSpec], constants: Mapping[str, Any]) -> optax.GradientTransformation:
    """Jordan et al. 2024; see `lmscale.optimizers.muon`."""
    from lmscale.optimizers.muon import scale_by_muon

    return scale_by_muon(model, constants)


register(Optimizer("adam", _adam, constants=("beta1", "beta2", "eps"), elementwise=True))
register(Optimizer("adamw", _adam, elementwise=True))
register(Optimizer("adafactor", _adafactor, constants=("weight_decay",)))
register(Optimizer("muon", _muon, constants=("momentum", "beta1", "beta2", "eps", "weight_decay")))
