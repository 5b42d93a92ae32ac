"""`lmscale list`: every experiment with its title and scales."""

import json

from lmscale.sweep.experiment import experiment_names, load_scales
from tests.cli.answers import answer


def test_every_experiment_is_listed_with_its_title_and_scales(capsys):
    code, out, err = answer(capsys, "list")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()[2:-1]}
    assert sorted(lines) == experiment_names()
    code, out, _ = answer(capsys, "list", "--json")
    found = json.loads(out)["experiments"]
    assert [one["experiment"] for one in found] == experiment_names()
    for one in found:
        scales = load_scales(one["experiment"])[2]
        assert one["scales"] == list(scales)
        assert one["title"] == scales["cpu"].title != ""
        assert one["title"] in lines[one["experiment"]]
        assert all(scale in lines[one["experiment"]].split() for scale in scales)
