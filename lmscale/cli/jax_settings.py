"""Settings of jax that the commands have in common."""

from __future__ import annotations

import os

__all__ = ["start_jax"]


def start_jax() -> None:
    """Settings that must come before jax looks for devices.

    On a CPU every core becomes a device, so that the run axis can span the cores. On a GPU jax allocates
    most of the memory, of which a plan fills a share. Compiled programs are kept between processes, the small ones too.
    """
    import jax

    from lmscale.cache import usable_cache
    from lmscale.compat import allocate_most_of_a_gpu, quiet_compilation_cache
    from lmscale.cores import n_cores

    allocate_most_of_a_gpu()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", n_cores())
    if (cache := usable_cache()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    quiet_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
