"""Processes of one job meet on their port; those of another are refused, whoever comes first."""

import contextlib
import os
import socket
import threading

import jax
import pytest

from lmscale.parallel import distributed
from lmscale.parallel.meeting import MeetingError, meet
from tests.parallel.test_processes import free_port


class Attempt(threading.Thread):
    """One process that comes to the port; `error` is None when it met the others."""

    def __init__(self, port, index, identity, count=2, patience=20.0):
        super().__init__(daemon=True)
        self.error = "still waiting"
        self._arguments = (f"127.0.0.1:{port}", count, index, identity)
        self._patience = patience
        self.start()

    def run(self):
        try:
            meet(*self._arguments, patience=self._patience)
            self.error = None
        except MeetingError as error:
            self.error = str(error)

    def end(self):
        self.join(30)
        return self.error


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_go_on_once_all_have_come(order):
    port = free_port()
    attempts = [Attempt(port, index, "a", count=3) for index in order]
    assert [attempt.end() for attempt in attempts] == [None] * 3
    # The port is free for JAX.
    socket.create_server(("", port)).close()


@pytest.mark.parametrize("order", ["a0 b0 b1 a1", "b1 a0 a1", "a0 b1 a1", "a0 b0 a1"])
def test_processes_of_another_job_are_refused_and_do_not_disturb(order):
    port, attempts = free_port(), {}
    for name in order.split():
        attempts[name] = Attempt(port, int(name[1]), name[0])
        if name != "b1" or "a0" in attempts:
            # The next comes once this one waits or has been refused.
            attempts[name].join(0.5)
    for name, attempt in attempts.items():
        error = attempt.end()
        assert error is None if name[0] == "a" else f"port {port} is taken" in error


def test_a_second_process_of_one_number_is_refused():
    port = free_port()
    first = Attempt(port, 0, "a", count=3)
    one = Attempt(port, 1, "a", count=3)
    one.join(0.5)
    assert "a process 1 has come already" in Attempt(port, 1, "a", count=3).end()
    two = Attempt(port, 2, "a", count=3)
    assert [attempt.end() for attempt in (first, one, two)] == [None] * 3


def test_a_port_that_answers_otherwise_is_taken():
    """As JAX's coordinator of a running job does, or any other server."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            connection.recv(100)
            connection.sendall(b"\x00\x00\x12\x04\x00")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        assert f"port {port} is taken" in Attempt(port, 1, "a").end()


def test_what_jax_finds_is_where_the_processes_meet(monkeypatch):
    """Under srun, which tells by its variables; what comes of it is a slow test of processes."""
    met = []
    monkeypatch.setattr(distributed, "meet", lambda *where: met.append(where))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words, **_: met.append(words))
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "node[3-9],x", "NTASKS": "8", "PROCID": "5"}
    for name, value in (slurm | {"LOCALID": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for visible, devices in (("0,1", [1]), ("2", [0])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(distributed, "check_same", lambda *_: None)
        monkeypatch.setattr(distributed.compat, "exit_on_abort", lambda *_: None)
        monkeypatch.setattr(distributed, "_group", distributed._Group())
        distributed.start("auto", "me")
        assert met == [("node3:61447", 8, 5, "me"), ("node3:61447", 8, 5, devices)]
        met.clear()


def test_auto_where_there_is_nothing_to_find_is_bad_usage(monkeypatch):
    monkeypatch.setattr(distributed.compat, "exit_on_abort", lambda *_: None)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "KUBERNETES_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(distributed.DistributedError, match="HOST:PORT,COUNT,INDEX") as found:
        distributed.start("auto", "me")
    assert found.value.code == 2


@pytest.mark.parametrize("seconds", ["0", "²", "-1", "1.5", "", "9" * 10, "9" * 5000])
def test_a_heartbeat_that_is_no_number_of_seconds_is_bad_usage(monkeypatch, seconds):
    monkeypatch.setenv("LMSCALE_HEARTBEAT", seconds)
    monkeypatch.setattr(distributed.compat, "exit_on_abort", lambda *_: None)
    with pytest.raises(distributed.DistributedError, match="LMSCALE_HEARTBEAT must be") as found:
        distributed.start(("127.0.0.1:1", 1, 0), "me")
    assert found.value.code == 2


def test_who_does_not_come_is_named():
    port = free_port()
    assert "number 1 of 2 did not come" in Attempt(port, 0, "a", patience=0.5).end()
    assert "nobody answers" in Attempt(port, 1, "a", patience=0.5).end()


def test_what_is_no_greeting_is_shown_out():
    port = free_port()
    first = Attempt(port, 0, "a")
    first.join(0.3)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"x" * 3000):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(noise)
            stranger.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(10) == b""
    assert Attempt(port, 1, "a").end() is None
    assert first.end() is None
