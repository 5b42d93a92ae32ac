"""The contract finds what is wrong with a user's architecture, and a user's file can be held to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmscale.architectures import base
from lmscale.serialize import SpecError
from lmscale.user_files import load_file
from tests.architectures import test_contract as contract

FOLDER = Path(__file__).parent
FILE = (FOLDER / "convolution.py").read_text()
#: What of the file is replaced, by what, and which part of the contract finds it.
FAULTS = {
    "a wide output": (
        "return self.embed.attend(hidden)",
        "return jnp.concatenate([self.embed.attend(hidden)] * 2, axis=-1)",
        contract.test_it_is_what_its_class_says,
    ),
    "a look ahead": (
        "((0, 0), (1, 0), (0, 0)))[:, :-1]",
        "((0, 0), (0, 1), (0, 0)))[:, 1:]",
        contract.test_no_token_sees_a_later_one,
    ),
    "parameters": (
        "parts.matmul(2 * n * d * d)",
        "parts.matmul(n * d * d)",
        contract.test_it_is_what_its_class_says,
    ),
    "half of the FLOPs": (
        "parts.matmul(2 * n * d * d)",
        "parts.Operation(2 * n * d * d, 2.0 * n * d * d, 4.0 * n * d * d)",
        contract.test_the_flops_that_are_counted_are_those_of_its_matrix_products,
    ),
    "twice the FLOPs": (
        "parts.matmul(2 * n * d * d)",
        "parts.Operation(2 * n * d * d, 8.0 * n * d * d, 16.0 * n * d * d)",
        contract.test_the_flops_that_are_counted_are_those_of_its_matrix_products,
    ),
    "no backward pass": (
        "parts.matmul(2 * n * d * d)",
        "parts.Operation(2 * n * d * d, 4.0 * n * d * d, 0.0)",
        contract.test_the_flops_that_are_counted_are_those_of_its_matrix_products,
    ),
    "axes": (
        '(None, "data", "model")',
        '("data", "model")',
        contract.test_it_is_what_its_class_says,
    ),
    "an ignored rule": (
        'Array(r"norm/scale$", None, decays=False),',
        'Array(r"scale$", None, decays=True), Array(r"norm/scale$", None, decays=False),',
        contract.test_it_is_what_its_class_says,
    ),
    "a field of the shape": (
        'SHAPE_FIELDS = ("n_layer", "channels")',
        'SHAPE_FIELDS = ("n_layer", "dropout")',
        contract.test_models_of_two_sizes_differ_in_the_fields_of_their_shape,
    ),
}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    base._REGISTRY.pop("convolution", None)


def load(folder, old, new):
    assert old in FILE
    path = folder / "mine.py"
    path.write_text(FILE.replace(old, new, 1))
    load_file(path)
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_finds(tmp_path, fault):
    old, new, part = FAULTS[fault]
    load(tmp_path, old, new)
    with pytest.raises((AssertionError, SpecError)):
        part("convolution")


def test_the_file_as_it_is_keeps_to_it(tmp_path):
    load(tmp_path, FILE, FILE)
    for part in {part for _, _, part in FAULTS.values()}:
        part("convolution")


@pytest.mark.slow
def test_a_file_is_held_to_the_contract_by_its_name(tmp_path):
    def contract_of(path):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-k",
                "later or says",
                str(FOLDER / "test_contract.py"),
            ],
            env={**os.environ, "LMSCALE_OWN_FILE": str(path)},
            cwd=FOLDER.parents[1],
            capture_output=True,
            text=True,
            check=False,
        )

    sound = contract_of(FOLDER / "convolution.py")
    assert sound.returncode == 0 and "2 passed" in sound.stdout, sound.stdout
    old, new, _ = FAULTS["a look ahead"]
    found = contract_of(load(tmp_path, old, new))
    assert found.returncode == 1 and "1 failed, 1 passed" in found.stdout, found.stdout
