"""Persistent worker processes for many runs: started once, fed with plain data, replaced when they die.

A job is an import path and JSON arguments, its result is JSON. Nothing is pickled, and no worker imports the
caller's main script, so a pool works in scripts and notebooks alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polytask.errors import PolytaskError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class PoolError(PolytaskError, RuntimeError):
    """A pool without workers, or a job whose worker died every time."""


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Args:
        key: Its name, in messages and results.
        function: Import path such as ``"polytask.analysis.jobs:train"``; it is called with the worker's context
            first, if the pool has one.
        arguments: Keyword arguments; plain JSON data.
    """

    key: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Args:
        job: The job.
        value: What its function returned; None after an error.
        error: What its exception said, or None.
        kind: Class name of the exception.
        trace: Its traceback.
        seconds: How long the worker took.
        attempts: How often it was started: 1, or more if a worker died over it.
    """

    job: Job
    value: Any = None
    error: str | None = None
    kind: str = ""
    trace: str = ""
    seconds: float = 0.0
    attempts: int = 1

    def require_success(self) -> None:
        """Raise what the job raised.

        Raises:
            PoolError: with the job's name, its error and where that came from.
        """
        if self.error is not None:
            raise PoolError(f"'{self.job.key}' failed: {self.kind}: {self.error}\n{self.trace}")


class Pool:
    """Worker processes that take jobs in turn.

    Results do not depend on the number of workers, only on the jobs. They may depend on the number of threads
    of a worker, to the last bits.

    Args:
        workers: Number of processes.
        context: Import path of a function whose result every worker makes once and hands to each job first, such
            as data that it maps into memory.
        context_arguments: Its keyword arguments; plain JSON data.
        retries: How often a job is started again after its worker died.
        threads: Threads of a worker; None shares the cores out, with one thread each where there are as many
            workers as cores. A smaller ``OMP_NUM_THREADS`` of the caller's counts.
        warm: Whether workers load what training needs as they start, so that no job is charged for it.
        on_event: Gets a sentence when a worker died and its job is started again.

    Example:
        >>> with Pool(1, warm=False) as pool:
        ...     outcomes = pool.run([Job("root", "math:sqrt", {}), Job("sum", "statistics:mean", {"data": [1, 3]})])
        >>> outcomes["sum"].value, outcomes["root"].kind
        (2, 'TypeError')
    """

    def __init__(
        self,
        workers: int,
        *,
        context: str | None = None,
        context_arguments: Mapping[str, Any] | None = None,
        retries: int = 2,
        threads: int | None = None,
        warm: bool = True,
        on_event: Callable[[str], None] | None = None,
    ):
        if workers < 1:
            raise PoolError(f"A pool needs at least 1 worker process; found {workers}.")
        arguments = dict(context_arguments or {})
        self._hello = {"path": sys.path, "context": context, "context_arguments": arguments, "warm": warm}
        self._retries, self._on_event = retries, on_event or (lambda text: None)
        self._environment = {**os.environ, **dict.fromkeys(THREADS, str(threads or _threads(workers)))}
        self._answers: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._waiting: deque[tuple[Job, int]] = deque()
        self._busy: dict[_Worker, tuple[Job, int]] = {}
        self._workers = [self._start() for _ in range(workers)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @property
    def workers(self) -> int:
        """How many processes there are."""
        return len(self._workers)

    @property
    def unfinished(self) -> int:
        """How many jobs are submitted and not yet handed back."""
        return len(self._waiting) + len(self._busy)

    def submit(self, job: Job) -> None:
        """Add a job to the queue; a worker that is free starts it now."""
        self._waiting.append((job, 1))
        self._feed()

    def wait(self) -> Outcome:
        """The next job to end.

        Raises:
            PoolError: if its worker died at every attempt, or there is no job.
        """
        outcome = self.wait_for(None)
        assert outcome is not None
        return outcome

    def wait_for(self, seconds: float | None) -> Outcome | None:
        """The next job to end, or None if none ends for so long.

        Raises:
            PoolError: if its worker died at every attempt, or there is no job.
        """
        if not self.unfinished:
            raise PoolError("The pool has no job to wait for. Submit one first.")
        while True:
            try:
                worker, answer = self._answers.get(timeout=seconds)
            except queue.Empty:
                return None
            if answer is None:
                self._replace(worker)
            elif "ready" in answer:
                worker.ready = True
                self._feed()
            else:
                job, attempts = self._busy.pop(worker)
                self._feed()
                return Outcome(job, attempts=attempts, **answer)

    def run(self, jobs: Iterable[Job], on_done: Callable[[Outcome], None] | None = None) -> dict[str, Outcome]:
        """Work through jobs.

        Args:
            jobs: What to do, in this order as far as workers are free.
            on_done: Called with every outcome as it comes.

        Returns:
            Outcomes by key, in the order in which they ended.

        Raises:
            PoolError: if a worker died at every attempt of one job.
        """
        for job in jobs:
            self.submit(job)
        found: dict[str, Outcome] = {}
        while self.unfinished:
            outcome = self.wait()
            found[outcome.job.key] = outcome
            if on_done is not None:
                on_done(outcome)
        return found

    def close(self) -> None:
        """End all workers now, whatever they do."""
        # All at once first, since each takes a while to give its memory back.
        for end in (_Worker.kill, _Worker.end):
            for worker in self._workers:
                end(worker)
        self._workers, self._busy = [], {}
        self._waiting.clear()

    def _start(self) -> _Worker:
        worker = _Worker(self._environment, self._answers)
        worker.send(self._hello)
        return worker

    def _feed(self) -> None:
        for worker in self._workers:
            if self._waiting and worker.ready and worker not in self._busy:
                self._busy[worker] = self._waiting.popleft()
                worker.send({"function": (job := self._busy[worker][0]).function, "arguments": dict(job.arguments)})

    def _replace(self, worker: _Worker) -> None:
        if worker not in self._workers:
            return
        code = worker.end()
        self._workers.remove(worker)
        if not worker.ready:
            raise PoolError(f"A worker process could not start: it ended with {code}. Its own message is above.")
        job, attempts = self._busy.pop(worker, (None, 0))
        if job is not None and attempts > self._retries:
            raise PoolError(
                f"The job '{job.key}' was given up: its worker process died {attempts} times, the last time with "
                f"{code}{_why(code)}. What was finished is kept."
            )
        self._workers.append(self._start())
        if job is not None:
            self._on_event(f"The worker of '{job.key}' died ({code}{_why(code)}); it is started again.")
            self._waiting.appendleft((job, attempts + 1))


class _Worker:
    """One process, and the thread that reads its answers."""

    def __init__(
        self, environment: Mapping[str, str], answers: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]]
    ):
        self.ready = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "polytask.analysis.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment, PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
            text=True,
            encoding="utf-8",
            # Ctrl-C in a terminal goes to a whole group of processes. The workers are ended by us.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(answers,), daemon=True)
        self._reader.start()

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        # If it is dead, the reader says so.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """Kill it, and don't wait for its end."""
        self._process.kill()

    def end(self) -> int:
        """Kill it; its exit code."""
        self.kill()
        code = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        return code

    def _read(self, answers: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # the stream was closed by end()
            for line in self._process.stdout:
                answers.put((self, json.loads(line)))
        answers.put((self, None))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(workers: int) -> int:
    most = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores() // workers)
    return min(share, int(most)) if most.isdigit() and int(most) else share


def _why(code: int) -> str:
    # The kernel's way to free memory.
    return ", killed from outside, perhaps for memory" if code == -9 else ""
