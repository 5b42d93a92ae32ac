"""Runs an experiment on a GKE cluster: JobSets for TPU slices or for nodes with GPUs.

Prints a manifest, one JobSet a shard; with --apply it goes to kubectl, and so to the cluster and the
namespace that kubectl is set to. A JobSet is a process group: its pods train the shard's runs as one job. When
a pod ends with code 42 (stopped and saved), is killed, or loses its node, the group starts again and
goes on; with code 1 or 2 (a run failed; bad usage) its JobSet fails at once. Needs JobSet 0.6 or later
in the cluster, and an image that holds lmscale.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import Any, NamedTuple

from launch.common import FINAL, Parser, digits, job_name, positive, run_command

_EPILOG = """\
examples:
  read the manifest first:
    python -m launch.gke isoflop --scale gpu --out gs://BUCKET/isoflop --image IMAGE --tpu v5e:4x4
  then apply it, on spot nodes:
    python -m launch.gke isoflop --scale gpu --out gs://BUCKET/isoflop --image IMAGE --tpu v5e:4x4 --spot --apply
  many small runs: 16 shards, one GPU each
    python -m launch.gke isoflop --scale gpu --out gs://BUCKET/x --image IMAGE --gpu nvidia-l4:1 --tasks 16 --apply
  large runs: groups of 4 nodes with 8 GPUs
    python -m launch.gke isoflop --scale gpu --out gs://BUCKET/x --image IMAGE --gpu nvidia-h100-80gb:8 --nodes 4 \\
      --apply

an image, built from a clone:
  FROM python:3.11
  COPY . /lmscale
  RUN pip install -e '/lmscale[tpu,gcs]' -c /lmscale/constraints.txt     # or [cuda13,gcs]
  WORKDIR /lmscale

afterwards:
  kubectl get jobsets; kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME --prefix
  the same command again, after `kubectl delete jobset NAME`, does only what is left
"""


class _Tpu(NamedTuple):
    """One generation on GKE."""

    accelerator: str
    dimensions: int
    #: Chips of the largest machine that is a whole slice by itself, and of each machine of larger ones.
    alone: int
    machine: int


_TPUS = {
    "v4": _Tpu("tpu-v4-podslice", 3, 4, 4),
    "v5e": _Tpu("tpu-v5-lite-podslice", 2, 8, 4),
    "v5p": _Tpu("tpu-v5p-slice", 3, 4, 4),
    "v6e": _Tpu("tpu-v6e-slice", 2, 8, 4),
    "tpu7x": _Tpu("tpu7x", 3, 4, 4),
}

#: Where the processes of a group meet; each pod has ports of its own.
_PORT = 8476


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the manifest, or applies it; returns the exit code."""
    args = _parse(argv)
    text = manifest(args)
    if not args.apply:
        print(text, end="")
        return 0
    if shutil.which("kubectl") is None:
        print("launch.gke: there is no kubectl here: install it first", file=sys.stderr)
        return 2
    done = subprocess.run(["kubectl", "apply", "--filename=-"], check=False, input=text, text=True)
    return 1 if done.returncode else 0


def manifest(args: Namespace) -> str:
    """The JobSets as YAML documents."""
    return "".join(f"---\n{_yaml(_jobset(args, number))}\n" for number in range(args.tasks))


def _jobset(args: Namespace, number: int) -> dict[str, Any]:
    name = f"{args.name}-{number}"
    rules = [
        # Codes that no repetition cures fail the job, and this reason the JobSet.
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "lmscale", "operator": "In", "values": list(FINAL)},
        }
    ]
    job = {
        "parallelism": args.pods,
        "completions": args.pods,
        "completionMode": "Indexed",
        # Any other end of any pod ends the group, which the JobSet starts again.
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": _pod(args, name, number)},
    }
    metadata: dict[str, Any] = {"name": name}
    if args.namespace:
        metadata["namespace"] = args.namespace
    if args.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": args.queue}
    if args.tpu and args.pods > 1:
        # A slice of several hosts is a node pool of its own: no two groups may share one.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    failed = {
        "name": "final",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": args.max_restarts, "rules": [failed]},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [{"name": "group", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(args: Namespace, name: str, number: int) -> dict[str, Any]:
    command = run_command(args, args.lmscale, f"{number}/{args.tasks}")
    command = [_literal(word) for word in command]
    if args.tpu and args.pods > 1:
        command += ["--distributed", "auto"]
    elif args.pods > 1:
        # JobSet names a pod JOBSET-GROUP-JOB-POD in a domain of the JobSet's name.
        first = f"{name}-group-0-0.{name}:{_PORT}"
        command += ["--distributed", f"{first},{args.pods},$(JOB_COMPLETION_INDEX)"]
    selector, tolerations = {}, []
    if args.tpu:
        resource, count = "google.com/tpu", args.chips
        selector["cloud.google.com/gke-tpu-accelerator"] = _TPUS[args.tpu[0]].accelerator
        selector["cloud.google.com/gke-tpu-topology"] = args.tpu[1]
    else:
        resource, count = "nvidia.com/gpu", args.gpu[1]
        selector["cloud.google.com/gke-accelerator"] = args.gpu[0]
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(_tolerate("cloud.google.com/gke-spot"))
    tolerations.append(_tolerate(resource))
    container: dict[str, Any] = {"name": "lmscale", "image": args.image, "command": command}
    if args.env:
        container["env"] = [{"name": key, "value": _literal(value)} for key, value in args.env]
    container["resources"] = {"limits": {resource: count}}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        # Between TERM and KILL; a spot node gives less.
        "terminationGracePeriodSeconds": args.grace,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
    }
    if args.service_account:
        spec["serviceAccountName"] = args.service_account
    return spec


