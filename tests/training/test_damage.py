"""No damage to a file changes a result in silence: what is read is right or named, and redone right."""

import collections
import json
import os
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from lmscale.cli import main
from lmscale.files import DamagedError, read_json, write_json
from lmscale.planner.devices import local_devices
from lmscale.planner.packs import make_plan
from lmscale.progress import progress
from lmscale.spec import StartSpec
from lmscale.sweep import execute as execution
from lmscale.sweep.execute import execute
from lmscale.sweep.experiment import Run
from lmscale.sweep.ownership import Claims
from lmscale.sweep.store import Store
from lmscale.training import resume
from lmscale.training.checkpoint import Checkpoints, checkpoint_fault, saved_steps
from lmscale.training.loop import Preempted
from lmscale.training.metrics_log import MetricsLog
from lmscale.training.run_folder import RunFolder
from lmscale.training.sample import sample_tokens
from tests.quick_compile import quick_jit
from tests.training import damage
from tests.training.specs import run_spec

#: (kind of file, kind of damage) -> files damaged.
COUNTS = collections.Counter()
#: Rounds of random damage for each kind of file and of damage; many by hand.
ROUNDS = int(os.environ.get("LMSCALE_DAMAGE_ROUNDS", "1"))
STEPS = 24
SMALL = {
    "metrics": "metrics.jsonl",
    "result": "result.json",
    "status": "status.json",
    "spec": "spec.json",
    "evals": "evals/other.json",
}


def kinds(quick, *further):
    """Kinds of damage, all but the quick one slow."""
    names = [name for name in (*damage.KINDS, *further) if name != quick]
    return [quick, *(pytest.param(name, marks=pytest.mark.slow) for name in names)]


def runs_of(corpus):
    return [
        Run(run_spec(corpus, steps=STEPS, eval_every=10, seed=seed), {"family": "transformer"})
        for seed in range(3)
    ]


def train(path, corpus, runs, *, dispatches=None):
    """Trains all runs side by side, as far as so many dispatches go; returns what was told."""
    store, lines, asked = Store(path), [], [0]
    write_experiment(store, runs)
    for run in runs:
        store.folder(run).create()

    def stop():
        asked[0] += 1
        return dispatches is not None and asked[0] > dispatches

    plan = make_plan(runs, local_devices(), n_slots=len(runs), mesh=(1, 1, 1))
    with progress("training", plan.flops) as bar:
        bar.log = lines.append
        try:
            execute(plan, store, lambda name: corpus, bar, checkpoint_seconds=0.0, stop=stop)
        except Preempted:
            assert dispatches is not None
    return lines


def write_experiment(store, runs):
    store.path.mkdir(parents=True, exist_ok=True)
    entries = [{"run": run.spec.run_id, "labels": run.labels} for run in runs]
    values = {"name": "tiny", "scale": "cpu", "title": "Tiny", "analyses": ["curves"]}
    write_json(store.path / "experiment.json", {**values, "runs": entries}, sealed=True)


def outcome(path):
    """What must not differ: results as bytes, and metrics but for their clock."""
    found = {}
    for folder in sorted((Path(path) / "runs").iterdir()):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for record in records:
            record.pop("tokens_per_second", None)
        found[folder.name] = ((folder / "result.json").read_bytes(), records)
    return found


@pytest.fixture(scope="module")
def runs(corpus):
    return runs_of(corpus)


@pytest.fixture(scope="module", autouse=True)
def counts():
    yield
    for (file, kind), count in sorted(COUNTS.items()):
        print(f"{file}, {kind}: {count}")


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """The stores and the tests of this module are trained by one program."""
    known, real = {}, execution.program_of

    def program_of(pack, *args):
        key = pack.key, pack.n_slots, pack.mesh
        if key not in known:
            known[key] = real(pack, *args)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick_jit)
        patch.setattr(execution, "program_of", program_of)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, runs, compile_once):
    """A finished store, with an evaluation made after the end."""
    path = tmp_path_factory.mktemp("damage") / "whole"
    train(path, corpus, runs)
    for run in runs:
        Store(path).folder(run).write_eval("other", {"evaluation": {}, "scores": {"loss": 2.5}})
    return path


@pytest.fixture(scope="module")
def half(tmp_path_factory, corpus, runs, compile_once):
    """A store that was stopped between its evaluations, with two checkpoints a run."""
    path = tmp_path_factory.mktemp("damage") / "half"
    train(path, corpus, runs, dispatches=2)
    for run in runs:
        assert len(saved_steps(Store(path).folder(run).checkpoints)) == 2
    return path


