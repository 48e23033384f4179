import numpy as np
import pytest
import torch
from torch import nn

from polytask import registry
from polytask.data.schema import CategoryColumn, NumberColumn, TableSchema
from polytask.errors import DataError, RecipeError, ShapeError
from polytask.models.encoders import MLP, ConvNet, Tabular, resnet18, resnet34, staged
from polytask.models.encoders.numbers import PiecewiseLinear

SCHEMA = TableSchema(
    (
        NumberColumn("age", 40.0, 10.0, (-1.0, 0.0, 0.5, 2.0), True),
        NumberColumn("hours", 40.0, 10.0, (-2.0, 2.0), False),
        NumberColumn("constant", 0.0, 1.0, (0.0,), False),
    ),
    (CategoryColumn("sex", ("f", "m")), CategoryColumn("work", tuple("abcdefg"))),
)
INPUTS = {
    "numbers": torch.tensor([[-3.0, 0.0, 0.0], [0.25, 1.0, 0.0], [4.0, -5.0, 1.0]]),
    "missing": torch.tensor([[0.0], [1.0], [0.0]]),
    "categories": torch.tensor([[2, 8], [0, 1], [3, 5]]),
}


def encode_one(x, edges):
    """Equation 1 of Gorishniy et al. 2022, one bin at a time."""
    last = len(edges) - 1
    entries = []
    for t in range(1, last + 1):
        low, high = edges[t - 1], edges[t]
        if x < low and t > 1:
            entries.append(0.0)
        elif x >= high and t < last:
            entries.append(1.0)
        else:
            entries.append((x - low) / (high - low))
    return entries


def test_piecewise_linear_is_equation_1():
    edges = [[-1.0, 0.0, 0.5, 2.0], [-2.0, 2.0], [0.0, 1e-3, 5.0]]
    x = np.random.default_rng(0).normal(0, 2, (50, 3))
    expected = [[e for value, b in zip(row, edges, strict=True) for e in encode_one(value, b)] for row in x]
    got = PiecewiseLinear(edges)(torch.tensor(x, dtype=torch.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bins", [(3, 1, 1), (3, 1, 3, 2, 1), (2, 2)], ids=str)
def test_embedded_columns_use_their_own_bins(bins):
    edges = [torch.linspace(-2, 2, count + 1).tolist() if count > 1 else [0.0] for count in bins]
    module, plain = PiecewiseLinear(edges, width=5), PiecewiseLinear(edges)
    x = torch.randn(7, len(bins))
    parts = plain(x).split(bins, dim=1)
    expected = [(p @ module.weight[i, : p.shape[1]] + module.bias[i]).relu() for i, p in enumerate(parts)]
    torch.testing.assert_close(module(x), torch.cat(expected, 1))
    assert module.out_features == 5 * len(bins)


def outcomes(module, x):
    """What a module gives where bins are multiplied, as in training, and where they are looked up."""
    return module.train()(x), torch.no_grad()(module.eval())(x)


@pytest.mark.parametrize("bins", [(3, 1, 1), (3, 1, 300, 2, 1), (2, 2), (1,)], ids=str)
def test_bins_are_looked_up_where_nothing_is_trained(bins):
    torch.manual_seed(0)
    edges = [torch.linspace(-2, 2, count + 1).tolist() if count > 1 else [0.0] for count in bins]
    module = PiecewiseLinear(edges, width=5)
    with torch.no_grad():
        for index, count in enumerate(bins):
            module.weight[index, count:] = torch.nan  # what no column reads
    x = 2 * torch.randn(400, len(bins))
    x[:3] = torch.tensor(max(edges, key=len))[:3, None] if max(bins) > 1 else x[:3]  # on edges themselves
    x[5], x[6], x[7], x[8], x[9] = -1e6, 1e6, torch.nan, torch.inf, -torch.inf
    assert module.eval()._looks_up(x) is False  # with gradients
    multiplied, looked_up = outcomes(module, x)
    torch.testing.assert_close(looked_up, multiplied, rtol=1e-5, atol=1e-5, equal_nan=True)
    with torch.no_grad():
        assert module._looks_up(x)
        assert not module._looks_up(x[:10])
        assert not module._looks_up(x.double())


def test_edges_that_rounding_brings_together_are_not_looked_up():
    module = PiecewiseLinear([[0.0, 1e9, 1e9 + 1, 2e9]], width=2)
    x = torch.full((300, 1), 1e9)
    multiplied, looked_up = outcomes(module, x)
    assert torch.equal(multiplied, looked_up)


def test_edges_have_to_rise():
    with pytest.raises(RecipeError, match=r"column 1 do not rise: \[1.0, 1.0\]"):
        PiecewiseLinear([[0.0, 1.0], [1.0, 1.0]])


def test_tabular_puts_columns_side_by_side():
    encoder = Tabular(SCHEMA, hidden=[6], embedding=3)
    tables = [encoder.categories.weight[:4], encoder.categories.weight[4:]]
    embedded = [table[INPUTS["categories"][:, i]] for i, table in enumerate(tables)]
    row = torch.cat([INPUTS["numbers"], INPUTS["missing"], *embedded], 1)
    torch.testing.assert_close(encoder.begin(INPUTS), row)
    linear = encoder.stages[0][0]
    torch.testing.assert_close(encoder(INPUTS), (row @ linear.weight.T + linear.bias).relu())


@pytest.mark.parametrize(
    "options", [{}, {"numbers": "piecewise_linear"}, {"numbers": "piecewise_linear", "number_embedding": 0}]
)
def test_tabular_gradients_reach_every_parameter(options):
    encoder = Tabular(SCHEMA, hidden=[64, 32], norm="layer", activation="tanh", **options)
    encoder(INPUTS).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert encoder.out_features == 32


def test_tabular_missing_and_unseen_values_start_at_zero():
    embedding = Tabular(SCHEMA).categories
    assert torch.equal(embedding(torch.tensor([[0, 1]])), torch.zeros(1, embedding.out_features))
    assert embedding(torch.tensor([[2, 2]])).abs().min() > 0


def test_category_gradients_add_up_over_rows():
    embedding = Tabular(SCHEMA, embedding=3).categories
    codes = torch.tensor([[2, 8], [2, 1], [3, 8]])
    embedding(codes).sum().backward()
    counts = torch.zeros(13).index_add(0, (codes + torch.tensor([0, 4])).flatten(), torch.ones(6))
    torch.testing.assert_close(embedding.weight.grad, counts[:, None].expand(13, 3))


def test_a_fresh_tabular_exports():
    encoder = Tabular(SCHEMA, numbers="piecewise_linear").eval()
    exported = torch.export.export(encoder, (INPUTS,))
    torch.testing.assert_close(exported.module()(INPUTS), encoder(INPUTS))


def test_tabular_under_autocast_stays_close():
    encoder = Tabular(SCHEMA, numbers="piecewise_linear").eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(INPUTS)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), encoder(INPUTS), rtol=0.05, atol=0.05)


