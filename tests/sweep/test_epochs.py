"""How often runs pass over their text, and what is said of it."""

from lmscale.sweep.epochs import MOST_EPOCHS, epochs_of


def test_runs_above_the_bound_are_counted_and_the_corpus_that_they_need_is_named():
    found = epochs_of([(1_000, None), (4_000, None), (4_001, None), (9_000, None)], 1_000)
    assert (found.most, found.over, found.n_runs) == (9.0, 2, 4)
    assert found.needed == 9_000 / MOST_EPOCHS
    line = found.line("mytext")
    assert line.startswith("2 of 4 runs pass over their text more than 4 times, up to 9:")
    assert "the runs need 2,250 training tokens and mytext has 1,000: give a larger corpus" in line
    assert epochs_of([(9_000, None)], found.needed).line("mytext") is None


def test_subsets_are_repeated_whatever_the_corpus_holds():
    found = epochs_of([(6_400, 100), (400, 100), (3_000, None)], 1_000)
    assert (found.most, found.over) == (64.0, 1)
    assert found.needed == 750
    assert "larger corpus" not in found.line("mytext")
    assert found.line("mytext", repeats=True).endswith("up to 64: what this study is about")


def test_a_subset_that_the_corpus_does_not_hold_is_named():
    found = epochs_of([(3_000, 3_000), (3_000, 100)], 1_000)
    assert (found.most, found.over, found.needed) == (30.0, 1, 3_000)
    line = found.line("mytext", repeats=True)
    assert "what this study is about; the runs need 3,000 training tokens and mytext has" in line


def test_nothing_is_said_of_text_that_is_not_repeated():
    assert epochs_of([(4_000, None)], 1_000).line("mytext") is None
    assert epochs_of([], 1_000).line("mytext") is None
