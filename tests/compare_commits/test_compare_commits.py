"""The comparison of two commits sees what it is there to see."""

import importlib
import json

import pytest

from tests.compare_commits.numbers import numbers_of, verdict
from tests.compare_commits.side import kind_of, shortened, smallest_of_each_kind
from tests.fake_corpus import fake_corpus


def numbers(folder, loss=2.5, seconds=1.0, **more):
    folder.mkdir()
    records = [
        {"step": 1, "loss": loss, "grad_norm": 0.1 + 0.2, "tokens_per_second": seconds},
        {"step": 2, "eval": {"valid": {"loss": 2.25, "by_position": [2.5, 2.0]}}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (folder / "result.json").write_text(
        json.dumps({"run": folder.name, "train_loss": loss, **more})
    )
    return numbers_of(folder)


def test_what_depends_on_the_clock_and_names_are_no_numbers(tmp_path):
    before = numbers(tmp_path / "a", seconds=1.0)
    assert before["step 1, training: grad_norm"] == "0.30000000000000004"
    assert before["step 2, evaluation: eval: valid: by_position[1]"] == "2.0"
    assert verdict(before, numbers(tmp_path / "b", seconds=2.0)) == "identical"


def test_the_last_bit_of_a_number_is_seen(tmp_path):
    before, after = numbers(tmp_path / "a"), numbers(tmp_path / "b", loss=2.5000000000000004)
    assert verdict(before, after) == (
        "2 of 8 numbers differ, the first step 1, training: loss: 2.5, then 2.5000000000000004"
    )


def test_numbers_that_only_one_commit_writes_are_told(tmp_path):
    before, after = numbers(tmp_path / "a"), numbers(tmp_path / "b", loss_spikes=0)
    assert verdict(before, after) == "identical (1 new: result: loss_spikes)"
    assert verdict(after, before) == "identical (1 missing: result: loss_spikes)"


@pytest.mark.parametrize(
    ("experiment", "n_kinds"), [("cooldown", 4), ("recurrent_transformer", 3), ("schedules", 7)]
)
def test_every_kind_of_run_is_compared_and_short(experiment, n_kinds):
    scales = importlib.import_module(f"lmscale_experiments.{experiment}").SCALES
    specs = [run.spec for run in scales["cpu"].runs(fake_corpus(512))]
    chains = list(smallest_of_each_kind(specs))
    assert len({kind_of(chain[-1]) for chain in chains}) == len(chains) == n_kinds
    for chain in chains:
        short = shortened(chain, 60)
        assert short[-1].steps == 60
        for k, spec in enumerate(short):
            assert spec.eval_every == -(-spec.steps // 2) and spec.eval_steps == ()
            # A run starts from the cut trunk before it, within its steps.
            assert (spec.start is not None) == (k > 0)
            if k:
                assert spec.start.run == short[k - 1].run_id
                assert spec.start.step <= short[k - 1].steps
