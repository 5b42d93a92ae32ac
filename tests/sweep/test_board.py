"""Which run each team takes next."""

import pytest

from lmscale.progress import progress
from lmscale.sweep.board import Board
from lmscale.sweep.devices import parse_devices
from lmscale.sweep.experiment import Run
from lmscale.sweep.plan import make_plan
from lmscale.sweep.store import Store
from lmscale.training.loop import RunQueue
from tests.training.specs import LSTM, run_spec

STEPS = 1_000_000


@pytest.fixture
def board_of(tmp_path, corpus):
    """n_cores -> a board with two packs of three runs; those of the first take longer."""

    def make(n_cores):
        specs = [
            run_spec(corpus, seed=seed, **fields)
            for seed in range(3)
            for fields in ({"steps": 2 * STEPS}, {"steps": STEPS, "model": LSTM})
        ]
        plan = make_plan([Run(spec, {}) for spec in specs], parse_devices(f"cpu:{n_cores}"))
        assert plan.teams == n_cores
        long, short = plan.packs
        assert long.flops > short.flops
        store = Store(tmp_path)
        queues = [RunQueue([store.folder(run) for run in pack.runs]) for pack in plan.packs]
        with progress("", plan.flops, silent=True) as bar:
            return Board(plan, queues, bar, lambda: False)

    return make


def begin(board, index):
    """Takes a run, and says that it trains."""
    folder = board.take_run(index)
    board.update(1.0, folder.path.name)
    return folder.spec


def test_long_runs_go_first_once_their_program_is_compiled(board_of):
    board = board_of(2)
    assert board.take() == 0
    first = board.take_run(0)
    # The other team does not wait for the first to compile.
    assert board.take() == 1
    begin(board, 1)
    board.update(1.0, first.path.name)
    # After its first short run it goes where longer ones wait.
    assert board.take_run(1) is None
    board.leave(1)
    assert board.take() == 0
    assert begin(board, 0).steps == begin(board, 0).steps == 2 * STEPS
    # None are left, so both go on with the short ones, and neither waits for the other.
    for _ in range(2):
        assert board.take_run(0) is None
        board.leave(0)
        assert board.take() == 1
        assert begin(board, 1).steps == STEPS
    assert board.take_run(1) is None
    for _ in range(2):
        board.leave(1)
        assert board.take() is None


def test_one_team_ends_a_pack_before_it_begins_another(board_of):
    board = board_of(1)
    for pack in range(2):
        assert board.take() == pack
        assert board.following() == (1 if pack == 0 else None)
        for _ in range(3):
            begin(board, pack)
        assert board.take_run(pack) is None
        board.leave(pack)
    assert board.take() is None
