"""Stores as earlier versions of lmscale declared them."""

import json

from lmscale.files import write_json
from lmscale.sweep.store import Store


def store_without_field(folder, field, experiment, corpus, runs):
    """A store of isoflop whose declaration lacks a field, and that takes its own runs again all the same."""
    store = Store(folder)
    store.declare("isoflop", "cpu", experiment, corpus, runs, "lmscale run isoflop")
    path = store.path / "experiment.json"
    recorded = json.loads(path.read_text())
    del recorded["fields"][field]
    write_json(path, recorded)
    store = Store(store.path)
    store.declare("isoflop", "cpu", experiment, corpus, runs, "lmscale run isoflop")
    return store
