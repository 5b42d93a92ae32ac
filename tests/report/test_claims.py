"""Verdicts follow from intervals, and the front page tells how the claims of all studies stand."""

import html
import json
import math

import pytest

from lmscale.cli import main
from lmscale.report import Measure, Section, read_summary
from lmscale.report.claims import grouped, judge, tally
from lmscale.studies.estimate import few_seeds, lacking_seeds
from lmscale.studies.results import Results
from lmscale.sweep import Claim, finding, published_number
from tests.report import planted_store as planted


def claim(low=-math.inf, high=math.inf):
    return finding(
        "size/gap",
        "The gap is at most 3.",
        "Somebody 2020, Fig. 1",
        at_least=low,
        at_most=high,
        would_tell="ten times the parameters",
    )


def held_against(claim, measure):
    section = Section(
        name="size", title="", finding="", measures={"gap": measure} if measure else {}
    )
    return judge(claim, [section])


def verdict(measure, **ends):
    return held_against(claim(**ends), measure)


@pytest.mark.parametrize(
    ("interval", "word"),
    [((1.0, 2.0), "agrees"), ((3.5, 4.0), "disagrees"), ((2.0, 3.5), "not decided")],
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
    ("interval", "word"),
    [
        ((0.45, 0.52), "consistent"),
        ((0.40, 0.50), "consistent"),
        ((0.30, 0.60), "not decided"),
        ((0.54, 0.56), "differs"),
        ((0.10, 0.40), "differs"),
    ],
)
def test_a_number_is_compared_and_neither_passes_nor_fails(interval, word):
    number = published_number("size/gap", "It is about 0.49.", "Somebody 2020", 0.46, 0.53)
    assert number.width == pytest.approx(0.14)
    measure = Measure(what="gap", value=sum(interval) / 2, interval=interval)
    assert held_against(number, measure).word == word


def test_what_is_not_decided_says_what_it_excludes():
    found = verdict(Measure(what="gap", value=2.7, interval=(2.0, 3.5)), high=3.0)
    assert "It excludes everything below 2.00 and above 3.50." in found.reason


def test_an_interval_that_is_open_above_decides_by_its_lower_end():
    measure = Measure(what="decay", value=32.0, interval=(11.0, math.inf))
    assert verdict(measure, low=10.0).word == "agrees"
    assert verdict(measure, low=0.0, high=10.0).word == "disagrees"
    number = published_number("size/gap", "It is about 15.", "Somebody 2020", 10.0, 23.0)
    found = held_against(number, measure)
    assert found.word == "not decided" and "32.0 (11.0 or more)" in found.found
    assert "is open at one end" in found.reason
    assert found.reason.endswith("It excludes everything below 11.0.")


@pytest.mark.parametrize(
    ("measure", "word"),
    [
        (None, "not tested here"),
        (Measure(what="gap", value=None, undecided_because="one size only"), "not tested here"),
        (Measure(what="gap", value=math.nan, interval=(1.0, 3.0)), "not tested here"),
        (
            Measure(what="gap", value=2.0, interval=(1.0, 2.5), undecided_because="too short runs"),
            "not tested here",
        ),
        (Measure(what="gap", value=2.0), "not decided"),
        (Measure(what="gap", value=2.0, interval=(math.nan, 3.0)), "not decided"),
    ],
)
def test_what_has_no_interval_or_lacks_its_conditions_decides_nothing(measure, word):
    found = verdict(measure, high=3.0)
    assert found.word == word
    if measure is not None and measure.undecided_because:
        assert measure.undecided_because in found.reason.lower()


