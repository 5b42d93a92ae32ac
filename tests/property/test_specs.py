"""Whatever is changed in the JSON of a run: it is a run, or one line says what is wrong."""

import copy
import json

from hypothesis import given
from hypothesis import strategies as st

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
from tests.property.harness import COUNTS, deadline, examples

_SHARED = {"n_ctx": 64, "vocab_size": 300}
_DATA = DataSpec(corpus="c", fingerprint="f")
_EVAL = EvalSpec(name="valid", corpus="c", fingerprint="f")


def run_of(model, **fields):
    return RunSpec(
        model=model,
        data=_DATA,
        optimizer=OptimizerSpec(peak_lr=1e-3),
        schedule=ScheduleSpec(warmup_steps=3),
        batch_size=4,
        steps=50,
        evals=(_EVAL,),
        **fields,
    )


RUNS = [
    run_of(TransformerSpec(n_layer=2, d_model=16, **_SHARED), noise_pieces=2, eval_steps=(1, 9)),
    run_of(LSTMSpec(n_layer=1, d_hidden=16, **_SHARED), start=StartSpec(run="x", step=5)),
    run_of(
        TransformerSpec(n_layer=1, d_model=64, reuse=2, step_signal="sinusoidal", **_SHARED),
        stopping=StoppingSpec(),
        eval_every=10,
    ),
]
PARTS = [RUNS[0].model, RUNS[1].model, _DATA, _EVAL, RUNS[0].optimizer, RUNS[0].schedule]

#: Anything that JSON can hold, with numbers at the ends of what there is.
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([0, -1, 1, 2**31, 2**63, 10**18, 10**400, 1.5, 1e308, -0.0, 1e-320]),
        st.floats(),
        st.text(max_size=10),
        st.sampled_from(["adam", "lstm", "transformer", "cosine", "layer", "first", "train"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value, path=()):
    """The paths to every value inside."""
    found = [path] if path else []
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    for key, item in inside:
        found += places(item, (*path, key))
    return found


@st.composite
def changed(draw, values):
    """A plain dictionary with some values replaced, removed or added."""
    values = copy.deepcopy(values)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(values) or [("x",)]))
        owner = values
        for key in path[:-1]:
            owner = owner[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "replace" or not isinstance(owner, dict):
            owner[path[-1]] = draw(JSON)
        elif how == "remove":
            owner.pop(path[-1], None)
        else:
            owner[draw(st.text(max_size=5))] = draw(JSON)
    return values


def accepted_or_refused(make):
    """What `make` returns, or None where a `SpecError` of one line came."""
    with deadline():
        try:
            made = make()
        except SpecError as error:
            assert len(str(error).splitlines()) == 1
            assert len(str(error)) < 2000
            made = None
    COUNTS["spec", "refused" if made is None else "taken"] += 1
    return made


@examples(60)
@given(values=st.sampled_from([run.to_dict() for run in RUNS]).flatmap(changed))
def test_a_changed_run_is_a_run_or_is_refused_in_a_line(values):
    text = json.dumps(values)
    run = accepted_or_refused(lambda: RunSpec.from_json(text))
    if run is not None:
        assert RunSpec.from_json(run.to_json()) == run
        assert run.run_id and run.n_tokens > 0


@examples(60)
@given(data=st.data(), part=st.sampled_from(PARTS))
def test_a_changed_part_is_a_part_or_is_refused_in_a_line(data, part):
    values = data.draw(changed(part.to_dict()))
    made = accepted_or_refused(lambda: type(part).from_dict(values))
    assert made is None or type(part).from_dict(made.to_dict()) == made


@examples(60)
@given(text=st.one_of(st.text(), JSON.map(json.dumps), st.sampled_from(["[" * 10**5, "9" * 9999])))
def test_text_that_is_no_run_is_refused_in_a_line(text):
    assert accepted_or_refused(lambda: RunSpec.from_json(text)) is None
