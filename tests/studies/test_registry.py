"""Studies by name: every experiment's, and one with a figure in a user's own file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmscale import cli, studies
from lmscale.report import registry as sections
from lmscale.studies import registry
from lmscale.sweep.claims import Claim
from lmscale.user_files import load_file
from tests.report import planted_store as planted

FILE = Path(__file__).parent / "own_study.py"


@pytest.fixture
def own():
    """What the file registers is forgotten after the test; what lmscale registers must stay."""
    yield
    for name in ("spread", "plain_spread"):
        registry._STUDIES.pop(name, None)
        sections._SECTIONS.pop(name, None)


def test_a_study_with_a_figure_in_a_users_own_file_is_reported(tmp_path, own, capsys):
    claim = Claim(text="The largest is good.", source="Me", measure="spread/largest", high=9.0)
    planted.plant(
        tmp_path,
        planted.size_runs(layers=()),
        analyses=["spread", "plain_spread"],
        law=planted.SizeLaw(),
        claims=[claim],
    )
    assert cli.main(["report", str(tmp_path), "--load", str(FILE)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Seeds scatter by 0." in page and 'id="figure-spread"' in page
    assert (tmp_path / "figures" / "spread.svg").exists()
    (verdict,) = json.loads((tmp_path / "summary.json").read_text())["verdicts"]
    assert verdict["word"] == "agrees" and verdict["found"].startswith("largest: ")
    # Without a section of its own a study is shown by its estimates.
    assert 'id="plain_spread"' in page and "Noise is " in page
    assert {"spread", "plain_spread", "size"} <= set(studies.names())


def test_the_same_file_may_be_loaded_again_but_no_name_is_taken_twice(own):
    load_file(FILE)
    load_file(FILE)
    studies.names()
    register = studies.register("size")
    with pytest.raises(ValueError, match=r"the name 'size' is taken by lmscale\.studies\.size"):
        register(lambda results: None)


def test_an_unknown_study_is_named_with_those_that_there_are():
    with pytest.raises(KeyError, match=r"no study 'wave'; there are .*families.*size"):
        studies.find("wave")


def test_studies_draw_nothing():
    """They are for notebooks too: without matplotlib, and without the report's words."""
    code = (
        "import sys; from lmscale import studies; studies.names(); "
        "print([m for m in sys.modules if m.startswith(('matplotlib', 'lmscale.report'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