def other_of(runs, run_id):
    """The run after this one."""
    names = [run.spec.run_id for run in runs]
    return names[(names.index(run_id) + 1) % len(names)]


def hurt_checkpoint(path, half, runs, run_id, kind, rng):
    """Damages one file of a run's checkpoints; whether that must be told when training goes on."""
    folder, other = path / "runs" / run_id, half / "runs" / other_of(runs, run_id)
    step, files = checkpoint_files(folder, rng, newest=rng.random() < 0.8)
    newest = int(step.name) == max(saved_steps(folder / "checkpoints"))
    if kind == "swap" and rng.random() < 0.5:
        # All of another run's checkpoint, sound in itself.
        shutil.rmtree(step)
        shutil.copytree(other / "checkpoints" / step.name, step)
        return newest
    file = rng.choice(files)
    before, place = file.read_bytes(), file.relative_to(folder)
    # Names of data files are random.
    there = sorted((other / place).parent.iterdir())
    getattr(damage, kind)(file, other / place if (other / place).exists() else there[0], rng)
    same = file.exists() and file.read_bytes() == before
    # The mark of Orbax says nothing of the state.
    return newest and not same and place.parts[2:] != ("commit_success.txt",)


def rows_of(path):
    """Run -> its row, without what is not known of it."""
    return {
        row["run"]: {k: v for k, v in row.items() if not pd.isna(v)}
        for row in Store(path).table().to_dict("records")
    }


def checkpoint_files(folder, rng, newest):
    steps = sorted((int(p.name) for p in (folder / "checkpoints").iterdir()), reverse=True)
    step = folder / "checkpoints" / str(steps[0] if newest else rng.choice(steps))
    return step, sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size)


@pytest.mark.parametrize("kind", kinds("flip", "digit"))
@pytest.mark.parametrize("name", SMALL)
def test_damage_to_a_finished_run_is_named_and_redone(name, kind, whole, corpus, runs, tmp_path):
    """What readers make of it, and what training makes of it."""
    reference, rows = outcome(whole), rows_of(whole)
    for round_ in range(ROUNDS):
        rng = random.Random(f"{name} {kind} {round_}")
        path = tmp_path / str(round_)
        shutil.copytree(whole, path)
        hit = [run.spec.run_id for run in (runs if ROUNDS > 1 else runs[:1])]
        named = {}
        for run_id in hit:
            file, pristine, other = (
                place / "runs" / name_ / SMALL[name]
                for place, name_ in (
                    (path, run_id),
                    (whole, run_id),
                    (whole, other_of(runs, run_id)),
                )
            )
            getattr(damage, kind)(file, other, rng)
            COUNTS[name, kind] += 1
            same = file.exists() and file.read_bytes() == pristine.read_bytes()
            told = [line for line in Store(path).damage() if run_id in line]
            named[run_id] = any(Path(SMALL[name]).name in line for line in told)
            assert named[run_id] or name not in ("result", "metrics", "spec") or same
        found = rows_of(path)
        for run_id, row in rows.items():
            # Right, or named; a changed space changes nothing, a missing evaluation is none.
            lost = run_id in hit and name == "evals" and kind == "delete"
            assert named.get(run_id) or lost or found[run_id] == row, run_id
        train(path, corpus, runs)
        assert outcome(path) == reference
        if name != "evals":
            assert Store(path).damage() == []
            mended = Store(path).mended()
            assert all(any(run_id in line for line in mended) for run_id in hit if named[run_id])
        shutil.rmtree(path)


@pytest.mark.parametrize("kind", kinds("flip"))
def test_damage_to_a_checkpoint_changes_no_result(kind, whole, half, corpus, runs, tmp_path):
    reference = outcome(whole)
    for round_ in range(ROUNDS):
        rng = random.Random(f"checkpoint {kind} {round_}")
        path = tmp_path / str(round_)
        shutil.copytree(half, path)
        hit = [run.spec.run_id for run in (runs if ROUNDS > 1 else runs[:1])]
        due = [hurt_checkpoint(path, half, runs, run_id, kind, rng) for run_id in hit]
        COUNTS["checkpoint", kind] += len(hit)
        lines = train(path, corpus, runs)
        assert outcome(path) == reference
        for run_id, must_tell in zip(hit, due, strict=True):
            told = [line for line in lines if run_id in line and "is damaged" in line]
            assert told or not must_tell
            assert all("goes on from step" in line for line in told)
        shutil.rmtree(path)


