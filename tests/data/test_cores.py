import threading

import pytest

from lmscale.data.cores import in_order, n_cores
from tests.waiting import PATIENCE


def test_results_come_in_the_order_of_the_items_and_few_items_are_taken_ahead():
    taken, began = [], threading.Event()

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    def double(item):
        if item == 0:
            # The first is done last of those that have begun.
            assert n_cores() == 1 or began.wait(PATIENCE)
        began.set() if item else None
        return 2 * item

    for number, result in enumerate(in_order(double, items())):
        assert result == 2 * number
        assert len(taken) <= number + 2 + n_cores()


def test_an_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 / item, [1, 0, 2]))
