"""Where arrays live: the mesh, the table of partition rules."""

from lmscale.parallel.mesh import AXES, MeshError, make_mesh
from lmscale.parallel.partition import RULES, run_shardings, run_spec

__all__ = ["AXES", "RULES", "MeshError", "make_mesh", "run_shardings", "run_spec"]