@pytest.mark.parametrize("kind", kinds("zero", "digit"))
def test_damage_to_metrics_of_an_unfinished_run_leaves_no_hole(
    kind, whole, half, corpus, runs, tmp_path
):
    reference = outcome(whole)
    for round_ in range(ROUNDS):
        rng = random.Random(f"half metrics {kind} {round_}")
        path = tmp_path / str(round_)
        shutil.copytree(half, path)
        hit = [run.spec.run_id for run in (runs if ROUNDS > 1 else runs[:1])]
        changed = []
        for run_id in hit:
            file, pristine, other = (
                place / "runs" / name / "metrics.jsonl"
                for place, name in ((path, run_id), (half, run_id), (half, other_of(runs, run_id)))
            )
            getattr(damage, kind)(file, other, rng)
            COUNTS["unfinished metrics", kind] += 1
            if not file.exists() or file.read_bytes() != pristine.read_bytes():
                changed.append(run_id)
        lines = train(path, corpus, runs)
        assert outcome(path) == reference
        for run_id in changed:
            assert any(run_id in line and "metrics.jsonl" in line for line in lines), lines
        shutil.rmtree(path)


def test_both_generations_damaged_begin_again(whole, half, corpus, runs, tmp_path):
    shutil.copytree(half, tmp_path / "out")
    folder = Store(tmp_path / "out").folder(runs[0])
    for step in saved_steps(folder.checkpoints):
        (folder.checkpoints / str(step) / "digests.json").unlink()
        fault = checkpoint_fault(folder.checkpoints, folder.run_id, step)
        assert fault is not None and "digests.json is missing" in str(fault)
    lines = train(tmp_path / "out", corpus, runs)
    told = [line for line in lines if "digests.json is missing" in line]
    assert len(told) == 2 and all("trained again from the beginning" in line for line in told)
    assert outcome(tmp_path / "out") == outcome(whole)


def test_a_checkpoint_of_an_earlier_version_is_taken_up_with_a_line(
    whole, half, corpus, runs, tmp_path
):
    """It has no digests and says nothing of its metrics, whose steps are then counted."""
    shutil.copytree(half, tmp_path / "out")
    for run in runs:
        folder = Store(tmp_path / "out").folder(run)
        for step in saved_steps(folder.checkpoints):
            (folder.checkpoints / str(step) / "digests.json").unlink()
            extra = folder.checkpoints / str(step) / "extra" / "metadata"
            values = json.loads(extra.read_text())
            extra.write_text(json.dumps({"window": values["window"]}))
    hurt = Store(tmp_path / "out").folder(runs[1])
    lines = hurt.log_path.read_text().splitlines(keepends=True)
    hurt.log_path.write_text("".join(lines[:4] + lines[5:]))
    told = train(tmp_path / "out", corpus, runs)
    assert sum("earlier version" in line for line in told) == 1
    holes = [line for line in told if "about step 5 (loss)" in line]
    assert len(holes) == 2 and all(runs[1].spec.run_id in line for line in holes)
    ours, theirs = outcome(tmp_path / "out"), outcome(whole)
    for name, (result, records) in ours.items():
        # Spikes are counted from where the checkpoint was; there are none in so few steps.
        assert (result, records) == theirs[name]


@pytest.mark.slow
def test_a_damaged_state_that_others_start_from_is_made_again(tmp_path, corpus):
    schedule = {"name": "constant", "warmup_steps": 3}
    trunk = run_spec(corpus, schedule=schedule, steps=12)
    branch = run_spec(
        corpus,
        schedule={"name": "cooldown", "warmup_steps": 3, "cooldown_steps": 4},
        steps=10,
        start=StartSpec(run=trunk.run_id, step=6),
    )
    both = [Run(trunk, {}), Run(branch, {})]
    train(tmp_path / "whole", corpus, both)
    # The trunk has ended, and its branch hasn't begun.
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    store = Store(tmp_path / "out")
    shutil.rmtree(store.folder(both[1]).path)
    (file, *_) = (store.folder(both[0]).branches / "6" / "state" / "d").iterdir()
    damage.flip(Path(file), Path(file), random.Random(0))
    with Claims() as claims:
        # While another trains the trunk, it is left alone.
        assert claims.take(store.folder(both[0]).path) is None
        assert execution._mend_trunks(make_plan(both, local_devices(), n_slots=1), store) == []
    lines = train(tmp_path / "out", corpus, both)
    assert any("is trained again to make it" in line and "branches/6" in line for line in lines)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    assert any("branches/6" in line for line in store.mended())


