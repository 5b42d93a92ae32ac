"""A user's study or section that fails: the page is still written, and one line says what went wrong."""

import json
import textwrap

import pytest

from lmscale import cli
from lmscale.report import Chart, style
from lmscale.report import registry as sections
from lmscale.report.sections import curves
from lmscale.studies import registry
from lmscale.sweep.claims import Claim
from lmscale.user_files import file_of, load_file
from tests.report import planted_store as planted

#: The estimates of a study that is as it should be, and its section.
HEAD = """
    from types import SimpleNamespace
    from lmscale import report, studies
    from lmscale.report import style
    from lmscale.studies import Estimate

    GOOD = SimpleNamespace(estimates={"gain": Estimate(name="gain", value=1.0)}, fits={})

    def drawn(name, **fields):
        with style.canvas(4, 3) as figure:
            figure.subplots()
            chart = style.render(figure, name=name, caption="c", alt="a")
        return report.Section(name="own", title="Own", finding="It holds.", charts=[chart], **fields)
"""
STUDY = "@studies.register('own')\ndef study(results):\n    {}\n"
SECTION = (
    STUDY.format("return GOOD") + "@report.register('own')\ndef section(found, results):\n    {}\n"
)
BAD = {
    "a column": (STUDY, "return results.table['los'].mean()", "KeyError: 'los' (own.py:16)"),
    "a type": (STUDY, "return 1 + 'a'", "TypeError: unsupported operand type(s) for +"),
    "exit": (STUDY, "raise SystemExit(3)", "it calls sys.exit (own.py:16)"),
    "a table error": (STUDY, "from lmscale import laws; laws.fit({}, 'power')", "TableError: "),
    "nothing": (STUDY, "pass", "the study 'own' returned None: it must return an object with est"),
    "a number": (
        STUDY,
        "return SimpleNamespace(estimates={'a': 1.0}, fits={})",
        "its estimates hold 'a' -> a float, where a name -> Estimate belongs (own.py:14)",
    ),
    "a list": (
        STUDY,
        "return SimpleNamespace(estimates=[GOOD], fits={})",
        "its estimates must be a dictionary of name to Estimate, not a list",
    ),
    "text for a value": (
        STUDY,
        "return SimpleNamespace(estimates={'a': Estimate(name='a', value='1')}, fits={})",
        "the estimate 'a' must have a number or None, not a str",
    ),
    "no section": (SECTION, "pass", "the section 'own' returned None: it must return report.Sec"),
    "a figure": (
        SECTION,
        "import matplotlib.figure; return matplotlib.figure.Figure()",
        "the section 'own' returned a Figure: it must return report.Section(name='own'",
    ),
    "a raw figure": (
        SECTION,
        "return report.Section(name='own', title='', finding='', charts=[drawn('x').charts[0].figure])",
        "its charts hold a Figure where a Chart belongs: report.style.render(figure, name=",
    ),
    "a finding in a list": (
        SECTION,
        "return report.Section(name='own', title='', finding=['a'])",
        "its finding must be text, not a list",
    ),
    "details of text": (
        SECTION,
        "return report.Section(name='own', title='', finding='', details='abc')",
        "its details must be a list of str, not a str",
    ),
    "a table": (
        SECTION,
        "return report.Section(name='own', title='', finding='', grids=["
        "report.Grid(caption='c', header=['a', 'b'], rows=[['1']])])",
        "the table 'c' has 2 columns, and a row of it holds ['1']",
    ),
    "estimates for measures": (
        SECTION,
        "return report.Section(name='own', title='', finding='', measures=found.estimates)",
        "its measures hold 'gain' -> a Estimate, where a name -> Measure belongs",
    ),
    "a misspelt field": (
        SECTION,
        "return report.Section(name='own', titel='', finding='')",
        "unexpected keyword argument 'titel' (own.py:19)",
    ),
    "another name": (
        SECTION,
        "return report.Section(name='mine', title='', finding='')",
        "has the name 'mine': a section has the name of its study",
    ),
    "a figure outside": (
        SECTION,
        "return drawn('../../gain')",
        "ValueError: a figure is a file of figures/, and '../../gain' is no name of a file there",
    ),
    "a figure of others": (
        SECTION,
        "return drawn('curves')",
        "the section 'curves' has a figure 'curves' already: give this one another name",
    ),
}
#: Those that the fast tests try: each is found in a place of its own.
QUICK = ("a column", "exit", "nothing", "a number", "a figure", "a figure outside")


@pytest.fixture
def forget():
    """What a file registers is forgotten after the test."""
    yield
    registry._STUDIES.pop("own", None)
    sections._SECTIONS.pop("own", None)


@pytest.fixture(scope="module")
def runs():
    return planted.size_runs(layers=(), seeds=(0,))[:2]


def own_file(folder, text):
    path = folder / "own.py"
    path.write_text(textwrap.dedent(HEAD) + text)
    return path


