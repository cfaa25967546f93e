"""The registry of engines: where jobs run. An engine is imported when its name is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from stab import files
from stab.engines.base import Engine, Event, Job, cores
from stab.registry import Registry, StabError

__all__ = ["Engine", "Event", "Job", "cores", "engines", "make_engine"]

engines: Registry[Callable[..., Engine]] = Registry("engine", "stab.engines", callable)


@engines.register("local")
def _local(target: str, workers: int) -> Engine:
    from stab.engines.local import Workers

    return Workers(target, workers)


@engines.register("ray")
def _ray(target: str, workers: int, address: str | None = None) -> Engine:
    from stab.engines.ray import RayWorkers

    return RayWorkers(target, workers, address)


def make_engine(name: str, target: str, workers: int | None, address: str | None = None) -> Engine:
    """Return an engine, a context manager, for jobs of ``target`` (see ``Engine``).

    Args:
        name: of a registered engine.
        workers: jobs at a time, >= 1; None for as many as this machine has cores.
        address: of a cluster, for engines that take one; excludes ``workers``.

    Raises StabError for an unknown engine and for arguments that it does not take.
    """
    files.make_variables_absolute()
    factory = engines.get(name)
    more: dict[str, Any] = {}
    if address is not None:
        if "address" not in inspect.signature(factory).parameters:
            raise StabError(f"engine {name!r} takes no address, but address={address} is given")
        if workers is not None:
            raise StabError(f"address={address} names a cluster with its own cores: omit workers")
        more["address"] = address
    return factory(target, check_workers(workers), **more)


def check_workers(workers: int | None) -> int:
    """Return the number of workers, by default that of cores. Raises StabError below 1."""
    if workers is not None and workers < 1:
        raise StabError(f"workers={workers}: expected an integer >= 1")
    return workers or cores()
