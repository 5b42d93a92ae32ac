"""A user's file with a layer and a study that fail: the report is written all the same, and names their lines."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import environment, finish, lmscale  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
ARCHITECTURE = Path(__file__).parents[1] / "architectures" / "convolution.py"
MORE = """
from lmscale import studies


@studies.register("own")
def study(results):
    return results.table["nothing"].mean()
"""
#: Traced alone it passes, and fails in a batch of training.
FAULT = "if len(tokens) > 2: raise KeyError('rate')"


def test_a_run_and_a_study_that_fail_leave_the_report_and_name_their_lines(
    finish,  # noqa: F811
    tmp_path,
):
    text = ARCHITECTURE.read_text()
    for old, new in (
        ('analyses = ("curves",)', 'analyses = ("own", "curves")'),
        ("        return apply_layers", f"        {FAULT}\n        return apply_layers"),
        ('SCALES = {"cpu"', MORE + 'SCALES = {"cpu"'),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    path, out = tmp_path / "mine.py", tmp_path / "own"
    path.write_text(text)
    lines = {line: number for number, line in enumerate(text.splitlines(), 1)}
    fault = lines[f"        {FAULT}"]
    study = lines['    return results.table["nothing"].mean()']
    argv = ("run", path, "--data", "tiny", "--seeds", "0", "1", "--out", out)
    code, _, err = finish(*argv)
    assert code == 1
    failed = [line for line in err.splitlines() if " failed: KeyError: 'rate'" in line]
    assert len(failed) == 3, err
    assert all(f"(mine.py:{fault}); traceback in {out / 'runs'}" in line for line in failed)
    assert f"the analysis 'own' failed: KeyError: 'nothing' (mine.py:{study})" in err
    page = (out / "report.html").read_text()
    assert "This analysis failed: " in page and 'id="curves"' in page
    assert len(json.loads((out / "summary.json").read_text())["failures"]) == 1
    states = [json.loads(file.read_text()) for file in out.glob("runs/*/status.json")]
    assert sorted(state["status"] for state in states) == 6 * ["failed"]
    assert len(list(out.glob("runs/*/error.txt"))) == 6
    # The code is mended; what was trained stays, and a line says that the file is another one.
    path.write_text(text.replace(FAULT, "pass").replace('["nothing"]', '["loss"]'))
    code, _, err = finish(*argv)
    assert "mine.py has changed since these runs were declared: what is done stays" in err
    assert code == 1 and "6 done" in err
    assert "the study 'own' returned a float64: it must return an object with estimates" in err
