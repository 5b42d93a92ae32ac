"""SIGTERM and Ctrl-C are heard in every state, and a second one ends the process at once."""

import signal
import subprocess
import sys
import time

import pytest

from lmscale.stopping import Stop
from tests.waiting import PATIENCE

#: Says that it is ready, then does `body`.
SCRIPT = """
import sys, time
from lmscale.stopping import Stop, Stopped
stop = Stop(deferred={deferred})
try:
    print("ready", flush=True)
    {body}
except Stopped:
    sys.exit(42)
sys.exit(3 if stop() else 0)
"""
#: A call into C that Python's own handlers of signals must wait for; other threads run meanwhile.
#: Signals are kept from the main thread, or they would end the call.
DEEP = (
    "import ctypes, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [2, 15]); "
    "ctypes.CDLL(None).usleep(3600_000_000)"
)


def start(body, deferred=False):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body, deferred=deferred)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_needs_no_saving_ends_where_it_is(number):
    process = start("time.sleep(3600)")
    process.send_signal(number)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 42
    assert error == "lmscale: stopping; Ctrl-C again to end at once\n"


def test_training_is_asked_and_goes_on_to_save():
    body = (
        "with stop.deferred():\n"
        "        print('training', flush=True)\n"
        "        while not stop(): time.sleep(0.01)\n"
        "        time.sleep(0.2); print('saved', flush=True)\n"
        "    print('not reached')"
    )
    process = start(body)
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (42, "saved\n")
    assert "the runs under way are saved" in error


def test_processes_that_stop_together_are_never_interrupted():
    process = start("while not stop(): time.sleep(0.01)\n    time.sleep(0.3)", deferred=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_also_while_the_main_thread_is_deep_in_a_compiler(number):
    process = start(DEEP, deferred=True)
    time.sleep(0.3)
    process.send_signal(number)
    assert "stopping" in process.stderr.readline()
    # A second SIGTERM at the same moment is an echo of the first.
    time.sleep(1.2)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 1
    assert "ended at once" in process.stderr.read()


def test_an_echo_of_sigterm_does_not_end_what_saves():
    body = (
        "import os, signal\n"
        "    for _ in range(3): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.05)\n"
        "    time.sleep(1.0)"
    )
    process = start(body, deferred=True)
    assert process.wait(PATIENCE) == 3


def test_closed_it_leaves_the_signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    Stop().close()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


#: Raises SIGTERM within `act`, where Python ignores exceptions.
COLLECTED = (
    "import gc, os, signal\n"
    "    def act(phase, info):\n"
    "        if phase == 'start' and not stop(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n"
    "    gc.callbacks.append(act); gc.collect(); time.sleep(3600)"
)
FINALISED = (
    "import os, signal\n"
    "    class Held:\n"
    "        def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n"
    "    Held(); time.sleep(3600)"
)


@pytest.mark.parametrize("body", [COLLECTED, FINALISED])
def test_a_stop_that_python_would_ignore_ends_the_command_too(body):
    """Seen with a callback of JAX's that runs at each garbage collection."""
    process = start(body)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 42
    assert error == "lmscale: stopping; Ctrl-C again to end at once\n"


def test_other_exceptions_that_python_ignores_are_still_shown():
    process = start(
        "class Held:\n        def __del__(self): raise ValueError('as before')\n    Held()"
    )
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "ValueError: as before" in error


def test_a_stop_waits_for_what_is_being_imported(tmp_path):
    """C++ that initialises a library aborts at an exception: seen with jaxlib's."""
    (tmp_path / "stopped_library.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.3); print('whole', flush=True)\n"
    )
    body = f"sys.path.append({str(tmp_path)!r}); import stopped_library; time.sleep(3600)"
    out, error = (process := start(body)).communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (42, "whole\n")
    assert error == "lmscale: stopping; Ctrl-C again to end at once\n"


def test_a_command_that_ends_before_a_stop_is_raised_again_ends_as_it_would():
    """The signal is then no longer heard, and would kill the process."""
    process = start(
        "import os, signal\n"
        "    class Held:\n"
        "        def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n"
        "    Held(); stop.close(); time.sleep(0.3)"
    )
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