def test_tabular_takes_no_rows():
    empty = {name: value[:0] for name, value in INPUTS.items()}
    for numbers in ("linear", "piecewise_linear"):
        assert Tabular(SCHEMA, numbers=numbers)(empty).shape == (0, 128)


def test_tabular_of_part_of_the_columns():
    only_numbers = Tabular(TableSchema(SCHEMA.numbers[1:]))
    assert only_numbers({"numbers": torch.zeros(2, 2)}).shape == (2, 128)
    only_categories = Tabular(TableSchema((), SCHEMA.categories))
    assert only_categories({"categories": torch.ones(2, 2, dtype=torch.int64)}).shape == (2, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numbers": "picewise_linear"}, "Did you mean 'piecewise_linear'"),
        ({"number_embedding": 4}, "goes with numbers: piecewise_linear"),
        ({"embedding": "big"}, "embedding is 'big'; it is 'auto' or a width"),
        ({"embedding": 0}, "widths start at 1"),
        ({"embedding_dropout": -0.1}, "dropout is -0.1"),
        ({"hidden": []}, "at least one layer"),
    ],
)
def test_tabular_refuses_wrong_options(options, message):
    with pytest.raises(RecipeError, match=message):
        Tabular(SCHEMA, **options)


def test_tabular_refuses_wrong_tables_and_inputs():
    with pytest.raises(DataError, match="other columns: face"):
        Tabular(TableSchema(SCHEMA.numbers, (), {"face": (3, 8, 8)}))
    with pytest.raises(DataError, match="at least one number or category"):
        Tabular(TableSchema())
    with pytest.raises(DataError, match=r"lack 'missing'.*found: numbers"):
        Tabular(SCHEMA)({"numbers": INPUTS["numbers"]})
    with pytest.raises(DataError, match=r"columns \[0\] hold codes outside"):
        Tabular(SCHEMA)({**INPUTS, "categories": torch.tensor([[4, 2]])})


