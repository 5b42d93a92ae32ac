"""Trackers: every record once, through kills and resumes; a failing tracker stops nothing."""

from __future__ import annotations

import json
import struct
import threading
import time

import pytest
from etils import epath

from lmscale.tracking import TrackingError, follow, make_tracker, scalars
from lmscale.tracking.titles import titles
from lmscale.tracking.trackers import TensorBoard, TrackedRun
from lmscale.training.run_folder import RunFolder
from tests.cli.answers import refused
from tests.training.specs import run_spec
from tests.waiting import PATIENCE, wait_until


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    module = __import__("sys").modules["lmscale.tracking.follow"]
    monkeypatch.setattr(module, "LOOK", 0.01)
    return module


def record(step, **values):
    return {
        "step": step,
        "tokens": 64 * step,
        "flops": 1e3 * step,
        "loss": 5 - 0.1 * step,
        **values,
    }


def evaluated(step):
    scores = {"loss": 5 - 0.1 * step, "bits_per_byte": 2.5, "by_position": [1.0, 2.0]}
    return {"step": step, "tokens": 64 * step, "flops": 1e3 * step, "eval": {"valid": scores}}


RECORDS = [record(2), record(4), record(6), evaluated(6), record(8), record(10), evaluated(10)]


class Sweep:
    """A store of two runs, whose logs grow as a test says."""

    def __init__(self, path):
        self.path = epath.Path(path)
        self.folders = []
        for seed in (0, 1):
            spec = run_spec(seed=seed)
            folder = RunFolder(self.path / "runs" / spec.run_id, spec)
            folder.create()
            self.folders.append(folder)

    def train(self, first: int, last: int) -> None:
        """The logs hold the first records, and then the others: as after a kill."""
        for folder in self.folders:
            folder.log_path.unlink(missing_ok=True)
            folder.append_metrics(RECORDS[:first])
            folder.append_metrics(RECORDS[first:last])

    def follow(self, warn=print, **trackers):
        runs = [(folder, {"family": "transformer"}) for folder in self.folders]
        return follow(self.path, "tiny-cpu", runs, trackers, warn)


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


class Recording:
    def __init__(self):
        self.got, self.ended = {}, {}

    def log(self, run, records, sent):
        self.got.setdefault(run.name, []).extend(records)
        self.run = run

    def end(self, run, status):
        self.ended[run.name] = status


def test_every_record_is_sent_once_through_kills(sweep):
    got = []
    # Of three processes the second begins with a log that was cut back to a checkpoint.
    for first, last in ((0, 5), (2, 3), (2, 7)):
        tracker = Recording()
        with sweep.follow(mine=tracker):
            sweep.train(first, last)
        got.append(tracker.got)
    for folder in sweep.folders:
        name = folder.path.name
        assert [x[name] for x in got if name in x] == [RECORDS[:5], RECORDS[5:]]
    assert tracker.run.group.startswith("tiny-cpu-") and tracker.run.spec["seed"] in (0, 1)
    assert tracker.run.labels == {"family": "transformer"}
    assert f"{tracker.run.title}-{tracker.run.digest}" == tracker.run.name
    assert set(tracker.ended.values()) == {"pending"}


def test_the_group_is_that_of_the_store(sweep):
    groups = set()
    for last in (2, 4):
        tracker = Recording()
        with sweep.follow(mine=tracker):
            sweep.train(0, last)
        groups.add(tracker.run.group)
    assert len(groups) == 1


def test_a_title_says_what_tells_a_run_from_the_others():
    plain, lower = run_spec(), run_spec(optimizer={"peak_lr": 0.00251})
    decayed = run_spec(optimizer={"weight_decay": 0.1})
    longer = run_spec(steps=2 * plain.steps)
    base = plain.run_id.rpartition("-")[0]
    assert titles([plain]) == {plain.run_id: base}
    assert titles([plain, lower, decayed]) == {
        plain.run_id: f"{base}-lr0.01-weight_decay0",
        lower.run_id: f"{base}-lr0.00251-weight_decay0",
        decayed.run_id: f"{base}-lr0.01-weight_decay0.1",
    }
    # What the id tells is not told twice; the rate is, wherever there are several.
    assert titles([plain, longer]) == {
        run.run_id: run.run_id.rpartition("-")[0] for run in (plain, longer)
    }
    assert titles([longer, lower])[lower.run_id] == f"{base}-lr0.00251"


