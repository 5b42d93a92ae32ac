"""Ownership of a run: which process trains it, so that no two ever do; and of a store's report.

A claim is a file in the run's folder. It holds host, process, time and a token of its own. The process that
holds the claim renews it every `BEAT_SECONDS`. A claim is taken over when its holder is dead (its
process is gone, as far as this machine can see) or silent: not renewed for `SILENT_SECONDS` by the
file system's clock, and not for two beats while the taker looks, so that the clocks of machines need not
agree.

On a mounted file system (local, NFS, Lustre) a claim is made by linking a finished file to its name,
which fails where the name exists; no flock is needed. Where links are refused the file is created
exclusively. A dead claim is never replaced, because two processes could replace each other's claims.
Instead its successor is `claim-after-TOKEN.json`, a name that again only one process can create. The last
claim of that chain holds. Release removes the chain from its beginning. A process that judged a claim
dead and creates a successor too late then finds that the chain is gone, and withdraws.

On an object store (gs://, s3://) every process writes an object of its own, `claims/TOKEN.json`, and then
lists the folder. It holds the run when its object is the only one; otherwise it withdraws and tries again
after a random pause. Every process writes before it lists, so two can never both hold. This needs listings
that show every earlier write, as those of Google, Amazon and Azure do. A renewal that was sent before a
takeover and arrives after it writes the old object again; its holder lists the folder after every renewal,
and before it writes to the run, and withdraws where another holds.

One gap remains: a holder that is suspended for `SILENT_SECONDS` between its last check of the claim and the
write that follows will still make that one write. It checks again before every write.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from etils import epath

from lmscale.files import DamagedError, parse_json, read_bytes
from lmscale.remote import is_remote

#: Seconds between two renewals of a claim.
BEAT_SECONDS = 20.0
#: Seconds without a renewal after which a claim may be taken over.
SILENT_SECONDS = 300.0
#: The same two for a turn, whose holder works for seconds to minutes.
_TURN_BEAT, _TURN_SILENT = 5.0, 60.0
#: Tries for a claim of an object store that others want at the same moment, and the longest pause.
_TRIES, _PAUSE = 8, 1.5
#: Errors of file systems without links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Holder:
    """The process that a claim names.

    Attributes:
      host: its machine's name.
      boot: identifies the boot of the machine and the process namespace; processes of equal `boot` can see
        each other.
      process: its number.
      started: when it started, in the units of its system; "" where that is not known.
      since: when it claimed the run, in seconds since the epoch by its own clock.
      token: unique to this claim.
      held: whether it holds; false for a while on an object store.
      beat: renewals so far, on an object store.
    """

    host: str
    boot: str
    process: int
    started: str
    since: float
    token: str
    held: bool = True
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """A claim of this process."""
        process = os.getpid()
        return cls(
            platform.node(),
            _boot(),
            process,
            _state_and_start(process)[1],
            time.time(),
            secrets.token_hex(8),
        )

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def dead(self) -> bool | None:
        """Whether its process is gone; None where that cannot be seen from here."""
        if not self.boot or (self.host, self.boot) != (platform.node(), _boot()):
            return None
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        state, started = _state_and_start(self.process)
        # Some systems hide processes of other users.
        return bool(state) and (state in ("Z", "X") or started != self.started)


@dataclass(frozen=True)
class Claim:
    """A claim that was found: its holder, and the time of its last renewal by the store's clock (or 0)."""

    holder: Holder
    renewed: float


#: (claim, now by the store's clock) -> whether its holder is gone.
_IsOver = Callable[[Claim, float], bool]


