"""How many runs train side by side: as planned, or as measured where that pays off.

Another number changes a result by rounding, so a choice is recorded: in the store, so that a run that
was stopped resumes as it began, and for all stores of this machine, so that its experiments use the
same number and measure once.
"""

from __future__ import annotations

import functools
import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath

from lmscale.cache import cached, keep, usable_cache
from lmscale.compat import is_out_of_memory
from lmscale.files import DamagedError, read_json, write_json
from lmscale.parallel.distributed import broadcast_from_main, is_main_process
from lmscale.planner.devices import Devices
from lmscale.planner.packs import Pack, most_slots, with_slots
from lmscale.planner.step_config import asked_head
from lmscale.training.batch_source import BatchSource
from lmscale.training.program import Program
from lmscale.training.state import packed_hyperparameters

#: Predicted seconds of training from which it pays to compile and time a few programs.
WORTH_MEASURING = 900.0
#: Ratio of speeds from which more slots are chosen. With fewer slots fewer are idle at the end.
GAIN = 1.03
#: Least seconds that the timed dispatches of a program take together.
TIMED_SECONDS = 2.0


def choices_of(store: epath.Path, devices: Devices) -> SlotChoices:
    """The choices of a store (its folder), shared with the other stores of this machine."""
    cache = usable_cache()
    machine = () if cache is None else (epath.Path(cache) / "slots",)
    return SlotChoices((store / "slots", *machine), devices)


#: Fields of models that stores of earlier versions do not know, at the defaults that mean "as before".
_LATER_FIELDS = ("document_separator=None", "positions='learned'")


@dataclass(frozen=True)
class SlotChoices:
    """The numbers of slots of a store's packs, in one small file each.

    Attributes:
      folders: where choices are recorded: first the store's own, then the machine's if it has one.
      devices: what the packs are planned for.
      worth: predicted seconds of a pack from which it is measured.
    """

    folders: tuple[epath.Path, ...]
    devices: Devices
    worth: float = WORTH_MEASURING

    def settle(self, pack: Pack, rate: Callable[[Pack], float], log: Callable[[str], None]) -> Pack:
        """The pack with the number of slots that is recorded for it; records one if there is none.

        Args:
          pack: as planned.
          rate: measures tokens/s of all slots of a pack; raises what jax does where memory runs out.
          log: is told what was measured.
        """
        name = self._name(pack)
        known = broadcast_from_main(lambda: self._recorded(name, log)) or self._choose(
            pack, rate, log
        )
        store, *machine = self.folders
        if not broadcast_from_main((store / name).exists):
            store.mkdir(parents=True, exist_ok=True)
            write_json(store / name, known, sealed=True)
        for folder in machine:
            if broadcast_from_main(functools.partial(_is_missing, folder / name)):
                keep(folder / name, known)
        return with_slots(pack, known["n_slots"], self.devices)

    def planned(self, pack: Pack) -> Pack:
        """The pack with the number of slots that is recorded for it, or as it is."""
        known = self._recorded(self._name(pack), lambda _: None)
        return pack if known is None else with_slots(pack, known["n_slots"], self.devices)

    def _recorded(self, name: str, log: Callable[[str], None]) -> dict[str, Any] | None:
        """The record in the store, or else in the cache. A damaged file is deleted."""
        store, *machine = self.folders
        try:
            known = read_json(store / name, {"n_slots": int})
            if known is not None and known["n_slots"] < 1:
                raise DamagedError(store / name, f"{known['n_slots']} runs side by side")
        except DamagedError as error:
            log(f"{error}; what is recorded elsewhere is used, or it is chosen again")
            if is_main_process():
                (store / name).unlink(missing_ok=True)
            known = None
        if known is not None:
            return known
        found = (cached(folder / name, {"n_slots": int}) for folder in machine)
        return next((known for known in found if known is not None and known["n_slots"] > 0), None)

    def _choose(
        self, pack: Pack, rate: Callable[[Pack], float], log: Callable[[str], None]
    ) -> dict[str, Any]:
        rates: dict[int, float] = {}
        # Processes that train together would each measure another time, or one would fail alone.
        alone = jax.process_count() == 1 and pack.mesh[1:] == (1, 1)
        if alone and pack.seconds >= self.worth:
            label = pack.key.model.label

            def timed(n_slots: int) -> float:
                rates[n_slots] = _or_nothing(rate, with_slots(pack, n_slots, self.devices))
                log(f"{label}: {n_slots} side by side train {rates[n_slots]:,.0f} tokens/s")
                return rates[n_slots]

            best = best_number(pack.n_slots, pack.mesh[0], most_slots(pack, self.devices), timed)
        else:
            best = pack.n_slots
        return {
            "model": pack.key.model.label,
            "device": self.devices.kind,
            "n_slots": best,
            "chosen": "measured" if rates else "predicted",
            "tokens_per_second": {str(n): rates[n] for n in sorted(rates)},
        }

    def _name(self, pack: Pack) -> str:
        """The file of a pack: a hash of all that its speed depends on."""
        device = self.devices.kind, self.devices.count, jax.__version__
        # Stores hold files that were named when StepConfig was called Execution.
        config = repr(pack.step_config).replace("StepConfig(", "Execution(", 1)
        key = repr(pack.key)
        for later in _LATER_FIELDS:
            key = key.replace(f", {later}", "")
        speed = f"({key}, {pack.mesh!r}, {config}, {pack.n_slots!r}, {device!r})"
        if pack.recurrence(self.devices.platform).form == "kernel":
            speed += " with the kernel of time steps"
        if self.devices.platform == "gpu" and asked_head() == "xla":
            speed += " with the plain head"
        return f"{hashlib.sha256(speed.encode()).hexdigest()[:16]}.json"


def best_number(planned: int, unit: int, most: int, rate: Callable[[int], float]) -> int:
    """The number of slots that trains most tokens a second.

    The search doubles the planned number while that pays off; if it never does, it halves it.

    Args:
      planned: the number to begin with.
      unit: the number is a multiple of this.
      most: the largest number.
      rate: measures the tokens/s of a number of slots; 0 where it does not fit.
    """
    best, speed = planned, rate(planned)
    while best * 2 <= most and (more := rate(best * 2)) > GAIN * speed:
        best, speed = best * 2, more
    if best > planned:
        return best
    while best % (2 * unit) == 0 and (fewer := rate(best // 2)) * GAIN >= speed:
        best, speed = best // 2, max(speed, fewer)
    return best


def training_rate(program: Program, pack: Pack, source: BatchSource) -> float:
    """Tokens per second of all slots of a program, measured on the first steps of a pack's runs."""
    runs = [pack.runs[i % len(pack.runs)].spec for i in range(program.n_slots)]
    every, n_steps = np.ones(program.n_slots, bool), program.chunk_steps
    hyper = packed_hyperparameters(runs)
    data = source.chunk([(spec, source.order(spec), 0) for spec in runs], n_steps, n_steps)
    seeds = np.array([spec.seed for spec in runs], np.int32)
    state = program.reset(program.empty(), seeds, every)
    seconds: list[float] = []
    # The first compiles.
    while len(seconds) < 4 or sum(seconds[1:]) < TIMED_SECONDS:
        start = time.perf_counter()
        state, metrics = program.train(state, hyper, data, np.int32(n_steps), every)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    return program.n_slots * n_steps * runs[0].batch_tokens / statistics.median(seconds[1:])


def _or_nothing(rate: Callable[[Pack], float], pack: Pack) -> float:
    try:
        return rate(pack)
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(str(error)):
            return 0.0
        raise


def _is_missing(path: epath.Path) -> bool:
    return cached(path) is None