def ended_trunk(path, corpus, kept, at=12, status="done"):
    """The folder of a run that has ended, with a few bytes as the states that it kept and as its checkpoints.

    Args:
      at: the step at which it ended.
      status: None where it has not ended.
    """
    schedule = {"name": "constant", "warmup_steps": 3}
    trunk = Store(path).folder(Run(run_spec(corpus, schedule=schedule, steps=12), {}))
    trunk.create()
    if status is not None:
        mark = MetricsLog(trunk.log_path).mark()
        trunk.end({"status": status, "reason": None}, mark, step=at, seconds=1.0)
    for folder, saved in [(trunk.branches, kept), (trunk.checkpoints, (5, 10))]:
        for step in saved:
            checkpoints = Checkpoints(folder, trunk.run_id, keep_all=True)
            checkpoints.save(step, {"a": np.arange(1000)}, {})
            checkpoints.wait()
            checkpoints.close()
    return trunk


def test_a_kill_at_any_moment_of_mending_a_trunk_leaves_it_to_be_mended(
    tmp_path, corpus, monkeypatch
):
    """The damage is found again until the trunk is one that has not ended and lacks the state."""

    class Kill(BaseException):
        pass

    def killed(what, *arguments):
        deleted.append(what(*arguments))
        if len(deleted) == moment:
            raise Kill

    trunk = ended_trunk(tmp_path, corpus, kept=(6,))
    (file, *_) = (trunk.branches / "6" / "state" / "d").iterdir()
    damage.flip(Path(file), Path(file), random.Random(0))
    real, forget = resume.delete_step, RunFolder.forget_end
    monkeypatch.setattr(resume, "delete_step", lambda *a: killed(real, *a))
    monkeypatch.setattr(RunFolder, "forget_end", lambda self: killed(forget, self))
    for last in (1, 2):
        deleted, moment = [], last
        with pytest.raises(Kill):
            resume.retrain_damaged_trunk(trunk, 6)
        assert saved_steps(trunk.branches) == [6]
    moment = None
    assert "is trained again" in resume.retrain_damaged_trunk(trunk, 6)
    assert trunk.result() is None
    assert saved_steps(trunk.branches) == [] and saved_steps(trunk.checkpoints) == [5]


@pytest.mark.parametrize(
    ("status", "ended_at", "step", "again", "left"),
    [
        ("done", 12, 6, True, [5]),
        ("done", 12, 12, True, [5, 10]),
        # It was stopped before that step, and would be again.
        ("done", 10, 11, False, [5, 10]),
        ("diverged", 12, 11, True, [5, 10]),
        ("diverged", 12, 12, False, [5, 10]),
        # A run that goes on from step 10 does not pass step 8.
        (None, 0, 8, True, [5]),
        (None, 0, 10, False, [5, 10]),
        (None, 0, 11, False, [5, 10]),
    ],
)
def test_a_run_that_kept_no_state_for_another_is_trained_again(
    tmp_path, corpus, status, ended_at, step, again, left
):
    trunk = ended_trunk(tmp_path, corpus, kept=(3,), at=ended_at, status=status)
    line = resume.retrain_damaged_trunk(trunk, step)
    assert ("kept no state" in (line or "")) == again
    assert (trunk.result() is None) == (again or status is None)
    assert saved_steps(trunk.checkpoints) == left and saved_steps(trunk.branches) == [3]
    # Nothing was damaged, and the second time there is nothing to do.
    assert trunk.damage_notes() == []
    assert not again or resume.retrain_damaged_trunk(trunk, step) is None


@pytest.mark.slow
def test_an_extension_may_start_from_steps_that_a_run_did_not_keep(tmp_path, corpus):
    trunk = run_spec(corpus, schedule={"name": "constant", "warmup_steps": 3}, steps=12)
    schedule = {"name": "cooldown", "warmup_steps": 3, "cooldown_steps": 4}
    late, early = (
        run_spec(
            corpus, schedule=schedule, steps=at + 4, start=StartSpec(run=trunk.run_id, step=at)
        )
        for at in (8, 6)
    )
    runs = [Run(spec, {}) for spec in (trunk, late, early)]
    train(tmp_path / "out", corpus, runs[:2])
    train(tmp_path / "out", corpus, runs)
    train(tmp_path / "whole", corpus, runs)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["flip", "truncate", "zero", "empty", "digit", "delete"])
