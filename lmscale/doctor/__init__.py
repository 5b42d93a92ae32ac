"""Whether lmscale works on this machine, and how fast: the checks behind `lmscale doctor`.

Each check is one function from a `Place` to a `Finding`, in the module of its subject. The table in
`lmscale.doctor.table` holds them all: a new check is added there.
"""

from lmscale.doctor.check import Check, Finding, Place, Result, run_checks, verdict
from lmscale.doctor.table import CHECKS

__all__ = ["CHECKS", "Check", "Finding", "Place", "Result", "run_checks", "verdict"]
