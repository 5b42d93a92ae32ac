"""The rule by which a sweep trains its runs, recovered from the runs, to apply it to a larger one.

A law holds for the recipe that its runs were trained by. So a run that a law advises takes everything
from them: depth, initialisation and heads by the ladder's rule, batch, optimizer, schedule, data and
evaluation, and a peak learning rate by the sweep's own rule, whatever that was, as a power law in N (and
D). A rule that the sweep followed exactly is recovered exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale import flops, hparams
from lmscale.files import DamagedError
from lmscale.laws.result import FitError
from lmscale.remote import is_remote
from lmscale.spec import ModelSpec, RunSpec, SpecError
from lmscale.sweep.store import Store
from lmscale.terminal import say

__all__ = ["Recipe", "read_recipe"]

#: Relative error up to which a rule counts as followed exactly: rates are kept to six digits.
_EXACT = 1e-4
#: A second variable enters a rule when it reduces the residuals to less than this share.
_WORTH = 0.5


#: Variables of a power law, the simplest choice first: size, or width instead, and length.
_CHOICES: tuple[tuple[str, ...], ...] = ((), ("N",), ("width",), ("D",), ("N", "D"), ("width", "D"))


def _case(model: ModelSpec, n_tokens: float) -> dict[str, float]:
    """The variables of a rule for one run: N without embeddings, width, and tokens D."""
    return {"N": float(flops.n_params(model, "kaplan")), "width": float(model.width), "D": n_tokens}


@dataclass(frozen=True)
class PowerRule:
    """value = c times powers of some of N, width and D, fitted to the runs of a sweep.

    `residual` is the rms of ln value about it, `ranges` the smallest and largest of each variable.
    """

    c: float
    powers: dict[str, float]
    residual: float
    ranges: dict[str, tuple[float, float]]

    @classmethod
    def fitted(cls, values: Sequence[float], cases: Sequence[dict[str, float]]) -> PowerRule:
        """The rule through some values: a constant, unless a variable explains much of their scatter."""
        y = np.log(np.asarray(values, float))
        logs = {name: np.log([case[name] for case in cases]) for name in cases[0]}
        best: tuple[np.ndarray, tuple[str, ...], float] | None = None
        for used in _CHOICES:
            if not set(used) <= set(logs):
                continue
            design = np.stack([np.ones_like(y), *[logs[name] for name in used]], axis=1)
            if np.linalg.matrix_rank(design) < design.shape[1]:
                continue
            solution, *_ = np.linalg.lstsq(design, y, rcond=None)
            residual = float(np.sqrt(np.mean((y - design @ solution) ** 2)))
            if best is None or (residual < _WORTH * best[2] and best[2] > _EXACT):
                best = (solution, used, residual)
        # The constant is always among the choices.
        assert best is not None
        solution, used, residual = best
        return cls(
            c=math.exp(solution[0]),
            powers=dict(zip(used, map(float, solution[1:]), strict=True)),
            residual=residual,
            ranges={
                name: (min(case[name] for case in cases), max(case[name] for case in cases))
                for name in logs
            },
        )

    def __call__(self, case: dict[str, float]) -> float:
        return self.c * math.prod(case[name] ** power for name, power in self.powers.items())

    @property
    def exact(self) -> bool:
        return self.residual <= _EXACT

    def __str__(self) -> str:
        factors = [f"{name}^{power:.3g}" for name, power in self.powers.items()]
        return " ".join([f"{self.c:.3g}", *factors])


@dataclass(frozen=True)
class Recipe:
    """The rule behind a sweep's runs.

    Attributes:
      template: the run of most compute, for all that does not change with size.
      shape: non-embedding parameters -> the ladder's model nearest to them.
      ladder: the rule of `shape` in words.
      rate, batch: peak learning rate and sequences a batch.
      warmup: (steps, runs of any length alike) -> warmup steps.
      study: the rule of a learning-rate study and the path of its store; used where it covers a case.
      n_runs, n_exact: runs that were read, and how many of them the rules give exactly.
    """

    template: RunSpec
    shape: Callable[[float], ModelSpec]
    ladder: str
    rate: PowerRule
    batch: PowerRule
    warmup: Callable[[int], int]
    study: tuple[hparams.FittedRule, str] | None
    n_runs: int = 0
    n_exact: int = 0

    def model(self, n_params: float, convention: str) -> ModelSpec:
        """The ladder's model whose count under a convention is closest to `n_params`."""
        # Try non-embedding sizes from a thousandth of the count up to all of it.
        models = {self.shape(n_params * 10 ** (-3 * i / 240)) for i in range(241)}
        return min(
            models, key=lambda model: abs(math.log(flops.n_params(model, convention) / n_params))
        )

    def for_tokens(self, model: ModelSpec, n_tokens: float, *, seed: int = 0) -> RunSpec:
        """A run of a model on so many tokens, to the nearest step."""
        batch = max(1, round(self.batch(_case(model, n_tokens))))
        return self.run(model, max(1, round(n_tokens / (batch * model.n_ctx))), batch, seed=seed)

    def run(self, model: ModelSpec, steps: int, batch_size: int, *, seed: int = 0) -> RunSpec:
        """A run of a model for so many steps."""
        old, share = self.template, steps / self.template.steps
        rate = self.peak_lr(model, steps * batch_size * model.n_ctx, batch_size * model.n_ctx)

        def scaled(count: int) -> int:
            return min(max(1, round(count * share)), steps)

        cooldown = old.schedule.cooldown_steps

        schedule = dataclasses.replace(
            old.schedule,
            warmup_steps=min(steps, self.warmup(steps)),
            cycle_steps=None
            if old.schedule.cycle_steps is None
            else max(1, round(old.schedule.cycle_steps * share)),
            cooldown_steps=None if cooldown is None else scaled(cooldown),
        )
        return dataclasses.replace(
            old,
            model=model,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            optimizer=dataclasses.replace(old.optimizer, peak_lr=float(f"{rate:.6g}")),
            schedule=schedule,
            eval_steps=tuple(sorted({scaled(step) for step in old.eval_steps})),
        )

    def peak_lr(self, model: ModelSpec, n_tokens: float, batch_tokens: float) -> float:
        if self.study is not None and self.study[0].covers(model, n_tokens, batch_tokens):
            return self.study[0](model, n_tokens, batch_tokens)
        return self.rate(_case(model, n_tokens))

    def describe(self, run: RunSpec) -> str:
        """The origin of a run's shape, rate and batch, and how far they lie beyond those of the sweep."""
        if self.study is not None and self.study[0].covers(
            run.model, run.n_tokens, run.batch_tokens
        ):
            rate = f"the learning rate of the study {self.study[1]}, whose range covers it"
        else:
            rate = f"learning rate {self.rate} (N without embeddings), as in its runs"
            if not self.rate.exact:
                rate += f", which scatter by {self.rate.residual:.0%} about that"
            far = [
                f"{value / self.rate.ranges[name][1]:.2g} times their largest {name}"
                for name, value in _case(run.model, run.n_tokens).items()
                if name != "width" and value > self.rate.ranges[name][1]
            ]
            if far:
                rate += ", at " + " and ".join(far)
        text = f"the sweep's own recipe: {self.ladder}; {rate}"
        if self.n_exact < self.n_runs:
            text += f"; it gives {self.n_exact} of the sweep's {self.n_runs} runs exactly"
        return text


