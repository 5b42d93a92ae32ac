"""From a law and a budget to a run: model shape, batch and learning rate beside N and D."""

from __future__ import annotations

import math

from lmscale import flops, hparams, laws
from lmscale.laws.advise import Advice, advise
from lmscale.laws.result import FitError, FitResult
from lmscale.spec import TransformerSpec
from lmscale.sweep.shapes import transformer_shape
from lmscale.sweep.store import Store

#: What a store's law counts, and what the published laws count (Hoffmann et al. count embeddings).
STORE_CONVENTION, PUBLISHED_CONVENTION = "standard", "chinchilla"
#: Where a store's table has what a law reads, under that convention.
STORE_COLUMNS = (
    f"params=params_{STORE_CONVENTION},tokens=tokens,loss=loss,flops=flops_{STORE_CONVENTION}"
)
#: Of the published laws' models.
PUBLISHED_VOCABULARY, PUBLISHED_CONTEXT = 32_000, 2048
_BATCH_WARNING = (
    "batch and learning rate follow StepLaw (2025), fitted to models of 60M to 1B parameters: search "
    "around them"
)


def recommend(source: Store | str, *, family: str = "transformer", **question: float) -> Advice:
    """The best run for a budget (or the smallest budget for a loss).

    Args:
      source: a store with IsoFLOP profiles, or the name of a published law.
      family: whose law of a store.
      question: flops, loss, unique_tokens, inference_tokens; see `lmscale.laws.advise`.

    Raises:
      FitError: when the law cannot answer.
    """
    if isinstance(source, Store):
        law = store_law(source, family)
        corpus = source.experiment()["corpus"]
        vocab_size, convention = corpus["vocab_size"], STORE_CONVENTION
        n_ctx = int(source.table()["n_ctx"].max())
    else:
        law, convention = source, PUBLISHED_CONVENTION
        vocab_size, n_ctx = PUBLISHED_VOCABULARY, PUBLISHED_CONTEXT
    advice = advise(law, **question)
    model = shape_of_count(advice.n_params, convention, vocab_size=vocab_size, n_ctx=n_ctx)
    size = flops.n_params(model, "kaplan")
    return advice.replace(
        model=model.to_dict(),
        batch_tokens=round(hparams.steplaw_batch(advice.n_tokens)),
        learning_rate=hparams.steplaw_lr(size, advice.n_tokens),
        warnings=(*advice.warnings, _BATCH_WARNING),
    )


def store_law(store: Store, family: str) -> FitResult:
    """The IsoFLOP law of a store's runs, under the `standard` convention."""
    table = store.table()
    rows = table[table["best_lr"] & (table.get("family", family) == family)]
    if rows.empty:
        families = ", ".join(sorted(set(table.get("family", []))))
        raise FitError(f"{store.path} has no finished runs of {family!r}; its families: {families}")
    return laws.fit(rows, "isoflop", columns=STORE_COLUMNS, convention=STORE_CONVENTION)


def shape_of_count(
    n_params: float, convention: str, *, vocab_size: int, n_ctx: int
) -> TransformerSpec:
    """The ladder's shape whose count under a convention is closest to `n_params`."""

    def miss(model: TransformerSpec) -> float:
        return abs(math.log(flops.n_params(model, convention) / n_params))

    # Non-embedding targets from a thousandth of the count up to all of it.
    targets = (n_params * 10 ** (-3 * i / 120) for i in range(121))
    shapes = (transformer_shape(t, n_ctx=n_ctx, vocab_size=vocab_size) for t in targets)
    return min(shapes, key=miss)
