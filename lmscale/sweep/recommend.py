"""From a law and a budget to a run: N and D, model shape, batch and learning rate."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from lmscale import flops, hparams, laws
from lmscale.architectures import ModelSpec, architecture
from lmscale.laws.advice import Advice
from lmscale.laws.advise import advise, too_far
from lmscale.laws.result import FitError, FitResult
from lmscale.remote import unreachable
from lmscale.spec import RunSpec
from lmscale.sweep.recipe import Recipe, read_recipe
from lmscale.sweep.store import Store
from lmscale.sweep.tables import left_out, table_of_runs

#: Advice warns when the nearest model of a ladder differs from the advised N by more than this factor.
OFF_LADDER = 1.5
#: The convention of a store's law, and that of the published laws (Hoffmann et al. count embeddings).
STORE_CONVENTION, PUBLISHED_CONVENTION = "standard", "chinchilla"
#: Of the published laws' models.
PUBLISHED_VOCABULARY, PUBLISHED_CONTEXT = 32_000, 2048


def recommend(
    source: Store | FitResult | str,
    *,
    law: str | None = None,
    family: str | None = None,
    extrapolate: bool = False,
    reading: Mapping[str, Any] | None = None,
    **question: Any,
) -> Advice:
    """The best run for a budget (or the smallest budget for a loss).

    For a store, everything but N and D follows the recipe of its own runs. Otherwise batch and learning
    rate follow a published rule, if the case lies within the range that the rule was fitted on.

    Args:
      source: a store, a law fitted to any table, or the name of a published law.
      law: which law of a store (isoflop).
      family: whose runs of a store (transformer).
      extrapolate: answer however far the budget lies beyond the runs.
      reading: how a store's results are read: columns, where, convention and cells of
        `lmscale.sweep.tables.table_of_runs`.
      question: flops, loss, unique_tokens, inference_tokens; see `lmscale.laws.advise`.

    Raises:
      FitError: when the law cannot answer, or the budget lies too far beyond its runs.
    """
    reading = {name: value for name, value in (reading or {}).items() if value is not None}
    law = law or "isoflop"
    family = family or (default_family(source) if isinstance(source, Store) else "transformer")
    fitted = store_law(source, family, law, **reading) if isinstance(source, Store) else source
    advice = advise(fitted, **question)
    refusal = None if extrapolate else too_far(advice)
    if refusal:
        raise FitError(refusal)
    if isinstance(source, Store):
        convention = reading.get("convention") or store_convention(source)
        return _by_recipe(source, family, advice, convention)
    if isinstance(source, FitResult):
        reason = "the table does not say by which recipe its runs were trained"
        return advice.replace(recipe=f"no recipe is known: {reason}")
    return _by_published_rule(advice)


def default_family(store: Store) -> str:
    """The family whose law is meant where none is named: the only one, or else the Transformers.

    Raises:
      FitError: there are several, and no Transformers among them.
    """
    labels = [entry["labels"] for entry in store.experiment()["runs"]]
    families = sorted({one["family"] for one in labels if "family" in one})
    if len(families) <= 1:
        return families[0] if families else "transformer"
    if "transformer" not in families:
        raise FitError(
            f"{store.path} has several families: choose one by --family: {', '.join(families)}"
        )
    return "transformer"


def law_source(
    source: Any,
    *,
    law: str | None = None,
    family: str | None = None,
    reading: Mapping[str, Any] | None = None,
) -> Store | FitResult | str:
    """What `recommend` takes, of what a user names.

    Args:
      source: a store, its folder or its results.csv; any other table (`table_of_runs`); a law that is
        fitted; or the name of a published law.
      law: of a table; without one IsoFLOP profiles where the table has them, else the law parametric.
      family, reading: as `recommend` takes them; only a store has families.

    Raises:
      FitError: there is no such source, or it has no families.
    """
    reading = {name: value for name, value in (reading or {}).items() if value is not None}
    if isinstance(source, (Store, FitResult)):
        return source
    if isinstance(source, (str, os.PathLike)):
        if why := unreachable(source):
            raise FitError(why)
        name, path = os.fspath(source), epath.Path(source)
        if path.is_dir():
            return Store.open(path)
        if path.name == "results.csv" and (path.parent / "experiment.json").exists():
            store = Store.open(path.parent)
            if path.read_text() == store.table_text():
                return store
        if name in laws.PUBLISHED:
            if law or family or reading:
                raise FitError(
                    f"{name} is a published law: leave --law, --family and what a table is read by out"
                )
            return name
        if not path.exists():
            raise FitError(
                f"there is no store, no table and no published law {name!r}; the published laws are "
                f"{', '.join(laws.PUBLISHED)}"
            )
        what = name
    else:
        what = "this"
    if family:
        raise FitError(f"--family is of a store; {what} is a table: choose its rows with --where")
    table = table_of_runs(source, **reading)
    return laws.fit(table, law) if law else _law_of_table(table)


def _law_of_table(table: laws.Table) -> FitResult:
    """IsoFLOP profiles where a table has them, else the surface of Approach 3."""
    try:
        fitted = laws.fit(table, "isoflop")
    except laws.TableError:
        fitted = None
    if fitted is not None and fitted.parameters:
        return fitted
    return laws.fit(table, "parametric")


def _by_recipe(store: Store, family: str, advice: Advice, convention: str) -> Advice:
    advice = advice.replace(warnings=(*advice.warnings, *left_out(store)))
    try:
        recipe = read_recipe(store, family)
    except FitError as error:
        return advice.replace(recipe=f"no recipe is known: {error}")
    run = advised_run(recipe, advice, convention)
    corpus = store.experiment()["corpus"]
    warnings = [*advice.warnings, *_off_ladder(run.model, advice, convention)]
    if run.n_tokens > (tokens := corpus["train_tokens"]):
        warnings.append(
            f"{run.n_tokens:.3g} tokens are {run.n_tokens / tokens:.2g} epochs of the "
            f"{tokens:.3g} training tokens of {corpus['name']}"
        )
    return advice.replace(
        model=run.model.to_dict(),
        batch_tokens=run.batch_tokens,
        learning_rate=run.optimizer.peak_lr,
        recipe=recipe.describe(run),
        run=run.to_dict(),
        warnings=tuple(warnings),
    )


def advised_run(recipe: Recipe, advice: Advice, convention: str, factor: float = 1.0) -> RunSpec:
    """The run that spends the advice's budget on `factor` times its size."""
    model = recipe.model(advice.n_params * factor, convention)
    spent = advice.flops - advice.inference_flops
    return recipe.for_tokens(model, spent / flops.training_flops_per_token(model, convention))


