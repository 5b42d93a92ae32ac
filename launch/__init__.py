"""How a declared experiment gets onto machines.

Every launcher ends in the same `lmscale run EXPERIMENT --out DIR --shard I/N`, which does what is left
and may be killed and repeated at will. Launchers know the `lmscale` command and its exit codes, not the
library: `python -m launch.local`, `.slurm`, `.tpu_pod` and `.gke`, each with --help and --dry-run.
"""
