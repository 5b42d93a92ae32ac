"""`lmscale doctor`: its lines, its JSON and its exit code."""

import json
import os
import subprocess
import sys
import threading

import pytest

from lmscale import doctor
from lmscale.cli import main
from lmscale.doctor import Check, Finding
from tests.waiting import PATIENCE


@pytest.fixture
def checks(monkeypatch):
    """Replaces the checks; these here take no time."""

    def use(*findings):
        table = tuple(
            Check(f"check{i}", lambda place, found=found: found, needed=needed, long=long)
            for i, (found, needed, long) in enumerate(findings)
        )
        monkeypatch.setattr(doctor, "CHECKS", table)

    return use


FINE = (Finding("ok", "all well", None, {"number": 1}), True, False)
SLOW = (Finding("warning", "slow", "do this"), False, True)
BROKEN = (Finding("failed", "broken", "mend it"), True, False)


def test_a_line_a_check_and_the_finding(checks, capsys):
    checks(FINE, SLOW)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "check0", "all", "well"]
    assert lines[1].split() == ["warning", "check1", "slow"]
    assert lines[2].strip() == "do this"
    assert lines[-1] == "lmscale works here; read the remedies of: check1."


def test_what_is_needed_and_fails_decides_the_exit_code(checks, capsys):
    checks(FINE, BROKEN)
    assert main(["doctor"]) == 1
    assert "until this is mended: check1." in capsys.readouterr().out
    checks(FINE, (BROKEN[0], False, False))
    assert main(["doctor"]) == 0


def test_quick_leaves_out_what_trains(checks, capsys):
    checks(FINE, SLOW)
    assert main(["doctor", "--quick"]) == 0
    assert "check1" not in capsys.readouterr().out


def test_json_is_one_object(checks, capsys):
    checks(FINE, BROKEN)
    assert main(["doctor", "--json"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found.keys() == {"works", "finding", "seconds", "checks"}
    assert found["works"] is False
    keys = {"check", "status", "needed", "text", "remedy", "facts", "seconds"}
    assert [one.keys() for one in found["checks"]] == [keys, keys]
    assert found["checks"][0]["facts"] == {"number": 1}
    assert "broken" in said.err


def test_a_check_that_hangs_is_named_and_ends_the_program(checks, monkeypatch, capsys):
    checks(FINE)
    ended = threading.Event()
    codes = []

    def leave(code):
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    hangs = Check("hangs", lambda place: ended.wait(PATIENCE) and Finding("ok", "in the end"))
    monkeypatch.setattr(doctor, "CHECKS", (*doctor.CHECKS, hangs))
    main(["doctor", "--limit", "1"])
    said = capsys.readouterr().out
    assert codes == [1]
    assert "failed   hangs        not done 1 s after" in said
    assert "will not work here until this is mended: hangs." in said


@pytest.mark.parametrize("limit", ["9" * 12, "9" * 400, "-1", "nan", "soon"])
def test_a_limit_that_no_timer_can_wait_for_is_refused(checks, capsys, limit):
    checks(FINE)
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--limit", limit])
    assert end.value.code == 2
    assert "--limit" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_doctor_on_this_machine(tmp_path):
    command = [sys.executable, "-m", "lmscale", "doctor", "--json", "--out", str(tmp_path / "out")]
    env = {**os.environ, "LMSCALE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["works"]
    assert {one["check"] for one in found["checks"]} == {check.name for check in doctor.CHECKS}
    assert not [one for one in found["checks"] if one["status"] == "failed"]
    assert not (tmp_path / "out").exists()