def plant(folder, runs, claims=(), **options):
    return planted.plant(
        folder, runs, analyses=["curves", "own"], law=planted.SizeLaw(), claims=claims, **options
    )


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[] if fault in QUICK else pytest.mark.slow) for fault in BAD],
)
def test_a_failing_analysis_leaves_the_page_and_is_one_line(tmp_path, runs, capsys, fault):
    form, body, says = BAD[fault]
    store = plant(
        tmp_path / "store", runs, claims=[Claim(text="T.", source="S", measure="own/gain")]
    )
    path = own_file(tmp_path, form.format(body))
    assert cli.main(["report", str(store.path), "--load", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lmscale report: the analysis 'own' failed: ")
    assert says in line
    page = (store.path / "report.html").read_text()
    assert 'id="figure-curves"' in page and 'id="own"' in page
    assert "This analysis failed: " in page
    summary = json.loads((store.path / "summary.json").read_text())
    assert summary["failures"] == [line.removeprefix("lmscale report: ")]
    (verdict,) = summary["verdicts"]
    assert verdict["word"] == "not tested here"
    assert verdict["reason"].startswith("The analysis 'own' failed")
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.svg")}
    assert written == {"store"}


@pytest.mark.usefixtures("forget")
def test_a_sound_analysis_has_no_failure_and_a_claim_on_a_missing_number_says_what_there_is(
    tmp_path, runs
):
    store = plant(
        tmp_path / "store", runs, claims=[Claim(text="T.", source="S", measure="own/gian")]
    )
    measures = "measures={'gain': report.Measure.of('gain', found.estimates['gain'])}"
    path = own_file(tmp_path, SECTION.format(f"return drawn('gain', {measures})"))
    assert cli.main(["report", str(store.path), "--load", str(path)]) == 0
    summary = json.loads((store.path / "summary.json").read_text())
    assert "failures" not in summary
    (verdict,) = summary["verdicts"]
    assert "the study own has no number 'gian' of these results; it has gain" in (
        verdict["reason"][0].lower() + verdict["reason"][1:]
    )


def test_a_fault_of_lmscale_keeps_its_traceback(tmp_path, runs, monkeypatch):
    store = planted.plant(tmp_path, runs, analyses=["curves"], law=planted.SizeLaw())

    def broken(found, results):
        raise RuntimeError("ours")

    assert curves.section
    monkeypatch.setitem(sections._SECTIONS, "curves", broken)
    with pytest.raises(RuntimeError, match="ours"):
        cli.main(["report", str(store.path)])


@pytest.mark.usefixtures("forget")
def test_a_page_with_an_own_analysis_is_not_written_over_without_its_file(tmp_path, runs, capsys):
    store = plant(tmp_path / "store", runs)
    path = own_file(tmp_path, SECTION.format("return drawn('gain')"))
    assert cli.main(["report", str(store.path), "--load", str(path)]) == 0
    before = (store.path / "report.html").read_bytes()
    registry._STUDIES.pop("own")
    capsys.readouterr()
    for words in (["report"], ["report", "--style", "paper"], ["report", "--watch"]):
        assert cli.main([*words, str(store.path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert "has the analysis 'own', known when the file is loaded: add --load FILE.py" in line
    assert cli.main(["keep", str(store.path), "--out", str(tmp_path / "kept")]) == 2
    assert (store.path / "report.html").read_bytes() == before
    experiment = json.loads((store.path / "experiment.json").read_text())
    experiment["needs"] = {"files": [str(path)]}
    (store.path / "experiment.json").write_text(json.dumps(experiment))
    (store.path / "report.html").unlink()
    assert cli.main(["report", str(store.path)]) == 2
    assert f"add --load {path} to the command" in capsys.readouterr().err


def test_a_figure_has_the_name_of_a_file():
    for name in ("../gain", "a/b", "", ".."):
        with pytest.raises(ValueError, match="is no name of a file there"):
            Chart(name=name, caption="", alt="", svg="", png=b"")
    with style.canvas(3, 2) as figure:
        assert style.render(figure, name="gain 2", caption="", alt="").name == "gain 2"


@pytest.mark.usefixtures("forget")
def test_a_section_or_study_of_lmscale_is_not_replaced(tmp_path):
    text = "from lmscale import {0}\n@{0}.register('size')\ndef mine(*args): ...\n"
    for room in ("studies", "report"):
        path = tmp_path / f"{room}_of_mine.py"
        path.write_text(text.format(room))
        with pytest.raises(ValueError, match=r"the name 'size' is taken by .*choose another"):
            load_file(path)


def test_a_function_of_a_file_is_told_from_ours(tmp_path):
    path = tmp_path / "some.py"
    path.write_text("import functools\ndef f(x): ...\ng = functools.partial(f, 1)\nclass C: ...\n")
    module = load_file(path)
    assert {file_of(one) for one in (module.f, module.g, module.C, module.C())} == {str(path)}
    assert file_of(planted.plant) is None and file_of(None) is None
