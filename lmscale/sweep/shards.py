"""Which runs each shard of an experiment trains."""

from __future__ import annotations

from collections.abc import Sequence

from lmscale import flops
from lmscale.planner.lineage import ancestors
from lmscale.sweep.experiment import Run


def shard_runs(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """Shard number `index` of `count`: equal shares of the cost, each run in exactly one shard.

    A run is in the same shard as the run from which it starts.
    """
    loads = [0.0] * count
    shards: list[list[Run]] = [[] for _ in range(count)]
    by_id = {run.spec.run_id: run for run in runs}
    trees: dict[str, list[Run]] = {}
    for run in by_id.values():
        root = (ancestors(run, by_id) or [run])[-1]
        trees.setdefault(root.spec.hash, []).append(run)
    costs = {
        name: sum(flops.flops_without_start(run.spec) for run in tree)
        for name, tree in trees.items()
    }
    for name in sorted(trees, key=lambda name: (-costs[name], name)):
        least = min(range(count), key=lambda i: (loads[i], i))
        loads[least] += costs[name]
        shards[least] += trees[name]
    return shards[index]
