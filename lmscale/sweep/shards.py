"""Which runs a worker trains, and which runs others start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmscale import flops
from lmscale.sweep.experiment import Run


def shard_runs(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """Shard number `index` of `count`: equal shares of the cost, each run in exactly one shard.

    A run goes where the run is that it starts from.
    """
    loads = [0.0] * count
    shards: list[list[Run]] = [[] for _ in range(count)]
    by_id = {run.spec.run_id: run for run in runs}
    trees: dict[str, list[Run]] = {}
    for run in by_id.values():
        root = (ancestors(run, by_id) or [run])[-1]
        trees.setdefault(root.spec.hash, []).append(run)
    costs = {
        root: sum(flops.flops_without_start(run.spec) for run in tree)
        for root, tree in trees.items()
    }
    for root in sorted(trees, key=lambda root: (-costs[root], root)):
        least = min(range(count), key=lambda i: (loads[i], i))
        loads[least] += costs[root]
        shards[least] += trees[root]
    return shards[index]


def branch_steps(runs: Sequence[Run]) -> dict[str, set[int]]:
    """Run -> the steps at which others of the runs start from it."""
    kept: dict[str, set[int]] = {}
    for run in runs:
        if run.spec.start:
            kept.setdefault(run.spec.start.run, set()).add(run.spec.start.step)
    return kept


def ancestors(run: Run, by_id: Mapping[str, Run]) -> list[Run]:
    """The run that a run starts from, the one that that one starts from, and so on."""
    found = []
    while run.spec.start and run.spec.start.run in by_id:
        run = by_id[run.spec.start.run]
        found.append(run)
    return found
