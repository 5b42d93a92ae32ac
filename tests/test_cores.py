import os
import subprocess
import sys
import threading

import pytest

from lmscale.cores import in_order, n_cores
from tests.waiting import PATIENCE


def test_results_come_in_the_order_of_the_items_and_few_items_are_taken_ahead():
    taken, began = [], threading.Event()

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    def double(item):
        if item == 0:
            # The first is done last of those that have begun.
            assert n_cores() == 1 or began.wait(PATIENCE)
        began.set() if item else None
        return 2 * item

    for number, result in enumerate(in_order(double, items())):
        assert result == 2 * number
        assert len(taken) <= number + 2 + n_cores()


def test_an_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 / item, [1, 0, 2]))


def test_a_system_without_affinity_has_the_cores_of_the_machine(monkeypatch):
    """macOS has no `os.sched_getaffinity`."""
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert n_cores() == 5


def test_a_command_that_computes_starts_without_affinity():
    program = """
import os, sys
vars(os).pop("sched_getaffinity", None)
os.cpu_count = lambda: 3
from lmscale.cli.jax_settings import start_jax
start_jax()
import jax
print(jax.device_count())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["3"]
