"""The programs of packs, built in one way for training, timing and compilation ahead."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from lmscale.parallel.mesh import make_mesh
from lmscale.planner.devices import Devices
from lmscale.planner.packs import Pack
from lmscale.planner.step_config import choose_attention, choose_head, default_attention
from lmscale.training.program import Program, build_program, train_arguments
from lmscale.training.state import ProgramKey


def mesh_of(pack: Pack, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    """The pack's mesh on the first of the devices."""
    run, data, model = pack.mesh
    return make_mesh(run, data, model, devices=devices[: run * data * model])


def program_of(
    pack: Pack,
    mesh: jax.sharding.Mesh,
    platform: str,
    attention: str | None = None,
    kind: str = "",
    head: str | None = None,
) -> Program:
    """The pack's program.

    Args:
      platform: "cpu", "gpu" or "tpu".
      attention: see `lmscale.architectures.ModelSpec.module`; by platform and kind when None.
      kind: of device; see `lmscale.planner.step_config.choose_attention`.
      head: see `lmscale.training.program.build_program`; by platform when None.
    """
    key = pack.key
    split = pack.mesh[1] * pack.mesh[2]
    chosen = attention or default_attention(platform, key.model, key.compute_dtype, kind)
    return build_program(
        key,
        n_slots=pack.n_slots,
        mesh=mesh,
        chunk_steps=pack.chunk_steps,
        micro_batch=pack.micro_batch,
        attention=chosen,
        logit_pieces=pack.logit_pieces,
        remat=pack.remat,
        unroll=pack.unroll,
        head=head or choose_head(platform, key.model, key.compute_dtype, split),
    )


def slow_attention(key: ProgramKey, devices: Devices) -> str | None:
    """Why a model with attention does not use the flash kernel of these devices; None where it does.

    None as well where there is no attention, or the platform has no such kernel.
    """
    if key.model.attention_width is None:
        return None
    return choose_attention(devices.platform, key.model, key.compute_dtype, devices.kind).reason


class CompileAhead:
    """Compiles a pack's training step in a thread, while another pack trains.

    The compiled step goes to the persistent compilation cache, where training finds it; nothing is
    kept on the devices. A step that fails to compile here fails again in training, which reports it.
    """

    def __init__(self):
        self._pool = ThreadPoolExecutor(1)
        self._last: Future | None = None

    def begin(self, program: Program, pack: Pack, corpus: jax.ShapeDtypeStruct | None) -> None:
        """Starts to compile a pack's step, unless another is being compiled.

        Args:
          program: the pack's.
          pack: to compile for.
          corpus: see `lmscale.training.program.train_arguments`.
        """
        if self._last is None or self._last.done():
            arguments = train_arguments(program, pack.runs[0].spec, corpus)
            self._last = self._pool.submit(
                lambda: program.lower_train(*arguments).compile() and None
            )

    def wait(self) -> None:
        """Waits until the compilation that was started has ended or failed."""
        if self._last is not None:
            self._last.exception()
