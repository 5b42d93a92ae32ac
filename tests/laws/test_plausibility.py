"""Columns in different units are noticed, and the units that they are in are named."""

import numpy as np
import pytest

from lmscale.laws.table import Table, TableError
from tests.laws import planted

FRAME = planted.runs()


def scaled(**units):
    """The runs with columns in these units; flops where they are named."""
    frame = FRAME.assign(flops=6 * FRAME["params"] * FRAME["tokens"])
    for name, unit in units.items():
        frame[name] = frame[name] / unit
    return frame if "flops" in units else frame.drop(columns="flops")


def warnings_of(frame, columns=None):
    return Table.read(frame, columns).runs("params", "tokens", "loss").warnings


@pytest.mark.parametrize(
    ("units", "likely"),
    [
        ({"params": 1e6, "tokens": 1e9}, "params look like millions and tokens look like billions"),
        ({"params": 1e9, "tokens": 1e9}, "params look like billions and tokens look like billions"),
        ({"params": 1e6}, "params look like millions"),
        ({"flops": 8.64e19}, "flops look like PF-days"),
        ({"flops": 1e18}, "flops look like EFLOPs"),
    ],
)
def test_columns_in_other_units_are_noticed_and_a_mapping_mends_them(units, likely):
    frame = scaled(**units)
    (warning,) = warnings_of(frame)
    assert f"{likely}, and --columns '" in warning
    mapping = warning.split("and --columns '")[-1].split("' would scale")[0]
    assert warnings_of(frame, mapping) == ()
    runs = Table.read(frame, mapping).runs("params", "tokens", "loss")
    np.testing.assert_allclose(runs["params"], FRAME["params"])
    np.testing.assert_allclose(runs["tokens"], FRAME["tokens"])


@pytest.mark.parametrize(
    ("frame", "likely"),
    [
        (scaled(tokens=1e9), "tokens look like billions"),
        (scaled(params=1e9), "params look like billions"),
        (scaled(flops=1e9).drop(columns="tokens"), "flops look like GFLOPs"),
    ],
)
def test_absurd_tokens_per_parameter_are_refused(frame, likely):
    with pytest.raises(TableError, match="tokens per parameter") as error:
        warnings_of(frame)
    assert likely in str(error.value) and "\n" not in str(error.value)


def test_a_law_of_compute_only_warns():
    frame = scaled(flops=1e9).drop(columns="tokens")
    for needs in (("flops", "loss"), ("params", "flops", "loss", "tokens")):
        (warning,) = Table.read(frame).runs(*needs).warnings
        assert "flops look like GFLOPs" in warning


@pytest.mark.parametrize("size", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("ratio", [0.1, 20, 5e4])
def test_sizes_and_ratios_that_were_trained_are_silent(size, ratio):
    params = size * np.array([1.0, 2.0, 4.0])
    tokens = np.maximum(params * ratio, 2e4)
    assert warnings_of({"params": params, "tokens": tokens, "loss": [4, 3, 2]}) == ()


def test_a_stray_row_in_other_units_is_named():
    frame = FRAME.copy()
    frame.loc[7, "tokens"] /= 1e9
    (warning,) = warnings_of(frame)
    assert warning.startswith("1 row may be in other units than the rest: row 8 has ")
