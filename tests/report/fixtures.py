"""Fixtures that the tests of many studies and sections make for their own module."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from lmscale.studies.fits import refused


def undrawn_section(section: ModuleType) -> Any:
    """A fixture without the section's main chart: drawing takes most of its time, and one test will do."""

    @pytest.fixture
    def undrawn(monkeypatch):
        monkeypatch.setattr(section, "_chart", lambda *args: None)

    return undrawn


def throughout(module: ModuleType, name: str, value: Any) -> Any:
    """A fixture for every test of a file, in which a constant of a module has another value."""

    @pytest.fixture(scope="module", autouse=True)
    def changed():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, value)
            yield

    return changed


def without_law(study: ModuleType, law: str) -> Any:
    """A fixture that leaves a study's law out, which takes most of its time."""

    @pytest.fixture
    def no_law(monkeypatch):
        monkeypatch.setattr(study, "_fit", lambda *args: refused(law, "not asked for"))

    return no_law
