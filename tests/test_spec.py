"""A run is a value: its JSON, its hash and what it refuses to be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lmscale.spec import (
    DataSpec,
    EvalSpec,
    LSTMSpec,
    OptimizerSpec,
    RunSpec,
    ScheduleSpec,
    SpecError,
    StartSpec,
    StoppingSpec,
    TransformerSpec,
)

TRANSFORMER = TransformerSpec(n_layer=4, d_model=256, n_ctx=1024, vocab_size=50_257)
LSTM = LSTMSpec(n_layer=2, d_hidden=512, n_ctx=256, vocab_size=8192)
DATA = DataSpec(corpus="webtext", fingerprint="0123abcd")
ADAM = OptimizerSpec(peak_lr=1e-3)
EVAL = EvalSpec(name="books", corpus="books", fingerprint="4567cdef")

PLAIN = RunSpec(
    model=TRANSFORMER,
    data=DATA,
    optimizer=ADAM,
    schedule=ScheduleSpec(),
    batch_size=512,
    steps=250_000,
)

#: Every field away from its default, as far as they go together.
FULL = RunSpec(
    model=TransformerSpec(
        n_layer=3,
        d_model=96,
        n_ctx=128,
        vocab_size=1000,
        n_head=4,
        d_ff=200,
        d_attn=64,
        reuse=2,
        reuse_order="layer",
        step_signal="sinusoidal",
        norm="post",
        activation="relu",
        bias=False,
        tied_head=False,
        dropout=0.1,
        init_std=0.1,
    ),
    data=DataSpec(corpus="webtext", fingerprint="0123abcd", subset_tokens=21_500_000),
    optimizer=OptimizerSpec(
        name="adafactor",
        peak_lr=0.01,
        beta1=0.0,
        beta2=0.99,
        eps=1e-6,
        weight_decay=0.1,
        grad_clip=None,
    ),
    schedule=ScheduleSpec(name="cooldown", warmup_steps=10, final_fraction=0.0, cooldown_steps=200),
    batch_size=32,
    steps=1000,
    seed=7,
    compute_dtype="bfloat16",
    evals=(
        EVAL,
        EvalSpec(
            name="wiki",
            corpus="wiki",
            fingerprint="89ef",
            split="test",
            tokens=1_000_000,
            sampling="spread",
        ),
    ),
    eval_every=100,
)

RECURRENT = dataclasses.replace(
    PLAIN,
    model=LSTMSpec(
        n_layer=1,
        d_hidden=64,
        n_ctx=64,
        vocab_size=256,
        d_embed=32,
        projection=False,
        tied_head=False,
        dropout=0.2,
    ),
    schedule=ScheduleSpec(name="linear", cycle_steps=300_000),
)

#: With the fields that came later.
BRANCH = dataclasses.replace(
    FULL,
    data=dataclasses.replace(FULL.data, subset_by="sequences"),
    eval_steps=(7, 70),
    stopping=StoppingSpec(patience=3),
    start=StartSpec(run=PLAIN.run_id, step=500),
    noise_pieces=4,
)

#: With the initialisation that LSTMs got later.
SOUND = dataclasses.replace(
    RECURRENT,
    model=dataclasses.replace(
        RECURRENT.model, projection=True, embed_std=None, projection_gain=2.0
    ),
)

#: With documents that are masked from each other, which came later too.
MASKED = dataclasses.replace(
    SOUND, model=dataclasses.replace(SOUND.model, document_separator=1), start=BRANCH.start
)

#: With rotary positions, later still.
ROTARY = dataclasses.replace(PLAIN, model=dataclasses.replace(PLAIN.model, positions="rotary"))

RUNS = {
    "plain": PLAIN,
    "full": FULL,
    "recurrent": RECURRENT,
    "branch": BRANCH,
    "sound": SOUND,
    "masked": MASKED,
}

#: These name folders in people's stores: a change here orphans their runs.
HASHES = {
    "plain": "f2609d6218f7",
    "full": "03e6e017d203",
    "recurrent": "f61c594d4922",
    "branch": "7ae6efb6aa86",
    "sound": "eec2762775b2",
    "masked": "5a89a808c170",
}

each_run = pytest.mark.parametrize("name", RUNS)


@each_run
def test_json_round_trip(name):
    run = RUNS[name]
    again = RunSpec.from_json(run.to_json())
    assert again == run
    assert type(again.model) is type(run.model)
    assert again.to_json() == run.to_json()
    assert again.hash == run.hash


def test_the_full_example_leaves_no_field_at_its_default():
    """Or else the round trip would not try it. `cycle_steps` excludes `cooldown_steps`, and a
    `projection_gain` needs a `projection`."""
    specs = [BRANCH, FULL.model, BRANCH.data, FULL.optimizer, FULL.schedule, FULL.evals[1]]
    specs += [BRANCH.stopping, BRANCH.start]
    specs += [MASKED.model]
    same = {
        f"{type(spec).__name__}.{field.name}"
        for spec in specs
        for field in dataclasses.fields(spec)
        if getattr(spec, field.name) == field.default
    }
    # Momentum belongs to another optimizer than the example has; later fields are tried elsewhere.
    assert same == {
        "ScheduleSpec.cycle_steps",
        "LSTMSpec.projection",
        "OptimizerSpec.momentum",
        "TransformerSpec.document_separator",
        "TransformerSpec.positions",
    }


@each_run
def test_json_holds_every_field(name):
    run = RUNS[name]
    plain = json.loads(run.to_json())
    assert set(plain) == {field.name for field in dataclasses.fields(run)}
    for part in ("data", "optimizer", "schedule"):
        fields = dataclasses.fields(getattr(run, part))
        assert set(plain[part]) == {field.name for field in fields}
    model_fields = {field.name for field in dataclasses.fields(run.model)}
    assert set(plain["model"]) == model_fields | {"kind"}
    assert plain["model"]["kind"] == run.model.kind


def test_json_with_a_missing_optional_field_takes_its_default():
    plain = PLAIN.to_dict()
    del plain["seed"], plain["optimizer"]["beta2"], plain["model"]["d_ff"]
    assert RunSpec.from_dict(plain) == PLAIN


@each_run
def test_hash_is_pinned(name):
    assert RUNS[name].hash == HASHES[name]


def test_hash_covers_only_what_differs_from_the_defaults():
    """So that a later version may add a field without renaming anybody's runs."""
    model = {
        "kind": "transformer",
        "n_layer": 4,
        "d_model": 256,
        "n_ctx": 1024,
        "vocab_size": 50_257,
        # Derived defaults count as given.
        "n_head": 4,
        "d_ff": 1024,
        "d_attn": 256,
    }
    canonical = {
        "model": model,
        "data": {"corpus": "webtext", "fingerprint": "0123abcd"},
        "optimizer": {"peak_lr": 0.001},
        "schedule": {},
        "batch_size": 512,
        "steps": 250_000,
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    assert PLAIN.hash == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_hash_is_the_same_whether_a_derived_default_is_written_out():
    written = dataclasses.replace(TRANSFORMER, d_ff=1024, d_attn=256, n_head=4)
    assert dataclasses.replace(PLAIN, model=written).hash == PLAIN.hash


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_hash_is_the_same_in_another_process(seed):
    program = (
        "import sys; from lmscale.spec import RunSpec; "
        "print(RunSpec.from_json(sys.stdin.read()).hash)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        input=FULL.to_json(),
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == FULL.hash


def test_hash_does_not_depend_on_the_order_of_fields_in_json():
    def backwards(value):
        if isinstance(value, dict):
            return {key: backwards(value[key]) for key in reversed(value)}
        return value

    plain = FULL.to_dict()
    turned = json.dumps(backwards(plain))
    assert turned != json.dumps(plain)
    assert RunSpec.from_json(turned).hash == FULL.hash


def test_hash_does_not_depend_on_the_type_of_a_number():
    run = dataclasses.replace(
        PLAIN, batch_size=np.int64(512), steps=250_000.0, optimizer=OptimizerSpec(peak_lr=1)
    )
    assert type(run.batch_size) is int and type(run.steps) is int
    assert type(run.optimizer.peak_lr) is float
    same = dataclasses.replace(PLAIN, optimizer=OptimizerSpec(peak_lr=np.float64(1.0)))
    assert run.hash == same.hash


def other_value(spec, field):
    """Some other value that this field may have."""
    value = getattr(spec, field.name)
    choices = {
        "reuse_order": "stack",
        "step_signal": "none",
        "norm": "pre",
        "activation": "gelu",
        "name": {"adafactor": "adamw", "adamw": "adafactor", "cooldown": "constant"}.get(
            value, "other"
        ),
        "split": "train",
        "sampling": "first",
        "compute_dtype": "float32",
        "n_head": 8,
        "d_attn": 128,
        "grad_clip": 1.0,
        "subset_tokens": None,
        "subset_by": "sequences",
        "eval_steps": (5,),
        "stopping": StoppingSpec(patience=2),
        "start": StartSpec(run="another", step=10),
        "noise_pieces": 2,
        "document_separator": 0,
        "positions": "rotary",
    }
    if field.name in choices:
        return choices[field.name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "2"
    return value / 2 + 0.25 if isinstance(value, float) else value + 1


@pytest.mark.parametrize("part", ["model", "data", "optimizer", "evals", "run"])
def test_every_field_enters_the_hash(part):
    whole = {"model": FULL.model, "data": FULL.data, "optimizer": FULL.optimizer}
    spec = {**whole, "evals": FULL.evals[1], "run": FULL}[part]
    for field in dataclasses.fields(spec):
        if part == "run" and field.name in ("model", "data", "optimizer", "schedule", "evals"):
            continue
        if field.name == "momentum":
            continue
        changed = dataclasses.replace(spec, **{field.name: other_value(spec, field)})
        if part == "run":
            run = changed
        elif part == "evals":
            run = dataclasses.replace(FULL, evals=(EVAL, changed))
        else:
            run = dataclasses.replace(FULL, **{part: changed})
        assert run != FULL, field.name
        assert run.hash != FULL.hash, field.name


def test_muons_momentum_enters_the_hash():
    muon = dataclasses.replace(FULL.optimizer, name="muon")
    runs = [
        dataclasses.replace(FULL, optimizer=dataclasses.replace(muon, momentum=momentum))
        for momentum in (0.9, 0.95)
    ]
    assert runs[0].hash != runs[1].hash != FULL.hash


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "constant", "cooldown_steps": None},
        {"warmup_steps": 11},
        {"final_fraction": 0.1},
        {"cooldown_steps": 201},
        {"name": "cosine", "cooldown_steps": None, "cycle_steps": 500},
    ],
)
def test_every_field_of_the_schedule_enters_the_hash(changes):
    run = dataclasses.replace(FULL, schedule=dataclasses.replace(FULL.schedule, **changes))
    assert run.hash != FULL.hash