class Claims:
    """The runs that this process owns.

    A thread renews them. To be used as a context: at its end they are released.

    Args:
      beat, silent: seconds; see `BEAT_SECONDS` and `SILENT_SECONDS`.
    """

    def __init__(self, *, beat: float = BEAT_SECONDS, silent: float = SILENT_SECONDS):
        self._beat, self._silent = beat, silent
        self._lock = threading.RLock()
        self._held: dict[str, _Mounted | _Objects] = {}
        #: Renewals of others: token -> (the last one, when we first saw it by our clock).
        self._seen: dict[str, tuple[tuple[float, int], float]] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def take(self, folder: epath.PathLike) -> Holder | None:
        """Claims a run, for this process.

        Args:
          folder: the run's, which exists.

        Returns:
          None when it is ours, otherwise the holder.

        Raises:
          OSError: when the folder cannot be written to.
        """
        with self._lock:
            if str(folder) in self._held:
                return None
            attempt = _Objects(folder) if is_remote(folder) else _Mounted(folder)
            other = attempt.make(self._is_over)
            if other is not None:
                return other
            self._held[str(folder)] = attempt
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, daemon=True)
                self._thread.start()
            return None

    def holds(self, folder: epath.PathLike) -> bool:
        """Whether a run is still ours. The claim is read again, because another process may have taken it over."""
        with self._lock:
            claim = self._held.get(str(folder))
            if claim is None:
                return False
            if claim.stands():
                return True
            del self._held[str(folder)]
            return False

    def release(self, folder: epath.PathLike) -> None:
        """Gives up a run; does nothing if it is not ours."""
        with self._lock:
            claim = self._held.pop(str(folder), None)
            if claim is not None and claim.stands():
                claim.remove()

    def other(self, folder: epath.PathLike) -> Claim | None:
        """The claim of another process that holds a run; None when the run can be claimed."""
        with self._lock:
            found = find_claim(folder)
            if found is None or str(folder) in self._held or self._is_over(found, _now(folder)):
                return None
            return found

    def close(self) -> None:
        """Releases all runs, as far as the store can be reached."""
        self._over.set()
        with self._lock:
            for folder in list(self._held):
                # As in `_renew`. A claim that stays is taken over when it has been silent.
                with contextlib.suppress(Exception):
                    self.release(folder)

    def _renew(self) -> None:
        while not self._over.wait(self._beat):
            with self._lock:
                claims = list(self._held.values())
            for claim in claims:
                # The store may be reachable again at the next beat. The packages of object stores raise
                # errors of their own, which are no OSError, and no other claim may fall silent for one.
                with contextlib.suppress(Exception):
                    claim.renew()

    def _is_over(self, claim: Claim, now: float) -> bool:
        """Whether the holder of a claim is dead or silent; `now` by the store's clock (or 0)."""
        if claim.holder.dead():
            return True
        # Renewals are timed by our own clock too. Some stores have no clock, and on some file systems (Lustre,
        # SMB, sshfs) a file has the time of the machine that wrote it, which may be minutes behind ours: a
        # holder that is silent by the file's time must also renew nothing while we look.
        sign, here = (claim.renewed, claim.holder.beat), clock()
        last, since = self._seen.get(claim.holder.token, (None, here))
        if last != sign:
            self._seen[claim.holder.token] = (sign, here)
            return False
        late = bool(claim.renewed and now) and now - claim.renewed > self._silent
        return here - since > (min(2 * self._beat, self._silent) if late else self._silent)


def find_claim(folder: epath.PathLike) -> Claim | None:
    """The claim that holds a run, whether its holder lives or not; None for a free run."""
    if is_remote(folder):
        claims = _Objects(folder).all()
        return next((claim for claim in claims if claim.holder.held), None)
    chain = _Mounted(folder).chain()
    return chain[-1][1] if chain else None


def is_free(folder: epath.Path) -> bool:
    """Whether no living process holds a run, as far as is known at once."""
    claim = find_claim(folder)
    return claim is None or claim.holder.dead() is True


@contextlib.contextmanager
def turn(folder: epath.PathLike, tell: Callable[[str], None]) -> Iterator[bool]:
    """Waits until no other process or thread has its turn in a folder, and keeps others out meanwhile.

    Args:
      folder: one that exists.
      tell: is given a line when there is one to wait for.

    Yields:
      Whether it had to wait.

    Raises:
      OSError: when the folder cannot be written to; it names the folder.
    """
    with Claims(beat=_TURN_BEAT, silent=_TURN_SILENT) as claims:
        waited = False
        while (holder := _take(claims, folder)) is not None:
            if not waited:
                tell(f"waiting for {holder}, which writes to {folder}")
            waited = True
            time.sleep(random.uniform(0.1, 0.5))
        yield waited


def _take(claims: Claims, folder: epath.PathLike) -> Holder | None:
    try:
        return claims.take(folder)
    except OSError as error:
        # The name of a temporary file would tell a user nothing.
        error.filename = str(folder)
        raise


