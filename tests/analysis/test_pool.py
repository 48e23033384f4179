import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polytask.analysis.pool import Job, Pool, PoolError, _threads

HERE = Path(__file__).parent
JOBS = "jobs"


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    made = []

    def make(workers=2, **options):
        arguments = {"context": f"{JOBS}:context", "context_arguments": {"folder": str(tmp_path)}}
        made.append(Pool(workers, warm=False, **arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A killed child that nobody has waited for yet.
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_live_on_load_their_context_once_and_failures_are_plain(pool, tmp_path):
    seen = []
    outcomes = pool().run(
        [*[Job(f"j{i}", f"{JOBS}:plain", {"number": i}) for i in range(12)], Job("bad", f"{JOBS}:fails")], seen.append
    )
    assert [outcomes[f"j{i}"].value["double"] for i in range(12)] == list(range(0, 24, 2))
    pids = {outcome.value["pid"] for outcome in seen if outcome.value}
    contexts = (tmp_path / "contexts").read_text().split()
    assert len(contexts) == len(set(contexts)) <= 2
    assert pids <= set(map(int, contexts))
    bad = outcomes["bad"]
    assert (bad.value, bad.error, bad.kind, bad.attempts) == (None, "no such thing", "ValueError", 1)
    assert "in fails" in bad.trace
    assert len(seen) == 13


def test_a_dead_worker_is_replaced_and_its_job_done_again(pool, tmp_path):
    said = []
    made = pool(1, on_event=said.append)
    outcomes = made.run([Job("mortal", f"{JOBS}:dies", {"times": 2}), Job("after", f"{JOBS}:plain", {"number": 1})])
    assert outcomes["mortal"].value == "alive"
    assert outcomes["mortal"].attempts == 3
    assert outcomes["after"].value["double"] == 2
    assert len(said) == 2
    assert "'mortal' died (-9, killed from outside" in said[0]


def test_a_job_that_always_kills_is_given_up_by_name(pool):
    with pytest.raises(PoolError, match=r"The job 'mortal' was given up: its worker process died 2 times.*with -9"):
        pool(1, retries=1).run([Job("mortal", f"{JOBS}:dies", {"times": 9})])


def test_no_workers_and_nothing_to_wait_for(pool):
    with pytest.raises(PoolError, match="at least 1 worker process; found 0"):
        pool(0)
    with pytest.raises(PoolError, match="no job to wait for"):
        pool(1).wait()


def test_workers_end_when_the_parent_is_killed_and_on_ctrl_c(tmp_path):
    script = (
        "import signal, sys; sys.path.insert(0, {here!r})\n"
        # A shell's job in the background ignores Ctrl-C, and so would all that it starts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from polytask.analysis.pool import Pool, Job\n"
        "with Pool(1, warm=False, context='jobs:context', context_arguments={{'folder': {folder!r}}}) as pool:\n"
        "    pool.run([Job('nap', 'jobs:sleeps', {{'seconds': 60}})])\n"
    )
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, -2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        line = [sys.executable, "-c", script.format(here=str(HERE), folder=str(folder))]
        parent = subprocess.Popen(line, stderr=subprocess.DEVNULL)
        until(lambda folder=folder: list(folder.glob("pid-*")))
        (child,) = [int(path.name[4:]) for path in folder.glob("pid-*")]
        parent.send_signal(number)
        assert parent.wait(timeout=30) in (code, 130, 1)
        until(lambda child=child: gone(child))
        assert not (folder / "slept").exists()


def test_threads_are_shared_out(monkeypatch, pool):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _threads(1) == cores
    assert _threads(4 * cores) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert _threads(1) == 1
    assert pool(1).run([Job("a", f"{JOBS}:plain", {"number": 1})])["a"].value["threads"] == "1"


def test_jobs_are_plain_data(pool):
    made = pool(1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        made.run([Job("a", f"{JOBS}:plain", {"number": object()})])
    made.close()
    outcome = pool(1).run([Job("b", f"{JOBS}:gives_an_object")])["b"]
    assert outcome.kind == "TypeError"
    assert "not JSON serializable" in outcome.error
    assert outcome.seconds > 0
