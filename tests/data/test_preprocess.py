import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import norm
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from polytask.data.numbers import QUANTILES
from polytask.data.preprocess import InputSpec, TablePreprocessor
from polytask.data.schema import NumberColumn, TableSchema
from polytask.errors import DataError, RecipeError

NUMBER, CATEGORY = InputSpec("number"), InputSpec("category")


def fit(values, spec=NUMBER):
    return TablePreprocessor.fit(pl.DataFrame({"x": values}, strict=False), {"x": spec})


@pytest.mark.parametrize(
    ("size", "shift"), [(1e-300, 0.0), (1e-12, 0.0), (1.0, 0.0), (1.0, 1e9), (1e12, 0.0), (1e300, 0.0)]
)
def test_standard_scaling_is_that_of_scikit_learn(size, shift):
    # The oracle works on values near one: its own squares would leave the range of float64.
    values = np.random.default_rng(0).normal(3.0, 2.0, 200) + shift
    got = fit(values * size).transform(pl.DataFrame({"x": values * size}))["numbers"][:, 0].numpy()
    wanted = StandardScaler().fit_transform(values[:, None])[:, 0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6 * (1 + shift * 1e-8))


def test_quantile_scaling_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    train = np.concatenate([rng.exponential(5.0, 700), np.zeros(300)])
    new = np.concatenate([train[::7], [-3.0, 1e6]])
    oracle = QuantileTransformer(n_quantiles=QUANTILES, output_distribution="normal", subsample=None)
    wanted = oracle.fit(train[:, None]).transform(new[:, None])[:, 0]
    got = fit(train, InputSpec("number", scale="quantile")).transform(pl.DataFrame({"x": new}))["numbers"][:, 0]
    # The oracle sends all values at the smallest to the far end; ours get the middle of their ranks, 0.15.
    tied = new == 0
    np.testing.assert_allclose(got.numpy()[~tied], wanted[~tied], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.cdf(got.numpy()[tied]), 0.15, atol=1 / QUANTILES)


def test_scale_none_keeps_values():
    got = fit([1.0, 5.0], InputSpec("number", scale="none")).transform(pl.DataFrame({"x": ["7"]}))
    assert got["numbers"].item() == 7.0


@pytest.mark.parametrize("scale", ["standard", "quantile", "none"])
def test_edges_are_quantiles_of_the_scaled_training_values(scale):
    values = np.random.default_rng(2).gamma(2.0, size=500)
    table = fit(values, InputSpec("number", scale=scale, bins=8))
    scaled = table.transform(pl.DataFrame({"x": values}))["numbers"][:, 0].double().numpy()
    counts, _ = np.histogram(scaled, table.schema.numbers[0].edges)
    assert len(counts) == 8
    assert counts.min() >= 60
    assert counts.sum() == 500


def test_few_distinct_values_give_fewer_rising_edges():
    edges = fit([0.0] * 50 + [1.0]).schema.numbers[0].edges
    assert list(edges) == sorted(set(edges))
    assert len(edges) == 2


def test_missing_numbers_get_the_training_mean_and_an_indicator():
    frame = pl.DataFrame({"a": ["1", None, "3"], "b": ["4", "5", "6"]})
    table = TablePreprocessor.fit(frame, {"a": NUMBER, "b": NUMBER})
    assert table.schema.missing == ("a",)
    got = table.transform(pl.DataFrame({"a": [math.nan, 3.0], "b": [None, 5.0]}))
    # b had no missing value in training: the mean is all that the model could have learnt.
    assert got["missing"].tolist() == [[True], [False]]
    np.testing.assert_allclose(got["numbers"], [[0.0, 0.0], [1.0, 0.0]], atol=1e-7)


def test_missing_mean_has_no_indicator():
    assert set(fit([1.0, None, 3.0], InputSpec("number", missing="mean")).transform(pl.DataFrame({"x": [2.0]}))) == {
        "numbers"
    }


def test_missing_error_and_infinite_values_are_named():
    strict = InputSpec("number", missing="error")
    with pytest.raises(DataError, match=r"Column 'x' has 2 missing values, the first in record 2. Fill them"):
        fit([1.0, None, 2.0, None], strict)
    with pytest.raises(DataError, match=r"1 missing values, the first in record 1"):
        fit([1.0, 2.0], strict).transform(pl.DataFrame({"x": [None]}, schema={"x": pl.Float64}))
    with pytest.raises(DataError, match=r"Column 'x' has 1 infinite values, the first in record 3. .*impute_infinite"):
        fit(["1", "2", "inf"])
    table = fit([1.0, 3.0, math.inf], InputSpec("number", impute_infinite=True))
    assert table.schema.numbers[0].mean == 2.0
    assert table.transform(pl.DataFrame({"x": [-math.inf]}))["missing"].item() == 1.0


