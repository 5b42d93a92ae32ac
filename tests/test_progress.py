import lmscale.progress
from lmscale.progress import progress


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(lmscale.progress, "LOG_SECONDS", 0.0)
    with progress("training", 40.0) as tracker:
        tracker.update(10.0, "run a")
        tracker.log("a line that stays")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("training: 25% after 0 s, about 0 s left")
    assert first.endswith("run a")
    assert second == "a line that stays"


def test_what_was_done_earlier_does_not_count(capsys, monkeypatch):
    monkeypatch.setattr(lmscale.progress, "LOG_SECONDS", 0.0)
    with progress("training", 40.0) as tracker:
        tracker.skip(20.0)
        tracker.update(10.0)
        tracker.skip(5.0)
        tracker.update(5.0)
    shares = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shares == ["50%", "100%"]


def test_short_work_leaves_no_lines(capsys):
    with progress("training", 40.0) as tracker:
        tracker.update(40.0)
    assert capsys.readouterr().err == ""


def test_stages_start_again_from_nothing(capsys, monkeypatch):
    monkeypatch.setattr(lmscale.progress, "LOG_SECONDS", 0.0)
    with progress("corpus", 1.0) as tracker:
        tracker.stage("reading", 30, 40)
        tracker.stage("encoding", 10, 40)
    shares = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shares == ["75%", "25%"]
