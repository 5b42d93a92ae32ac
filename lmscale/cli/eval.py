"""`lmscale eval`: the finished runs of a store scored again, on any corpus and split."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lmscale.cli.argument_types import positive_whole
from lmscale.cli.errors import CommandError
from lmscale.cli.parser import Parser
from lmscale.cli.places import training_corpus
from lmscale.terminal import plural, print_json, print_table

__all__ = ["add_arguments", "run"]

_EPILOG = """\
The windows lie at equal distances over the whole split. +- is the standard error that the choice of
documents gives a loss; the last two columns compare each run with the best on the same windows,
which is known far better. Scores go to DIR/runs/RUN/evals/ and, as a column, to DIR/results.csv:

  lmscale eval results/isoflop-cpu                            the test split of the runs' own corpus
  lmscale eval results/isoflop-cpu --data installed-prose --tokens 1e6
  lmscale fit results/isoflop-cpu --law isoflop --columns loss=loss_installed-python-v512-test

--weights scores a GPT-2, Llama or Qwen3 of transformers (config.json and safetensors), which must have
the tokeniser of the corpus; --json has its loss at every position of the context:

  lmscale eval --weights mymodel --data mytext --json
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("dir", metavar="DIR", nargs="?", help="a store, whose runs are scored")
    source.add_argument(
        "--weights",
        metavar="DIR",
        help="or a folder of transformers, such as lmscale export writes",
    )
    parser.add_argument(
        "--data", metavar="CORPUS", help="the text to score on (the corpus of the runs)"
    )
    parser.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        help="of the corpus (test, or valid where the corpus has no test documents)",
    )
    parser.add_argument(
        "--tokens", type=positive_whole, metavar="N", help="in windows over the whole split (all)"
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lmscale.cli import start_jax

    start_jax()
    if args.weights is not None:
        return _score_weights(args)
    from lmscale.data import open_corpus
    from lmscale.data.catalog import evaluation_corpus
    from lmscale.laws.windows import paired_difference, text_mean
    from lmscale.planner.devices import local_devices
    from lmscale.progress import progress
    from lmscale.sweep.rescore import evaluation_set, rescore
    from lmscale.sweep.store import Store

    store = Store.open(args.dir)
    training = training_corpus(store)
    corpus = training if args.data is None else evaluation_corpus(args.data, training)
    evaluation = evaluation_set(corpus, args.split, args.tokens)
    n_runs = sum(1 for _ in store.declared())
    with progress("scoring", n_runs) as bar:
        found = rescore(store, evaluation, local_devices(), open_corpus, bar)
    store.write_table()
    best, rows = found[0].scores, []
    for one in found:
        own = text_mean(one.scores["by_window"], one.scores["document"])
        pair = paired_difference(one.scores["by_window"], best["by_window"], best["document"])
        rows.append((one, own, pair))
    if args.json:
        print_json(_to_json(evaluation, rows))
    else:
        _print(evaluation, rows, store.path / "results.csv")
    return 0


def _score_weights(args: argparse.Namespace) -> int:
    """Scores weights of transformers, and shows their loss along the context."""
    from lmscale.data import open_corpus
    from lmscale.export import score_weights
    from lmscale.laws.windows import text_mean
    from lmscale.sweep.rescore import evaluation_set

    if args.data is None:
        raise CommandError("--weights needs --data CORPUS, the text to score on")
    corpus = open_corpus(args.data)
    evaluation = evaluation_set(corpus, args.split, args.tokens)
    scores = score_weights(args.weights, corpus, evaluation)
    own = text_mean(scores["by_window"], scores["document"])
    if args.json:
        print_json(
            {
                "evaluation": evaluation.to_dict(),
                "n_windows": own.n_windows,
                "n_documents": own.n_documents,
                "weights": args.weights,
                "loss": scores["loss"],
                "bits_per_byte": scores["bits_per_byte"],
                "text_error": own.error,
                "by_position": scores["by_position"],
            }
        )
        return 0
    print(
        f"{evaluation.name}: loss {scores['loss']:.4f} +- {own.error:.4f}, "
        f"{scores['bits_per_byte']:.4f} bits/byte ({plural(own.n_windows, 'window')} of "
        f"{plural(own.n_documents, 'document')})"
    )
    losses, first = scores["by_position"], 1
    table = [("position", "loss")]
    while first <= len(losses):
        last = min(2 * first - 1, len(losses))
        part = losses[first - 1 : last]
        place = str(first) if first == last else f"{first}-{last}"
        table.append((place, f"{sum(part) / len(part):.4f}"))
        first = last + 1
    print_table(table)
    return 0


def _to_json(evaluation: Any, rows: Sequence[tuple[Any, Any, Any]]) -> dict[str, Any]:
    """The scores; each row is a run's scores, its mean, and its difference from the best run."""
    return {
        "evaluation": evaluation.to_dict(),
        "n_windows": rows[0][1].n_windows,
        "n_documents": rows[0][1].n_documents,
        "runs": [
            {
                "run": one.run,
                "loss": one.scores["loss"],
                "bits_per_byte": one.scores["bits_per_byte"],
                "text_error": own.error,
                "above_best": pair.mean,
                "above_best_error": pair.error,
            }
            for one, own, pair in rows
        ],
    }


def _print(evaluation: Any, rows: Sequence[tuple[Any, Any, Any]], results: Any) -> None:
    table = [("loss", "+-", "bits/byte", "above best", "+-", "run")]
    for one, own, pair in rows:
        table.append(
            (
                f"{one.scores['loss']:.4f}",
                f"{own.error:.4f}",
                f"{one.scores['bits_per_byte']:.4f}",
                f"{pair.mean:.4f}",
                f"{pair.error:.4f}",
                one.run,
            )
        )
    print_table(table)
    first = rows[0][1]
    print(
        f"{evaluation.name}: {plural(first.n_windows, 'window')} of "
        f"{plural(first.n_documents, 'document')}; column loss_{evaluation.name} of {results}"
    )
