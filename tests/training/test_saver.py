"""The runs of a pack are saved beside the training, in order, and no failure is lost."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.training.saver import Saver
from tests.waiting import PATIENCE


class Slow:
    """Checkpoints whose saves wait until they may go on."""

    def __init__(self, may_go_on=None, error=None):
        self.saved, self.began = [], threading.Event()
        self.may_go_on, self.error = may_go_on or threading.Event(), error
        if may_go_on is None:
            self.may_go_on.set()

    def save(self, step, state, extra):
        self.began.set()
        assert self.may_go_on.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.saved.append((step, state, extra))

    def wait(self):
        pass


@pytest.fixture
def saver():
    saver = Saver()
    yield saver
    saver.close()


def test_the_caller_goes_on_with_what_was_copied(saver):
    gate = threading.Event()
    first, second = Slow(gate), Slow(gate)
    array = jnp.arange(3.0)
    saver.save(first, 5, {"x": array}, {"a": 1})
    saver.save(second, 5, {"x": array + 1}, {})
    # As the next step does, whose state takes this one's memory.
    array.delete()
    assert saver.is_saving() and not first.saved
    gate.set()
    saver.wait(first)
    saver.wait(second)
    assert not saver.is_saving()
    (step, state, extra), *more = first.saved
    assert (step, extra, more) == (5, {"a": 1}, [])
    np.testing.assert_array_equal(state["x"], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(second.saved[0][1]["x"], [1.0, 2.0, 3.0])


def test_waiting_for_one_does_not_wait_for_those_before_it(saver):
    gate = threading.Event()
    slow, quick = Slow(gate), Slow()
    saver.save(slow, 5, {}, {})
    saver.save(quick, 7, {}, {})
    assert slow.began.wait(PATIENCE)
    saver.wait(quick)
    assert quick.saved == [(7, {}, {})] and not slow.saved
    gate.set()
    saver.wait(slow)
    assert slow.saved == [(5, {}, {})]


def test_a_later_save_takes_the_place_of_one_that_has_not_begun(saver):
    gate = threading.Event()
    slow, other = Slow(gate), Slow()
    saver.save(slow, 5, {}, {})
    assert slow.began.wait(PATIENCE)
    for step in (5, 6):
        saver.save(other, step, {}, {})
    gate.set()
    saver.wait(slow)
    saver.wait(other)
    assert [step for step, *_ in other.saved] == [6]


def test_what_is_dropped_is_not_written_unless_it_has_begun(saver):
    gate = threading.Event()
    slow, other = Slow(gate), Slow()
    saver.save(slow, 5, {}, {})
    saver.save(other, 5, {}, {})
    assert slow.began.wait(PATIENCE)
    saver.drop(other)
    gate.set()
    saver.drop(slow)
    assert [step for step, *_ in slow.saved] == [5] and not other.saved and not saver.is_saving()


@pytest.mark.parametrize("ask", ["save", "wait", "drop"])
def test_a_failed_save_is_raised_at_the_next_word_of_the_same_checkpoints(saver, ask):
    broken, other = Slow(error=OSError(28, "No space left on device")), Slow()
    saver.save(broken, 5, {}, {})
    saver.save(other, 5, {}, {})
    saver.wait(other)
    more = (6, {}, {}) if ask == "save" else ()
    with pytest.raises(OSError, match="No space left"):
        getattr(saver, ask)(broken, *more)
    # Raised once: the caller knows.
    saver.drop(broken)


def test_closing_waits_for_the_save_under_way_alone():
    gate = threading.Event()
    saver, slow, other = Saver(), Slow(gate), Slow()
    saver.save(slow, 5, {}, {})
    saver.save(other, 5, {}, {})
    assert slow.began.wait(PATIENCE)
    threading.Timer(0.2, gate.set).start()
    saver.close()
    assert [step for step, *_ in slow.saved] == [5] and not other.saved
