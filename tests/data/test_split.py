import numpy as np
import polars as pl
import pytest

from polytask.data.split import held_out_tenth, split_by, split_rows
from polytask.errors import DataError


@pytest.mark.parametrize("rows", [10, 97, 1000])
def test_parts_cover_all_rows_once(rows):
    parts = split_rows(rows, validation=0.2, test=0.3, seed=4)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(rows))
    assert len(parts["test"]) == round(0.3 * rows)
    assert all((np.diff(part) > 0).all() for part in parts.values())


def test_seeds_differ_and_repeat():
    one, two, again = (split_rows(100, seed=seed)["validation"].tolist() for seed in (1, 2, 1))
    assert one == again
    assert one != two


def test_draw_is_that_of_raw_pcg64():
    # PCG64(7).random_raw(6) is fixed by the generator's definition, so these rows are as well.
    keys = np.random.PCG64(7).random_raw(6)
    wanted = sorted(sorted(range(6), key=lambda row: keys[row])[:2])
    assert split_rows(6, validation=2 / 6, seed=7)["validation"].tolist() == wanted


def test_draw_is_even():
    counts = np.zeros(20)
    for seed in range(400):
        counts[split_rows(20, validation=0.5, seed=seed)["validation"]] += 1
    # 400 fair draws: five standard deviations are 50.
    assert np.abs(counts - 200).max() < 50


def test_stratified_parts_hold_values_in_their_shares():
    column = pl.Series("c", ["a"] * 50 + ["b"] * 30 + [None] * 20)
    parts = split_rows(100, validation=0.25, test=0.2, seed=3, stratify=column)
    for part in parts.values():
        chosen = column.gather(part)
        for value, count in (("a", 50), ("b", 30)):
            assert abs((chosen == value).sum() - count * len(part) / 100) <= 1
        assert abs(chosen.null_count() - 20 * len(part) / 100) <= 1
    other = split_rows(100, validation=0.25, test=0.2, seed=5, stratify=column)
    assert parts["test"].tolist() != other["test"].tolist()


def test_fixed_tenth():
    assert len(held_out_tenth(199_523)["validation"]) == 19_952
    assert held_out_tenth(50)["validation"].tolist() == held_out_tenth(50)["validation"].tolist()


def test_by_column():
    parts = split_by(pl.Series("part", ["train", "Val", "test", "train", "dev"]))
    assert {name: part.tolist() for name, part in parts.items()} == {"train": [0, 3], "validation": [1, 4], "test": [2]}
    years = split_by(pl.Series("year", [94, 95, 94]), {"94": "train", "95": "test"})
    assert years["test"].tolist() == [1]


@pytest.mark.parametrize("value", ["trian", None])
def test_by_column_names_the_record(value):
    with pytest.raises(
        DataError, match=r"Record 2, split column 'part' says ('trian'|nothing). It has to say one of: train"
    ):
        split_by(pl.Series("part", ["train", value]))


def test_wrong_splits():
    with pytest.raises(DataError, match=r"No train rows are left after splitting by 'p'"):
        split_by(pl.Series("p", ["test"]))
    with pytest.raises(
        DataError, match=r"No validation rows are left after splitting 3 rows \(train 3, validation 0\)"
    ):
        split_rows(3, validation=0.1)
    with pytest.raises(DataError, match=r"share of test rows is 1.5"):
        split_rows(3, test=1.5)
    with pytest.raises(DataError, match="There are 3 rows but 1 values"):
        split_rows(3, stratify=pl.Series([1]))
    with pytest.raises(DataError, match=r"Unknown part of a split 'tset'. .* Did you mean 'test'\?"):
        split_by(pl.Series("p", ["a"]), {"a": "tset"})
