"""MobileNetV2: the published sizes and names, and its place below a pyramid."""

import pytest
import torch
from torch.nn import functional

from polytask import registry
from polytask.errors import RecipeError
from polytask.models.encoders import FPN, MobileNetV2


def test_it_has_the_published_size_and_names():
    network = MobileNetV2()
    # The published network has 3,504,872 parameters, of which the last layer has 1,281,000.
    assert sum(p.numel() for p in network.parameters()) == 3_504_872 - 1_281_000
    names = set(network.state_dict())
    for name in (
        "features.0.0.weight",
        "features.0.1.running_var",
        "features.1.conv.0.0.weight",
        "features.1.conv.1.weight",
        "features.1.conv.2.bias",
        "features.2.conv.1.0.weight",
        "features.17.conv.3.running_mean",
        "features.18.1.weight",
    ):
        assert name in names
    assert len(names) == 312
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["features.2.conv.1.0.weight"] == (96, 1, 3, 3)
    assert shapes["features.17.conv.2.weight"] == (320, 960, 1, 1)


def test_a_block_is_written_out():
    torch.manual_seed(0)
    block = MobileNetV2().features[3].eval()
    image = torch.randn(2, 24, 6, 6)
    weights = block.state_dict()

    def normalised(values, name):
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(values, *parts)

    inner = normalised(functional.conv2d(image, weights["conv.0.0.weight"]), "conv.0.1").clamp(0, 6)
    inner = functional.conv2d(inner, weights["conv.1.0.weight"], padding=1, groups=144)
    inner = normalised(inner, "conv.1.1").clamp(0, 6)
    expected = image + normalised(functional.conv2d(inner, weights["conv.2.weight"]), "conv.3")
    torch.testing.assert_close(block(image), expected)


def test_published_weights_load_without_their_last_layer(tmp_path):
    source = MobileNetV2()
    last = {"classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}
    torch.save({**source.state_dict(), **last}, tmp_path / "w.pth")
    network = MobileNetV2(weights=str(tmp_path / "w.pth"))
    image = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    assert torch.equal(network.eval()(image), source.eval()(image))
    noted = registry.mark_of(network)
    assert noted == {"name": "mobilenet_v2", "options": {"in_channels": 3, "pool": True, "normalise": False}}
    with pytest.raises(RecipeError, match="normalise is for images with 3 channels"):
        MobileNetV2(in_channels=1, normalise=True)
    torch.save(dict(list(source.state_dict().items())[6:]), tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=r"it lacks features.0.0.weight, features.0.1.weight"):
        MobileNetV2(weights=str(tmp_path / "w.pth"))


def test_a_pyramid_reads_the_last_stage_of_every_stride():
    fpn = FPN("mobilenet_v2", channels=8, stride=4).eval()
    assert [conv.in_channels for conv in fpn.lateral] == [24, 32, 96, 1280]
    assert fpn(torch.zeros(1, 3, 64, 96)).shape == (1, 8, 16, 24)
