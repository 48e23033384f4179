import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import polytask as pt
from polytask import registry
from polytask.errors import RecipeError
from polytask.models.encoders import resnet18
from polytask.sharing import Hard, Separate, Sharing, identity
from polytask.sharing.separate import reset_parameters


class Recorder:
    def __init__(self):
        self.calls = []

    def __call__(self, features):
        self.calls.append(features)
        return {task: {name: z * scale for name, z in features.items()} for task, scale in (("a", 1.0), ("b", 2.0))}


def test_hard_taps_its_features_once_and_goes_on_with_what_it_gets():
    tap = Recorder()
    encoder = nn.Linear(3, 4)
    sharing = Hard(encoder)
    sharing.setup(["a", "b"], None)
    x = torch.randn(5, 3)
    features = sharing(x, ["a", "b"], tap)
    assert len(tap.calls) == 1
    assert list(tap.calls[0]) == ["features"]
    torch.testing.assert_close(features["a"], encoder(x))
    torch.testing.assert_close(features["b"], 2 * encoder(x))


def test_hard_runs_the_encoder_once():
    encoder = nn.Linear(3, 4)
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    sharing = Hard(encoder, private=[2])
    sharing.setup(["a", "b", "c"], None)
    sharing(torch.zeros(2, 3), ["a", "b", "c"])
    assert len(calls) == 1


def test_private_layers_are_dense_layers_of_the_pooled_maps():
    sharing = Hard(nn.Conv2d(1, 4, 3), private=[6, 5])
    shapes = sharing.setup(["a", "b"], torch.zeros(2, 1, 8, 8))
    assert shapes == {"a": (5,), "b": (5,)}
    x = torch.randn(3, 1, 8, 8)
    hidden = sharing.encoder(x).mean((2, 3))
    first, second = (m for m in sharing.private["b"].modules() if isinstance(m, nn.Linear))
    expected = (((hidden @ first.weight.T + first.bias).relu()) @ second.weight.T + second.bias).relu()
    torch.testing.assert_close(sharing(x, ["b"])["b"], expected)
    assert {id(p) for p in sharing.task_parameters("a")}.isdisjoint(id(p) for p in sharing.task_parameters("b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "rleu"}, "Unknown activation 'rleu'.*Did you mean 'relu'"),
        ({"norm": "bacth"}, "Unknown norm 'bacth'.*Did you mean 'batch'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"private": [0]}, "width 0"),
    ],
)
def test_wrong_options_are_found_at_once(options, message):
    with pytest.raises(RecipeError, match=message):
        Hard(nn.Linear(3, 4), **options)


def test_registry_builds_and_marks_both():
    hard = registry.build("sharings", "hard", {"private": [4], "dropout": 0.1}, encoder=nn.Linear(3, 4))
    noted = registry.mark_of(hard)
    again = registry.build("sharings", noted["name"], noted["options"], encoder=nn.Linear(3, 4))
    assert registry.mark_of(again) == noted
    assert registry.mark_of(Separate(nn.Linear(3, 4), reset=False)) == {"name": "separate", "options": {"reset": False}}
    with pytest.raises(RecipeError, match="Did you mean 'private'"):
        registry.build("sharings", "hard", {"privat": [4]}, encoder=nn.Linear(3, 4))


def test_separate_runs_only_the_asked_network_and_taps_nothing():
    sharing = Separate(nn.Linear(3, 4))
    sharing.setup(["a", "b"], None)
    calls = []
    for name, network in sharing.encoders.items():
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    tap = Recorder()
    sharing(torch.zeros(2, 3), ["b"], tap)
    assert calls == ["b"]
    assert tap.calls == [{}]


def test_separate_copies_start_apart_unless_told_otherwise():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    given = encoder[0].weight.detach().clone()
    apart = Separate(encoder)
    apart.setup(["a", "b"], torch.zeros(2, 3))
    assert torch.equal(apart.encoders["a"][0].weight, given)
    assert not torch.equal(apart.encoders["b"][0].weight, given)
    same = Separate(encoder, reset=False)
    same.setup(["a", "b"], torch.zeros(2, 3))
    assert torch.equal(same.encoders["b"][0].weight, given)
    assert same.encoders["b"][0].weight is not same.encoders["a"][0].weight


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.linear = nn.Linear(3, 4)
        self.out_features = 4

    def forward(self, x):
        return self.linear(x) + self.token


class Own(Odd):
    def reset_parameters(self):
        nn.init.ones_(self.token)
        nn.init.constant_(self.linear.weight, 7.0)


def test_separate_warns_of_what_it_cannot_draw_anew():
    with pytest.warns(UserWarning, match=r"cannot draw new initial weights for: the encoder itself \(Odd\)"):
        Separate(Odd()).setup(["a", "b", "c"], None)


def test_an_encoders_own_initialisation_wins():
    encoder = Own()
    assert reset_parameters(encoder) == []
    assert torch.equal(encoder.token, torch.ones(4))
    assert torch.all(encoder.linear.weight == 7.0)


def test_attention_can_be_drawn_anew():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    before = layer.self_attn.in_proj_weight.detach().clone()
    assert reset_parameters(layer) == []
    assert not torch.equal(layer.self_attn.in_proj_weight, before)


class Scaled(Sharing):
    """A sharing of an outsider: one encoder, one learned scale a task."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.scale = nn.ParameterDict()

    def setup(self, tasks, example):
        self.scale = nn.ParameterDict({task: nn.Parameter(torch.rand(4)) for task in tasks})
        return dict.fromkeys(tasks, (4,))

    def forward(self, inputs, tasks, tap=identity):
        shared = tap({"z": self.encoder(inputs)})
        return {task: shared[task]["z"] * self.scale[task] for task in tasks}


def test_any_sharing_can_be_extracted_for_one_task():
    sharing = Scaled()
    sharing.setup(["a", "b"], None)
    x = torch.randn(5, 3)
    torch.testing.assert_close(sharing.extract("b")(x), sharing.encoder(x) * sharing.scale["b"])


@pytest.mark.parametrize("name", ["separate", "mmoe", "cross_stitch"])
def test_copies_of_a_network_with_published_weights_start_from_them(name, tmp_path):
    first = resnet18(small_images=True)
    save_file(first.state_dict(), tmp_path / "published.safetensors")
    encoder = resnet18(small_images=True, weights=str(tmp_path / "published.safetensors"))
    made = registry.build("sharings", name, {}, encoder=encoder)
    pt.MultiTaskModel(made, [pt.tasks.binary("a"), pt.tasks.binary("b")], example=torch.zeros(2, 3, 8, 8))
    expected = first.layer4[1].conv2.weight
    kept = [p for p in made.parameters() if p.shape[-4:] == expected.shape]
    copies = [one for p in kept for one in p.detach().reshape(-1, *expected.shape)]
    assert sum(torch.equal(one, expected) for one in copies) >= 2