def test_a_damaged_experiment_is_named_and_never_believed(kind, whole, runs, tmp_path):
    reference = Store(whole).experiment()
    for round_ in range(max(3, ROUNDS)):
        rng = random.Random(f"experiment {kind} {round_}")
        (tmp_path / str(round_)).mkdir()
        path = tmp_path / str(round_) / "experiment.json"
        shutil.copyfile(whole / "experiment.json", path)
        getattr(damage, kind)(path, path, rng)
        try:
            assert Store(path.parent).experiment() == reference
        except DamagedError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_a_checkpoint_names_the_first_file_that_is_wrong(half, runs, tmp_path):
    shutil.copytree(half, tmp_path / "out")
    folder = Store(tmp_path / "out").folder(runs[0])
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id)
    step = checkpoints.latest()
    known = read_json(folder.checkpoints / str(step) / "digests.json")
    assert known["run"] == folder.run_id and known["step"] == step
    assert {"_CHECKPOINT_METADATA", "state/_METADATA", "extra/metadata"} <= set(known["files"])
    checkpoints.close()


def test_a_damaged_checkpoint_of_an_ended_run_is_found_and_made_again(
    whole, corpus, runs, tmp_path, capsys
):
    """Nothing reads it until the run is sampled from or scored, unless `status --check` is asked."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    folder = Store(out).folder(runs[0])
    path = folder.checkpoints / str(STEPS)
    arrays = max(Path(path).glob("state/**/*"), key=lambda file: file.stat().st_size)
    assert main(["status", str(out), "--check"]) == 0
    damage.flip(arrays, arrays, random.Random(0))
    assert main(["status", str(out)]) == 0
    capsys.readouterr()
    assert main(["status", str(out), "--check", "--json"]) == 1
    said = capsys.readouterr()
    (line,) = json.loads(said.out)["damaged_checkpoints"]
    name = f"{Path(path).relative_to(out)} is damaged: {arrays.relative_to(path)}"
    assert line == f"{name} doesn't match its digest"
    assert said.err.count("then `lmscale run` makes it again") == 1
    with pytest.raises(DamagedError, match=r"result\.json, then `lmscale run`"):
        list(sample_tokens(folder, [1], n_tokens=1, temperature=0.0, seed=0))
    # What both lines say.
    (folder.path / "result.json").unlink()
    train(out, corpus, runs)
    assert Store(out).damaged_checkpoints() == []
    assert len(list(sample_tokens(folder, [1], n_tokens=1, temperature=0.0, seed=0))) == 1
    assert outcome(out) == outcome(whole)


@pytest.mark.parametrize("content", ["[1]", "7", "{}", "", "{", '{"item_handlers": 3}'])
def test_a_reader_names_what_orbax_itself_does_not_expect(content, whole, runs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    folder = Store(out).folder(runs[0])
    (folder.checkpoints / str(STEPS) / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(DamagedError, match=r"_CHECKPOINT_METADATA.*then `lmscale run`"):
        list(sample_tokens(folder, [1], n_tokens=1, temperature=0.0, seed=0))


def test_the_run_goes_on_where_orbax_cannot_read_the_metadata_of_a_checkpoint(
    whole, half, corpus, runs, tmp_path
):
    shutil.copytree(half, tmp_path / "out")
    folder = Store(tmp_path / "out").folder(runs[0])
    newest = max(saved_steps(folder.checkpoints))
    (folder.checkpoints / str(newest) / "_CHECKPOINT_METADATA").write_text("[1]")
    lines = train(tmp_path / "out", corpus, runs)
    (told,) = [line for line in lines if "_CHECKPOINT_METADATA" in line]
    assert f"checkpoints/{newest} is damaged" in told and "it goes on from step" in told
    assert outcome(tmp_path / "out") == outcome(whole)


def test_ended_runs_without_a_checkpoint_are_told(whole, runs, tmp_path, capsys):
    """They are no damage: whoever wants the room deletes them."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert Store(out).without_checkpoint() == []
    gone = Store(out).folder(runs[0])
    shutil.rmtree(gone.checkpoints)
    assert main(["status", str(out), "--check", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["without_checkpoint"] == [gone.run_id]
    assert (
        f"1 run of out without a checkpoint, which `sample` and `export` need: {gone.run_id}"
        in said.err
    )


@pytest.mark.parametrize("name", ["status.json", "result.json", "spec.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_named(name, whole, runs, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = Path(Store(out).folder(runs[0]).path) / name
    path.unlink()
    path.mkdir()
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 failed" in said and f"{path} is damaged: it is a folder" in said
