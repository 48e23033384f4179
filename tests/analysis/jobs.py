"""What the workers of the pool's tests do."""

import os
import time
from pathlib import Path


def context(folder):
    # One line a worker: it is made once.
    with (Path(folder) / "contexts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return {"folder": folder}


def plain(context, number):
    print("noise that must not disturb")
    return {"pid": os.getpid(), "double": 2 * number, "threads": os.environ["OMP_NUM_THREADS"]}


def fails(context):
    raise ValueError("no such thing")


def dies(context, times):
    """Kill the worker the first ``times`` times."""
    marks = Path(context["folder"]) / "deaths"
    done = len(marks.read_text()) if marks.exists() else 0
    if done < times:
        with marks.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), 9)
    return "alive"


def sleeps(context, seconds):
    (Path(context["folder"]) / f"pid-{os.getpid()}").touch()
    time.sleep(seconds)
    (Path(context["folder"]) / "slept").touch()
    return seconds


def gives_an_object(context):
    return object()
