"""Numbers as a page says them."""

import math

import pytest

from lmscale.report.page import rich_text
from lmscale.report.section import KeyNumber
from lmscale.wording import (
    family_name,
    flipped,
    listed,
    number,
    power_of_ten,
    si,
    statuses,
    with_interval,
)


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.51234, (0.4763, 0.5491), "0.51 (0.48 to 0.55)"),
        (0.51234, (0.4963, 0.5291), "0.512 (0.496 to 0.529)"),
        (-0.02, (-0.05, 0.004), "−0.020 (−0.050 to 0.004)"),
        (-0.05, (-0.09, -0.0049), "−0.050 (−0.090 to −0.005)"),
        (-0.05, (-0.09, -0.00001), "−0.05 (−0.09 to 0.00)"),
        (-0.05, (-0.09, 0.0), "−0.05 (−0.09 to 0.00)"),
        (841.0, (580.0, 1210.0), "841 (580 to 1,210)"),
        (0.5, (math.nan, math.nan), "0.500 (no interval)"),
        (0.5, None, "0.500 (no interval)"),
        (0.5, (0.5, 0.5), "0.500 (0.500 to 0.500)"),
        (32.04, (11.14, math.inf), "32.0 (11.1 or more)"),
        (-0.2, (-math.inf, 0.05), "−0.200 (0.0500 or less)"),
        (0.5, (-math.inf, math.inf), "0.500 (no interval)"),
        (0.5, (math.nan, math.inf), "0.500 (no interval)"),
    ],
)
def test_a_value_has_the_digits_of_its_interval(value, interval, text):
    assert with_interval(value, interval) == text


def test_counts_and_powers():
    assert [si(x) for x in (768, 999.7, 12_345, 1.2e6, 7e10, math.nan)] == [
        "768",
        "1k",
        "12.3k",
        "1.2M",
        "70B",
        "–",
    ]
    assert si(1.2e6, trim=False) == "1.20M"
    assert [power_of_ten(x) for x in (1e15, 1.25e11, 9.99e-4)] == ["10¹⁵", "1.2×10¹¹", "10⁻³"]
    assert [number(x) for x in (0.9996, 12.345, 1234.5, -3.0, 0)] == [
        "1.00",
        "12.3",
        "1,234",
        "−3.00",
        "0",
    ]


def test_names_and_lists():
    assert family_name("transformer") == "Transformer"
    assert family_name("lstm, 2 layers") == family_name("lstm 2 layers") == "2-layer LSTM"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert statuses(["done", "out_of_memory", "done"]) == "2 done and 1 out of memory"


def test_a_signed_difference_is_said_by_its_size():
    assert flipped(-0.3, (-0.5, 0.1)) == (0.3, (-0.1, 0.5))
    assert flipped(0.3, (-0.1, 0.5)) == (0.3, (-0.1, 0.5))
    assert flipped(-0.3, None) == (0.3, None)


def test_a_key_number_shows_the_digits_that_its_interval_warrants():
    item = KeyNumber.of("ratio", 2.3456, (2.1, 2.6), "×")
    assert (item.value, item.interval) == ("2.35×", "2.10 to 2.60")
    assert KeyNumber.of("ratio", 2.3456, None).interval == "no interval"


@pytest.mark.parametrize(
    ("text", "set_as"),
    [
        ("k_N C^a", "<i>k</i><sub>N</sub> <i>C</i><sup>a</sup>"),
        ("A/N^α + B/D^β", "A/<i>N</i><sup>α</sup> + B/<i>D</i><sup>β</sup>"),
        ("as C^-0.1 to C^0.1", "as <i>C</i><sup>−0.1</sup> to <i>C</i><sup>0.1</sup>"),
        ("N_opt ∝ C^0.5", "<i>N</i><sub>opt</sub> ∝ <i>C</i><sup>0.5</sup>"),
    ],
)
def test_formulas_show_no_carets(text, set_as):
    assert rich_text(text) == set_as
