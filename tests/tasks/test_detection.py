"""Detection: loss, kept boxes and metrics, and scenes from rows to a bundle."""

import base64
import contextlib
import inspect
import io
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import polytask as pt
from polytask import catalogue, registry, tasks
from polytask.data.source import TensorSource
from polytask.errors import DataError, MissingExtraError, RecipeError
from polytask.evaluation.predict import TaskOutputs, score_outputs
from polytask.models.encoders import FPN
from polytask.reporting import RunRecord
from polytask.tasks.losses_boxes import SPREAD, DetectionLoss, boxes_at, gaussians, heat_loss
from polytask.tasks.outputs_boxes import KeepBoxes
from polytask.training.fit import train
from polytask.training.settings import TrainingSettings

NAN = float("nan")
PAD = [-1.0, 0, 0, 0, 0]


def test_options_as_json_make_an_equal_task():
    task = tasks.detection(
        "t", ["a", "b"], size=(32, 48), box_weight=3, most=7, overlap=0.4, threshold=0.2, on_bad="clip", hidden=[8]
    )
    again = registry.build("tasks", task.kind, json.loads(json.dumps(dict(task.options))), name="t")
    assert again == task
    assert set(task.options) == set(registry.options_of(tasks.detection)) - {"name"}
    for part in (task.loss, task.score, task.decode, task.refit, task.head, task.target, task.units, task.keep):
        assert pickle.loads(pickle.dumps(part)) == part
    assert catalogue.TASKS["detection"].help == inspect.getdoc(tasks.detection).splitlines()[0]
    assert not tasks.detection("t", size=[8, 8]).is_known


def test_gaussians_peak_at_the_centre_and_cover_the_middle():
    # A map of 6 x 8 positions over 24 x 32 pixels; the box is 16 wide and 8 high.
    target = torch.tensor([[[0.0, 4, 8, 20, 16], PAD, [1.0, 30, 22, 32, 24]]])
    bells = gaussians(target, (6, 8), (24, 32))
    assert bells.shape == (1, 3, 6, 8)
    # The centre (12, 12) is in column 3 and row 3. Radius: floor(0.27 * 4) = 1 along x, floor(0.27 * 2) = 0 along y.
    assert SPREAD == 0.54
    side = np.exp(-0.5 * (1 / 0.5) ** 2)
    torch.testing.assert_close(bells[0, 0, 3, 2:5], torch.tensor([side, 1.0, side], dtype=torch.float32))
    assert (bells[0, 0] > 0).sum() == 3
    assert not bells[0, 1].any()
    assert bells[0, 2].nonzero().tolist() == [[5, 7]]


def test_the_focal_loss_is_written_out():
    z = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    y = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
    p = z.sigmoid()
    expected = -torch.stack(
        [(1 - p[0]) ** 2 * p[0].log(), 0.6**4 * p[1] ** 2 * (1 - p[1]).log(), p[2] ** 2 * (1 - p[2]).log()]
    )
    torch.testing.assert_close(heat_loss(z, y), expected)
    assert torch.autograd.gradcheck(lambda raw: heat_loss(raw, y), z.requires_grad_())


def test_the_loss_of_one_box_is_written_out():
    raw = torch.randn(1, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[[1.0, 2, 3, 7, 6], PAD]])
    loss = DetectionLoss((16, 16), box_weight=3.0)(raw, target)
    # The centre (4.5, 4.5) is at position (1, 1); a box this small covers no other position.
    distances = torch.nn.functional.softplus(raw[0, :4, 1, 1]) * 4
    said = [6 - distances[0], 6 - distances[1], 6 + distances[2], 6 + distances[3]]
    both = max(0, min(said[2], 7) - max(said[0], 2)) * max(0, min(said[3], 6) - max(said[1], 3))
    union = (said[2] - said[0]) * (said[3] - said[1]) + 15 - both
    hull = (max(said[2], 7) - min(said[0], 2)) * (max(said[3], 6) - min(said[1], 3))
    heat = torch.zeros(1, 2, 4, 4)
    heat[0, 1, 1, 1] = 1
    expected = heat_loss(raw[:, 4:], heat).sum() + 3 * (1 - (both / union - (hull - union) / hull))
    torch.testing.assert_close(loss, expected[None])