def test_encoders_are_built_again_from_their_marks():
    for encoder, given in (
        (MLP(3, hidden=[5], norm="batch", dropout=0.5), {}),
        (Tabular(SCHEMA, hidden=[5], numbers="piecewise_linear"), {"schema": SCHEMA}),
        (ConvNet(2, channels=[4], norm=None, pool=False), {}),
        (resnet18(in_channels=1, small_images=True, norm="group"), {}),
    ):
        noted = registry.mark_of(encoder)
        again = registry.build("encoders", noted["name"], noted["options"], **given)
        again.load_state_dict(encoder.state_dict())
        assert registry.mark_of(again) == noted


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_mlp_declares_its_stages(norm):
    encoder = MLP(3, hidden=[5, 4], norm=norm, dropout=0.2).eval()
    x = torch.randn(6, 3)
    state = encoder.begin(x)
    for stage, dim, width in zip(encoder.stages, encoder.channel_dims, [5, 4], strict=True):
        state = stage(state)
        assert state.shape[dim] == width
    torch.testing.assert_close(encoder.end(state), encoder(x))


@pytest.mark.parametrize(
    ("encoder", "x", "widths"),
    [
        (ConvNet(1, channels=[4, 6]), torch.randn(3, 1, 12, 12), [4, 6]),
        (ConvNet(1, channels=[4, 6], norm="group", dropout=0.1), torch.randn(3, 1, 12, 12), [4, 6]),
        (resnet18(small_images=True), torch.randn(2, 3, 16, 16), [64, 128, 256, 512]),
        (resnet18(norm="group"), torch.randn(2, 3, 33, 33), [64, 128, 256, 512]),
    ],
)
def test_image_encoders_declare_stages_and_width(encoder, x, widths):
    encoder.eval()
    state = encoder.begin(x)
    for stage, dim, width in zip(encoder.stages, encoder.channel_dims, widths, strict=True):
        state = stage(state)
        assert state.shape[dim] == width
    assert encoder(x).shape == (len(x), encoder.out_features)
    torch.testing.assert_close(encoder.end(state), state.mean((2, 3)))


def test_resnets_have_the_published_sizes_and_names():
    # The published networks have 11,689,512 and 21,797,672 parameters, 513,000 of them in the last layer.
    for network, total in ((resnet18(), 11_689_512), (resnet34(), 21_797_672)):
        assert sum(p.numel() for p in network.parameters()) == total - 513_000
    names = set(resnet18().state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.bn2.bias", "layer2.0.downsample.1.weight"} <= names
    assert all(name.startswith(("conv1", "bn1", "layer")) for name in names)


def test_maps_instead_of_vectors():
    assert ConvNet(1, channels=[4], pool=False)(torch.zeros(2, 1, 8, 8)).shape == (2, 4, 4, 4)
    assert resnet18(small_images=True, pool=False).eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 512, 2, 2)


def test_image_encoders_refuse_wrong_options():
    with pytest.raises(RecipeError, match=r"Unknown norm 'layer'\. Known: batch, group"):
        ConvNet(1, norm="layer")
    with pytest.raises(RecipeError, match="Did you mean 'group'"):
        resnet18(norm="grup")
    with pytest.raises(RecipeError, match=r"odd kernel_size; found.*kernel_size 4"):
        ConvNet(1, kernel_size=4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3)
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 5, 3)

    def forward(self, x):
        return self.second(self.first(self.stem(x))).flatten(1)


def test_staged_from_paths_keeps_the_result_and_the_parameters():
    net, x = Net(), torch.randn(2, 1, 9, 9)
    made = staged(net, ["first", "second"], example=x, before=["stem"], after=[nn.Flatten(1)])
    torch.testing.assert_close(made(x), net(x))
    assert made.channel_dims == (1, 1)
    assert {id(p) for p in made.parameters()} == {id(p) for p in net.parameters()}
    assert made.training


def test_staged_says_what_is_wrong():
    net, x = Net(), torch.randn(2, 1, 9, 9)
    with pytest.raises(ShapeError, match=r"Unknown stage 'frist'.*Did you mean 'first'"):
        staged(net, ["frist"], example=x)
    with pytest.raises(ShapeError, match="once, in order"):
        staged(net, ["second", "first"], example=x, before=["stem"], after=[nn.Flatten(1)])
    with pytest.raises(ShapeError, match=r"do not make up Net.*before="):
        staged(net, ["first", "second"], example=x)
    with pytest.raises(ShapeError, match="Their result differs"):
        staged(net, ["first", "second"], example=x, before=["stem"])
    with pytest.raises(ShapeError, match="Name the stages of Net"):
        staged(net, example=x)
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared)
    with pytest.raises(ShapeError, match="once, in order"):
        staged(twice, ["0", "1", "2"], example=torch.randn(2, 3))
