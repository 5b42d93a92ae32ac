"""No input of these tests leaves the machine."""

import sys

import pytest


@pytest.fixture(autouse=True, scope="package")
def without_clouds():
    """As on a machine without the packages of object stores: with them a bucket would be looked for."""
    with pytest.MonkeyPatch.context() as patch:
        for package in ("gcsfs", "s3fs", "adlfs"):
            patch.setitem(sys.modules, package, None)
        yield
