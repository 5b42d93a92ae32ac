"""What the tests of all commands share."""

import pytest


@pytest.fixture(autouse=True)
def jax_as_it_is(monkeypatch):
    """The tests have started jax with settings of their own; no command starts it again."""
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
