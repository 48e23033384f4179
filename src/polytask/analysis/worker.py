"""A worker process: ``python -m polytask.analysis.worker``, started by ``Pool`` and nobody else.

It reads one JSON line a job on its standard input and answers with one JSON line on what was its standard
output. Whatever a job prints goes to standard error, so that a stray ``print`` cannot break the talk.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO


def main() -> None:
    """Serve jobs until the parent closes the line."""
    # The parent decides what Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    hello = json.loads(sys.stdin.readline())
    sys.path[:] = hello["path"]
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    if hello["warm"]:
        _prepare()
    _answer(answers, {"ready": True})
    context: Any = None
    while True:
        job = jobs.get()
        began = time.perf_counter()
        try:
            if context is None and hello["context"] is not None:
                context = _call(hello["context"], (), hello["context_arguments"])
            # Text at once, so that a result that is no plain data is an error of the job.
            value = json.dumps(_call(job["function"], () if context is None else (context,), job["arguments"]))
            answer: dict[str, Any] = {"value": json.loads(value)}
        except Exception as error:
            answer = {"error": str(error), "kind": type(error).__name__, "trace": traceback.format_exc()}
        _answer(answers, {**answer, "seconds": time.perf_counter() - began})


def _listen(jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Pass jobs on; when the parent is gone, end at once, in the middle of a job too.

    An orphan that went on would do work that a parent which is started again does as well.
    """
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def _prepare() -> None:
    """Load what jobs need and train something tiny, while the parent still reads the data.

    PyTorch loads parts of itself when they are first used, which no job should be charged for.
    """
    import torch

    import polytask.analysis.jobs  # noqa: F401 - what most jobs are found in
    from polytask.data.source import TensorSource
    from polytask.models import MultiTaskModel
    from polytask.sharing import Hard
    from polytask.tasks import binary
    from polytask.training.fit import train
    from polytask.training.settings import TrainingSettings

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = [TensorSource(torch.eye(2), {"a": torch.tensor([0.0, 1.0])})]
    model = MultiTaskModel(Hard(torch.nn.Linear(2, 2)), [binary("a")])
    train(model, rows, rows, settings=TrainingSettings(epochs=1, device="cpu"))


def _call(function: str, before: tuple[Any, ...], arguments: Mapping[str, Any]) -> Any:
    from polytask import registry

    return registry.resolve(function)(*before, **arguments)


def _answer(answers: TextIO, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
