import math

import pytest

from lmscale.planner.devices import KINDS
from lmscale.planner.topology import TopologyError, gpu_target, topology_name


@pytest.mark.parametrize(
    ("kind", "count", "name", "n_slices"),
    [
        ("v4", 8, "v4:2x2x2", 1),
        ("v5e", 1, "v5e:1x1", 1),
        ("v5e", 16, "v5e:4x4", 1),
        ("v5e", 256, "v5e:16x16", 1),
        ("v5e", 512, "v5e:16x16", 2),
        ("v5p", 64, "v5p:4x4x4", 1),
        ("v5p", 256, "v5p:4x8x8", 1),
        ("v5p", 6144, "v5p:16x16x24", 1),
        ("v6e", 32, "v6e:4x8", 1),
        ("h100", 4, "1x1x4", 1),
        ("h100", 64, "1x8x8", 1),
    ],
)
def test_a_slice_is_named_by_its_shape(kind, count, name, n_slices):
    assert topology_name(kind, KINDS[kind][0], count, KINDS[kind][-1]) == (name, n_slices)
    assert n_slices * math.prod(map(int, name.rpartition(":")[2].split("x"))) == count


@pytest.mark.parametrize(
    ("kind", "count"), [("v5e", 3), ("v5e", 300), ("v4", 1), ("v5p", 100), ("h100", 12)]
)
def test_what_there_is_not_is_refused(kind, count):
    says = f"a slice of {kind} has .* chips.*, not {count}|hosts have 8 GPUs each, so not {count}"
    with pytest.raises(TopologyError, match=says):
        topology_name(kind, KINDS[kind][0], count, KINDS[kind][-1])


@pytest.mark.parametrize("kind", [kind for kind, known in KINDS.items() if known[0] == "gpu"])
def test_every_gpu_that_can_be_planned_for_can_be_described(kind):
    text = gpu_target(kind)
    assert text.count("{") == text.count("}")
    assert f"memory_bandwidth: {KINDS[kind][3]:.0f}" in text
