"""The command line: errors in one line with exit code 2, JSON alone on standard output."""

import os
import subprocess
import sys

import pytest

import lmscale
from lmscale.cli import main
from lmscale.cli.program import COMMANDS, READER_GONE
from tests.cli.answers import answer, refused


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run"], "EXPERIMENT"),
        (["run", "isoflops"], "did you mean isoflop?"),
        (["run", "missing.py"], "there is no experiment file missing.py"),
        (["run", "isoflop", "--scale", "huge"], "choose from cpu, cpu-hour, gpu, paper"),
        (["run", "isoflop", "--shard", "2/2"], "I/N with I from 0"),
        (["run", "isoflop", "--budgets", "many"], "--budgets"),
        (["run", "isoflop", "--batch-size", "2.5"], "whole number"),
        (["run", "isoflop", "--no-such-field", "1"], "--no-such-field"),
        (["plan", "isoflop", "--device", "abacus:2"], "KIND[:COUNT]"),
        (["plan", "isoflop", "--prior", "chinchila"], "neither a folder nor a published law"),
        (["status", "nowhere"], "experiment.json"),
        (["report", "nowhere"], "experiment.json"),
        (["eval", "nowhere"], "experiment.json"),
        (["eval", "nowhere", "--tokens", "0"], "at least 1"),
        (["fit", "nowhere.csv", "--law", "power"], "nowhere.csv"),
        (["run", "--out", "/tmp/o", "isoflops"], "no experiment 'isoflops': did you mean isoflop?"),
        (["run", "--slots", "2", "--track", "a:b", "isoflops"], "did you mean isoflop?"),
        (["plan", "--device", "h100:8", "--mesh", "1,2,3", "isoflops"], "did you mean isoflop?"),
        (["run", "--slots", "many", "isoflop"], "--slots"),
        (["frobnicate"], "frobnicate"),
        ([], "COMMAND"),
        (["data", "build", "new", "--input", "/nowhere/*.txt"], "/nowhere"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys, data_root, argv, says):
    assert says in refused(capsys, *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["run", "--help"],
        ["run", "isoflop", "--help"],
        *([c, "--help"] for c in COMMANDS if c != "list"),
        ["data", "build", "--help"],
    ],
    ids=" ".join,
)
def test_help_teaches(capsys, argv):
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_text_of_any_script_is_shown_on_a_terminal_of_one(tmp_path, data_root):
    (tmp_path / "mine.yaml").write_text("experiment: isoflop\ndata: é😀\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "lmscale", "run", "mine.yaml", "--print-config"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb'data: "\xe9\U0001f600"' in done.stdout


def test_help_of_an_experiment_shows_its_paper_and_its_fields(capsys):
    with pytest.raises(SystemExit):
        main(["run", "isoflop", "--scale", "gpu", "--help"])
    text = capsys.readouterr().out
    assert "Hoffmann et al. 2022" in text
    assert "--budgets" in text
    assert "--tokens-per-param" in text


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["run", "isoflop", "--print-config"],
        ["status", "no/such/folder"],
        *(
            pytest.param(argv, marks=pytest.mark.slow)
            for argv in (
                ["list"],
                ["run", "isoflop", "--help"],
                ["bench", "--help"],
                ["eval", "--help"],
            )
        ),
    ],
    ids=" ".join,
)
def test_commands_that_train_nothing_do_not_wait_for_jax(argv):
    """Importing it takes longer than all that they do."""
    program = (
        "import contextlib, sys, lmscale.cli\n"
        f"with contextlib.suppress(SystemExit): lmscale.cli.main({argv})\n"
        "import lmscale.sweep.overview\n"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["status", "x", "--nope"], "lmscale status: unrecognized arguments: --nope"),
        (["run", "isoflop", "--nope", "1"], "lmscale run: unrecognized arguments: --nope 1"),
        (["data", "show", "x", "y"], "lmscale data show: unrecognized arguments: y"),
        (
            ["fit", "t.csv", "--law", "power", "--nope"],
            "lmscale fit: there is no option --nope for power",
        ),
        (["--nope", "list"], "lmscale: unrecognized arguments: --nope"),
        # No option may be abbreviated.
        (["run", "isoflop", "--budget", "1e10"], "unrecognized arguments: --budget 1e10"),
        (["run", "isoflop", "--sca", "gpu"], "unrecognized arguments: --sca gpu"),
        (["data", "list", "--js"], "unrecognized arguments: --js"),
    ],
)
def test_an_unknown_option_is_refused_by_the_command_that_it_is_for(capsys, argv, says):
    line = refused(capsys, *argv)
    assert line.startswith("lmscale") and says in line


def test_version(capsys):
    assert answer(capsys, "--version") == (0, f"lmscale {lmscale.__version__}\n", "")


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "lmscale", "--version"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"lmscale {lmscale.__version__}\n")


def test_an_option_without_a_command_is_one_line(capsys):
    assert refused(capsys, "--load", "missing.py").startswith("lmscale: --load wants a Python file")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_ends_a_command_in_silence(unbuffered):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen([sys.executable, "-m", "lmscale", "list"], env=env, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == READER_GONE == 141
