"""Which errors are told to the user in one line, and with which exit code."""

from __future__ import annotations

import errno

from lmscale.remote import store_error

__all__ = ["EXIT_CODES", "CommandError", "code_and_line"]


class CommandError(ValueError):
    """Bad usage that no library call would notice."""


#: Error, by the module that defines it -> exit code: 2 for bad usage and bad input, 1 for a failure. It
#: holds for subclasses too. The names are text, so that no command imports a module for its error.
#: Every other error is a fault of a user's file, or of lmscale and gives a traceback.
EXIT_CODES = {
    "lmscale.cli.errors.CommandError": 2,
    "lmscale.data.errors.DataError": 2,
    "lmscale.export.write.ExportError": 2,
    "lmscale.laws.errors.TableError": 2,
    "lmscale.laws.result.FitError": 2,
    "lmscale.parallel.mesh.MeshError": 2,
    "lmscale.planner.topology.TopologyError": 2,
    "lmscale.serialize.SpecError": 2,
    "lmscale.planner.aot.CompileError": 2,
    "lmscale.planner.devices.DeviceError": 2,
    "lmscale.sweep.fields.ExperimentError": 2,
    "lmscale.sweep.store.StoreError": 2,
    "lmscale.tracking.trackers.TrackingError": 2,
    "lmscale.user_files.UserFileError": 2,
    "builtins.OSError": 1,
    "lmscale.data.errors.BuildError": 1,
    "lmscale.files.DamagedError": 1,
    "lmscale.files.DiskError": 1,
    "lmscale.report.registry.AnalysisError": 1,
    "lmscale.sweep.workers.WorkerError": 1,
    "lmscale.training.checkpoint.OtherVersionError": 1,
}


def code_and_line(error: BaseException) -> tuple[int, str | None]:
    """The exit code of an error, and the line that tells it; None in its place for a fault of ours.

    An error that came through a user's file is bad input.
    """
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        # Every other name would do, so it is the input that is wrong.
        return 2, _line(error)
    for cls in type(error).__mro__:
        code = EXIT_CODES.get(f"{cls.__module__}.{cls.__qualname__}")
        if code is not None:
            return code, _line(error)
    if line := store_error(error):
        return 1, line
    from lmscale.user_files import fault_of

    if (fault := fault_of(error)) is not None:
        return 2, fault
    return _start_of_jax(error)


def _start_of_jax(error: BaseException) -> tuple[int, str | None]:
    """The same for an error that keeps jax from starting: a wrong variable is bad input."""
    from lmscale.compat import jax_variables, keeps_jax_from_starting

    reason = keeps_jax_from_starting(error)
    if reason is None:
        return 1, None
    suspects = jax_variables()
    remedy = f"unset or mend {', '.join(suspects)}" if suspects else "lmscale doctor tells more"
    return (2 if suspects else 1), f"jax does not start: {reason}: {remedy}"


def _line(error: BaseException) -> str:
    if not isinstance(error, OSError):
        return str(error)
    # Here, because it takes time to load, and a worker may be stopped meanwhile.
    from lmscale.files import say_os_error

    return say_os_error(error)
