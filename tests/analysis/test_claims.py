"""Claims of work in a folder that processes share."""

import shutil
import subprocess
import sys

import pytest

from polytask.analysis import claims as module
from polytask.analysis.claims import CLAIMS, STALE, Claims
from polytask.analysis.folder import Folder
from polytask.errors import RecipeError


def test_a_claim_holds_until_it_is_dropped_or_its_owner_leaves(tmp_path):
    with Claims(tmp_path) as mine:
        with Claims(tmp_path) as yours:
            assert yours.take("a")
            assert yours.take("b")
            assert not mine.take("a")
            yours.drop("a")
            assert mine.take("a")
            assert not yours.take("a")
            assert mine.owners() == {yours.owner}
        assert mine.take("b")
        assert mine.owners() == set()
    assert not (tmp_path / CLAIMS).exists()


def test_what_a_killed_process_had_claimed_is_taken_over_at_once(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from polytask.analysis.claims import Claims\n"
        "claims = Claims(Path(sys.argv[1])); claims.__enter__(); print(claims.take('a'), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    with process, Claims(tmp_path) as mine:
        assert process.stdout.readline() == "True\n"
        assert not mine.take("a")
        process.kill()
        process.wait()
        assert mine.take("a")
        assert mine.owners() == set()


def test_a_process_of_another_machine_is_gone_when_its_count_stands_still(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Claims(tmp_path) as mine:
        (tmp_path / CLAIMS / "a.claim").write_text("elsewhere-1f.77.0a1b2c3d")
        beat = tmp_path / CLAIMS / "elsewhere-1f.77.0a1b2c3d.beat"
        beat.write_text("0")
        assert not mine.take("a")
        clock[0] = STALE - 1
        beat.write_text("1")
        assert not mine.take("a")
        clock[0] += STALE - 1
        assert not mine.take("a")
        assert mine.owners() == {"elsewhere-1f.77.0a1b2c3d"}
        clock[0] += 1
        assert mine.take("a")
        assert mine.owners() == set()
        assert not beat.exists()


def test_a_process_that_others_took_for_gone_goes_on(tmp_path):
    with Claims(tmp_path) as mine:
        shutil.rmtree(tmp_path / CLAIMS)  # as the last of the others does
        assert mine.take("a")
        assert mine.take("b")
        mine.drop("b")
    assert not (tmp_path / CLAIMS).exists()


def test_a_process_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    with Claims(tmp_path) as mine:
        (beat,) = (tmp_path / CLAIMS).glob("*.beat")
        assert beat.name == f"{mine.owner}.beat"
        counts = set()
        while len(counts) < 3:  # the test's time limit ends it otherwise
            counts.add(beat.read_text())


def test_a_lock_that_is_kept_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with (
        Claims(tmp_path) as mine,
        Claims(tmp_path) as yours,
        mine.locked(),
        pytest.raises(RecipeError, match=r"Another process holds .* and does not let go"),
    ):
        yours.take("a")


def test_a_folder_that_one_process_has_for_itself(tmp_path):
    with (
        Folder(tmp_path).held(),
        pytest.raises(RecipeError, match=r"Another process works in '.*'\. Wait for it, or choose another --out"),
        Folder(tmp_path).held(),
    ):
        pass