def test_the_order_of_evaluations_enters_the_hash():
    assert dataclasses.replace(FULL, evals=FULL.evals[::-1]).hash != FULL.hash


def test_runs_are_frozen_and_serve_as_keys():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.steps = 1
    assert {PLAIN: 1}[RunSpec.from_json(PLAIN.to_json())] == 1


def test_tokens_of_a_run():
    assert PLAIN.batch_tokens == 2**19
    assert PLAIN.n_tokens == 250_000 * 2**19


def test_run_id_reads_and_ends_in_the_hash():
    assert PLAIN.run_id == f"transformer-4x256-b512-s250000-seed0-{PLAIN.hash}"
    assert FULL.run_id == f"transformer-3x2x96-b32-s1000-seed7-{FULL.hash}"
    assert RECURRENT.run_id.startswith("lstm-1x64-b512-")


@pytest.mark.parametrize(
    ("d_model", "n_head"), [(8, 1), (64, 1), (128, 2), (768, 12), (1600, 25), (4288, 67), (100, 2)]
)
def test_default_heads_are_about_64_wide_and_divide(d_model, n_head):
    model = dataclasses.replace(TRANSFORMER, d_model=d_model, d_ff=None, d_attn=None, n_head=None)
    assert (model.n_head, model.d_attn, model.d_ff) == (n_head, d_model, 4 * d_model)
    assert model.d_attn % model.n_head == 0


