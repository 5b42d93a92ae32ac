"""What the cells of several tables show."""

import math

from lmscale.report.tables import edges
from lmscale.wording import si


def test_an_interval_is_shown_by_its_edges():
    assert edges((1234.0, 5678.0), si) == "1.23k to 5.68k"
    assert edges((0.5, 0.75)) == "0.500 to 0.750"
    assert edges((1.0, math.inf)) == "1.00 or more"
    assert edges(None) == edges((math.nan, 2.0)) == edges((-math.inf, math.inf)) == "–"