@pytest.mark.parametrize("rows", [[PAD, PAD], [[0.0, 1, 1, 9, 9], [1.0, 2, 0, 15, 14]]])
def test_the_loss_has_the_gradient_of_its_values(rows):
    raw = torch.randn(1, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = DetectionLoss((16, 16))
    assert torch.autograd.gradcheck(lambda z: loss(z, torch.tensor([rows], dtype=torch.float64)), raw)


def test_padding_changes_nothing_and_the_smaller_of_two_boxes_has_the_place():
    raw = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(2))
    large, small = [0.0, 0, 0, 30, 30], [0.0, 10, 10, 20, 20]
    loss = DetectionLoss((32, 32))
    plain = loss(raw, torch.tensor([[large, small]]))
    padded = loss(raw, torch.tensor([[small, PAD, large, [NAN] * 5]]))
    torch.testing.assert_close(plain, padded)
    # At the common centre the box of the small one is learned: no other position is its.
    raw = raw.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(raw, torch.tensor([[large, small]])).sum(), raw)
    middle = boxes_at(raw[:, :4], (32, 32))[0, 3, 3]
    # Where a side lies within the small box, it has to move outwards.
    for side, value in enumerate(middle.tolist()):
        inside = value > small[1 + side] if side < 2 else value < small[1 + side]
        assert (gradient[0, side, 3, 3] < 0) == inside


def test_an_image_without_boxes_counts_as_one_and_a_missing_one_not_at_all():
    torch.manual_seed(0)
    data = torch.rand(6, 3, 16, 16)
    target = torch.tensor([[[0.0, 2, 2, 10, 9], [1.0, 4, 4, 15, 15]], [PAD, PAD], [[NAN] * 5] * 2] * 2)
    made = tasks.detection("boxes", 2, size=[16, 16])

    def model():
        torch.manual_seed(1)
        encoder = FPN({"name": "convnet", "channels": [4, 4], "norm": "group"}, channels=4, norm="group")
        return pt.MultiTaskModel(pt.sharing.Hard(encoder), [made], example=data[:2])

    start = model().train()
    known = torch.tensor([0, 1, 3, 4])
    (made.loss(start(data[known])["boxes"], target[known]).sum() / 6).backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in start.named_parameters()}
    settings = {"steps": 1, "batch_size": 6, "lr": 0.1, "optimizer": "sgd", "device": "cpu"}
    done = train(model(), [TensorSource(data, {"boxes": target})], settings=TrainingSettings(**settings)).model
    for name, value in done.named_parameters():
        torch.testing.assert_close(value, expected[name])


def maps_of(boxes, side=8, stride=4, classes=2):
    """Raw maps that say exactly these boxes: (class, logit, row, column, distances in strides)."""
    raw = torch.full((1, 4 + classes, side, side), -9.0)
    raw[:, :4] = 1.0
    for number, logit, row, column, distances in boxes:
        raw[0, 4 + number, row, column] = logit
        raw[0, :4, row, column] = torch.tensor(distances).expm1().log()
    return raw


def test_kept_boxes_are_peaks_without_overlaps():
    raw = maps_of(
        [
            (0, 3.0, 2, 2, [1.0, 1.0, 1.0, 1.0]),
            (0, 2.0, 2, 3, [1.0, 1.0, 1.0, 1.0]),  # beside a higher score: no peak
            (1, 2.0, 5, 5, [2.0, 2.0, 2.0, 2.0]),
            (1, 1.0, 5, 7, [3.5, 2.0, 0.5, 2.0]),  # a peak, but its box covers the other one's
            (0, 0.5, 0, 0, [2.0, 2.0, 1.0, 1.0]),  # reaches outside of the image
        ]
    )
    kept = KeepBoxes((32, 32), 4, 0.5)(raw)
    assert kept.shape == (1, 4, 6)
    expected = [[0, 3.0, 6, 6, 14, 14], [1, 2.0, 14, 14, 30, 30], [0, 0.5, 0, 0, 6, 6]]
    expected = [[box[0], torch.tensor(box[1]).sigmoid().item(), *box[2:]] for box in expected]
    torch.testing.assert_close(kept[0, :3], torch.tensor(expected))
    assert kept[0, 3].tolist() == [-1, 0, 0, 0, 0, 0]


def test_decoding_names_what_is_above_the_threshold():
    task = tasks.detection("t", ["cat", "dog"], size=[8, 8], threshold=0.5)
    kept = torch.tensor([[[1, 0.75, 1, 2, 3, 4.5], [0, 0.4, 0, 0, 1, 1]], [[-1.0, 0, 0, 0, 0, 0]] * 2])
    columns = task.decode(kept)
    assert json.loads(columns[""][0]) == [{"label": "dog", "score": 0.75, "box": [1.0, 2.0, 3.0, 4.5]}]
    assert columns[""][1] == "[]"
    assert columns["count"].tolist() == [1, 0]
    assert json.loads(tasks.detection("t", 2, size=[8, 8]).decode(kept)[""][0])[0]["label"] == 1


def scored(task, kept, target):
    kept, target = torch.as_tensor(kept).float(), torch.as_tensor(target).float()
    return score_outputs(task, TaskOutputs(kept, task.score(kept), target.double().numpy(), None))