def _literal(word: str) -> str:
    """A word of a command, or a variable's value, in which Kubernetes finds no $(NAME) to expand.

    It reads $$ as one $, whatever follows.
    """
    return word.replace("$", "$$")


def _tolerate(key: str) -> dict[str, str]:
    return {"key": key, "operator": "Exists", "effect": "NoSchedule"}


def _yaml(value: Any, indent: int = 0) -> str:
    """YAML of dicts, lists and scalars. Strings are quoted as in JSON, which YAML reads."""
    pad = "  " * indent
    lines = []
    if isinstance(value, dict):
        for key, inner in value.items():
            nested = isinstance(inner, dict | list) and inner
            shown = f"\n{_yaml(inner, indent + 1)}" if nested else f" {_scalar(inner)}"
            lines.append(f"{pad}{key}:{shown}")
    else:
        for inner in value:
            nested = isinstance(inner, dict | list) and inner
            shown = _yaml(inner, indent + 1).lstrip() if nested else _scalar(inner)
            lines.append(f"{pad}- {shown}")
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    # JSON escapes what lies beyond 16 bits as two halves, which YAML takes for two characters.
    return re.sub(
        r"\\u(d[89ab]..)\\u(d[c-f]..)",
        lambda pair: bytes.fromhex(pair[1] + pair[2]).decode("utf-16-be"),
        json.dumps(value),
    )


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("gke", __doc__, _EPILOG)
    parser.add_argument(
        "--apply", action="store_true", help="give the manifest to kubectl; this spends money"
    )
    group = parser.add_argument_group("how much")
    group.add_argument("--image", required=True, help="holds lmscale for the accelerator")
    kind = group.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--tpu", type=_tpu, metavar="KIND:TOPOLOGY", help="a slice: v5e:4x4, v5p:2x2x4"
    )
    kind.add_argument("--gpu", type=_gpu, metavar="KIND:COUNT", help="a node: nvidia-h100-80gb:8")
    group.add_argument("--nodes", type=positive, default=1, help="nodes with GPUs in a group [1]")
    group.add_argument("--tasks", type=positive, default=1, help="shards, each a JobSet [1]")
    group.add_argument("--spot", action="store_true", help="on spot nodes")
    group = parser.add_argument_group("where (default: what your kubectl is set to)")
    group.add_argument("--namespace")
    group.add_argument("--service-account", help="of Kubernetes, that may use the bucket")
    group.add_argument("--queue", help="of Kueue")
    group.add_argument(
        "--name", help="of the JobSets, before their number [from EXPERIMENT and DIR]"
    )
    group = parser.add_argument_group("how")
    group.add_argument(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="repeatable",
    )
    group.add_argument(
        "--grace", type=positive, default=120, help="seconds to save when stopped [120]"
    )
    group.add_argument(
        "--max-restarts",
        type=positive,
        default=100,
        help="restarts of a group before it fails [100]",
    )
    args = parser.parse(argv)
    if args.apply and args.dry_run:
        parser.error("give --apply or --dry-run, not both")
    if "://" not in args.out and not args.out.startswith("/"):
        parser.error("--out must be a bucket, or a path that the image mounts")
    if args.tpu and args.nodes > 1:
        parser.error("--nodes is for GPUs: a TPU's topology says how many hosts it has")
    args.name = args.name or job_name(args)
    # Pods are named NAME-SHARD-group-0-INDEX, hashed suffix included, in at most 63 characters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", args.name):
        parser.error(f"--name must be 1 to 40 of a-z, 0-9 and -, not {args.name!r}")
    args.lmscale = args.lmscale or "lmscale"
    args.pods, args.chips = args.nodes, None
    if args.tpu:
        tpu = _TPUS[args.tpu[0]]
        chips = math.prod(int(side) for side in args.tpu[1].split("x"))
        args.chips = chips if chips <= tpu.alone else tpu.machine
        args.pods = chips // args.chips
    return args


def _tpu(text: str) -> tuple[str, str]:
    kind, _, topology = text.partition(":")
    if kind not in _TPUS:
        raise ArgumentTypeError(f"must be one of {', '.join(_TPUS)} and a topology, not {text!r}")
    sides = topology.split("x")
    shown = "x".join(["2", "4", "4"][: _TPUS[kind].dimensions])
    if len(sides) != _TPUS[kind].dimensions or not all(digits(side) for side in sides):
        raise ArgumentTypeError(f"must be as {kind}:{shown}, not {text!r}")
    chips = math.prod(int(side) for side in sides)
    if chips > _TPUS[kind].alone and chips % _TPUS[kind].machine:
        raise ArgumentTypeError(f"{text}: {chips} chips are no whole number of hosts")
    return kind, topology


def _gpu(text: str) -> tuple[str, int]:
    kind, _, shown = text.rpartition(":")
    count = digits(shown)
    if not kind or not count:
        raise ArgumentTypeError(f"must be KIND:COUNT, as nvidia-h100-80gb:8, not {text!r}")
    return kind, count


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"must be NAME=VALUE, not {text!r}")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
