"""The feature pyramid, and published weights from files."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import polytask as pt
from polytask import registry
from polytask.data.source import TensorSource
from polytask.errors import RecipeError, ShapeError
from polytask.models.encoders import FPN, resnet18
from polytask.models.encoders.weights import DEVIATION, MEAN
from polytask.training.fit import train
from polytask.training.settings import TrainingSettings

SMALL = {"name": "convnet", "channels": [4, 6, 8]}


def test_the_map_is_the_pyramid_written_out():
    torch.manual_seed(0)
    fpn = FPN(SMALL, in_channels=2, channels=8, stride=4).eval()
    image = torch.randn(3, 2, 20, 28)
    fine = fpn.backbone.stages[1](fpn.backbone.stages[0](image))
    coarse = fpn.backbone.stages[2](fine)
    up = {"mode": "bilinear", "align_corners": False}
    top = fpn.lateral[1](coarse)
    bottom = fpn.lateral[0](fine) + functional.interpolate(top, fine.shape[-2:], **up)
    merged = fpn.smooth[0](bottom) + functional.interpolate(fpn.smooth[1](top), fine.shape[-2:], **up)
    assert merged.shape == (3, 8, 5, 7)
    torch.testing.assert_close(fpn(image), fpn.stages[0](merged))


def test_levels_of_a_resnet_and_a_vector():
    fpn = FPN("resnet18", channels=16, stride=8, pool=True).eval()
    assert [conv.in_channels for conv in fpn.lateral] == [128, 256, 512]
    assert fpn(torch.zeros(1, 3, 64, 64)).shape == (1, 16)
    assert fpn.out_features == 16


def test_bytes_are_scaled():
    fpn = FPN(SMALL, in_channels=1, channels=8).eval()
    image = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(fpn(image), fpn(image.float() / 255))
    net = resnet18(normalise=True, small_images=True).eval()
    plain = resnet18(small_images=True).eval()
    plain.load_state_dict(net.state_dict())
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    torch.testing.assert_close(net(image), plain((image / 255 - mean) / deviation))


SHARINGS = ("hard", "separate", "cross_stitch", "sluice", "mtan", "film", "adapters", "mmoe", "ple", "ltb", "attention")


@pytest.mark.parametrize("name", SHARINGS)
def test_sharings_work_on_a_pyramid(name):
    torch.manual_seed(0)
    sharing = registry.build("sharings", name, {}, encoder=FPN(SMALL, channels=8, blocks=2))
    made = [pt.tasks.segmentation("parts", 2), pt.tasks.binary("up")]
    if name == "attention":
        # Its features are vectors, one a task.
        made = [pt.tasks.regression("size"), pt.tasks.binary("up")]
    model = pt.MultiTaskModel(sharing, made)
    first = torch.randint(0, 2, (8, 16, 16), dtype=torch.int8) if name != "attention" else torch.randn(8)
    rows = TensorSource(torch.rand(8, 3, 16, 16), {made[0].name: first, "up": torch.randint(0, 2, (8,)).float()})
    done = train(model, [rows], settings=TrainingSettings(steps=1, batch_size=8, device="cpu"))
    without = [path for path, value in done.model.named_parameters() if value.grad is None]
    assert not without
    assert model.eval()(torch.rand(2, 3, 16, 16))["up"].shape == (2,)


def test_the_note_for_bundles_makes_an_equal_network(tmp_path):
    save_file(resnet18(in_channels=1, small_images=True).state_dict(), tmp_path / "w.safetensors")
    backbone = {"name": "resnet18", "small_images": True, "weights": str(tmp_path / "w.safetensors")}
    fpn = FPN(backbone, in_channels=1, channels=8, stride=1)
    noted = registry.mark_of(fpn)
    assert "weights" not in noted["options"]["backbone"]
    again = registry.build("encoders", noted["name"], noted["options"])
    again.load_state_dict(fpn.state_dict())
    assert registry.mark_of(again) == noted


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet8"}, RecipeError, "Unknown encoder 'resnet8'.*Did you mean"),
        ({"backbone": {"channels": [3]}}, RecipeError, "it needs a name"),
        ({"backbone": {"name": "convnet", "pool": False}}, RecipeError, "pool is an option of fpn itself"),
        ({"backbone": SMALL, "stride": 16}, RecipeError, "stride is 16; the stages of 'convnet' have: 2, 4, 8"),
        ({"backbone": SMALL, "blocks": 0}, RecipeError, "from 1; found"),
    ],
)
def test_options_that_cannot_be_used(options, error, message):
    with pytest.raises(error, match=message):
        FPN(**options)


def published(network):
    """Weights with the names of published files: the network's own and a last layer of 1,000 classes."""
    return {**network.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_published_weights_load_without_their_last_layer(tmp_path, suffix):
    source, path = resnet18(), tmp_path / f"resnet18{suffix}"
    save_file(published(source), path) if suffix == ".safetensors" else torch.save(published(source), path)
    network = resnet18(weights=str(path))
    image = torch.randn(1, 3, 40, 40)
    assert torch.equal(network.eval()(image), source.eval()(image))


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({}, path)
    with pytest.raises(RecipeError, match=r"There are no weights at .*v\.pth'\. Did you mean 'w.pth'"):
        resnet18(weights=str(tmp_path / "v.pth"))
    good = published(resnet18())
    torch.save({name: value for name, value in good.items() if name != "layer1.0.conv1.weight"}, path)
    with pytest.raises(RecipeError, match=r"are not those of this network: it lacks layer1.0.conv1.weight"):
        resnet18(weights=str(path))
    torch.save({**good, "extra.weight": torch.zeros(1)}, path)
    with pytest.raises(RecipeError, match=r"it has extra.weight, which the network has not"):
        resnet18(weights=str(path))
    torch.save(good, path)
    with pytest.raises(RecipeError, match=r"conv1.weight is \[64, 3, 7, 7\] there and \[64, 1, 7, 7\]"):
        resnet18(in_channels=1, weights=str(path))
    torch.save([1, 2], path)
    with pytest.raises(RecipeError, match="hold list, not tensors by name"):
        resnet18(weights=str(path))
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(RecipeError, match="cannot be read"):
            resnet18(weights=str(tmp_path / name))
    with pytest.raises(RecipeError, match="normalise is for images with 3 channels"):
        resnet18(in_channels=1, normalise=True)


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"conv1.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(RecipeError, match="cannot be read"):
        resnet18(weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "touched").exists()


class Vectors(torch.nn.Sequential):
    """A backbone whose only stage gives vectors."""

    def __init__(self, in_channels):
        super().__init__(torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(in_channels * 64 * 64, 4)))
        self.stages, self.channel_dims = list(self), (-1,)
        self.begin = self.end = lambda value: value


def test_a_backbone_has_to_give_maps(monkeypatch):
    monkeypatch.setitem(sys.modules, "fpn_vectors", sys.modules[__name__])
    with pytest.raises(ShapeError, match=r"stage 0 of Vectors gives \[4\]"):
        FPN("fpn_vectors:Vectors")
