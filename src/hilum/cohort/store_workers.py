"""The same function over many arguments: by processes on this machine, or by Ray on several."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from hilum.errors import RunError, UsageError

Result = TypeVar("Result")
AHEAD = 2
"""Jobs in flight per worker: enough that none waits, few enough that a stop is quick."""


def by_processes(
    work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[Result]:
    """Results as they come, from `workers` processes.

    Raises:
        RunError: `WORKER_LOST` when a process was killed.
    """
    if not calls:
        return
    # spawn: fork and the thread pools of torch and Blosc2 do not mix
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(calls)), mp_context=context) as pool:
        flying: set[Future[Result]] = set()
        try:
            for call in calls:
                flying.add(pool.submit(work, *call))
                if len(flying) >= AHEAD * workers:
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while flying:
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise _lost("a worker process ended by itself") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def by_ray(work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """Results as they come, from Ray tasks of one core each; joins the cluster that is connected already or
    that `RAY_ADDRESS` names, else starts one here.

    Raises:
        UsageError: `EXTRA_MISSING` without the extra `cluster`.
        RunError: `WORKER_LOST`.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(
            "EXTRA_MISSING",
            "preparing on a cluster needs the extra `cluster`",
            got=str(error),
            hint="pip install 'hilum[cluster]'",
        ) from error
    begun = not ray.is_initialized()
    if begun:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        task = ray.remote(num_cpus=1, max_retries=2)(work)
        flying: list[Any] = []
        for call in calls:
            flying.append(task.remote(*call))
            if len(flying) >= AHEAD * workers:
                done, flying = ray.wait(flying, num_returns=1)
                yield from ray.get(done)
        while flying:
            done, flying = ray.wait(flying, num_returns=1)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from error
    except ray.exceptions.RayError as error:
        raise _lost(f"{type(error).__name__}: {error}") from error
    finally:
        if begun:
            ray.shutdown()


def _lost(got: str) -> RunError:
    return RunError(
        "WORKER_LOST",
        "a worker lives until its scan is done",
        got=got,
        hint="Often the memory ran out: use fewer workers. What was done is kept; run the same again.",
    )