def clock() -> float:
    """Seconds that go on while the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


# --- mounted file systems -----------------------------------------------------------------------


class _Mounted:
    """A claim of a run on a mounted file system; see the module's docstring."""

    def __init__(self, folder: epath.PathLike):
        self._folder = Path(folder)
        self._own = Holder.here()
        self._path: Path | None = None

    def chain(self) -> list[tuple[Path, Claim]]:
        """The claims from the first to the one that holds."""
        found: dict[Path, Claim] = {}
        path = self._folder / "claim.json"
        # A damaged claim might name itself.
        while path not in found and (claim := _read(path)) is not None:
            found[path] = claim
            path = self._after(claim)
        return list(found.items())

    def make(self, is_over: _IsOver) -> Holder | None:
        """Makes the claim; returns None, or the holder that keeps it from being made."""
        temporary = self._folder / f"claim-{self._own.token}.tmp"
        content = _content(self._own)
        try:
            temporary.write_bytes(content)
            now = temporary.stat().st_mtime
            while True:
                chain = self.chain()
                if chain and not is_over(chain[-1][1], now):
                    return chain[-1][1].holder
                path = self._after(chain[-1][1]) if chain else self._folder / "claim.json"
                if not _create(path, temporary, content):
                    # Another process was faster: look at its claim.
                    continue
                self._path = path
                if self.stands():
                    return None
                # The chain that was found dead has been released meanwhile.
                path.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)

    def stands(self) -> bool:
        chain = self.chain()
        return bool(chain) and chain[-1][1].holder.token == self._own.token

    def renew(self) -> None:
        # This sets the time of the store's clock, not ours. After a takeover nobody reads this file.
        os.utime(self._made())

    def remove(self) -> None:
        path = self._made()
        now = path.stat().st_mtime if path.exists() else 0.0
        for path, _ in self.chain():
            path.unlink(missing_ok=True)
        # Files of processes that were killed while they claimed.
        for path in self._folder.glob("claim-*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > SILENT_SECONDS:
                    path.unlink()

    def _made(self) -> Path:
        """The file of the claim, which `make` has made."""
        assert self._path is not None
        return self._path

    def _after(self, claim: Claim) -> Path:
        return self._folder / f"claim-after-{claim.holder.token}.json"


def _create(path: Path, temporary: Path, content: bytes) -> bool:
    """Makes a file of a finished one; False where it exists."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        # NFS may repeat a request whose answer was lost.
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with open(file, "wb") as out:
        out.write(content)
    return True


# --- object stores ------------------------------------------------------------------------------


class _Objects:
    """A claim of a run on an object store; see the module's docstring."""

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder) / "claims"
        self._own = Holder.here()
        self._path = self._folder / f"{self._own.token}.json"
        #: Tokens of the claims that we found to be over, and removed.
        self._judged: set[str] = set()
        self._lock = threading.Lock()

    def all(self) -> list[Claim]:
        if not self._folder.exists():
            return []
        names = [path.name for path in self._folder.iterdir() if path.name.endswith(".json")]
        found = (_read(self._folder / name) for name in sorted(names))
        return [claim for claim in found if claim is not None]

    def make(self, is_over: _IsOver) -> Holder | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            self._write(held=False)
            now, others = _modified(self._path), self._others()
            over = [claim for claim in others if is_over(claim, now)]
            self._judged |= {claim.holder.token for claim in over}
            for claim in over:
                (self._folder / f"{claim.holder.token}.json").unlink(missing_ok=True)
            if over:
                others = self._others()
            if not others:
                self._write(held=True)
                return None
            self.remove()
            if held := [claim.holder for claim in others if claim.holder.held]:
                return held[0]
            # Others try at the same moment, and have withdrawn too.
            time.sleep(random.uniform(0, _PAUSE))
        return others[0].holder

    def stands(self) -> bool:
        self._yield_if_taken()
        return read_bytes(self._path) is not None

    def renew(self) -> None:
        with self._lock:
            # An object that another process removed must not be written again.
            if read_bytes(self._path) is None:
                return
            self._write(held=True)
            # The write may have taken so long that another process has removed the object meanwhile.
            self._yield_if_taken()

    def _yield_if_taken(self) -> None:
        """Removes our object where another process holds the run, which it does only after it removed ours.

        A claim that we have judged to be over may come back in the same way: it is its own holder that yields.
        """
        others = (claim.holder for claim in self._others())
        if any(other.held and other.token not in self._judged for other in others):
            self._path.unlink(missing_ok=True)

    def remove(self) -> None:
        with self._lock:
            self._path.unlink(missing_ok=True)

    def _others(self) -> list[Claim]:
        return [claim for claim in self.all() if claim.holder.token != self._own.token]

    def _write(self, *, held: bool) -> None:
        self._own = Holder(**{**asdict(self._own), "held": held, "beat": self._own.beat + 1})
        self._path.write_bytes(_content(self._own))


# --- shared -------------------------------------------------------------------------------------


def _content(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=1) + "\n").encode()


def _read(path: epath.PathLike) -> Claim | None:
    """The claim in a file, or None if there is no file.

    A file without a valid claim (its writer was killed, or the disk was full) counts as the claim of an
    unknown process: it becomes silent after a while.
    """
    path = epath.Path(path)
    data = read_bytes(path)
    if data is None:
        return None
    try:
        renewed = _modified(path)
    except FileNotFoundError:
        return None
    try:
        fields = {"host": str, "boot": str, "process": int, "started": str, "token": str}
        values = parse_json(data, path, fields)
        holder = Holder(**{k: v for k, v in values.items() if k in Holder.__dataclass_fields__})
        if re.fullmatch(r"[0-9a-f]{16}", holder.token) and holder.process > 0:
            return Claim(holder, renewed)
    except (DamagedError, TypeError):
        pass
    name = path.name.removesuffix(".json")
    return Claim(Holder("an unknown host", "", 0, "", 0.0, name), renewed)


def _now(folder: epath.PathLike) -> float:
    """The time by the clock of a mounted file system; 0 for others."""
    if is_remote(folder):
        return 0.0
    probe = Path(folder) / f"claim-{secrets.token_hex(8)}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _modified(path: epath.PathLike) -> float:
    """Seconds since the epoch by the store's clock; 0 where it tells none."""
    if not is_remote(path):
        return os.stat(path).st_mtime
    return float(epath.Path(path).stat().mtime or 0)


def _boot() -> str:
    """An identifier shared by all processes that can see each other's numbers; "" where it is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state_and_start(process: int) -> tuple[str, str]:
    """A process's state ("Z" when it is dead but not yet waited for) and start; "" when unknown."""
    try:
        # The name of the process, in brackets, may hold any character.
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""
