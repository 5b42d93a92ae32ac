"""Verdicts follow from intervals, and the front page tells how the claims of all studies stand."""

import html
import json
import math

import pytest

from lmscale.cli import main
from lmscale.report import Measure, Section
from lmscale.report.claims import judge
from lmscale.sweep import Claim
from tests.report import planted_store as planted


def claim(low=-math.inf, high=math.inf):
    return Claim(
        text="The gap is at most 3.",
        source="Somebody 2020, Fig. 1",
        measure="size/gap",
        low=low,
        high=high,
        would_tell="ten times the parameters",
    )


def verdict(measure, **ends):
    section = Section(
        name="size", title="", finding="", measures={"gap": measure} if measure else {}
    )
    return judge(claim(**ends), [section])


@pytest.mark.parametrize(
    ("interval", "word"),
    [((1.0, 2.0), "agrees"), ((3.5, 4.0), "disagrees"), ((2.0, 3.5), "can't tell")],
)
def test_the_interval_decides(interval, word):
    value = sum(interval) / 2
    found = verdict(Measure(what="gap in nats", value=value, interval=interval), high=3.0)
    assert found.word == word
    assert found.found.startswith("gap in nats: ")


def test_a_range_has_two_ends():
    inside = Measure(what="gap", value=2.0, interval=(1.5, 2.5))
    assert verdict(inside, low=1.0, high=3.0).word == "agrees"
    assert verdict(inside, low=2.6, high=3.0).word == "disagrees"
    assert verdict(inside, low=0.0, high=1.4).word == "disagrees"


@pytest.mark.parametrize(
    "measure",
    [
        None,
        Measure(what="gap", value=None, undecided_because="one size only"),
        Measure(what="gap", value=2.0),
        Measure(what="gap", value=2.0, interval=(math.nan, 3.0)),
        Measure(what="gap", value=math.nan, interval=(1.0, 3.0)),
        Measure(
            what="gap", value=2.0, interval=(1.0, 2.5), undecided_because="the runs are too short"
        ),
    ],
)
def test_what_has_no_interval_or_says_why_decides_nothing(measure):
    found = verdict(measure, high=3.0)
    assert found.word == "can't tell"
    assert "ten times the parameters" in found.reason


def test_claims_survive_the_store():
    for ends in ({"low": 1.0}, {"high": 2.0}, {"low": 1.0, "high": 2.0}):
        assert Claim.from_json(json.loads(json.dumps(claim(**ends).to_json()))) == claim(**ends)


def test_a_claim_without_a_range_or_a_place_is_refused():
    with pytest.raises(ValueError, match="no range"):
        claim(low=2.0, high=1.0)
    with pytest.raises(ValueError, match="ANALYSIS/NAME"):
        Claim(text="", source="", measure="gap")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two stores side by side, one with a claim that its analysis has no number for."""
    folder = tmp_path_factory.mktemp("studies")
    runs = planted.size_runs(layers=(2,))
    for name, claims in (("first", [claim(high=3.0)]), ("second", [])):
        planted.plant(folder / name, runs, analyses=["curves"], title=f"The {name}", claims=claims)
    return folder


def test_reports_of_a_folder_get_a_front_page(folder, capsys):
    assert main(["report", str(folder)]) == 0
    lines = capsys.readouterr().out.split()
    assert [line.rsplit("/", 2)[-2] for line in lines[:2]] == ["first", "second"]
    front = (folder / "index.html").read_text()
    for name in ("first", "second"):
        assert f'href="{name}/report.html"' in front
        assert f"The {name}" in front
        assert (folder / name / "report.html").exists()
    assert "1 can't tell" in html.unescape(front)
    page = (folder / "first" / "report.html").read_text()
    assert page.index("The gap is at most 3.") < page.index('id="curves"')
    assert "What would tell: ten times the parameters." in page