def test_a_run_keeps_its_title_when_others_join(sweep):
    tracker = Recording()
    with sweep.follow(mine=tracker):
        sweep.train(0, 2)
    before = tracker.run.title
    other = run_spec(seed=1, optimizer={"peak_lr": 0.5})
    sweep.folders.append(RunFolder(sweep.path / "runs" / other.run_id, other))
    sweep.folders[-1].create()
    shown = Recording()
    with sweep.follow(mine=shown):
        sweep.folders[1].append_metrics(RECORDS[2:3])
    assert shown.run.title == before
    with sweep.follow(mine=shown):
        sweep.folders[2].append_metrics(RECORDS[:1])
    assert shown.run.title == f"{before}-lr0.5"


def test_a_run_that_an_earlier_version_showed_keeps_its_place(sweep):
    other = run_spec(seed=1, optimizer={"peak_lr": 0.5})
    sweep.folders.append(RunFolder(sweep.path / "runs" / other.run_id, other))
    sweep.folders[-1].create()
    with sweep.follow(mine=Recording()):
        sweep.train(0, 2)
    path = sweep.path / "tracking" / "mine.json"
    state = json.loads(path.read_text())
    for run in state["runs"].values():
        del run["title"]
    path.write_text(json.dumps(state))
    tracker = Recording()
    with sweep.follow(mine=tracker):
        sweep.folders[-1].append_metrics(RECORDS[2:3])
    # TensorBoard's folder is then that of before, named as the run.
    assert f"{tracker.run.title}-{tracker.run.digest}" == other.run_id


def test_one_process_at_a_time_sends(sweep):
    first, second = Recording(), Recording()
    with sweep.follow(mine=first):
        sweep.train(0, 1)
        wait_until(lambda: len(first.got) == 2)
        with sweep.follow(mine=second):
            sweep.train(0, 3)
            time.sleep(0.1)
    assert not second.got and all(x == RECORDS[:3] for x in first.got.values())
    with sweep.follow(mine=second):
        sweep.train(0, 4)
    assert all(x == RECORDS[3:4] for x in second.got.values())


def test_a_run_that_has_ended_is_closed_while_others_train(sweep):
    tracker = Recording()
    with sweep.follow(mine=tracker):
        sweep.train(0, 7)
        one = sweep.folders[0]
        one.write_status("done", step=12, seconds=1.0)
        one.write_result({"status": "done", "reason": None})
        one.write_status("done", step=12, seconds=1.0)
        wait_until(lambda: tracker.ended)
        assert tracker.ended == {one.path.name: "done"}


def test_runs_that_have_ended_are_closed_in_the_look_that_opens_them(sweep):
    """A store of 150 runs had 150 event files open, which is more than some systems let a process open."""
    open_at_once = []

    class Counting(Recording):
        def log(self, run, records, sent):
            super().log(run, records, sent)
            open_at_once.append(len(self.got) - len(self.ended))

    tracker = Counting()
    sweep.train(0, 7)
    for folder in sweep.folders:
        folder.write_result({"status": "done", "reason": None})
        folder.write_status("done", step=12, seconds=1.0)
    with sweep.follow(mine=tracker):
        wait_until(lambda: len(tracker.got) == 2)
    assert open_at_once == [1, 1] and set(tracker.ended.values()) == {"done"}


