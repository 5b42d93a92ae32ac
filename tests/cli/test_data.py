"""`lmscale data build`, `show` and `list`, and what the other commands say of a corpus."""

import json

import pytest

from lmscale.cli import main
from lmscale.data import open_corpus
from lmscale.data.corpus import MANIFEST
from lmscale.files import seal
from lmscale.sweep.experiment import Experiment, Run
from lmscale.sweep.store import Store
from tests.cli.answers import refused
from tests.data.prose import documents, write_text
from tests.training.specs import run_spec


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("LMSCALE_DATA", str(folder))
    return folder


def build(path, name="a", *more):
    return main(["data", "build", name, "--input", str(path), "--vocab-size", "320", *more])


def test_build_says_what_is_held_out_and_warns_of_few_documents(tmp_path, capsys):
    text = write_text(tmp_path / "a.txt", [*documents(150), *documents(5)])
    assert build(text) == 0
    out, _ = capsys.readouterr()
    corpus = open_corpus("a")
    for split in ("train", "valid", "test"):
        line = next(line for line in out.splitlines() if line.startswith(split))
        assert line.split()[1] == str(corpus.n_documents(split))
    assert "held out: at most" in out
    assert "0.0% of valid (0 documents by more than half) and 0.0% of test" in out
    assert "5 exact duplicates, 0 empty documents, 0 bad rows" in out
    (warning,) = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert "fewer than 100" in warning
    assert build(text, "large", "--valid-fraction", "0", "--test-fraction", "0") == 0
    out, _ = capsys.readouterr()
    assert "held out: nothing" in out and "warning" not in out


def test_enough_documents_are_no_reason_to_warn(tmp_path, capsys):
    text = write_text(tmp_path / "a.txt", documents(1100, n_words=30))
    assert build(text) == 0
    assert "warning" not in capsys.readouterr().out


def test_show_tells_all_of_a_corpus(tmp_path, capsys):
    build(write_text(tmp_path / "a.txt", documents(150)), "a", "--cut-documents", "500")
    built, _ = capsys.readouterr()
    assert main(["data", "show", "a"]) == 0
    shown, _ = capsys.readouterr()
    corpus = open_corpus("a")
    assert shown.startswith(built)
    assert f"fingerprint: {corpus.fingerprint}" in shown
    assert "cut_documents 500" in shown
    assert shown.count("sample: ") == 3
    assert main(["data", "show", "a", "--samples", "0"]) == 0
    assert "sample: " not in capsys.readouterr().out
    assert "at least 0, not '-1'" in refused(capsys, "data", "show", "a", "--samples=-1")
    assert main(["data", "show", "a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ids = corpus.tokens("train").tolist()
    first = corpus.tokenizer.decode(ids[: ids.index(corpus.eod_id)])
    assert found["samples"][0] == first[:200]
    assert found["fingerprint"] == corpus.fingerprint
    assert found["settings"]["cut_documents"] == 500
    for split in ("valid", "test"):
        values = found["splits"][split]
        assert values["tokens"] == corpus.n_tokens(split)
        assert values["bytes_per_token"] == corpus.bytes_per_token(split)
        assert values["copies"] == corpus.copies[split]
        # Documents of equal length, each in two pieces or three.
        assert 2 * values["documents"] <= values["pieces"] <= 3 * values["documents"]
        assert values["largest_share"] == pytest.approx(1 / values["documents"], rel=0.2)
    assert found["splits"]["train"]["copies"] is None


def test_text_that_is_separated_otherwise(tmp_path, capsys):
    some = documents(60)
    for name, text in (
        ("marks", "\n<|endoftext|>\n".join(some)),
        ("windows", "\n\f\n".join(some).replace("\n", "\r\n")),
    ):
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
        assert build(tmp_path / f"{name}.txt", name) == 0
        corpus = open_corpus(name)
        assert sum(corpus.n_documents(split) for split in ("train", "valid", "test")) == 60
    (tmp_path / "rules.txt").write_bytes("\n-----\n".join(some).encode())
    assert build(tmp_path / "rules.txt", "rules", "--separator=-----") == 0
    assert open_corpus("rules").n_bytes("train") == open_corpus("marks").n_bytes("train")


def test_bad_rows_are_one_line_or_left_out(tmp_path, capsys):
    rows = [json.dumps({"text": text}) for text in documents(59)]
    rows.insert(30, '{"text": null}')
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows))
    assert build(path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line]
    assert "a.jsonl, line 31, field 'text' is null, not text" in line
    assert "--skip-bad" in line
    # 1 of 60 is more than the 1% that are skipped where no bound is given.
    assert build(path, "a", "--skip-bad") == 2
    out, err = capsys.readouterr()
    assert out == "" and "1 of 60, more than 0.01, rows and documents are no text" in err
    assert build(path, "a", "--skip-bad", "any") == 0
    out, _ = capsys.readouterr()
    assert "1 bad row (the first: " in out and "line 31" in out
    corpus = open_corpus("a")
    assert sum(corpus.n_documents(split) for split in ("train", "valid", "test")) == 59
    # All rows bad: the field is another.
    assert build(path, "b", "--skip-bad", "any", "--text-field", "body") == 2
    err = capsys.readouterr().err
    assert "has no text: " in err and "its fields are text" in err


def copied(corpus, share):
    """The corpus as if so much of it were copied."""
    manifest = json.loads((corpus.path / MANIFEST).read_text())
    manifest["copies"]["valid"] = {"share": share, "documents": 3}
    (corpus.path / MANIFEST).write_text(json.dumps(seal(manifest)))
    return open_corpus(corpus.name)


def test_a_plan_says_when_much_is_copied(tmp_path, capsys):
    build(write_text(tmp_path / "a.txt", documents(300)))
    capsys.readouterr()
    plan = ["plan", "isoflop", "--data", "a", "--device", "h100"]
    assert main(plan) == 0
    assert "copies" not in capsys.readouterr().out
    copied(open_corpus("a"), 0.031)
    assert main(plan) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "copies" in line]
    assert line.startswith("a: 3.1% of valid (3 documents by more than half)")


def test_a_store_records_what_is_held_out(tmp_path):
    build(write_text(tmp_path / "a.txt", documents(150)))
    corpus = copied(open_corpus("a"), 0.031)
    store = Store(tmp_path / "store")
    store.declare("x", "cpu", Experiment(), corpus, [Run(run_spec(), {})], "lmscale run x")
    recorded = store.experiment()["corpus"]
    assert recorded["copies"] == corpus.copies
    assert recorded["held_out_documents"] == {s: corpus.n_documents(s) for s in ("valid", "test")}


def test_help_of_build_names_every_compression_and_tokeniser_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["data", "build", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert ".gz .xz .zst .bz2" in said
    assert "--tokenizer FILE|bytes|characters" in said
    assert "lmscale data build mytext --input" in said