def test_depth_counts_every_use_of_a_block():
    assert dataclasses.replace(TRANSFORMER, reuse=3).depth == 12


def change(spec, **fields):
    return lambda: dataclasses.replace(spec, **fields)


TRANSFORMER_COUNTS = (
    "n_layer",
    "d_model",
    "n_ctx",
    "vocab_size",
    "n_head",
    "d_ff",
    "d_attn",
    "reuse",
)

#: What is refused, and the field that the message must name.
INVALID = [
    *[
        (change(TRANSFORMER, **{field: value}), f"TransformerSpec.{field}")
        for field in TRANSFORMER_COUNTS
        for value in (0, -1, 1.5, "8", True)
    ],
    (change(TRANSFORMER, n_layer=None), "TransformerSpec.n_layer"),
    (change(TRANSFORMER, n_head=3), "TransformerSpec.d_attn"),
    (change(TRANSFORMER, reuse_order="ABAB"), "TransformerSpec.reuse_order"),
    (change(TRANSFORMER, step_signal="learned"), "TransformerSpec.step_signal"),
    (change(TRANSFORMER, norm="rms"), "TransformerSpec.norm"),
    (change(TRANSFORMER, activation="swish"), "TransformerSpec.activation"),
    (change(TRANSFORMER, bias=1), "TransformerSpec.bias"),
    (change(TRANSFORMER, tied_head=None), "TransformerSpec.tied_head"),
    (change(TRANSFORMER, dropout=1.0), "TransformerSpec.dropout"),
    (change(TRANSFORMER, dropout=-0.1), "TransformerSpec.dropout"),
    (change(TRANSFORMER, dropout=float("nan")), "TransformerSpec.dropout"),
    *[
        (change(LSTM, **{field: 0}), f"LSTMSpec.{field}")
        for field in ("n_layer", "d_hidden", "n_ctx", "vocab_size", "d_embed")
    ],
    (change(LSTM, dropout=1), "LSTMSpec.dropout"),
    (change(LSTM, projection=False, d_hidden=64), "projection"),
    (change(DATA, corpus=3), "DataSpec.corpus"),
    (change(DATA, fingerprint=None), "DataSpec.fingerprint"),
    (change(DATA, subset_tokens=0), "DataSpec.subset_tokens"),
    (change(EVAL, name=""), "EvalSpec.name"),
    (change(EVAL, name="../../x"), "EvalSpec.name"),
    (change(EVAL, name="a\nb"), "EvalSpec.name"),
    (change(EVAL, split="dev"), "EvalSpec.split"),
    (change(EVAL, tokens=0), "EvalSpec.tokens"),
    (change(ADAM, name="sgd"), "OptimizerSpec.name"),
    (change(ADAM, peak_lr=0.0), "OptimizerSpec.peak_lr"),
    (change(ADAM, peak_lr=float("inf")), "OptimizerSpec.peak_lr"),
    (change(ADAM, peak_lr=float("nan")), "OptimizerSpec.peak_lr"),
    (change(ADAM, peak_lr="1e-3"), "OptimizerSpec.peak_lr"),
    (change(LSTM, embed_std=0.0), "LSTMSpec.embed_std"),
    (change(LSTM, projection_gain=0.0), "LSTMSpec.projection_gain"),
    (change(LSTM, projection=False, projection_gain=2.0), "LSTMSpec.projection_gain"),
    (change(ADAM, beta1=1.0), "OptimizerSpec.beta1"),
    (change(ADAM, beta2=-0.1), "OptimizerSpec.beta2"),
    (change(ADAM, eps=0.0), "OptimizerSpec.eps"),
    (change(ADAM, weight_decay=-0.1), "OptimizerSpec.weight_decay"),
    (change(ADAM, name="adam", weight_decay=0.1), "OptimizerSpec.weight_decay"),
    (change(ADAM, grad_clip=0.0), "OptimizerSpec.grad_clip"),
    (change(ScheduleSpec(), name="wsd"), "ScheduleSpec.name"),
    (change(ScheduleSpec(), warmup_steps=-1), "ScheduleSpec.warmup_steps"),
    (change(ScheduleSpec(), final_fraction=1.1), "ScheduleSpec.final_fraction"),
    (change(ScheduleSpec(), cycle_steps=0), "ScheduleSpec.cycle_steps"),
    (change(ScheduleSpec(), name="constant", cycle_steps=9), "ScheduleSpec.cycle_steps"),
    (change(ScheduleSpec(), name="cooldown", cooldown_steps=0), "ScheduleSpec.cooldown_steps"),
    (change(ScheduleSpec(), cooldown_steps=9), "ScheduleSpec.cooldown_steps"),
    (change(ScheduleSpec(), name="inverse_sqrt"), "warmup_steps"),
    (change(PLAIN, model=ADAM), "RunSpec.model"),
    (change(PLAIN, data=None), "RunSpec.data"),
    (change(PLAIN, batch_size=0), "RunSpec.batch_size"),
    (change(PLAIN, steps=0), "RunSpec.steps"),
    (change(PLAIN, seed=-1), "RunSpec.seed"),
    (change(PLAIN, seed=2**31), "RunSpec.seed"),
    (change(PLAIN, compute_dtype="float16"), "RunSpec.compute_dtype"),
    (change(PLAIN, eval_every=0), "RunSpec.eval_every"),
    (change(PLAIN, evals=EVAL), "RunSpec.evals"),
    (change(PLAIN, evals=(EVAL, "wiki")), "RunSpec.evals[1]"),
    (change(PLAIN, evals=(EVAL, EVAL)), "RunSpec.evals"),
    (change(PLAIN, steps=9, schedule=ScheduleSpec(warmup_steps=10)), "ScheduleSpec.warmup_steps"),
    (lambda: RunSpec.from_json("{"), "JSON"),
    (lambda: RunSpec.from_json("[]"), "RunSpec"),
    (lambda: RunSpec.from_dict({**PLAIN.to_dict(), "stpes": 1}), "stpes"),
    (
        lambda: RunSpec.from_dict({**PLAIN.to_dict(), "model": {"kind": "mamba"}}),
        "RunSpec.model.kind",
    ),
    (lambda: RunSpec.from_dict({**PLAIN.to_dict(), "optimizer": {}}), "peak_lr"),
    (
        lambda: RunSpec.from_dict({**PLAIN.to_dict(), "optimizer": {"peak_lr": 1, "lr": 1}}),
        "RunSpec.optimizer",
    ),
    (lambda: RunSpec.from_dict({**PLAIN.to_dict(), "schedule": "cosine"}), "RunSpec.schedule"),
    (lambda: RunSpec.from_dict({**PLAIN.to_dict(), "evals": [{"name": "x"}]}), "RunSpec.evals[0]"),
]