def test_categories_missing_unseen_and_rare():
    table = fit(["b", "a", "a", "b", "c", None], InputSpec("category", min_count=2))
    assert table.schema.categories[0].values == ("a", "b")
    assert table.schema.categories[0].size == 4
    got = table.transform(pl.DataFrame({"x": ["a", "b", "c", "new", None]}))["categories"]
    assert got.dtype == torch.int64
    assert got[:, 0].tolist() == [2, 3, 1, 1, 0]


def test_all_categories_rare():
    got = fit(["a", "b"], InputSpec("category", min_count=5)).transform(pl.DataFrame({"x": ["a", None]}))
    assert got["categories"][:, 0].tolist() == [1, 0]


@pytest.mark.parametrize("values", [[1, 2, None], [1.0, 2.0, math.nan], ["1", "2", None]])
def test_codes_are_the_same_whatever_the_type(values):
    table = fit(["2", "1"], CATEGORY)
    assert table.transform(pl.DataFrame({"x": values}))["categories"][:, 0].tolist() == [2, 3, 0]


def test_a_column_that_tells_nothing_is_said():
    with pytest.warns(UserWarning, match="'x' is 3 in every training row"):
        table = fit([3.0, 3.0])
    assert table.transform(pl.DataFrame({"x": [3.0, 4.0]}))["numbers"][:, 0].tolist() == [0.0, 1.0]
    with pytest.warns(UserWarning, match="'x' is 'a' in every training row"):
        fit(["a", "a"], CATEGORY)
    for spec in (NUMBER, CATEGORY):
        with pytest.raises(DataError, match="has no value in the training rows"):
            fit(pl.Series([None, None], dtype=pl.String), spec)


def test_missing_column_and_value_that_does_not_parse():
    table = fit([1.0, 2.0])
    with pytest.raises(DataError, match=r"no input column 'x'. It has: xx. Did you mean 'xx'\?"):
        table.transform(pl.DataFrame({"xx": [1.0]}))
    with pytest.raises(DataError, match="Record 2, column 'x': 'many' is not a number"):
        table.transform(pl.DataFrame({"x": ["1", "many"]}))
    with pytest.raises(DataError, match=r"There are no input columns. The table has: x"):
        TablePreprocessor.fit(pl.DataFrame({"x": [1]}), {})


def test_image_columns():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    frame = pl.DataFrame({"x": pl.Series(images.tolist())})
    table = TablePreprocessor.fit(frame, {"x": InputSpec("image")})
    assert table.schema.arrays == {"x": (3, 4)}
    assert torch.equal(table.transform(frame)["x"], torch.arange(24.0).reshape(2, 3, 4))
    fixed = pl.DataFrame({"x": pl.Series(images.tolist(), dtype=pl.Array(pl.UInt8, (3, 4)))})
    assert torch.equal(table.transform(fixed)["x"], torch.arange(24.0).reshape(2, 3, 4))
    with pytest.raises(DataError, match=r"Record 1, column 'x': the array has the shape \[1, 2\], but \[3, 4\]"):
        table.transform(pl.DataFrame({"x": [[[1, 2]]]}))
    with pytest.raises(DataError, match="Record 2, column 'x': there is no array"):
        table.transform(pl.DataFrame({"x": [images[0].tolist(), None]}))
    with pytest.raises(DataError, match="an image column holds lists or arrays"):
        table.transform(pl.DataFrame({"x": ["a.png"]}))


def test_schema_survives_json_and_transforms_alike():
    frame = pl.DataFrame({"a": [0.1, None, 1 / 3, 8.0], "q": [1.0, 2.0, 5.0, 9.0], "c": ["u", "v", None, "u"]})
    specs = {"a": NUMBER, "q": InputSpec("number", scale="quantile", missing="mean"), "c": CATEGORY}
    table = TablePreprocessor.fit(frame, specs)
    again = TablePreprocessor.from_schema(TableSchema.from_dict(json.loads(json.dumps(table.schema.to_dict()))))
    assert again.schema == table.schema
    for name, tensor in table.transform(frame).items():
        assert torch.equal(again.transform(frame)[name], tensor)


def test_broken_schema_is_named():
    with pytest.raises(DataError, match="cannot be read: 'categories'"):
        TableSchema.from_dict({"numbers": []})
    assert NumberColumn("a", 0.0, 1.0, (), False).scale == "standard"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "numbr"}, r"Did you mean 'number'\?"),
        ({"kind": "number", "scale": "standart"}, r"Did you mean 'standard'\?"),
        ({"kind": "number", "missing": "zero"}, "Unknown missing 'zero'"),
        ({"kind": "category", "min_count": 0}, "min_count is 0"),
        ({"kind": "number", "bins": 0}, "bins is 0"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(RecipeError, match=text):
        InputSpec(**options)
