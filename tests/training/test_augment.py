"""Augmentation: boxes, masks and maps follow the pixels."""

import dataclasses

import numpy as np
import pytest
import torch

import polytask as pt
from polytask.data.batch import Batch
from polytask.data.source import TensorSource
from polytask.errors import DataError, RecipeError
from polytask.models.encoders import FPN
from polytask.training.augment import Augment, Windows
from polytask.training.fit import train
from polytask.training.settings import AugmentSettings, TrainingSettings

TASKS = {
    "boxes": pt.tasks.detection("boxes", 1, size=[40, 60]),
    "parts": pt.tasks.segmentation("parts", 2),
    "depth": pt.tasks.dense_regression("depth"),
    "up": pt.tasks.binary("up"),
}


def painted(rows=32, dtype=torch.uint8):
    """Black images of 40 x 60 pixels with one white rectangle; half of it is a thing of its own in the maps."""
    generator = np.random.default_rng(0)
    image, boxes = torch.zeros(rows, 3, 40, 60, dtype=dtype), torch.zeros(rows, 2, 5)
    mask, depth = torch.zeros(rows, 40, 60, dtype=torch.int8), torch.full((rows, 40, 60), float("nan"))
    boxes[:, 1, 0] = -1
    for row in range(rows):
        x, y = (int(value) for value in generator.integers((0, 0), (40, 28)))
        image[row, :, y : y + 12, x : x + 20] = 255 if dtype == torch.uint8 else 1.0
        mask[row, y : y + 12, x : x + 20] = 1
        depth[row, y : y + 12, x : x + 20] = 3.0
        boxes[row, 0, 1:] = torch.tensor([x, y, x + 20, y + 12])
    boxes[3] = float("nan")
    return Batch(image, {"boxes": boxes, "parts": mask, "depth": depth, "up": torch.ones(rows)})


def augmented(settings, batch, seed=0):
    return Augment(settings, TASKS, torch.Generator().manual_seed(seed))(batch)


def extent(image):
    """The box of an image's light pixels."""
    ys, xs = (image.mean(0) > 0.5).nonzero().unbind(1)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_mirrored_image_is_mirrored_to_the_bit_with_all_that_belongs_to_it(dtype):
    batch = painted(dtype=dtype)
    found = augmented(AugmentSettings(flip=1.0), batch)
    scale = 255 if dtype == torch.uint8 else 1
    torch.testing.assert_close(found.inputs, batch.inputs.flip(3).float() / scale, atol=1e-5, rtol=0)
    assert torch.equal(found.targets["parts"], batch.targets["parts"].flip(2))
    assert torch.equal(found.targets["depth"].nan_to_num(-1), batch.targets["depth"].flip(2).nan_to_num(-1))
    both = augmented(AugmentSettings(flip=1.0, flip_vertical=1.0), batch)
    assert torch.equal(both.targets["parts"], batch.targets["parts"].flip(1, 2))
    assert torch.equal(found.targets["up"], batch.targets["up"])


def test_boxes_follow_the_painted_rectangle():
    batch = painted()
    found = augmented(AugmentSettings(flip=0.5, flip_vertical=0.5, crop=0.3), batch)
    boxes = found.targets["boxes"]
    assert boxes.dtype == batch.targets["boxes"].dtype
    assert boxes[3].isnan().all()
    moved = 0
    for row in range(len(batch)):
        if row == 3 or boxes[row, 0, 0] < 0:
            continue
        torch.testing.assert_close(boxes[row, 0, 1:], extent(found.inputs[row]), atol=1.01, rtol=0)
        moved += not torch.equal(boxes[row, 0], batch.targets["boxes"][row, 0])
        assert boxes[row, 1].tolist() == [-1, 0, 0, 0, 0]
    assert moved > 20


def test_masks_follow_the_pixels_and_are_unlabelled_outside():
    batch = painted()
    found = augmented(AugmentSettings(flip=0.5, crop=0.4), batch)
    light = found.inputs.mean(1) > 0.5
    labelled = found.targets["parts"] >= 0
    agree = (light == (found.targets["parts"] == 1))[labelled]
    assert agree.float().mean() > 0.99
    assert 0.02 < (~labelled).float().mean() < 0.4
    depth = found.targets["depth"]
    assert set(depth[~depth.isnan()].tolist()) == {3.0}
    assert ((found.targets["parts"] == 1) == ~depth.isnan()).all()


