"""A stand-in for a command on PATH, in shell, that notes its calls."""

import os
from pathlib import Path


def stub(folder: Path, name: str, script: str) -> None:
    """Puts an executable into `folder`; `$here` is the folder, its calls are lines of NAME.calls."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/bash\nhere={folder}\necho "$*" >>"$here/{name}.calls"\n{script}\n')
    path.chmod(0o755)


def calls(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.calls"
    return path.read_text().splitlines() if path.exists() else []


def environment(folder: Path) -> dict[str, str]:
    """This process's environment with the folder first on PATH, and no GPU."""
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }
