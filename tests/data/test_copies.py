import random

import numpy as np
import pytest

from lmscale.data.copies import CopyFinder
from lmscale.data.shingles import END, HashLookup, plain
from lmscale.data.token_copies import copies_of_training


def words(n, seed):
    """n words that are found nowhere else."""
    rng = random.Random(seed)
    return [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(n)
    ]


def text(n, seed):
    return " ".join(words(n, seed)).encode()


def looked(candidates, others, batches=1, **options):
    """A finder that has seen the candidates' own documents and the others."""
    finder = CopyFinder(candidates, **options)
    documents = [*candidates, *others]
    own = [*range(len(candidates)), *[-1] * len(others)]
    for part in np.array_split(np.arange(len(documents)), batches):
        joined = bytes([END]).join(documents[i] for i in part)
        finder.look(np.frombuffer(joined, np.uint8), int(part[0]), np.array([own[i] for i in part]))
    return finder


def test_text_is_compared_without_case_and_white_space():
    raw = b"One  two\r\n\t Three\xff  f\xc3\x89 "
    simple, kept = plain(np.frombuffer(raw, np.uint8))
    assert simple.tobytes() == b"one two three\xff f\xc3\x89 "
    assert len(kept) == len(raw) and kept.sum() == len(simple)


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_a_long_copy_is_found_where_it_lies(batches):
    shared = text(60, "shared")
    candidate = text(300, 1) + b" " + shared + b" " + text(300, 2)
    alone = text(400, 3)
    other = text(500, 4) + b"\n" + shared.upper().replace(b" ", b"\n\t") + b"\n" + text(500, 5)
    finder = looked([candidate, alone], [other, text(300, 6), text(300, 7)], batches)
    copied = finder.copied(0)
    begin = candidate.index(shared)
    inside = np.zeros(len(candidate), bool)
    inside[begin : begin + len(shared)] = True
    # The ends of a copy are not known to the byte.
    assert copied[inside].mean() > 0.9
    assert copied[~inside].sum() < 32
    assert not finder.copied(1).any()
    assert finder.contained().max() < 0.5


def test_repeats_inside_a_document_are_no_copies():
    candidate = text(100, 1) * 3
    finder = looked([candidate], [text(100, 2)])
    assert not finder.copied(0).any()
    assert finder.contained()[0] == 0


@pytest.mark.parametrize(
    ("changed", "low", "high"), [(0.0, 1.0, 1.0), (0.1, 0.5, 0.85), (0.6, 0, 0.2)]
)
def test_containment_is_the_share_of_a_document_in_one_other(changed, low, high):
    rng = random.Random(0)
    original = words(2000, 1)
    edited = [
        new if rng.random() < changed else old
        for old, new in zip(original, words(2000, 2), strict=True)
    ]
    # Parts of it in many other documents are not as much as one that holds it.
    parts = [" ".join(original[i : i + 200] + words(50, i)).encode() for i in range(0, 2000, 200)]
    finder = looked([" ".join(original).encode()], [*parts, " ".join(edited).encode()])
    assert low <= finder.contained()[0] <= high or changed == 0.6
    if changed == 0.6:
        assert finder.contained()[0] < 0.2


def test_pages_of_one_template_are_copies_of_each_other():
    template = text(150, "template")
    pages = [template + b" " + text(20, i) for i in range(100)]
    finder = looked([*pages, text(170, "other")], [])
    assert (finder.contained()[:100] >= 0.5).all()
    assert finder.contained()[100] == 0


@pytest.mark.parametrize("batches", [1, 4])
def test_the_first_of_several_candidates_may_keep_what_they_share(batches):
    shared, known = text(300, "shared"), text(300, "known")
    candidates = [text(100, 1), shared + text(50, 2), shared + text(50, 3), known + text(50, 4)]
    finder = looked(candidates, [known + text(100, 5)], batches, keep_first=True)
    assert (finder.contained() >= 0.5).tolist() == [False, False, True, True]
    copied = [finder.copied(i).mean() for i in range(4)]
    assert copied[:2] == [0, 0] and min(copied[2:]) > 0.7


