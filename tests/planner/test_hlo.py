import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lmscale.planner.hlo import Program, sort_kernels
from lmscale.planner.hlo_text import device_groups, parse_instruction


def compiled(function, *shapes, specs, n_devices=4):
    mesh = Mesh(np.array(jax.devices()[:n_devices]), ("x",))
    placed = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    run = jax.shard_map(function, mesh=mesh, in_specs=tuple(specs), out_specs=P("x"))
    return Program(jax.jit(run).lower(*placed).compile().as_text())


def total(program):
    found = {}
    for collective in program.collectives:
        found[collective.kind] = found.get(collective.kind, 0) + collective.total
    return found


def test_what_a_device_sends_on_a_ring():
    def exchange(x):
        everything = jax.lax.all_gather(x, "x", tiled=True)
        part = jax.lax.psum_scatter(jnp.sin(everything), "x", tiled=True)
        shifted = jax.lax.ppermute(jnp.cos(part), "x", [(i, (i + 1) % 4) for i in range(4)])
        return shifted + jax.lax.psum(shifted.sum(), "x")

    found = total(compiled(exchange, (64, 8), specs=[P("x")]))
    shard = 16 * 8 * 4
    assert found["all-gather"] == 3 * shard
    assert found["collective-permute"] == shard
    # The CPU backend may scatter by reducing all.
    assert found.get("reduce-scatter", 0) + found["all-reduce"] >= 3 * shard + 2 * 4 * 3 / 4


def test_loops_count_as_often_as_they_run():
    def loops(x):
        def inner(y, _):
            return jax.lax.ppermute(jnp.sin(y), "x", [(i, (i + 1) % 4) for i in range(4)]), None

        def outer(y, _):
            return jax.lax.scan(inner, y, None, length=7)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0]

    program = compiled(loops, (64, 8), specs=[P("x")])
    (permute,) = program.collectives
    assert (permute.times, permute.sent, permute.n_devices) == (35, 512, 2)


def test_a_loop_without_a_bound_counts_once():
    def steps(x, n):
        shift = [(i, (i + 1) % 4) for i in range(4)]
        count = n[0].astype(int)
        return jax.lax.fori_loop(0, count, lambda i, y: jax.lax.ppermute(y + i, "x", shift), x)

    program = compiled(steps, (64, 8), (4,), specs=[P("x"), P("x")])
    assert [collective.times for collective in program.collectives] == [1]


def test_nothing_is_sent_where_nothing_needs_to_be():
    assert compiled(lambda x: x * 2, (64, 8), specs=[P("x")]).collectives == ()


def test_memory_traffic_counts_slices_as_slices_and_loops_as_often_as_they_run():
    def layers(x, weights):
        return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, weights)[0]

    program = compiled(layers, (4 * 32, 32), (10, 32, 32), specs=[P("x"), P()])
    stack, activations = 10 * 32 * 32 * 4, 32 * 32 * 4
    # Every layer's weights are read, and its activations read and written a few times.
    assert 1 <= (program.hbm_bytes() - stack) / (10 * activations) <= 10


