"""`lmscale plan`: what it says of one experiment and of many."""

import json

import pytest

from lmscale.cli import main
from lmscale.data import build_corpus
from tests.cli.answers import refused
from tests.data.prose import document, write_text


def test_plan_as_json(capsys, corpus):
    argv = ["plan", "isoflop", "--data", "tiny", "--device", "v5e:256", "--json"]
    assert main(argv) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["runs"] == sum(pack["runs"] for pack in plan["packs"]) >= 16
    assert plan["flops"] == pytest.approx(sum(pack["flops"] for pack in plan["packs"]))
    assert all(pack["memory_bytes"] > 0 for pack in plan["packs"])


def test_plan_names_budgets_that_a_prior_finds_badly_centred(capsys, corpus):
    """Half a token a parameter is a grid of models that are far too large."""
    argv = ["plan", "isoflop", "--data", "tiny", "--device", "h100", "--budgets", "1e11"]
    argv += ["--tokens-per-param", "0.5"]
    assert main([*argv, "--prior", "besiroglu2024", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["badly_centered"]
    assert line.startswith("transformer, budget ") and "too large; train smaller models" in line
    assert main([*argv, "--prior", "besiroglu2024"]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_plan_says_how_much_text_the_runs_need(capsys, corpus):
    argv = ["plan", "isoflop", "--scale", "gpu", "--data", "tiny", "--device", "h100"]
    assert main([*argv, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    has, needs = plan["train_tokens"], plan["train_tokens_needed"]
    assert has == corpus.n_tokens("train")
    assert plan["max_epochs"] * has == pytest.approx(4 * needs, rel=1e-3)
    assert plan["runs_of_too_many_epochs"] == plan["runs"]
    assert main([*argv, "--compile", "none"]) == 0
    said = f"the runs need {needs:,} training tokens and tiny has {has:,}: give a larger corpus with --data"
    out = capsys.readouterr().out
    assert said in out
    # What a step waits for, and what the times assume.
    assert {pack["bound"] for pack in plan["packs"]} <= {"compute", "memory", "links", "launch"}
    assert "  limit" in out
    assert "40% of 9.89e+14 FLOP/s, 70% of 3.35e+12 bytes/s and 3 us a kernel a device" in out


def test_plan_says_that_a_study_of_repeated_text_means_to(capsys, corpus):
    assert main(["plan", "repeat", "--data", "tiny", "--device", "cpu:2"]) == 0
    assert "what this study is about" in capsys.readouterr().out


def test_plan_of_all_experiments(capsys, corpus):
    argv = ["plan", "all", "--data", "tiny", "--device", "h100", "--json"]
    assert main(argv) == 0
    plans = {
        plan["experiment"]: plan for plan in json.loads(capsys.readouterr().out)["experiments"]
    }
    assert {"isoflop", "lstm_vs_transformer"} <= set(plans)
    assert all(plan["runs"] >= 1 and plan["flops"] > 0 for plan in plans.values())


def test_one_run_is_not_several_runs(capsys, corpus):
    argv = ["plan", "isoflop", "--data", "tiny", "--device", "cpu:2", "--budgets", "1e10"]
    assert main([*argv, "--sizes", "1536"]) == 0
    assert "1 run in 1 pack, " in capsys.readouterr().out
    assert main([*argv, "--sizes", "1536", "--seeds", "0", "1"]) == 0
    assert "2 runs in 1 pack, " in capsys.readouterr().out


def test_plan_says_what_float32_means_and_why_attention_is_slow(capsys, corpus):
    argv = ["plan", "isoflop", "--data", "tiny", "--compile", "none", "--device"]
    assert main([*argv, "h100"]) == 0
    said = capsys.readouterr().out
    assert "float32 means TF32 in matmuls on GPUs" in said
    assert "attention computes all scores, as the flash kernel takes bfloat16" in said
    assert main([*argv, "h100", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["float32_is_tf32"]
    assert {pack["attention"] for pack in plan["packs"]} == {"xla"}
    assert all("not float32" in pack["slow_attention"] for pack in plan["packs"])
    assert main([*argv, "cpu:2"]) == 0
    said = capsys.readouterr().out
    assert "TF32" not in said and "all scores" not in said


def test_plan_says_which_lstms_the_kernel_does_not_take(capsys, corpus, monkeypatch):
    argv = ["plan", "lstm_vs_transformer", "--scale", "gpu", "--data", "tiny", "--device", "h100"]
    assert main([*argv, "--json"]) == 0
    packs = json.loads(capsys.readouterr().out)["packs"]
    assert {pack["recurrence"] for pack in packs} == {"scan", None}
    monkeypatch.setenv("LMSCALE_LSTM", "kernel")
    assert main([*argv, "--json"]) == 0
    packs = json.loads(capsys.readouterr().out)["packs"]
    forms = {pack["model"]: pack["recurrence"] for pack in packs}
    assert forms["lstm-1x128"] == "kernel" and forms["lstm-4x200"] == "scan"
    assert main(argv) == 0
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if "time steps are kernels of their own" in line)
    assert line.endswith(", as the kernel takes at most 128 hidden units in bfloat16")
    named = line.partition(":")[0].split(", ")
    assert "lstm-4x200" in named and "lstm-1x128" not in named


@pytest.mark.parametrize(
    ("variable", "choices"), [("LMSCALE_LSTM", "scan or kernel"), ("LMSCALE_HEAD", "fused or xla")]
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_wrong_switch_is_refused_in_a_line(
    capsys, corpus, monkeypatch, tmp_path, command, variable, choices
):
    monkeypatch.setenv(variable, "fast")
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, command, "lstm_vs_transformer", "--data", "tiny")
    assert f"{variable} must be {choices}, not 'fast'" in said


def test_plan_builds_no_corpus(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "data"))

    def built(*_):
        raise AssertionError("plan has built a corpus")

    monkeypatch.setattr("lmscale.data.build.write_corpus", built)
    # Built-in text of other kinds is evaluated on, as the field --eval asks for it and transfer does.
    assert main(["plan", "transfer", "--eval", "more=installed-prose", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not plan["corpus_is_built"] and plan["corpus"] == "installed-python-v512"
    assert 1e6 < plan["train_tokens"] < 1e8 and plan["store_refuses"] is None
    assert main(["plan", "all"]) == 0
    assert "installed-python-v512 is not built yet (run builds it)" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_a_plan_says_how_often_the_sources_of_a_mixture_are_seen(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path))
    inputs = {}
    for name, n in (("wiki", 60), ("books", 30)):
        texts = [document(f"{name}{i}") for i in range(n)]
        inputs[write_text(tmp_path / f"{name}.txt", texts)] = n
    build_corpus(
        "mix", inputs, vocab_size=320, tokens=100_000, valid_fraction=0.1, test_fraction=0.1
    )
    assert main(["plan", "isoflop", "--data", "mix", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [source["weight"] for source in plan["mixture"]] == pytest.approx([2 / 3, 1 / 3])
    assert main(["plan", "isoflop", "--data", "mix"]) == 0
    passes = plan["max_epochs"] * plan["mixture"][1]["train"]["epochs"]
    assert f"books.txt ({passes:.2f} epochs of its" in capsys.readouterr().out


def test_named_evaluation_sets_that_cannot_be_are_one_line(capsys, corpus):
    argv = ("plan", "isoflop", "--data", "tiny", "--eval")
    assert main([*argv, "a=tiny", "--json"]) == 0
    capsys.readouterr()
    assert "--eval must not name a set valid" in refused(capsys, *argv, "valid=tiny")
    assert "--eval names two sets a" in refused(capsys, *argv, "a=tiny", "a=tiny")
    assert "no corpus nothing" in refused(capsys, *argv, "a=nothing")
