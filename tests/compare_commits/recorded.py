"""An experiment for `lmscale run`: the runs that `side.py declare` has written, from $COMPARE_COMMITS_RUNS."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from lmscale.spec import RunSpec
from lmscale.sweep import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Recorded(Experiment):
    title = "Runs of another commit"

    def runs(self, corpus):
        found = json.loads(Path(os.environ["COMPARE_COMMITS_RUNS"]).read_text())
        specs = [RunSpec.from_dict(values) for one in found.values() for values in one["runs"]]
        # Two experiments may have the same smallest run.
        return [Run(spec, {}) for spec in dict.fromkeys(specs)]


SCALES = {"cpu": Recorded(vocab_size=512)}
