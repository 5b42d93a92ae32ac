"""What an experiment finds: pure functions from the results of a store to estimates and fits.

    from lmscale.studies import Results, size
    found = size.study(Results.read("results/lstm_vs_transformer"))
    found.estimates["gap"].value, found.estimates["gap"].interval

One module a study; its function `study` is registered under the module's name. A file of your own
registers more (`register`); `lmscale.report` gives a study its section on the page.
"""

from lmscale.studies.estimate import Estimate
from lmscale.studies.registry import Findings, find, names, register
from lmscale.studies.results import Results

__all__ = ["Estimate", "Findings", "Results", "find", "names", "register"]
