"""Tables: plain text in a pipe, drawn by rich on a terminal; counts of things."""

import contextlib
import io
import threading

import pytest

from lmscale.terminal import plural, print_table, say_if_slow

ROWS = [("model", "N", ""), ("lstm [bold]x[/]", "1.5e+06", ""), ("\x1b[31mred", "-3", "remat")]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(file, **options):
    with contextlib.redirect_stdout(file):
        print_table(ROWS, **options)
    return file.getvalue()


def test_in_a_pipe_a_table_is_plain_text():
    assert printed(io.StringIO()).splitlines() == [
        "model            N",
        "---------------  -------  -----",
        "lstm [bold]x[/]  1.5e+06",
        "\ufffd[31mred         -3       remat",
    ]


def test_in_a_pipe_a_table_of_given_widths_has_no_rule():
    assert printed(io.StringIO(), widths=(16, 9)).splitlines() == [
        "model                   N",
        "lstm [bold]x[/]   1.5e+06",
        "\ufffd[31mred               -3  remat",
    ]


def test_on_a_terminal_a_table_is_drawn(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    header, rule, *lines = printed(Terminal()).splitlines()
    assert header.split() == ["model", "N"] and set(rule) == {"\u2500"}
    # Text of a store is no markup and no command, and numbers are aligned to the right.
    assert lines[0].startswith("lstm [bold]x[/]") and lines[1].startswith("\ufffd[31mred")
    assert lines[0].index("1.5e+06") + 7 == lines[1].index("-3") + 2
    assert "remat" in lines[1]


def test_a_terminal_too_narrow_loses_no_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    text = "".join(printed(Terminal()).split())
    for part in ("1.5e+06", "remat"):
        assert part in text


@pytest.mark.parametrize(
    ("n", "words"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1200, "1,200 runs")]
)
def test_plural(n, words):
    assert plural(n, "run") == words


def test_something_is_said_of_what_takes_long_and_nothing_of_what_does_not(capsys):
    said = threading.Event()
    with say_if_slow("waiting", seconds=0.0):
        while "waiting" not in capsys.readouterr().err:
            said.wait(0.01)
    with say_if_slow("waiting", seconds=60.0):
        pass
    assert capsys.readouterr().err == ""
