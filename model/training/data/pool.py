"""The same function for many portions of work, in this process or in several beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from model.system import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

PARALLEL_BYTES = 2**24
"""Less work than this is done before other processes have started."""


class Workers:
    """Runs portions of work; results come back in the order of the portions."""

    def __init__(self, executor: ProcessPoolExecutor | None, num_workers: int) -> None:
        self._executor = executor
        self._num_waiting = 2 * num_workers

    def run(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        done: Callable[[Item], None],
    ) -> list[Result]:
        """``function`` of every item; ``done`` is called here as each is finished.

        Raises:
            whatever ``function`` raises; RuntimeError when a process is killed.
        """
        if self._executor is None:
            results = []
            for item in items:
                results.append(function(item))
                done(item)
            return results
        by_place: dict[int, Result] = {}
        running: dict[Future[Result], int] = {}
        waiting = iter(enumerate(items))
        try:
            while len(by_place) < len(items):
                # Few at a time, so that an error is not followed by hours of work on the rest.
                while len(running) < self._num_waiting and (following := next(waiting, None)):
                    running[self._executor.submit(function, following[1])] = following[0]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    place = running.pop(future)
                    by_place[place] = future.result()
                    done(items[place])
        except BrokenProcessPool:
            raise RuntimeError(
                "a process that prepared the corpus was killed, perhaps for want of memory, or "
                'could not start (a script of your own needs an `if __name__ == "__main__":`); '
                "run it again, it continues where it stopped"
            ) from None
        return [by_place[place] for place in range(len(items))]


@contextmanager
def started(size: int, num_workers: int | None) -> Iterator[Workers]:
    """Workers for ``size`` bytes of text: this process alone for little of it.

    ``num_workers`` null means one for every core this process may use.
    """
    num_workers = num_workers or usable_cores()
    if num_workers == 1 or size < PARALLEL_BYTES:
        yield Workers(None, 1)
        return
    # Each process counts as one core; the tokenizers library would start threads of its own.
    executor = ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_use_one_core
    )
    try:
        yield Workers(executor, num_workers)
    finally:
        executor.shutdown(cancel_futures=True)


def _use_one_core() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
