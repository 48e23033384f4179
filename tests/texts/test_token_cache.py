"""Tokens on disk: read again for the same texts and tokenizer alone, and never to anybody's harm."""

import os

import polars as pl
import pytest
import torch

from polytask.data import text, token_cache
from polytask.data.preprocess import InputSpec, TablePreprocessor

TEXTS = ["fly me to Rome", "unaffable, go", "Oslo"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache that keeps few texts too."""
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "FROM", 1)
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def work(monkeypatch):
    """How many texts were really cut, call by call."""
    calls = []
    cut = text._cut
    monkeypatch.setattr(text, "_cut", lambda texts, made: calls.append(len(texts[0])) or cut(texts, made))
    return calls


def encoded(folder, rows=TEXTS, **options):
    spec = InputSpec("text", tokenizer=str(folder), **options)
    frame = pl.DataFrame({"s": rows, "other": rows[::-1]})
    return TablePreprocessor.fit(frame, {"s": spec}).transform(frame)["s"]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_second_call_reads_the_file(folder, cache, work):
    first = encoded(folder)
    (file,) = cache.iterdir()
    before = file.read_bytes()
    assert same(first, encoded(folder))
    assert work == [3]
    assert [path.read_bytes() for path in cache.iterdir()] == [before]


def test_a_change_of_anything_that_matters_cuts_anew(folder, cache, work, tmp_path):
    encoded(folder)
    other = tmp_path / "other"
    other.mkdir()
    definition = (folder / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(definition.replace('"lowercase": true', '"lowercase": false'))
    assert (other / "tokenizer.json").read_text() != definition
    changes = [
        ("one text", lambda: encoded(folder, ["fly me to Rome", "unaffable, go", "oslo"])),
        ("where a word ends", lambda: encoded(folder, ["fly me toRome", "unaffable, go", "Oslo"])),
        ("where a text ends", lambda: encoded(folder, ["fly me to Rome", "unaffable,", "go Oslo"])),
        ("the order", lambda: encoded(folder, TEXTS[::-1])),
        ("the length", lambda: encoded(folder, longest=40)),
        ("a second text", lambda: encoded(folder, pair="other")),
        ("the tokenizer", lambda: encoded(other)),
    ]
    for count, (what, change) in enumerate(changes, start=2):
        first = change()
        assert len(work) == count, what
        assert same(first, change()), what
        assert len(work) == count, what
    assert not torch.equal(encoded(folder)["tokens"], encoded(other)["tokens"])


def test_texts_that_were_cut_short_are_told_again(folder, work):
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 3 texts have more than 4 tokens"):
            encoded(folder, longest=4)
    assert work == [3]


@pytest.mark.parametrize("harm", ["empty", "text", "half", "another", "folder"])
def test_files_that_are_no_such_thing_are_written_anew(folder, cache, work, harm):
    from safetensors.numpy import save_file

    first = encoded(folder)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if harm == "folder":
        file.unlink()
        file.mkdir()
    elif harm == "another":
        counts = torch.tensor([1, 1, 1]).numpy()
        save_file({"tokens": counts, "tokens:counts": counts}, file, {"cut": "0"})
    else:
        file.write_bytes({"empty": b"", "text": b"not tensors", "half": whole[: len(whole) // 2]}[harm])
    assert same(first, encoded(folder))
    assert work == [3, 3]
    if harm != "folder":
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_none(folder, cache, work):
    cache.parent.mkdir()
    cache.write_text("no folder")
    assert same(encoded(folder), encoded(folder))
    assert work == [3, 3]


def test_few_texts_leave_no_file(folder, cache, monkeypatch):
    monkeypatch.setattr(token_cache, "FROM", 4)
    encoded(folder)
    assert not cache.exists()


def test_what_was_not_read_for_long_goes_first(folder, cache, monkeypatch):
    encoded(folder)
    (first,) = cache.iterdir()
    encoded(folder, TEXTS[::-1])
    (second,) = set(cache.iterdir()) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    encoded(folder)
    monkeypatch.setattr(token_cache, "LIMIT", 2 * first.stat().st_size)
    encoded(folder, ["go", "go", "go"])
    assert first in set(cache.iterdir())
    assert second not in set(cache.iterdir())