@pytest.mark.parametrize(
    ("attribute", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0},{2,2}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_in_every_spelling(attribute, groups):
    line = f"  %a.1 = f32[8]{{0}} all-reduce(%b), channel_id=1, {attribute}, to_apply=%sum"
    assert device_groups(parse_instruction(line)).tolist() == groups


#: As the TPU compiler writes it: a loop that advances by two, whose bound is carried in its state, and
#: asynchronous collectives with layouts.
TPU = """HloModule jit_train, is_scheduled=true

%body (state: (s32[], bf16[8,128], s32[])) -> (s32[], bf16[8,128], s32[]) {
  %state = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %n = s32[]{:T(128)} get-tuple-element(%state), index=2
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %ag = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[32,128]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}, metadata={op_name="jit(train)/layer/dot_general"}
  %got = bf16[32,128]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%ag)
  %kernel = bf16[8,128]{1,0:T(8,128)(2,1)} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": 512
}}, metadata={op_name="jit(train)/layer/attention"}
  %y = bf16[8,128]{1,0:T(8,128)(2,1)} slice(%got), slice={[0:8], [0:128]}
  ROOT %out = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%next, %y, %n)
}

%condition (state.1: (s32[], bf16[8,128], s32[])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %n.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=2
  ROOT %less = pred[]{:T(512)} compare(%i.1, %n.1), direction=LT
}

ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %bound = s32[]{:T(128)} constant(11)
  %start = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%zero, %p, %bound)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}) while(%start), condition=%condition, body=%body
  ROOT %end = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""


def test_loops_and_collectives_as_a_tpu_has_them():
    program = Program(TPU)
    (gather,) = program.collectives
    assert gather.kind == "all-gather"
    assert gather.result == "bf16[32,128]"
    assert gather.times == 6
    assert gather.sent == 32 * 128 * 2 * 3 / 4
    assert (gather.n_devices, gather.span) == (4, 4)
    assert gather.scope.endswith("dot_general")


def test_a_permutation_in_which_nobody_sends_sends_nothing():
    """`lmscale plan --mesh 2,4,1 --device h100:8` failed on it."""
    text = TPU.replace(
        "%y = bf16", "%z = bf16[8,128] collective-permute(%x), source_target_pairs={}\n  %y = bf16"
    )
    assert "source_target_pairs={}" in text
    program = Program(text)
    assert [collective.kind for collective in program.collectives] == ["all-gather"]
    assert program.hbm_bytes() > 0
    assert program.unknown == ()


@pytest.mark.parametrize(
    ("old", "new", "unknown"),
    [
        # A collective over all devices, of which there is no number in the text.
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", "replica_groups={}", "all-gather-start ag"),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", "replica_groups=new<2>", "all-gather-start ag"),
        ("while(%start), condition=%condition, body=%body", "while(%start)", "computation without"),
        ("get-tuple-element(%state), index=0", "get-tuple-element(%state)", "while loop"),
        ("slice(%got), slice={[0:8], [0:128]}", "fusion(%got)", "fusion y"),
        ("  %y = bf16", "  %bad = f32[8]\n  %y = bf16", "line %bad"),
    ],
)
def test_what_is_not_known_is_named_and_the_rest_is_read(old, new, unknown):
    assert old in TPU
    program = Program(TPU.replace(old, new))
    whole = Program(TPU)
    assert program.hbm_bytes() <= whole.hbm_bytes()
    assert len(program.collectives) <= len(whole.collectives)
    assert any(name.startswith(unknown) for name in program.unknown), program.unknown


def test_a_text_of_another_kind_is_unknown_as_a_whole():
    for text in ("", "module @jit_train {\n}\n", TPU[: len(TPU) // 2]):
        program = Program(text)
        assert program.collectives == () or text
        assert program.hbm_bytes() >= 0
        assert program.unknown


#: A sort that stands alone, and one in a fusion, as XLA writes them for a GPU.
SORTS = """HloModule jit_train, is_scheduled=true

%fused (p0: s32[64,4096], p1: f32[64,4096]) -> (s32[64,4096], f32[64,4096]) {
  %p0 = s32[64,4096]{1,0} parameter(0)
  %p1 = f32[64,4096]{1,0} parameter(1)
  ROOT %sort.1 = (s32[64,4096]{1,0}, f32[64,4096]{1,0}) sort(%p0, %p1), dimensions={1}, to_apply=%less
}

ENTRY %main (ids: s32[64,4096], rows: f32[64,4096], flat: s32[33554432]) -> s32[33554432] {
  %ids = s32[64,4096]{1,0} parameter(0)
  %rows = f32[64,4096]{1,0} parameter(1)
  %flat = s32[33554432]{0} parameter(2)
  %in_a_fusion = (s32[64,4096]{1,0}, f32[64,4096]{1,0}) fusion(%ids, %rows), kind=kInput, calls=%fused
  ROOT %alone = s32[33554432]{0} sort(%flat), dimensions={0}, to_apply=%less
}
"""


def bitonic_kernels(length, tile=2048):
    """By walking through the comparisons of a bitonic sort of a whole power of two."""
    size, kernels, inside = 2, 0, False
    while size <= length:
        # First every number with its mirror image, then with those at half the distance, and so on.
        distances = [size - 1, *(size >> k for k in range(2, size.bit_length()))]
        for distance in distances:
            if distance < tile:
                inside = True
            else:
                kernels += 1 + inside
                inside = False
        size *= 2
    return kernels + inside


@pytest.mark.parametrize("length", [4096, 2**15, 2**25])
def test_a_sort_is_as_many_kernels_as_it_has_far_comparisons(length):
    assert sort_kernels(length) == bitonic_kernels(length)
    # A length between is filled up.
    assert sort_kernels(length - 5) == sort_kernels(length)


def test_every_kernel_of_a_sort_moves_all_that_is_sorted():
    """One instruction in the program; XLA's own way to add floats in order on a GPU is one of 2^25 numbers."""
    assert [sort_kernels(n) for n in (2, 2048, 4096, 2**25)] == [1, 1, 3, 120]
    program = Program(SORTS)
    assert program.kernels() == 3 + 120
    in_a_fusion, alone = 2 * 2 * 4 * 64 * 4096, 2 * 4 * 2**25
    assert program.hbm_bytes() == 3 * in_a_fusion + 120 * alone
    assert program.unknown == ()