def test_metrics_that_can_be_checked_by_hand(capsys):
    task = tasks.detection("t", 3, size=[100, 100])
    truth = [[[0, 0, 0, 10, 10], [1, 50, 50, 70, 70]], [PAD, PAD]]
    # One exact box, one with IoU 0.6 (below 4 of the ten thresholds), and a false one on the empty image.
    said = [[[0, 0.9, 0, 0, 10, 10], [1, 0.8, 50, 50, 70, 62]], [[0, 0.5, 0, 0, 5, 5], [-1, 0, 0, 0, 0, 0]]]
    values, left_out = scored(task, said, truth)
    # Class 2 is nowhere.
    assert left_out == dict.fromkeys(values, 1)
    assert values["map_50"] == pytest.approx(1.0)
    assert values["map_75"] == pytest.approx(0.5)
    assert values["map"] == pytest.approx((1 + 3 / 10) / 2)
    assert values["average_recall"] == pytest.approx((1 + 3 / 10) / 2)
    # A false box with the highest score halves the precision of class 0.
    said[1][0][1] = 0.95
    values, _ = scored(task, said, truth)
    assert values["map_50"] == pytest.approx((0.5 + 1) / 2)
    assert capsys.readouterr().out == ""


def test_nothing_found_scores_zero_and_nothing_true_is_undefined():
    task = tasks.detection("t", 2, size=[10, 10])
    none = [[[-1.0, 0, 0, 0, 0, 0]]]
    assert scored(task, none, [[[0, 1, 1, 3, 3]]])[0]["map"] == 0
    assert np.isnan(scored(task, none, [[PAD]])[0]["map"])


def test_metrics_are_what_the_tools_say_when_called_directly():
    generator = np.random.default_rng(0)
    images, classes = 20, 3
    truth = np.full((images, 5, 5), -1.0)
    said = np.full((images, 8, 6), -1.0)
    results, annotations = [], []
    for image in range(images):
        for place in range(generator.integers(0, 6)):
            low = generator.uniform(0, 50, 2)
            box = [*low, *(low + generator.uniform(5, 45, 2))]
            number = int(generator.integers(classes))
            truth[image, place] = [number, *box]
            size = [box[2] - box[0], box[3] - box[1]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": number, "iscrowd": 0}
                | {"bbox": [*box[:2], *size], "area": size[0] * size[1]}
            )
            moved = np.array(box) + generator.normal(0, 3, 4)
            moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
            said[image, place] = [number if generator.random() < 0.8 else 0, generator.random(), *moved]
            size = moved[2:] - moved[:2]
            results.append([image, *moved[:2], *size, said[image, place, 1], said[image, place, 0]])
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        gold.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(images)],
            "categories": [{"id": i} for i in range(classes)],
            "annotations": annotations,
        }
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(np.array(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    task = tasks.detection("t", classes, size=[100, 100])
    values, _ = score_outputs(task, TaskOutputs(torch.empty(0), said, truth, None))
    stats = dict(zip(("map", "map_50", "map_75"), evaluation.stats[:3], strict=True))
    stats["average_recall"] = evaluation.stats[8]
    assert values == pytest.approx(stats, abs=1e-12)
    assert 0.05 < values["map"] < 0.95


def test_without_the_tools_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    task = tasks.detection("t", 2, size=[10, 10])
    with pytest.raises(MissingExtraError, match=r"polytask\[vision\]"):
        scored(task, [[[-1.0, 0, 0, 0, 0, 0]]], [[[0, 1, 1, 3, 3]]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.detection("t", 2, size=[8]), r"size is \[8\]"),
        (lambda: tasks.detection("t", 2, size=None), "size is None. Use a list of the images' height and width"),
        (lambda: tasks.detection("t", 2, size=[8, 8], on_bad="skip"), "Use one of: error, clip, drop"),
        (lambda: tasks.detection("t", 2, size=[8, 8], overlap=2), "overlap is 2"),
        (lambda: tasks.detection("t", 2, size=[8, 8], most=0), "most is 0"),
        (lambda: tasks.detection("t", 2, size=[8, 8], metrics=["map50"]), "Did you mean 'map_50'"),
    ],
)
def test_options_that_cannot_be_used(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[[0, 1, 1, 3]]], r"boxes \[rows, n, 5\]"),
        ([[[2, 1, 1, 3, 3]]], "target 2 in row 0, column 0.*from 0 to 1"),
        ([[[0.5, 1, 1, 3, 3]]], "a whole class number"),
        ([[[0, 1, 1, 9, 3]]], "inside of 8 x 8 pixels"),
        ([[PAD], [[0, 3, 1, 3, 3]]], "row 1, column 0"),
        ([[[NAN] * 5]], "no label at all"),
    ],
)
def test_targets_that_cannot_be_used(boxes, message):
    with pytest.raises(DataError, match=message):
        tasks.detection("t", 2, size=[8, 8]).fitted(torch.tensor(boxes, dtype=torch.float32))


