import pytest


@pytest.fixture(autouse=True)
def quick(compile_quickly):
    """Programs of these tests run a few steps each."""