def test_too_few_seeds_say_which_seeds_and_what_they_cost(tmp_path):
    runs = planted.size_runs(layers=(1,), seeds=(0,))
    results = Results.read(planted.plant(tmp_path, runs, analyses=["size"], name="model_size"))
    few = Measure(what="gap", value=2.0, undecided_because=few_seeds(1))
    other = Measure(what="gap", value=2.0, undecided_because="the runs are too short")
    section = {
        name: Section(name="size", title="", finding="", measures={"gap": one})
        for name, one in (("few", few), ("other", other))
    }
    found = judge(claim(high=3.0), [section["few"]], results)
    assert found.word == "not tested here"
    # Ten runs of 12.5 s each, twice.
    assert found.reason == (
        "A difference needs 3 seeds, not 1. Cheapest remedy: lmscale run model_size --scale cpu "
        "--seeds 0 1 2 --extend --out STORE adds the missing seeds in about 4 min of training, summed "
        "over runs."
    )
    assert judge(claim(high=3.0), [section["other"]], results).reason == "The runs are too short."
    assert lacking_seeds(few_seeds(2, "a slope")) and not lacking_seeds(few_seeds(3))


def test_advice_is_said_once_a_group():
    open_ones = [verdict(Measure(what="gap", value=2.0), high=3.0) for _ in range(3)]
    sure = verdict(Measure(what="gap", value=2.0, interval=(1.0, 2.5)), high=3.0)
    groups = grouped([*open_ones, sure])
    assert [(group.word, len(group.verdicts), group.advice) for group in groups] == [
        ("agrees", 1, ()),
        ("not decided", 3, ("ten times the parameters",)),
    ]
    words = [one.word for group in groups for one in group.verdicts]
    assert tally(words) == "4 claims of the papers: 1 agrees and 3 not decided."


def test_claims_survive_the_store():
    number = published_number("size/gap", "It is about 2.", "Somebody 2020", 1.0, 3.0)
    for one in (claim(low=1.0), claim(high=2.0), claim(low=1.0, high=2.0), number):
        values = json.loads(json.dumps(one.to_json()))
        assert Claim.from_json(values) == one
    # Stores of earlier versions know findings alone.
    values = {k: v for k, v in claim(low=1.0).to_json().items() if k != "width"}
    assert Claim.from_json(values) == claim(low=1.0)


def test_a_claim_without_a_range_or_a_place_is_refused():
    with pytest.raises(ValueError, match="no range"):
        claim(low=2.0, high=1.0)
    with pytest.raises(ValueError, match="STUDY/NAME"):
        finding("gap", "", "")
    with pytest.raises(ValueError, match="wider than the interval"):
        published_number("size/gap", "", "", 1.0, 3.0, width=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two stores side by side, one with a claim that its analysis has no number for."""
    folder = tmp_path_factory.mktemp("studies")
    runs = planted.size_runs(layers=(2,))
    for name, claims in (("first", [claim(high=3.0)]), ("second", [])):
        planted.plant(folder / name, runs, analyses=["curves"], title=f"The {name}", claims=claims)
    return folder


@pytest.mark.slow
def test_reports_of_a_folder_get_a_front_page(folder, capsys):
    assert main(["report", str(folder)]) == 0
    lines = capsys.readouterr().out.split()
    assert [line.rsplit("/", 2)[-2] for line in lines[:2]] == ["first", "second"]
    front = (folder / "index.html").read_text()
    for name in ("first", "second"):
        assert f'href="{name}/report.html"' in front
        assert f"The {name}" in front
        assert (folder / name / "report.html").exists()
    assert "1 claim of the papers: 1 not tested here." in html.unescape(front)
    summary = read_summary(folder / "first")
    assert [verdict["word"] for verdict in summary.verdicts] == ["not tested here"]
    assert summary.lines()[-1].split() == [
        *("not", "tested", "here", "The", "gap", "is", "at", "most", "3.", "(Somebody"),
        *("2020,", "Fig.", "1)"),
    ]
    page = (folder / "first" / "report.html").read_text()
    assert page.index("The gap is at most 3.") < page.index('id="curves"')
    assert "What would tell: ten times the parameters." in page
    assert page.count("ten times the parameters") == 1