def read_recipe(store: Store, family: str = "transformer") -> Recipe:
    """The recipe of a family's runs at their best learning rates.

    Raises:
      FitError: when its runs have no recipe in common, with the reason.
    """
    table = store.table()
    best = table[table["best_lr"] & (table.get("family", family) == family)]
    names = set(best["run"])
    runs = [folder.spec for folder, _ in store.declared() if folder.path.name in names]
    if not runs:
        raise FitError(f"{store.path} has no finished run of {family!r} to read a recipe from")
    if any(run.start is not None for run in runs):
        raise FitError("its runs start from other runs, so they have no recipe of their own")
    kinds = {(run.schedule.name, run.optimizer.name, run.compute_dtype) for run in runs}
    if len(kinds) > 1:
        raise FitError(
            "its runs differ in schedule, optimizer or precision: "
            + "; ".join(" ".join(kind) for kind in sorted(kinds))
        )
    cases = [_case(run.model, run.n_tokens) for run in runs]
    shape, ladder = _ladder([run.model for run in runs])
    recipe = Recipe(
        template=max(runs, key=lambda run: flops.training_flops(run, "standard")),
        shape=shape,
        ladder=ladder,
        rate=PowerRule.fitted([run.optimizer.peak_lr for run in runs], cases),
        batch=PowerRule.fitted([run.batch_size for run in runs], cases),
        warmup=_warmup(runs),
        study=_study(store, family),
    )
    exact = sum(_same(recipe, run) for run in runs)
    return dataclasses.replace(recipe, n_runs=len(runs), n_exact=exact)


