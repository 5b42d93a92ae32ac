"""What the server of worker processes imports before it forks them: all that training needs, which takes seconds.

The server ignores an import that fails with `ImportError`, and prints a traceback of any other error. What keeps
jax from starting is said once, by the command itself.
"""

import importlib

try:
    # By its name, because this room lies below that one.
    importlib.import_module("lmscale.sweep.execute")
except Exception as error:
    raise ImportError(f"what training needs cannot be imported: {error}") from error
