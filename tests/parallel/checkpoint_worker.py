"""A process that saves two runs at once, as one of two, each of which is slow to write another run.

python -m tests.parallel.checkpoint_worker ADDRESS COUNT INDEX FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint._src.checkpointers import async_checkpointer

from lmscale.cli import start_jax
from lmscale.parallel import distributed
from lmscale.training.checkpoint import Checkpoints

RUNS = ("one", "two")
#: Seconds that the slow write takes longer than the other.
SLOW = 3.0


def main(address: str, count: int, index: int, folder: str) -> int:
    start_jax()
    distributed.start((address, count, index), folder)
    everywhere = NamedSharding(jax.make_mesh((count,), ("data",)), PartitionSpec("data"))
    place, wait = Path(folder), async_checkpointer._background_wait_for_commit_futures

    def write(directory, *arguments, **options):
        run = next(run for run in RUNS if f"/{run}/" in str(directory))
        if run == RUNS[index]:
            time.sleep(SLOW)
        (place / f"{run} is written by {index}").touch()
        return wait(directory, *arguments, **options)

    class Watched(Checkpoints):
        def _write_digests(self) -> None:
            for other in range(count):
                if not (place / f"{self._run} is written by {other}").exists():
                    (place / f"{self._run} was sealed without {other}").touch()
            super()._write_digests()

    with mock.patch.object(async_checkpointer, "_background_wait_for_commit_futures", write):
        checkpoints = [Watched(place / run / "checkpoints", run) for run in RUNS]
        for one in checkpoints:
            one.save(1, {"x": distributed.place(np.arange(8.0), everywhere)}, {})
        for one in checkpoints:
            one.close()
    return distributed.finish(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
