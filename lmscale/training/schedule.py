"""Learning rate as a function of the step, for hyperparameters that are traced arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmscale.spec import RunSpec

#: The order gives each schedule its number in a pack's hyperparameters, and is that of `shapes` in
#: `learning_rate`. `spec.ScheduleSpec` has the same names.
SCHEDULES = ("cosine", "linear", "constant", "cooldown", "inverse_sqrt")


def schedule_hyperparameters(spec: RunSpec) -> dict[str, float | int]:
    """The numbers that `learning_rate` needs of a run."""
    schedule = spec.schedule
    if schedule.name == "cooldown":
        length = schedule.cooldown_steps or max(1, math.ceil(0.2 * spec.steps))
        decay_start, decay_end = max(schedule.warmup_steps, spec.steps - length), spec.steps
    else:
        decay_start, decay_end = schedule.warmup_steps, schedule.cycle_steps or spec.steps
    return {
        "schedule": SCHEDULES.index(schedule.name),
        "peak_lr": spec.optimizer.peak_lr,
        "warmup_steps": schedule.warmup_steps,
        "decay_start": decay_start,
        "decay_end": decay_end,
        "final_fraction": schedule.final_fraction,
    }


def learning_rate(step: jax.Array, hyper: Mapping[str, jax.Array]) -> jax.Array:
    """The learning rate of the update that follows `step` earlier ones.

    Warmup rises linearly to the peak, which update number warmup_steps has; the decay then reaches
    `final_fraction` of the peak at decay_end, that is, just after the last update.
    """
    step = step.astype(jnp.float32)
    warmup = hyper["warmup_steps"].astype(jnp.float32)
    start, end = (hyper[k].astype(jnp.float32) for k in ("decay_start", "decay_end"))
    final = hyper["final_fraction"]
    x = jnp.clip((step - start) / jnp.maximum(end - start, 1.0), 0.0, 1.0)

    def down(shape: jax.Array) -> jax.Array:
        return final + (1 - final) * shape

    shapes = (
        down(0.5 * (1 + jnp.cos(jnp.pi * x))),
        down(1 - x),
        jnp.ones_like(x),
        down(1 - jnp.sqrt(x)),
        jnp.sqrt(warmup / jnp.maximum(step + 1, jnp.maximum(warmup, 1.0))),
    )
    decayed = jnp.select([hyper["schedule"] == i for i in range(len(SCHEDULES))], shapes)
    rising = (step + 1) / jnp.maximum(warmup, 1.0)
    return hyper["peak_lr"] * jnp.where(step < warmup, rising, decayed)
