"""Laws compute on the CPU, also where an accelerator is installed and does not start."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lmscale.laws import cpu
from lmscale.laws.resample import jacobian

#: A plugin of jax as one that is installed without its libraries.
PLUGIN = """
def initialize():
    from jax._src import xla_bridge

    def factory():
        raise RuntimeError("Unable to load cuFFT. Is it installed?")

    xla_bridge.register_backend_factory("broken", factory, priority=500, fail_quietly=False)
"""
FIT = """
import numpy as np
from lmscale.laws.resample import jacobian
found = jacobian(lambda theta, data: theta[0] * data["x"], np.array([2.0]), {"x": np.arange(3.0)})
print(found.dtype, found.ravel().tolist())
"""


def test_a_fit_runs_where_the_accelerators_plugin_fails(tmp_path):
    package = tmp_path / "jax_plugins" / "broken"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent(PLUGIN))
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    env.pop("JAX_PLATFORMS", None)

    def python(code):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    # The plugin is one that fails: otherwise this test says nothing.
    assert "cuFFT" in python("import jax; jax.devices()").stderr
    done = python(FIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "float64 [0.0, 1.0, 2.0]\n"


def test_a_second_start_leaves_the_accelerators_out(monkeypatch):
    asked = []

    def local_devices(backend):
        asked.append(jax.config.jax_platforms)
        if len(asked) == 1:
            raise RuntimeError("Unable to initialize backend 'cuda'")
        return ["the cpu"]

    monkeypatch.setattr(jax, "local_devices", local_devices)
    before = jax.config.jax_platforms
    try:
        assert cpu._cpu.__wrapped__() == "the cpu"
    finally:
        jax.config.update("jax_platforms", before)
    assert asked[-1] == "cpu"


def test_other_code_keeps_its_precision_and_its_device():
    with jax.default_device(jax.devices()[3]):
        jacobian(lambda theta, data: theta * data, np.ones(1), np.ones(1))
        x = jnp.ones(2)
        assert (x.dtype, x.devices()) == (jnp.float32, {jax.devices()[3]})
        with cpu.float64_on_cpu():
            y = jnp.ones(2)
        assert (y.dtype, y.devices()) == (jnp.float64, {jax.devices()[0]})