def _same(recipe: Recipe, run: RunSpec) -> bool:
    """Whether the recipe gives this run, up to the last digits of its learning rate."""
    model = recipe.shape(flops.n_params(run.model, "kaplan"))
    again = recipe.for_tokens(model, run.n_tokens, seed=run.seed)
    rate = run.optimizer.peak_lr
    ours = recipe.rate(_case(model, run.n_tokens))
    same_rate = abs(math.log(ours / rate)) <= _EXACT
    optimizer = dataclasses.replace(again.optimizer, peak_lr=rate)
    return same_rate and dataclasses.replace(again, optimizer=optimizer) == run


# --- Shapes -----------------------------------------------------------------------------------


def _ladder(models: Sequence[ModelSpec]) -> tuple[Callable[[float], ModelSpec], str]:
    """The ladder that gives each of these models at its size; if there is none, one that scales the nearest model."""
    distinct = list(dict.fromkeys(models))
    place = {model: math.log(flops.n_params(model, "kaplan")) for model in distinct}
    fields = _fields_by_width(distinct)

    def like(shape: ModelSpec) -> ModelSpec:
        """A shape with all other fields of the nearest model of the ladder."""
        target = math.log(flops.n_params(shape, "kaplan"))
        nearest = min(distinct, key=lambda model: abs(place[model] - target))
        changes: dict[str, Any] = {name: getattr(shape, name) for name in shape.SHAPE_FIELDS}
        changes |= {name: rule(_case(shape, 1.0)) for name, rule in fields.items()}
        return dataclasses.replace(nearest, **changes)

    for rule, words in type(distinct[0]).ladders(distinct):

        def shape(n_params: float, rule: Callable[[float], ModelSpec] = rule) -> ModelSpec:
            return like(rule(n_params))

        if all(shape(math.exp(place[model])) == model for model in distinct):
            return shape, words

    def scaled(n_params: float) -> ModelSpec:
        nearest = min(distinct, key=lambda model: abs(place[model] - math.log(n_params)))
        return nearest.scaled(n_params / math.exp(place[nearest]))

    return scaled, "shapes scaled in width from its nearest model"


def _fields_by_width(models: Sequence[ModelSpec]) -> dict[str, PowerRule]:
    """Numeric fields of a model that depend on its width, such as an initial standard deviation."""
    widths = [{"width": float(model.width)} for model in models]
    found = {}
    for field in dataclasses.fields(models[0]):
        values = [getattr(model, field.name) for model in models]
        if len(set(values)) > 1 and all(isinstance(v, float) and v > 0 for v in values):
            rule = PowerRule.fitted(values, widths)
            if rule.exact:
                found[field.name] = rule
    return found


# --- Schedule and learning rate ---------------------------------------------------------------


def _warmup(runs: Sequence[RunSpec]) -> Callable[[int], int]:
    """Warmup steps by the length of a run: the same for all runs, or a share of the steps."""
    pairs = {(run.steps, run.schedule.warmup_steps) for run in runs}
    counts = {warmup for _, warmup in pairs}
    if len(counts) == 1 and (len({steps for steps, _ in pairs}) > 1 or counts == {0}):
        (count,) = counts
        return lambda steps: count

    def share_of(share: float) -> Callable[[int], int]:
        return lambda steps: min(steps, max(1, math.ceil(share * steps)))

    least = min(warmup / steps for steps, warmup in pairs)
    # A declared share is a round number; rounding to whole steps makes the observed share larger.
    for share in (*(math.floor(least * 10**k) / 10**k for k in (2, 3, 4)), least):
        if share > 0 and all(share_of(share)(steps) == warmup for steps, warmup in pairs):
            break
    return share_of(share)


def _study(store: Store, family: str) -> tuple[hparams.FittedRule, str] | None:
    """The rule of a learning-rate study on the same text and context: of this store or of one beside it."""
    own = store.experiment()["corpus"]["fingerprint"]
    key = f"learning_rate/{family}/kaplan"
    folders = [store.path]
    if not is_remote(store.path):
        beside = {path.parent for path in store.path.parent.glob("*/fits.json")}
        folders += sorted(beside - {store.path})
    for folder in folders:
        try:
            fits = hparams.read_fits(folder / "fits.json")
            if key not in fits or Store(folder).experiment()["corpus"]["fingerprint"] != own:
                continue
            return hparams.fitted_rule(folder / "fits.json", family), folder.name
        except (DamagedError, KeyError, TypeError, SpecError) as error:
            # Try the next store.
            say(f"no learning rates from {folder}: {error}")
    return None
