"""Interleaved timing, by a clock that the cases themselves move."""

import pytest

from lmscale.bench import timing


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_cases_take_turns_and_a_sample_holds_many_calls(clock):
    order = []

    def lasting(name, seconds):
        def call():
            order.append(name)
            clock[0] += seconds

        return call

    cases = {"short": lasting("short", 0.1), "long": lasting("long", 2.0)}
    found = timing.interleave(cases, repeat=3)
    assert found["short"].median == pytest.approx(0.1) and found["short"].samples == 3
    assert [found["long"].low, found["long"].high] == pytest.approx([2.0, 2.0])
    warm_up = ["short"] * 2 + ["long"] * 2
    assert order == warm_up + 3 * (["short"] * 5 + ["long"])


def test_a_cold_start_is_timed_with_its_first_call(clock):
    spent = iter([5.0, 1.0, 3.0])

    def call():
        clock[0] += next(spent)

    found = timing.interleave({"cold": call}, repeat=3, warm_up=False)["cold"]
    assert (found.median, found.low, found.high) == (3.0, 1.0, 5.0)
