"""`python -m lmscale`: the same as the installed command."""

from lmscale.cli import entry_point

if __name__ == "__main__":
    entry_point()
