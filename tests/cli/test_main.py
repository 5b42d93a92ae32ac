"""The command line: errors in one line with exit code 2, JSON alone on standard output."""

import json
import subprocess
import sys

import pytest

from lmscale.cli import main


def refused(capsys, *argv) -> str:
    """The one line that a bad command prints."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    return err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run"], "EXPERIMENT"),
        (["run", "isoflops"], "did you mean isoflop?"),
        (["run", "missing.py"], "there is no experiment file missing.py"),
        (["run", "isoflop", "--scale", "huge"], "choose from cpu, gpu, paper"),
        (["run", "isoflop", "--shard", "2/2"], "I/N with I from 0"),
        (["run", "isoflop", "--budgets", "many"], "--budgets"),
        (["run", "isoflop", "--batch-size", "2.5"], "whole number"),
        (["run", "isoflop", "--no-such-field", "1"], "--no-such-field"),
        (["plan", "isoflop", "--device", "abacus:2"], "KIND[:COUNT]"),
        (["plan", "isoflop", "--prior", "chinchila"], "neither a folder nor a published law"),
        (["status", "nowhere"], "experiment.json"),
        (["report", "nowhere"], "experiment.json"),
        (["eval", "nowhere"], "experiment.json"),
        (["eval", "nowhere", "--tokens", "0"], "at least 1"),
        (["fit", "nowhere.csv", "--law", "power"], "nowhere.csv"),
        (["frobnicate"], "frobnicate"),
        ([], "COMMAND"),
        (["data", "build", "new", "--input", "/nowhere/*.txt"], "/nowhere"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys, monkeypatch, data_root, argv, says):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    assert says in refused(capsys, *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["run", "--help"],
        ["run", "isoflop", "--help"],
        *([c, "--help"] for c in ("plan", "status", "eval", "fit", "report", "advise", "sample")),
        ["data", "build", "--help"],
    ],
    ids=" ".join,
)
def test_help_teaches(capsys, argv):
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_help_of_an_experiment_shows_its_paper_and_its_fields(capsys):
    with pytest.raises(SystemExit):
        main(["run", "isoflop", "--scale", "gpu", "--help"])
    text = capsys.readouterr().out
    assert "Hoffmann et al. 2022" in text
    assert "--budgets" in text
    assert "--tokens-per-param" in text


@pytest.mark.parametrize(
    "argv", [["--help"], ["run", "isoflop", "--help"], ["status", "no/such/folder"]]
)
def test_commands_that_train_nothing_do_not_wait_for_jax(argv):
    """Importing it takes longer than all that they do."""
    program = (
        "import contextlib, sys, lmscale.cli\n"
        f"with contextlib.suppress(SystemExit): lmscale.cli.main({argv})\n"
        "import lmscale.sweep.overview\n"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 0


def test_plan_as_json(capsys, monkeypatch, corpus):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    argv = ["plan", "isoflop", "--data", "tiny", "--device", "v5e:256", "--json"]
    assert main(argv) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["runs"] == sum(pack["runs"] for pack in plan["packs"]) >= 16
    assert plan["flops"] == pytest.approx(sum(pack["flops"] for pack in plan["packs"]))
    assert all(pack["memory_bytes"] > 0 for pack in plan["packs"])


def test_plan_names_budgets_that_a_prior_finds_badly_centred(capsys, monkeypatch, corpus):
    """Half a token a parameter is a grid of models that are far too large."""
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    argv = ["plan", "isoflop", "--data", "tiny", "--device", "h100", "--budgets", "1e11"]
    argv += ["--tokens-per-param", "0.5"]
    assert main([*argv, "--prior", "besiroglu2024", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["badly_centered"]
    assert line.startswith("transformer, budget ") and "too large; train smaller models" in line
    assert main([*argv, "--prior", "besiroglu2024"]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_plan_says_how_much_text_the_runs_need(capsys, monkeypatch, corpus):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    argv = ["plan", "isoflop", "--scale", "gpu", "--data", "tiny", "--device", "h100"]
    assert main([*argv, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    has, needs = plan["train_tokens"], plan["train_tokens_needed"]
    assert has == corpus.n_tokens("train")
    assert plan["max_epochs"] * has == pytest.approx(4 * needs, rel=1e-3)
    assert plan["runs_of_too_many_epochs"] == plan["runs"]
    assert main([*argv, "--compile", "none"]) == 0
    said = f"the runs need {needs:,} training tokens and tiny has {has:,}: give a larger corpus with --data"
    assert said in capsys.readouterr().out


def test_plan_says_that_a_study_of_repeated_text_means_to(capsys, monkeypatch, corpus):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    assert main(["plan", "repeat", "--data", "tiny", "--device", "cpu:2"]) == 0
    assert "what this study is about" in capsys.readouterr().out


def test_plan_of_all_experiments(capsys, monkeypatch, corpus):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    argv = ["plan", "all", "--data", "tiny", "--device", "h100", "--json"]
    assert main(argv) == 0
    plans = {
        plan["experiment"]: plan for plan in json.loads(capsys.readouterr().out)["experiments"]
    }
    assert {"isoflop", "lstm_vs_transformer"} <= set(plans)
    assert all(plan["runs"] >= 1 and plan["flops"] > 0 for plan in plans.values())


def test_fit_of_any_table_as_json(capsys, tmp_path):
    rows = ["size,tok,final"]
    for n in (1e6, 3e6, 1e7, 3e7, 1e8):
        rows.append(f"{n},1e9,{(8.8e13 / n) ** 0.076}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(rows))
    argv = [
        "fit",
        path,
        "--law",
        "power",
        "--columns",
        "params=size,tokens=tok,loss=final",
        "--x",
        "params",
        "--json",
    ]
    assert main([str(a) for a in argv]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["parameters"]["alpha_N"] == pytest.approx(0.076, rel=1e-3)
    assert fit["n_used"] == 5