def test_a_tracker_that_fails_is_told_the_end_of_its_open_runs(sweep):
    class FailingSecond(Recording):
        def log(self, run, records, sent):
            if self.got:
                raise RuntimeError("too many")
            super().log(run, records, sent)

    tracker, warned = FailingSecond(), []
    sweep.train(0, 7)
    with sweep.follow(warned.append, mine=tracker):
        wait_until(lambda: warned)
    assert tracker.got.keys() <= tracker.ended.keys()


def test_a_run_whose_end_fails_leaves_no_other_open(sweep):
    class FailingAtTheEnd(Recording):
        def end(self, run, status):
            super().end(run, status)
            raise RuntimeError(f"no end {len(self.ended)}")

    tracker, warned = FailingAtTheEnd(), []
    with sweep.follow(warned.append, mine=tracker):
        sweep.train(0, 7)
    assert len(tracker.ended) == 2
    assert len(warned) == 1 and warned[0].endswith("RuntimeError: no end 1")


def test_trackers_of_like_names_are_sent_the_records_each(sweep):
    """a/mine.py:note and a-mine.py:note had one file that says what was sent, and the second got nothing."""
    trackers = {label: Recording() for label in ("a/mine.py:note", "a-mine.py:note")}
    with sweep.follow(**trackers):
        sweep.train(0, 7)
    assert all(set(map(len, one.got.values())) == {7} for one in trackers.values())
    assert len(list((sweep.path / "tracking").glob("*.json"))) == 2


def test_a_tracker_that_fails_is_named_once(sweep):
    class Failing(Recording):
        def log(self, run, records, sent):
            raise RuntimeError("no network\nin two lines")

    warned, other = [], Recording()
    with sweep.follow(warned.append, bad=Failing(), good=other):
        sweep.train(0, 7)
        time.sleep(0.1)
    assert warned == [
        "tracking by bad has failed and stops, training goes on: RuntimeError: no network"
    ]
    assert all(x == RECORDS for x in other.got.values())


def test_a_tracker_that_hangs_is_left_behind(sweep, look_often, monkeypatch):
    monkeypatch.setattr(look_often, "FAREWELL", 0.1)
    free = threading.Event()

    class Hanging(Recording):
        def log(self, run, records, sent):
            free.wait(PATIENCE)

    warned = []
    with sweep.follow(warned.append, slow=Hanging()):
        sweep.train(0, 7)
        time.sleep(0.1)
    free.set()
    assert len(warned) == 1 and "tracking by slow is not done" in warned[0]


def test_scalars_have_the_names_of_the_log():
    assert scalars(record(2, lr=0.1, window=None)) == {
        "tokens": 128, "flops": 2e3, "loss": 4.8, "lr": 0.1
    }  # fmt: skip
    assert scalars(evaluated(6)) == {
        "tokens": 384, "flops": 6e3, "eval/valid/loss": 4.4, "eval/valid/bits_per_byte": 2.5
    }  # fmt: skip


def test_a_function_of_ones_own(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "seen = []\ndef hook(run, records):\n    seen.append((run.name, [r['step'] for r in records]))\n"
    (tmp_path / "my_hook_module.py").write_text(code)
    for name in ("my_hook_module:hook", f"{tmp_path / 'my_hook_module.py'}:hook"):
        make_tracker(name)
    import my_hook_module

    with sweep.follow(hook=make_tracker("my_hook_module:hook")):
        sweep.train(0, 3)
        time.sleep(0.05)
    assert {name for name, _ in my_hook_module.seen} == {f.path.name for f in sweep.folders}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mlflow", "a tracker is tensorboard, wandb or MODULE:FUNCTION of your own, not 'mlflow'"),
        ("no_such_module:f", "the module 'no_such_module' cannot be imported"),
        ("json:no_such", "json has no function 'no_such'"),
        ("missing.py:f", "there is no file missing.py"),
    ],
)
def test_a_bad_tracker_is_refused_before_training(
    capsys, monkeypatch, tmp_path, corpus, name, says
):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, "run", "isoflop", "--data", "tiny", "--track", name)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("tensorboard", "tensorboardX", "tensorboard"), ("wandb", "wandb", "wandb")],
)
def test_a_missing_package_is_named(monkeypatch, name, package, extra):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(TrackingError, match=rf"pip install 'lmscale\[{extra}\]'"):
        make_tracker(name)


