"""The (Mis)Fitting checklist (Li et al. 2025, 2502.18969), filled in from the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmscale.report.section import Grid, Section
from lmscale.studies.results import Results
from lmscale.studies.text import TextError, text_error
from lmscale.wording import count, family_name, listed, plural, power_of_ten, si

__all__ = ["checklist"]

_UNKNOWN = "not recorded"


def checklist(results: Results, sections: Sequence[Section]) -> Grid:
    """One row a question of the checklist; what the data cannot answer is said to be so."""
    rows = [
        *_general(results),
        *_hypothesis(sections),
        *_training(results),
        *_extraction(results, sections),
        *_fitting(sections),
    ]
    return Grid(
        caption="What a reader needs to know to judge a scaling law, after the checklist of "
        "(Mis)Fitting (Li et al. 2025).",
        header=["group", "question", "answer"],
        rows=rows,
    )


def _fits(sections: Sequence[Section]):
    return [
        (f"{section.name}/{key}", fit)
        for section in sections
        for key, fit in section.fits.items()
        if fit.n_used
    ]


def _general(results: Results) -> list[list[str]]:
    experiment = results.experiment
    corpus = experiment.get("corpus", {})
    commit = experiment.get("git_commit") or "no checkout"
    version = experiment.get("versions", {}).get("lmscale", "unknown version")
    return [
        ["general", "domain", f"text: {corpus.get('name', _UNKNOWN)}"],
        ["general", "training code", f"lmscale {version}, git commit {commit}"],
        ["general", "analysis code", "lmscale.laws and lmscale.report of the same version"],
        ["general", "checkpoints", "runs/*/checkpoints beside this page"],
        ["general", "metric scores", "results.csv, runs/*/result.json and metrics.jsonl"],
    ]


def _hypothesis(sections: Sequence[Section]) -> list[list[str]]:
    from lmscale.laws import LAWS

    fits = _fits(sections)
    used = list(dict.fromkeys(fit.law for _, fit in fits))
    rows = []
    for law in used:
        parameters = {len(fit.parameters) for _, fit in fits if fit.law == law and fit.parameters}
        many = listed(sorted(parameters)) if parameters else "no"
        # An analysis may fit what is no law of the loss, such as a rule for the learning rate.
        form = f"{LAWS[law].equation} ({LAWS[law].source}); " if law in LAWS else ""
        rows.append(["hypothesis", f"functional form: {law}", f"{form}{many} fitted parameters"])
    rows.append(["hypothesis", "purpose", "to compare exponents and predict losses in range"])
    rows.append(["hypothesis", "separate laws", plural(len(fits), "fit")])
    return rows


def _training(results: Results) -> list[list[str]]:
    table = results.table
    if not len(table):
        return [["training setup", "runs", "none declared"]]
    corpus = results.experiment.get("corpus", {})
    factors = results.tried_lr_factors()
    seeds = sorted({int(seed) for seed in table["seed"]})
    runs = [
        f"{family_name(family)} {int((table['family'] == family).sum())}"
        for family in results.families
    ]
    return [
        ["training setup", "runs per law", listed(runs)],
        [
            "training setup",
            "largest FLOPs, parameters, tokens",
            (
                f"{power_of_ten(float(table['flops_exact'].max()))} (exact), "
                f"{si(table['params_kaplan'].max())} without embeddings, {si(table['tokens'].max())}"
            ),
        ],
        [
            "training setup",
            "data",
            (
                f"{corpus.get('name', _UNKNOWN)} (fingerprint {corpus.get('fingerprint', _UNKNOWN)}), "
                f"{si(corpus.get('train_tokens', np.nan))} training tokens, vocabulary "
                f"{corpus.get('vocab_size', _UNKNOWN)}; {_epochs(results)}"
            ),
        ],
        ["training setup", "held-out text", _held_out(corpus)],
        [
            "training setup",
            "hyperparameters",
            f"in full in runs/*/spec.json; batch {_range(table['batch_size'])} sequences of "
            f"{_range(table['n_ctx'])} tokens, peak learning rate {table['peak_lr'].min():.2g} to "
            f"{table['peak_lr'].max():.2g}, "
            + (f"best of the factors {listed(factors)}" if len(factors) > 1 else "not searched"),
        ],
        ["training setup", "seeds", f"{len(seeds)} ({listed(seeds)})"],
        [
            "training setup",
            "counting",
            "parameters and FLOPs per operation, read under kaplan, chinchilla, standard and exact",
        ],
    ]


def _held_out(corpus: dict[str, Any]) -> str:
    from lmscale.data import copies_sentence

    documents = corpus.get("held_out_documents", {})
    counts = listed([f"{plural(n, 'document')} of {split}" for split, n in documents.items() if n])
    return f"{counts or 'documents not recorded'}; {copies_sentence(corpus.get('copies', {}))}"


def _epochs(results: Results) -> str:
    from lmscale.data import mixture_sentence

    total = results.experiment.get("corpus", {}).get("train_tokens")
    if not total:
        return "repeats unknown"
    epochs = float(results.table["tokens"].max()) / total
    if mixture := results.experiment["corpus"].get("mixture"):
        return f"the longest run sees {mixture_sentence(mixture, epochs)}"
    return "no text repeated" if epochs <= 1 else f"the longest run sees it {epochs:.1f} times"


def _range(column) -> str:
    low, high = column.min(), column.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _extraction(results: Results, sections: Sequence[Section]) -> list[list[str]]:
    fits = _fits(sections)
    table, usable = results.table, results.usable
    dropped = sum(len(fit.dropped) for _, fit in fits)
    done = int((table["status"] == "done").sum()) if len(table) else 0
    points = [str(fit.n_used) for _, fit in fits]
    name, error = results.eval_name, text_error(results)
    return [
        ["data extraction", "points per law", listed(points) or "none"],
        [
            "data extraction",
            "metric",
            f"final loss on held-out text ({name}), nats per token, after the last step"
            if name
            else "final loss on held-out text; none yet",
        ],
        [
            "data extraction",
            "windows evaluated on",
            _text_error(error) if error else "by window: not recorded",
        ],
        ["data extraction", "transformation", "none; laws are fitted to losses as measured"],
        [
            "data extraction",
            "dropped points",
            (
                f"{len(table) - done} of {len(table)} runs did not end well or are not finished; "
                f"{done - len(usable)} more are not at the best learning rate of their cell; the fits "
                f"dropped {plural(dropped, 'row')}"
            ),
        ],
        [
            "data extraction",
            "bootstrap",
            "; ".join(dict.fromkeys(fit.interval_method for _, fit in fits)) or "none",
        ],
        ["data extraction", "intermediate checkpoints", "not used"],
    ]


def _fitting(sections: Sequence[Section]) -> list[list[str]]:
    fits = _fits(sections)
    objectives = "; ".join(
        dict.fromkeys(f"{fit.law}: {fit.objective_name}" for _, fit in fits if fit.objective_name)
    )
    unconverged = [name for name, fit in fits if not fit.converged]
    return [
        ["fitting", "method", "closed form, or damped Newton from many starts, in float64"],
        ["fitting", "objective", objectives or "none"],
        [
            "fitting",
            "converged",
            f"all but {listed(unconverged)}" if unconverged else "every fit" if fits else "no fits",
        ],
        ["fitting", "validation", "guards and residuals; no runs are held out"],
    ]


def _text_error(error: TextError) -> str:
    """What was evaluated on, and how far it decides a loss."""
    text = f"{count(error.n_windows)} windows of {count(error.n_documents)} documents"
    if not np.isfinite(error.loss):
        return f"{text}, which are too few to say how much a loss depends on them"
    return (
        f"{text}; the choice of documents gives one loss a standard error of {error.loss:.2g} "
        f"nats, and the difference of two neighbouring models {error.difference:.1g}"
    )