def test_other_batches_give_the_same_answer():
    candidates = [text(200, i) + text(30, "a") for i in range(20)]
    others = [text(100, 100 + i) + text(200, i // 2)[:400] for i in range(30)]
    answers = [looked(candidates, others, batches) for batches in (1, 3, 50)]
    for finder in answers[1:]:
        np.testing.assert_array_equal(finder.contained(), answers[0].contained())
        for i in range(20):
            np.testing.assert_array_equal(finder.copied(i), answers[0].copied(i))


def test_no_candidates_and_short_ones():
    assert len(looked([], [text(10, 1)]).contained()) == 0
    finder = looked([b"a", b"", "é".encode() * 20], [b"a", b"b"])
    assert finder.contained().tolist() == [0, 0, 0]
    assert [len(finder.copied(i)) for i in range(3)] == [1, 0, 40]


def test_hashes_are_found_among_keys():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 5000, dtype=np.uint64)
    keys = np.concatenate([keys, keys[:10], np.array([0, 2**64 - 1], np.uint64)])
    # Many keys with equal first bits.
    keys = np.concatenate([keys, np.arange(50, dtype=np.uint64) + keys[0]])
    asked = np.concatenate([rng.integers(0, 2**64, 20_000, dtype=np.uint64), keys[::3]])
    lookup = HashLookup(keys)
    at, number = lookup.find(asked)
    np.testing.assert_array_equal(at, np.flatnonzero(np.isin(asked, keys)))
    np.testing.assert_array_equal(lookup.keys[number], asked[at])
    np.testing.assert_array_equal(lookup.keys[lookup.key_of], keys)
    assert len(HashLookup(np.zeros(0, np.uint64)).find(asked)[0]) == 0


@pytest.mark.parametrize("length", [24, 30, 47, 48, 100, 127, 128])
def test_a_short_text_is_found_whichever_of_its_bytes_is_changed(length):
    rng = random.Random(length)
    candidate = bytes(rng.choices(b"abcdefghijklmnop", k=length))
    others = [candidate[:at] + b"#" + candidate[at + 1 :] for at in {0, length // 2, length - 1}]
    long = text(500, 1)
    for other in others:
        finder = looked([candidate, long, text(2, 2)], [other, text(1000, 3)])
        assert finder.contained()[0] >= 0.5 and finder.contained()[1:].tolist() == [0, 0]
        assert looked([candidate], [text(3, 4) + b" " + other + text(3, 5)]).contained()[0] >= 0.5
    # Other short texts do not change what is found of a long one.
    edited = b"edit ".join(long[i : i + 200] for i in range(0, len(long), 200))
    alone, beside = looked([long], [edited]), looked([long, candidate, b"abc " * 6], [edited])
    assert alone.contained()[0] == beside.contained()[0] > 0.5
    # As the built-in corpora are compared.
    sampled = looked([candidate, long], [edited], only_samples=True)
    assert sampled.contained()[1] == alone.contained()[0]


# Tokens -----------------------------------------------------------------------------------------


def test_measured_copies_are_those_counted_by_hand():
    rng = np.random.default_rng(1)
    train = rng.integers(2, 500, 200_000)
    train[rng.integers(0, 200_000, 500)] = 1
    train[1000:1040] = rng.integers(2, 500, 40)
    fresh = rng.integers(500, 600, 1000)
    run = train[1000:1040]
    documents = [
        [*fresh[:100], *run[:32], *fresh[100:120]],  # 32 of 152
        [*run, *fresh[200:220]],  # 40 of 60: more than half
        [*fresh[300:330], *run[:31]],  # too short by one
        [*run[8:40], *run[:32]],  # two copies: 64 of 64
        [*run[:16], 1, *run[16:32]],  # an end between: two documents, neither long enough
        [*fresh[400:460]],
    ]
    held_out = np.array([token for document in documents for token in [*document, 1]], np.uint16)
    n_tokens = sum(token != 1 for token in held_out)
    found = copies_of_training(held_out, [train.astype(np.uint16)], 1)
    assert found == {"share": (32 + 40 + 64) / n_tokens, "documents": 2}


def test_copies_are_found_in_any_of_several_texts_and_at_their_borders():
    rng = np.random.default_rng(2)
    held_out = np.append(rng.integers(2, 60_000, 64), 1).astype(np.uint16)
    pieces = [held_out[:32], np.append(rng.integers(2, 60_000, 70_000), held_out[32:64])]
    assert copies_of_training(held_out, pieces, 1) == {"share": 1.0, "documents": 1}
    assert copies_of_training(held_out, pieces[:1], 1) == {"share": 0.5, "documents": 0}
    assert copies_of_training(held_out, [], 1) == {"share": 0.0, "documents": 0}
    empty = np.zeros(0, np.uint16)
    assert copies_of_training(empty, pieces, 1) == {"share": 0.0, "documents": 0}
    assert copies_of_training(held_out[-11:], pieces, 1) == {"share": 0.0, "documents": 0}
