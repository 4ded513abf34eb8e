"""Many jobs in worker processes, in the order given; a worker that dies costs its job and nothing else.

`concurrent.futures` gives up a whole pool when one process dies. Here the jobs that were running then are
suspects: each is run again in a process of its own, and the one that kills that too is the culprit.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

IN_FLIGHT = 3
"""Jobs handed out per worker: enough to keep it busy, few enough to be suspects."""


@dataclass(frozen=True)
class Done(Generic[JobT, ResultT]):
    """One job's end.

    Args:
        job: as given. result: of the task; None when the process died. died: whether it did.
    """

    job: JobT
    result: ResultT | None
    died: bool = False


def run_jobs(
    task: Callable[[JobT], ResultT], jobs: Iterable[JobT], workers: int
) -> Iterator[Done[JobT, ResultT]]:
    """Runs `task` on every job and yields them in order.

    Args:
        task: a function of a module. jobs: lazily taken. workers: processes; 0 runs here, without protection.
    """
    if workers == 0:
        for job in jobs:
            yield Done(job, task(job))
        return
    source = iter(jobs)
    again: deque[JobT] = deque()
    more = True
    while more or again:
        pool = _pool(workers)
        try:
            running: deque[tuple[JobT, Future[ResultT]]] = deque()
            broken = False
            while not broken:
                while more and not again and len(running) < IN_FLIGHT * workers:
                    try:
                        job = next(source)
                    except StopIteration:
                        more = False
                        break
                    running.append((job, _submit(pool, task, job)))
                if not running:
                    break
                job, future = running.popleft()
                try:
                    yield Done(job, future.result())
                except BrokenProcessPool:
                    again.extend([job, *(j for j, _ in running)])
                    broken = True
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        while again:
            yield _alone(task, again.popleft())


def _submit(pool: ProcessPoolExecutor, task: Callable[[JobT], ResultT], job: JobT) -> Future[ResultT]:
    try:
        return pool.submit(task, job)
    except BrokenProcessPool as error:
        failed: Future[ResultT] = Future()
        failed.set_exception(error)
        return failed


def _alone(task: Callable[[JobT], ResultT], job: JobT) -> Done[JobT, ResultT]:
    with _pool(1) as pool:
        try:
            return Done(job, pool.submit(task, job).result())
        except BrokenProcessPool:
            return Done(job, None, died=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: fork copies the locks of thread pools and hangs.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_threads)


def _quiet_threads() -> None:
    """One thread per worker: the processes are the parallel part."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
