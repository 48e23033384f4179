"""Rows of different lengths: batches of about one length, every row once, no more padding than needed."""

import numpy as np
import torch

from polytask.data.ragged import extents
from polytask.data.source import PADDED, Share, TensorSource


def texts(rows=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Lengths like those of news sentences: many short ones, a long tail.
    lengths = (torch.rand(rows, generator=generator).pow(2) * 60).long() + 1
    places = torch.arange(60) < lengths[:, None]
    tokens = torch.randint(0, 50, (rows, 60), generator=generator).masked_fill(~places, -1)
    words = torch.arange(60).expand(rows, -1).masked_fill(~places, -1)
    return TensorSource(
        {"tokens": tokens, "words": words}, {"row": torch.arange(rows).float(), "tags": tokens}
    ), lengths


def test_a_pass_gives_every_row_once_and_is_the_same_again():
    source, _ = texts()
    count = source.batches(32)
    for run in (0, 1):
        rows = [source.batch(run * count + i, 32, (7, 0)).targets["row"] for i in range(count)]
        assert torch.cat(rows).sort().values.tolist() == list(range(500))
        assert {len(part) for part in rows} <= {31, 32}
    again, _ = texts()
    for index in (3, count + 5, 2):
        first, second = source.batch(index, 32, (7, 0)), again.batch(index, 32, (7, 0))
        assert torch.equal(first.targets["row"], second.targets["row"])
        assert torch.equal(first.inputs["tokens"], second.inputs["tokens"])


def test_passes_and_seeds_differ_and_batches_are_not_sorted():
    source, lengths = texts()
    count = source.batches(32)

    def sets(run, seed):
        rows = (source.batch(run * count + i, 32, (seed, 0)).targets["row"].long() for i in range(count))
        return [frozenset(part.tolist()) for part in rows]

    assert set(sets(0, 7)) != set(sets(1, 7))
    assert sets(0, 7) != sets(0, 8)
    means = [lengths[list(rows)].double().mean().item() for rows in sets(0, 7)]
    assert np.abs(np.corrcoef(means, np.arange(count))[0, 1]) < 0.8


def test_little_of_a_batch_is_padding_and_none_of_it_is_needless():
    source, lengths = texts()
    padded = 0
    for index in range(source.batches(32)):
        batch = source.batch(index, 32, (0, 0))
        own = lengths[batch.targets["row"].long()]
        assert batch.inputs["tokens"].shape == (len(own), int(own.max()))
        assert batch.inputs["words"].shape == batch.targets["tags"].shape == batch.inputs["tokens"].shape
        padded += batch.inputs["tokens"].numel()
    assert 1 - lengths.sum().item() / padded < 0.15


def test_two_processes_share_a_batch():
    source, _ = texts()
    whole = source.batch(3, 32, (0, 0)).targets["row"]
    parts = [source.batch(3, 32, (0, 0), rank, 2).targets["row"] for rank in (0, 1)]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())


def test_readings_take_every_row_once_within_the_room_for_padding():
    source, lengths = texts(2000)
    parts = list(source.readings(4096))
    assert torch.cat(parts).sort().values.tolist() == list(range(2000))
    assert len(parts) > 1
    assert all(len(rows) * int(lengths[rows].max()) <= PADDED for rows in parts)
    share = Share(source, 1, 2)
    assert torch.cat(list(share.readings(64))).sort().values.tolist() == list(range(1000))
    assert share.take(torch.tensor([0])).targets["row"].item() == 1


def test_integers_that_are_no_text_stay_as_they_are():
    source = TensorSource({"codes": torch.tensor([[1, -1], [2, -1]])}, {"t": torch.tensor([[1, -1], [0, -1]])})
    assert source.lengths is None
    assert source.take(torch.tensor([0])).inputs["codes"].shape == (1, 2)
    assert source.take(torch.tensor([0])).targets["t"].shape == (1, 2)
    assert [rows.tolist() for rows in source.readings(1)] == [[0], [1]]


def test_extents_look_past_gaps_and_into_the_third_dimension():
    first, second = extents(torch.tensor([[[1, -1, -1], [2, 3, -1], [-1, -1, -1]]]))
    assert (first.tolist(), second.tolist()) == ([2], [2])
