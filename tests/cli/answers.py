"""A command run in this process: its exit code and what it prints."""

from lmscale.cli import main


def answer(capsys, *argv) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = main([str(item) for item in argv])
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


def refused(capsys, *argv) -> str:
    """The one line that a bad command prints."""
    code, out, err = answer(capsys, *argv)
    assert code == 2, err
    assert out == "" and len(err.strip().splitlines()) == 1, err
    return err