# --- the real libraries --------------------------------------------------------------------------


def curve(folder, tag):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def test_what_tensorboard_took_is_on_the_disk(sweep):
    """Without an end of the file, as a killed process leaves it."""
    pytest.importorskip("tensorboardX")
    tracker = TensorBoard()
    folder = sweep.folders[0]
    run = TrackedRun(folder.path.name, "title", "group", folder.spec.to_dict(), {}, folder.path)
    written = []
    for last in range(20, 200, 20):
        records = [{"step": step, "loss": 1 / step} for step in range(last - 19, last + 1)]
        tracker.log(run, records, sent=last - 20)
        written += [(record["step"], pytest.approx(record["loss"])) for record in records]
        (place,) = (sweep.path / "tensorboard").iterdir()
        assert curve(place, "loss") == written


@pytest.mark.parametrize("noted", [True, False])
def test_tensorboard_shows_the_log_through_a_kill(sweep, noted):
    pytest.importorskip("tensorboardX")
    with sweep.follow(tensorboard=TensorBoard()):
        sweep.train(0, 4)
    state = sweep.path / "tracking" / "tensorboard.json"
    before = state.read_text()
    if not noted:
        # Killed before it was noted that anything had been sent.
        before = json.dumps({**json.loads(before), "runs": {}})
    with sweep.follow(tensorboard=TensorBoard()):
        sweep.train(2, 6)
    # Killed after sending and before it was noted: what was sent twice shows once.
    state.write_text(before)
    with sweep.follow(tensorboard=TensorBoard()):
        sweep.train(2, 7)
    for folder in sweep.folders:
        place = sweep.path / "tensorboard" / folder.path.name
        assert curve(place, "loss") == [(r["step"], r["loss"]) for r in RECORDS if "loss" in r]
        assert curve(place, "eval/valid/loss") == [
            (r["step"], r["eval"]["valid"]["loss"]) for r in RECORDS if "eval" in r
        ]


@pytest.mark.slow
def test_wandb_offline_keeps_the_log_and_the_group(sweep, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for first, last in ((0, 4), (2, 7)):
        with sweep.follow(wandb=make_tracker("wandb")):
            sweep.train(first, last)
    files = sorted(sweep.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 4
    group = json.loads((sweep.path / "tracking" / "wandb.json").read_text())["group"]
    found: dict[str, list[tuple[int, dict]]] = {}
    for file in files:
        run, history = read_offline(file)
        assert run.run_group == group and run.run_id.startswith(group)
        found.setdefault(run.display_name, []).extend(history)
    assert set(found) == {folder.path.name.rpartition("-")[0] for folder in sweep.folders}
    for history in found.values():
        losses = {step: row["loss"] for step, row in history if "loss" in row}
        assert losses == pytest.approx({r["step"]: r["loss"] for r in RECORDS if "loss" in r})
        evals = {s: row["eval/valid/loss"] for s, row in history if "eval/valid/loss" in row}
        assert evals == pytest.approx({6: 4.4, 10: 4.0})


def read_offline(path):
    """The run and its history in a file of wandb's."""
    from wandb.proto import wandb_internal_pb2

    run, history = None, []
    for data in leveldb_records(path.read_bytes()):
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(data)
        if entry.WhichOneof("record_type") == "run":
            run = entry.run
        elif entry.WhichOneof("record_type") == "history":
            items = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in entry.history.item
            }
            history.append((items["_step"], items))
    return run, history


def leveldb_records(data):
    """Records of LevelDB's log format: checksum, length, type (whole, first, middle, last), content."""
    assert data[:4] == b":W&B"
    place, block, found = 7, 32768, b""
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        found += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield found
            found = b""
