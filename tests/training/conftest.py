import jax
import pytest

from tests.quick_compile import quick_jit


@pytest.fixture(autouse=True)
def compile_quickly(monkeypatch):
    """Programs of these tests run a few steps each."""
    monkeypatch.setattr(jax, "jit", quick_jit)