def test_boxes_that_leave_the_image_become_padding_and_the_rest_is_clipped():
    # The window is the right half: what was at 0.5 is at 0 now.
    windows = Windows(torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 1.0]]))
    boxes = torch.tensor([[[0.0, 0, 0, 10, 10], [0.0, 20, 0, 40, 10], [0.0, 5, 0, 31, 10], [0.0, 40, 4, 50, 10]]])
    found = windows.boxes(boxes, (40, 60))
    pad = [-1.0, 0, 0, 0, 0]
    # The third keeps a twenty-sixth of its area.
    expected = torch.tensor([pad, [0, 0, 0, 20, 10], pad, [0, 20, 4, 40, 10]])
    torch.testing.assert_close(found[0], expected)


def test_noise_and_colours_have_the_size_that_is_asked_for():
    batch = Batch(torch.full((16, 3, 32, 32), 0.5), {"up": torch.ones(16)})
    noisy = augmented(AugmentSettings(noise=0.1), batch).inputs - 0.5
    assert noisy.std().item() == pytest.approx(0.1, rel=0.05)
    coloured = augmented(AugmentSettings(colour=0.2), batch).inputs
    assert coloured.min() >= 0.4
    assert coloured.max() <= 0.6
    assert coloured[:, :, 0, 0].std() > 0.03
    light = Batch(torch.full((4, 1, 8, 8), 250, dtype=torch.uint8), {"up": torch.ones(4)})
    assert augmented(AugmentSettings(noise=0.3), light).inputs.max() == 1


def test_other_inputs_stay_and_without_images_it_is_an_error():
    batch = painted(4)
    mixed = Batch({"photo": batch.inputs, "age": torch.ones(4, 2)}, {"up": torch.ones(4)})
    found = augmented(AugmentSettings(noise=0.1), mixed).inputs
    assert torch.equal(found["age"], mixed.inputs["age"])
    assert found["photo"].dtype == torch.float32
    with pytest.raises(DataError, match=r"training.augment is for images .* and no input is one"):
        augmented(AugmentSettings(flip=0.5), Batch(torch.ones(4, 2), {"up": torch.ones(4)}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"flip": 1.5}, r"augment.flip is 1.5"), ({"crop": 1.0}, "augment.crop is 1.0"), ({"noise": -1}, "at least 0")],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(RecipeError, match=message):
        AugmentSettings(**settings)


def model():
    torch.manual_seed(0)
    encoder = FPN({"name": "convnet", "channels": [4, 4]}, channels=4)
    return pt.MultiTaskModel(pt.sharing.Hard(encoder), [TASKS["boxes"], TASKS["parts"]])


def rows():
    batch = painted(12)
    return TensorSource(batch.inputs, {name: batch.targets[name] for name in ("boxes", "parts")})


SETTINGS = TrainingSettings(
    epochs=4,
    batch_size=6,
    device="cpu",
    monitor_every=0,
    augment=AugmentSettings(flip=0.5, crop=0.2, noise=0.05, colour=0.2),
)


def test_training_is_repeatable_and_a_resumed_run_is_the_same_to_the_bit(tmp_path):
    whole = train(model(), [rows()], settings=SETTINGS).model.state_dict()
    other = train(model(), [rows()], settings=dataclasses.replace(SETTINGS, seed=1)).model.state_dict()
    assert not all(torch.equal(whole[name], other[name]) for name in whole)
    (tmp_path / "run").mkdir()

    class PowerCut(pt.Callback):
        def on_epoch_end(self, loop, row):
            if loop.epoch == 3:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(model(), [rows()], settings=SETTINGS, callbacks=[PowerCut()], path=tmp_path / "run")
    done = train(model(), [rows()], settings=SETTINGS, path=tmp_path / "run", resume=True).model.state_dict()
    assert all(torch.equal(whole[name], done[name]) for name in whole)


def test_nothing_is_changed_in_evaluation_and_pieces_see_the_same_images():
    plain = dataclasses.replace(SETTINGS, augment=AugmentSettings())
    seen = {}
    for name, settings in {
        "plain": plain,
        "whole": SETTINGS,
        "pieces": dataclasses.replace(SETTINGS, accumulate=3),
    }.items():
        built = model()
        inputs = []
        built.sharing.encoder.register_forward_pre_hook(lambda _, given, seen=inputs: seen.append(given[0].clone()))
        train(built, [rows()], [rows()], settings=dataclasses.replace(settings, epochs=1))
        # The first call was with an example that told the shapes of features.
        seen[name] = inputs[1:]
    evaluated = [image for image in seen["whole"] if len(image) == 12]
    assert evaluated
    assert all(torch.equal(image, rows().take(torch.arange(12)).inputs) for image in evaluated)
    first, pieces = seen["whole"][0], torch.cat([image for image in seen["pieces"] if len(image) == 2][:3])
    assert torch.equal(first, pieces)
    assert not torch.equal(first, seen["plain"][0].float() / 255)
