"""A run is a value: frozen dataclasses that hold everything that determines a training result.

A `RunSpec` holds the model, the data, the batch, the optimizer, the schedule, the precision, the
seed and the evaluations, and nothing about machines. Two equal specs give the same result wherever
they run. The content hash of a spec names its folder in a store.

Forward compatibility: the hash covers only the fields that differ from their defaults. So a later
version may add a field, with a default that means "as before", and existing runs keep their names.
The price is that a default, once released, is never changed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from lmscale import optimizers
from lmscale.architectures import LSTMSpec, ModelSpec, TransformerSpec
from lmscale.foreign_text import is_plain_name
from lmscale.serialize import (
    Spec,
    SpecError,
    canonical_json,
    require,
    require_fraction,
    require_positive,
)

__all__ = [
    "ComputeDtype",
    "DataSpec",
    "EvalSpec",
    "LSTMSpec",
    "ModelSpec",
    "OptimizerSpec",
    "RunSpec",
    "ScheduleName",
    "ScheduleSpec",
    "SpecError",
    "Split",
    "StartSpec",
    "StoppingSpec",
    "TransformerSpec",
]


ComputeDtype = Literal["float32", "bfloat16"]
ScheduleName = Literal["cosine", "linear", "constant", "cooldown", "inverse_sqrt"]
Split = Literal["train", "valid", "test"]


def _require_plain_name(spec: Spec, field: str) -> None:
    value = getattr(spec, field)
    require(
        is_plain_name(value),
        f"{type(spec).__name__}.{field} must be a plain name that a file can have, not {value!r}",
    )


@dataclass(frozen=True, kw_only=True)
class DataSpec(Spec):
    """Which tokens a run is trained on.

    `fingerprint` is the content hash of the token store, tokeniser included. So a corpus of the same
    name with other text gives another run. `subset_tokens` keeps that many training tokens; smaller
    subsets are nested in larger ones. By "documents" it keeps the first documents of the store, which
    are in random order. By "sequences" it keeps sequences of n_ctx tokens from all over the store,
    which is closer to a random sample where a subset would hold few documents.
    """

    corpus: str
    fingerprint: str
    subset_tokens: int | None = None
    subset_by: Literal["documents", "sequences"] = "documents"

    def _check(self) -> None:
        if self.subset_tokens is not None:
            require_positive(self, "subset_tokens")
        require(
            self.subset_tokens is not None or self.subset_by == "documents",
            "DataSpec.subset_by says how subset_tokens are chosen, so it needs subset_tokens",
        )


@dataclass(frozen=True, kw_only=True)
class EvalSpec(Spec):
    """One named evaluation set: windows of n_ctx tokens of a split of a corpus, `tokens` in all.

    "spread" takes windows at equal distances over the whole split, so that every document can
    contribute. "first" takes the windows at its beginning, which a few long documents may fill. If
    the split is shorter than `tokens`, both take all of it.

    "overlapping" takes stretches of text at equal distances, and in each of them a window every eighth of a
    context. A token is then a target at eight positions of the context, so that losses by position differ
    by the position and not by the text that is there. Scores hold them by stretch as well.
    """

    name: str
    corpus: str
    fingerprint: str
    split: Split = "valid"
    tokens: int = 65_536
    #: "first" is the sampling of runs from before there was a choice.
    sampling: Literal["first", "spread", "overlapping"] = "first"

    def _check(self) -> None:
        require_positive(self, "tokens")
        # The scores are written to a file of this name.
        _require_plain_name(self, "name")


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec):
    """An optimizer and its constants. `weight_decay` is decoupled and applies to matrices only."""

    #: A name in `lmscale.optimizers`.
    name: str = "adamw"
    peak_lr: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    #: Largest global gradient norm; None does not clip.
    grad_clip: float | None = 1.0
    #: Decay of the momentum of Muon.
    momentum: float = 0.95

    def _check(self) -> None:
        require(
            self.peak_lr > 0,
            f"OptimizerSpec.peak_lr must be a positive number, not {self.peak_lr!r}",
        )
        used = optimizers.optimizer(self.name).constants
        require_fraction(self, "beta1", "beta2", "momentum")
        require(
            "momentum" in used or self.momentum == OptimizerSpec.momentum,
            f"OptimizerSpec.momentum is none of the constants of {self.name}",
        )
        require(self.eps > 0, f"OptimizerSpec.eps must be positive, not {self.eps!r}")
        require(
            self.weight_decay >= 0,
            f"OptimizerSpec.weight_decay must not be negative, not {self.weight_decay!r}",
        )
        require(
            self.weight_decay == 0 or "weight_decay" in used,
            f"OptimizerSpec.weight_decay needs an optimizer that has it (adamw), not {self.name}",
        )
        require(
            self.grad_clip is None or self.grad_clip > 0,
            f"OptimizerSpec.grad_clip must be positive or null, not {self.grad_clip!r}",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(Spec):
    """The learning rate as a fraction of its peak: linear warmup, then one of five shapes.

    cosine, linear: down to `final_fraction` at step `cycle_steps` (None: at the end of the run).
    constant: stays at the peak. cooldown: constant, then 1 - sqrt down to `final_fraction` over the
    last `cooldown_steps` (None: a fifth of the run; Hägele et al. 2024). inverse_sqrt: peak *
    sqrt(warmup / step).
    """

    name: ScheduleName = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    cycle_steps: int | None = None
    cooldown_steps: int | None = None

    def _check(self) -> None:
        require(
            self.warmup_steps >= 0,
            f"ScheduleSpec.warmup_steps must not be negative, not {self.warmup_steps}",
        )
        require(
            0.0 <= self.final_fraction <= 1.0,
            f"ScheduleSpec.final_fraction must be in [0, 1], not {self.final_fraction!r}",
        )
        if self.cycle_steps is not None:
            require_positive(self, "cycle_steps")
            require(
                self.name in ("cosine", "linear"),
                f"ScheduleSpec.cycle_steps belongs to cosine and linear, not {self.name}",
            )
        if self.cooldown_steps is not None:
            require_positive(self, "cooldown_steps")
            require(
                self.name == "cooldown",
                f"ScheduleSpec.cooldown_steps belongs to cooldown, not {self.name}",
            )
        require(
            self.name != "inverse_sqrt" or self.warmup_steps >= 1,
            "ScheduleSpec inverse_sqrt needs warmup_steps of at least 1",
        )


@dataclass(frozen=True, kw_only=True)
class StoppingSpec(Spec):
    """Early stopping: ends a run when its loss on the first evaluation set no longer falls.

    `patience` counts evaluations without a new lowest loss. The result of the run is that of its
    lowest loss (Kaplan et al. 2020, for runs limited by data).
    """

    patience: int = 5

    def _check(self) -> None:
        require_positive(self, "patience")


@dataclass(frozen=True, kw_only=True)
class StartSpec(Spec):
    """Starts a run from the state of another run: parameters, optimizer moments and step.

    `run` is the `run_id` of the other run. The data continue from that step, in the order of the seed
    of this run.
    """

    run: str
    step: int

    def _check(self) -> None:
        require_positive(self, "step")
        _require_plain_name(self, "run")


@dataclass(frozen=True, kw_only=True)
class RunSpec(Spec):
    """Everything that determines the result of one training run.

    `batch_size` counts sequences of `model.n_ctx` tokens. `steps` counts optimizer updates, including
    those of a `start`. A run is evaluated every `eval_every` steps, at `eval_steps`, and after its
    last step. `noise_pieces` divides every batch into that many equal micro-batches, whose gradients
    are compared with that of the whole batch for the gradient noise scale (McCandlish et al. 2018).
    """

    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    batch_size: int
    steps: int
    seed: int = 0
    compute_dtype: ComputeDtype = "float32"
    evals: tuple[EvalSpec, ...] = ()
    eval_every: int | None = None
    eval_steps: tuple[int, ...] = ()
    stopping: StoppingSpec | None = None
    start: StartSpec | None = None
    noise_pieces: int | None = None

    def _check(self) -> None:
        require_positive(self, "batch_size", "steps")
        require(0 <= self.seed < 2**31, f"RunSpec.seed must be in [0, 2^31), not {self.seed!r}")
        if self.eval_every is not None:
            require_positive(self, "eval_every")
        for step in self.eval_steps:
            require(
                1 <= step <= self.steps,
                f"RunSpec.eval_steps must lie in 1 to steps ({self.steps}), not {step}",
            )
        require(
            self.stopping is None or (bool(self.evals) and self.eval_every is not None),
            "RunSpec.stopping needs an evaluation set and eval_every",
        )
        require(
            self.start is None or self.start.step < self.steps,
            f"StartSpec.step must be less than RunSpec.steps ({self.steps})",
        )
        if self.noise_pieces is not None:
            require(
                self.noise_pieces >= 2 and self.batch_size % self.noise_pieces == 0,
                f"RunSpec.noise_pieces must be at least 2 and divide batch_size ({self.batch_size}), "
                f"not {self.noise_pieces}",
            )
        require(
            self.schedule.warmup_steps <= self.steps,
            f"ScheduleSpec.warmup_steps ({self.schedule.warmup_steps}) must not exceed "
            f"RunSpec.steps ({self.steps})",
        )
        cooldown, cycle = self.schedule.cooldown_steps, self.schedule.cycle_steps
        require(
            cooldown is None or self.schedule.warmup_steps + cooldown <= self.steps,
            f"ScheduleSpec.cooldown_steps ({cooldown}) and warmup_steps "
            f"({self.schedule.warmup_steps}) must fit in RunSpec.steps ({self.steps})",
        )
        require(
            cycle is None or cycle > self.schedule.warmup_steps,
            f"ScheduleSpec.cycle_steps ({cycle}) must exceed warmup_steps "
            f"({self.schedule.warmup_steps})",
        )
        names = [evaluation.name for evaluation in self.evals]
        require(len(set(names)) == len(names), f"RunSpec.evals has two sets of one name: {names}")

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.model.n_ctx

    @property
    def n_tokens(self) -> int:
        """Training tokens D: steps * batch_size * n_ctx."""
        return self.steps * self.batch_tokens

    @property
    def n_evaluations(self) -> int:
        """How often it is evaluated, unless it is stopped early."""
        begin = self.start.step if self.start else 0
        every = self.eval_every or self.steps
        regular = self.steps // every - begin // every
        others = {*self.eval_steps, self.steps}
        return regular + sum(step > begin and step % every != 0 for step in others)

    def is_evaluated_at(self, step: int) -> bool:
        """Whether it is evaluated after a step."""
        regular = self.eval_every is not None and step % self.eval_every == 0
        return regular or step in self.eval_steps or step == self.steps

    @property
    def own_steps(self) -> int:
        """Updates of this run, without those of the run that it starts from."""
        return self.steps - (self.start.step if self.start else 0)

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that depend on the content only (see the module)."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()[:12]

    @property
    def run_id(self) -> str:
        """The folder of this run in a store: a readable name, then the hash."""
        return f"{self.model.label}-b{self.batch_size}-s{self.steps}-seed{self.seed}-{self.hash}"

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        try:
            values = json.loads(text)
        except RecursionError:
            raise SpecError("a run spec must be JSON: this is nested too deeply") from None
        except ValueError as error:
            # Integers of thousands of digits raise one too.
            raise SpecError(f"a run spec must be JSON: {error}") from error
        return cls.from_dict(values)