def _off_ladder(model: ModelSpec, advice: Advice, convention: str) -> list[str]:
    """A warning when the nearest model that can be built is not of the advised size."""
    size = flops.n_params(model, convention)
    ratio = size / advice.n_params
    if 1 / OFF_LADDER <= ratio <= OFF_LADDER:
        return []
    text = (
        f"the nearest model of the ladder has N = {size:.3g}, {ratio:.3g} times the advised "
        f"{advice.n_params:.3g}: loss and intervals are of the advised size, not of this model"
    )
    return [text]


def _by_published_rule(advice: Advice) -> Advice:
    model = shape_of_count(
        advice.n_params,
        PUBLISHED_CONVENTION,
        vocab_size=PUBLISHED_VOCABULARY,
        n_ctx=PUBLISHED_CONTEXT,
    )
    off_ladder = _off_ladder(model, advice, PUBLISHED_CONVENTION)
    advice = advice.replace(warnings=(*advice.warnings, *off_ladder))
    rule = hparams.covering_rule(model, advice.n_tokens)
    if rule is None:
        names = ", ".join(rule.source for rule in hparams.PUBLISHED_RULES)
        return advice.replace(
            model=model.to_dict(),
            recipe=f"no recipe is known: the fitted range of no published rule ({names}) holds "
            f"N = {advice.n_params:.3g} on D = {advice.n_tokens:.3g} tokens",
        )
    case = rule.case(model, advice.n_tokens)
    return advice.replace(
        model=model.to_dict(),
        batch_tokens=round(rule.batch_tokens(case)),
        learning_rate=rule.learning_rate(case),
        recipe=f"{rule.source}, whose fitted range holds this size and length",
    )


def store_convention(store: Store) -> str:
    """The convention by which a store's budgets count N and C."""
    declared = store.experiment().get("fields", {}).get("convention")
    return declared if declared in flops.CONVENTIONS else STORE_CONVENTION


def store_law(
    store: Store,
    family: str,
    law: str = "isoflop",
    *,
    where: str | None = None,
    convention: str | None = None,
    **reading: Any,
) -> FitResult:
    """A law of a store's runs, under the convention in which its budgets are set, if none is given.

    Raises:
      FitError: when the family has no finished run, or the law cannot be fitted.
    """
    table = store.table()
    rows = table[table["best_lr"] & (table.get("family", family) == family)]
    if rows.empty:
        families = ", ".join(sorted(set(table.get("family", []))))
        raise FitError(f"{store.path} has no finished runs of {family!r}; its families: {families}")
    native = store_convention(store)

    def fitted(convention: str, **options: Any) -> FitResult:
        read = laws.Table.read(rows, convention=convention, **reading)
        return laws.fit(read if where is None else read.filter(where), law, **options)

    if convention in (None, native) or law != "isoflop":
        return fitted(convention or native)
    try:
        result = fitted(convention)
    except laws.TableError:
        result = None
    # Tell apart whether only this convention has no usable profiles, or the runs have none at all.
    if (result is None or not result.parameters) and fitted(native, bootstrap=0).parameters:
        raise FitError(
            f"counted as {convention}, the runs of one budget of {store.path.name} do not cost the "
            f"same, so isoflop has no profiles: leave --convention out or give --convention {native}, "
            f"by which its budgets were set (`lmscale report` restates them under {convention})"
        )
    return result if result is not None else fitted(convention)


def shape_of_count(
    n_params: float,
    convention: str,
    *,
    vocab_size: int,
    n_ctx: int,
    kind: str = "transformer",
) -> ModelSpec:
    """The standard shape of an architecture whose count under a convention is closest to `n_params`."""

    def miss(model: ModelSpec) -> float:
        return abs(math.log(flops.n_params(model, convention) / n_params))

    # Try non-embedding sizes from a thousandth of the count up to all of it.
    targets = (n_params * 10 ** (-3 * i / 120) for i in range(121))
    shapes = (architecture(kind).of_size(t, n_ctx=n_ctx, vocab_size=vocab_size) for t in targets)
    return min(shapes, key=miss)
