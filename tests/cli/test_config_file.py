"""`lmscale run FILE.yaml`: what `--print-config` prints is the experiment itself."""

from pathlib import Path

import pytest
import yaml

from lmscale.cli.experiment_arguments import chosen_experiments
from lmscale.cli.program import build_parser
from lmscale.sweep.experiment import experiment_names, load_scales
from tests.cli.answers import answer, refused


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text, name="mine.yaml"):
    Path(name).write_text(text)
    return name


def printed(capsys, *words):
    code, out, err = answer(capsys, "run", *words, "--print-config")
    assert (code, err) == (0, "")
    return out


def parsed(*words):
    args = build_parser(["run", *words]).parse_args(["run", *words])
    return args, chosen_experiments(args)


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_comes_back_from_its_printed_config(capsys, name):
    for scale, experiment in load_scales(name)[2].items():
        text = printed(capsys, name, "--scale", scale)
        args, found = parsed(write(text))
        assert found == [(name, experiment)]
        assert (args.scale, args.data) == (scale, "installed-python")
        assert yaml.safe_load(printed(capsys, "mine.yaml")) == yaml.safe_load(text)


def test_overrides_come_back_and_can_be_overridden(capsys):
    overrides = ("--budgets", "1e16", "2.5e9", "--n-layer", "none", "--data", "mine")
    write(printed(capsys, "isoflop", *overrides, "--mask-documents", "--recipe", "eps=1e-9"))
    args, ((_, found),) = parsed("mine.yaml", "--seeds", "3", "--no-mask-documents")
    assert args.data == "mine"
    assert (found.budgets, found.n_layer, found.recipe) == ((1e16, 2.5e9), None, ("eps=1e-9",))
    assert (found.seeds, found.mask_documents) == ((3,), False)
    assert parsed("mine.yaml", "--data", "other")[0].data == "other"


def test_what_a_file_leaves_out_is_as_declared(capsys):
    _, ((name, found),) = parsed(write("experiment: isoflop\nfields: {budgets: [2e10, 4e10]}\n"))
    assert name == "isoflop" and found.budgets == (2e10, 4e10)
    assert found.sizes == load_scales("isoflop")[2]["cpu"].sizes


def test_its_store_is_named_after_what_differs(capsys, corpus):
    same = ("--data", "tiny", "--budgets", "1e10", "3e10", "--sizes", "1536", "3456")
    write(printed(capsys, "isoflop", *same))
    by_options = answer(capsys, "run", "isoflop", *same, "--dry-run")
    assert answer(capsys, "run", "mine.yaml", "--dry-run") == by_options
    assert "isoflop-cpu-data-tiny-budgets-1e10-3e10-sizes-1536-3456" in by_options[1]


def test_an_experiment_of_a_users_own_file_is_named_by_its_path(capsys):
    own = str(Path(__file__).parents[1] / "architectures" / "convolution.py")
    text = printed(capsys, own)
    assert f'experiment: "{own}"' in text
    ((_, found),), ((_, shipped),) = parsed(write(text))[1], parsed(own)[1]
    assert type(found).__name__ == "Convolutions" and vars(found) == vars(shipped)


def test_a_printed_config_of_a_file_names_the_file_again(capsys, own_folder):
    """The second of two prints named the experiment without its .py, and could not be run."""
    own = Path(__file__).parents[1] / "end_to_end" / "tiny_experiment.py"
    (own_folder / "one.py").write_text(own.read_text())
    first = printed(capsys, write(printed(capsys, "one.py")))
    assert 'experiment: "one.py"' in first and printed(capsys, write(first)) == first
    (own_folder / "folder").mkdir()
    (own_folder / "folder" / "two.py").write_text(own.read_text())
    assert 'experiment: "folder/two.py"' in printed(capsys, "folder")


@pytest.mark.parametrize(
    "name", ["./é😀", "a\u2028b\x85\x7f", 'a"\\b\n\t', "b\udcff", "\ufeff\U000e0001"]
)
def test_a_name_of_any_characters_comes_back(capsys, name):
    """JSON's pairs of escapes were read as two halves of a character."""
    text = printed(capsys, "isoflop", "--data", name)
    text.encode()
    assert ("😀" in name) == ("😀" in text)
    assert parsed(write(text))[0].data == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "experiment: isoflop\nfields: {n_ctx: 64, n_ctx: 32}",
            "mine.yaml, line 2 is no YAML: 'n_ctx' is given twice",
        ),
        ("experiment: isoflop\ndata: a\n'data': b", "line 3 is no YAML: 'data' is given twice"),
        ("experiment: isoflop\ndata: 2024-13-01", "mine.yaml is no YAML: month must be in 1..12"),
        ("experiment: isoflop\ndata: " + "9" * 5000, "mine.yaml is no YAML: Exceeds the limit"),
        ("experiment: isoflop\ndata: 0x" + "f" * 5000, "data must be a name, not 1e6020 or so"),
        (
            "experiment: isoflop\nfields: {n_ctx: [0x" + "f" * 5000 + "]}",
            "n_ctx must be one value, not this list",
        ),
        ("experiment: isoflop\ndata: !!int x", "mine.yaml is no YAML: invalid literal"),
        ("", "must hold one experiment, as lmscale run EXPERIMENT --print-config prints it"),
        ("a: [", "mine.yaml, line 1 is no YAML"),
        ("scale: cpu", "mine.yaml: experiment must be a name, not None"),
        ("experiment: isoflop\n---\nexperiment: shape", "must hold one experiment"),
        ("experiment: isoflp", "there is no experiment 'isoflp': did you mean isoflop?"),
        ("experiment: isoflop\nscale: tiny", "isoflop has no scale 'tiny'"),
        ("experiment: isoflop\nfield: {}", "has no use for 'field': did you mean fields?"),
        (
            "experiment: isoflop\nfields: {budget: [1e9]}",
            "has no use for 'budget': did you mean budgets?",
        ),
        (
            "experiment: isoflop\nfields: {budgets: 1e9}",
            "budgets must be a list, as [1, 2], not '1e9'",
        ),
        ("experiment: isoflop\nfields: {n_ctx: [1]}", "n_ctx must be one value, not [1]"),
        (
            "experiment: isoflop\nfields: {n_ctx: long}",
            "n_ctx takes a whole number, not 'long'",
        ),
        ("experiment: isoflop\nfields: {n_ctx: null}", "n_ctx takes a whole number, not None"),
        (
            "experiment: isoflop\nfields: {mask_documents: 1}",
            "mask_documents must be true or false, not '1'",
        ),
        ("experiment: isoflop\nfields: {n_ctx: 0}", "--n-ctx must be from 1"),
    ],
)
def test_a_wrong_file_is_told_in_a_line(capsys, text, says):
    assert says in refused(capsys, "run", write(text), "--print-config")


def test_a_file_that_is_not_there_or_of_another_scale_is_refused(capsys):
    assert "none.yaml cannot be read" in refused(capsys, "run", "none.yaml", "--dry-run")
    write("experiment: isoflop\nscale: gpu\n")
    line = refused(capsys, "run", "mine.yaml", "--scale", "cpu", "--print-config")
    assert "mine.yaml is of the scale gpu: leave --scale out" in line