@pytest.mark.parametrize(("make", "field"), INVALID)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_field(make, field):
    with pytest.raises(SpecError) as error:
        make()
    message = str(error.value)
    assert field in message
    assert "\n" not in message
    # A whole sentence, not the bare name.
    assert len(message) > len(field) + 10


@pytest.mark.parametrize(
    "run", ["", ".", "..", "../../x", "/etc", "a/b", "a\\b", "a\0b", "x" * 999]
)
def test_a_run_starts_from_a_run_of_its_own_store(run):
    with pytest.raises(SpecError, match=r"StartSpec\.run must be a plain name"):
        StartSpec(run=run, step=1)
    values = FULL.to_dict()
    values["start"] = {"run": run, "step": 1}
    with pytest.raises(SpecError, match=r"StartSpec\.run must be a plain name"):
        RunSpec.from_dict(values)


def test_limits_that_are_allowed():
    """The values next to the refused ones."""
    dataclasses.replace(TRANSFORMER, n_layer=1, dropout=0.0)
    dataclasses.replace(LSTM, projection=False)
    dataclasses.replace(ADAM, beta1=0.0, grad_clip=None, weight_decay=0.1)
    dataclasses.replace(ADAM, name="adam")
    dataclasses.replace(PLAIN, seed=2**31 - 1, steps=10, schedule=ScheduleSpec(warmup_steps=10))
    for fraction in (0.0, 1.0):
        ScheduleSpec(final_fraction=fraction)
    ScheduleSpec(name="inverse_sqrt", warmup_steps=1)


@pytest.mark.parametrize("begin", [0, 4, 9, 10])
@pytest.mark.parametrize("every", [None, 1, 3, 5, 20, 40])
@pytest.mark.parametrize("chosen", [(), (1, 9, 10), (20,)])
def test_evaluations_are_counted_without_a_list_of_them(begin, every, chosen):
    """A plan counts those of runs of any length."""
    short = ScheduleSpec(warmup_steps=0)
    fields = {"steps": 20, "eval_every": every, "eval_steps": chosen, "schedule": short}
    start = StartSpec(run="a", step=begin) if begin else None
    spec = dataclasses.replace(PLAIN, **fields, start=start)
    due = [step for step in range(begin + 1, 21) if spec.is_evaluated_at(step)]
    assert spec.n_evaluations == len(due) and due[-1] == 20
    longest = dataclasses.replace(PLAIN, steps=10**9, eval_every=1)
    assert longest.n_evaluations == 10**9
