"""Where nobody looks on, no test is skipped because a package is missing."""

import importlib.util
import os
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Extra -> what it installs that tests import; the extra `test` has all of these.
PACKAGES = {
    "completion": ("argcomplete",),
    "data": ("pyarrow", "zstandard"),
    "gcs": ("gcsfs",),
    "hf": ("safetensors", "tokenizers"),
    "s3": ("s3fs",),
    "notebook": ("ipykernel", "nbclient", "nbformat"),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
}


def test_the_tests_install_every_extra_that_they_use():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (included,) = (one for one in extras["test"] if one.startswith("lmscale["))
    assert PACKAGES.keys() <= set(included.removeprefix("lmscale[").rstrip("]").split(","))
    for extra, packages in PACKAGES.items():
        named = " ".join(extras[extra]).lower()
        assert all(package.lower() in named for package in packages), extra


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere such tests may be skipped")
@pytest.mark.parametrize(
    "package", [*sum(PACKAGES.values(), ()), "tensorboard", "moto", "gcp_storage_emulator"]
)
def test_it_is_installed(package):
    assert importlib.util.find_spec(package) is not None