def test_classes_come_from_the_training_data():
    task = tasks.detection("t", size=[8, 8])
    assert task.fitted(torch.tensor([[[2.0, 1, 1, 3, 3]]])).head.outputs == 7
    with pytest.raises(DataError, match="no box in the training data"):
        task.fitted(torch.tensor([[PAD]]))


def scenes(rows=16, side=32, seed=0):
    """Dark images with one to three rectangles: upright ones are red, lying ones green."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 40, (rows, 3, side, side)).astype(np.uint8)
    boxes = np.full((rows, 3, 5), 0.0)
    boxes[..., 0] = -1
    mask = np.zeros((rows, side, side), dtype=np.int8)
    for row in range(rows):
        for place in range(generator.integers(1, 4)):
            number = int(generator.integers(2))
            width, height = (7, 12) if number == 0 else (12, 7)
            x, y = generator.integers(0, side - width), generator.integers(0, side - height)
            image[row, :, y : y + height, x : x + width] = 0
            image[row, number, y : y + height, x : x + width] = 200 + place * 20
            mask[row, y : y + height, x : x + width] = number + 1
            boxes[row, place] = [number, x, y, x + width, y + height]
    shown = np.stack([(boxes[..., 0] == number).any(1) for number in range(2)], 1).astype(float)
    return {"image": image, "boxes": boxes, "parts": mask, "shown": shown}


def test_scenes_are_learned_by_heart_and_survive_a_bundle(tmp_path):
    torch.manual_seed(0)
    data = scenes()
    data["boxes"][3] = NAN
    made = [
        tasks.detection("boxes", ["upright", "lying"], size=[32, 32], hidden=[12]),
        tasks.segmentation("parts", 3),
        tasks.multilabel("shown", ["upright", "lying"]),
    ]
    encoder = FPN({"name": "convnet", "channels": [12, 16, 24]}, channels=24)
    model = pt.MultiTaskModel(pt.sharing.Hard(encoder), made)
    run = pt.fit(
        model, data, data, epochs=60, batch_size=16, lr=0.01, schedule="cosine", validate_every=60, device="cpu",
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert run.scores["boxes"]["map_50"] > 0.9
    assert run.scores["parts"]["miou"] > 0.6
    predictor = pt.load(tmp_path / "run" / "bundle")
    assert pt.evaluate(predictor.model, data)["boxes"]["map"] == pytest.approx(run.scores["boxes"]["map"])
    said = [json.loads(text) for text in predictor.predict(data["image"])["boxes"]]
    true = (data["boxes"][:, :, 0] >= 0).sum(1)
    assert np.mean([len(image) == count for image, count in zip(said, true, strict=True)]) > 0.6
    record = RunRecord.load(tmp_path / "run" / "report.json")
    pictures = {task.name: task.figures.get("pictures", []) for task in record.tasks}
    assert [len(pictures[name]) for name in ("boxes", "parts", "shown")] == [6, 6, 0]
    first = pictures["boxes"][0]
    true = [[box["label"] == "lying", *box["box"]] for box in first["boxes"]["true"]]
    assert true == data["boxes"][0][: len(true)].tolist()
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(first["image"]))))[..., :3]
    assert (shown == data["image"][0].transpose(1, 2, 0)).all()
    # Row 3 has no boxes, so the fourth picture is of row 4.
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(pictures["boxes"][3]["image"]))))[..., :3]
    assert (shown == data["image"][4].transpose(1, 2, 0)).all()
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<image ") == 6 + 6 * 5
    assert "upright 0." in page or "upright 1." in page


@pytest.mark.parametrize("balancer", ["uncertainty", "pcgrad", {"name": "cagrad", "at": "features"}, "graddrop"])
def test_boxes_pixels_and_rows_are_balanced(balancer):
    torch.manual_seed(0)
    data = scenes(rows=6)
    made = [
        tasks.detection("boxes", 2, size=[32, 32]),
        tasks.segmentation("parts", 3),
        tasks.multilabel("shown", 2),
    ]
    encoder = FPN({"name": "convnet", "channels": [4, 4]}, channels=8)
    model = pt.MultiTaskModel(pt.sharing.Hard(encoder), made)
    run = pt.fit(model, data, epochs=2, batch_size=6, balancer=balancer, device="cpu", progress=False)
    assert all(np.isfinite(run.history[-1][f"loss.{name}"]) for name in model.tasks)
    assert all(p.grad is not None for p in run.model.parameters())
