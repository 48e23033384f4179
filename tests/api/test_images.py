"""From a folder of image files to a run, its report and predictions, by the command line."""

import json

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import polytask as pt
from polytask.cli import main
from polytask.errors import DataError, RecipeError
from polytask.models.encoders import FPN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of 48 x 64 pixels with a light rectangle, its box, its mask and where it is; one photo is missing."""
    path = tmp_path_factory.mktemp("photos")
    (path / "files").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(24):
        x, y = (int(value) for value in generator.integers(0, (34, 24)))
        pixels = generator.integers(0, 60, (48, 64, 3)).astype(np.uint8)
        pixels[y : y + 24, x : x + 30] += 180
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[y : y + 24, x : x + 30] = 1
        mask[:2] = 255
        Image.fromarray(pixels).save(path / "files" / f"{number}.png")
        Image.fromarray(mask).save(path / "files" / f"mask-{number}.png")
        box = {"label": "light", "box": [x, y, x + 30, y + 24]}
        rows.append(
            {"photo": f"files/{number}.png", "parts": f"files/mask-{number}.png", "boxes": json.dumps([box])}
            | {"left": "yes" if x < 17 else "no", "split": "train" if number < 16 else "validation"}
        )
    (path / "files" / "5.png").unlink()
    pl.DataFrame(rows).write_csv(path / "photos.csv", separator=";")
    return path


def recipe(folder, **data):
    return {
        "data": {"table": str(folder / "photos.csv"), "separator": ";", "split": {"by": "split"}, **data},
        "inputs": {"photo": {"kind": "image", "size": [24, 32]}},
        "tasks": {
            "boxes": {"type": "detection", "size": [24, 32]},
            "parts": {"type": "segmentation", "classes": ["dark", "light"], "size": [24, 32]},
            "left": {"type": "binary", "positive": "yes"},
        },
        "model": {"encoder": {"name": "fpn", "backbone": {"name": "convnet", "channels": [8, 12]}, "channels": 12}},
        "training": {"epochs": 2, "batch_size": 8, "device": "cpu", "augment": {"flip": 0.5, "noise": 0.01}},
    }


def test_a_folder_of_photos_trains_and_predicts(folder, tmp_path):
    written = tmp_path / "photos.yaml"
    written.write_text(yaml.safe_dump(recipe(folder, on_bad="skip")))
    run = tmp_path / "run"
    with pytest.warns(
        UserWarning, match=r"photos.csv: Skipped 1 of 24 rows.*Record 6, column 'photo': there is no image file"
    ):
        done = CliRunner().invoke(main, ["fit", str(written), "--out", str(run)])
    assert done.exit_code == 0, done.output
    assert "Skipped 1 of 24 rows" in done.output
    record = json.loads((run / "report.json").read_text())
    assert record["data"]["sizes"] == {"train": 15, "validation": 8}
    scores = json.loads((run / "metrics.json").read_text())["validation"]
    assert {"boxes", "parts", "left"} <= set(scores) | set(scores.get("values", {}))
    # A box is drawn in pixels of what the model reads, half the size of the photo.
    true = next(task for task in record["tasks"] if task["name"] == "boxes")["figures"]["pictures"][0]["boxes"]["true"]
    whole = json.loads(pl.read_csv(folder / "photos.csv", separator=";")["boxes"][16])[0]["box"]
    assert true[0]["box"] == [side / 2 for side in whole]
    pl.read_csv(folder / "photos.csv", separator=";")[16:].write_csv(folder / "new.csv", separator=";")
    said = tmp_path / "said.parquet"
    done = CliRunner().invoke(main, ["predict", str(run), str(folder / "new.csv"), "--out", str(said)])
    assert done.exit_code == 0, done.output
    found = pl.read_parquet(said)
    assert found["parts"].dtype.shape == (24, 32)
    assert all(isinstance(json.loads(text), list) for text in found["boxes"])
    done = CliRunner().invoke(main, ["predict", str(run), str(folder / "new.csv"), "--out", str(tmp_path / "x.csv")])
    assert "holds arrays, which CSV cannot. Use .parquet" in done.output
    done = CliRunner().invoke(main, ["evaluate", str(run), str(folder / "new.csv")])
    assert done.exit_code == 0, done.output


def test_a_missing_photo_is_an_error_with_its_record(folder):
    with pytest.raises(DataError, match=r"photos.csv: Record 6, column 'photo': there is no image file '.*5\.png'"):
        pt.run(recipe(folder), progress=False)


def test_a_part_without_photos_is_an_error(folder, tmp_path):
    frame = pl.read_csv(folder / "photos.csv", separator=";")
    lost = pl.col("photo") == "files/5.png"
    frame = frame.with_columns(split=pl.when(lost).then(pl.lit("train")).otherwise(pl.lit("test")))
    frame.write_csv(folder / "one.csv", separator=";")
    plain = recipe(folder, on_bad="skip")
    plain["data"]["table"] = str(folder / "one.csv")
    with pytest.raises(DataError, match=r"no row of 'train' can be used. Skipped 1 of 24 rows"):
        pt.run(plain, progress=False)


def test_a_frame_of_photos_trains_from_python(folder, tmp_path):
    frame = pl.read_csv(folder / "photos.csv", separator=";").filter(pl.col("photo") != "files/5.png")
    frame = frame.select(pl.format("{}/{}", pl.lit(str(folder)), "photo").alias("photo"), "boxes", "left")
    frame.write_parquet(tmp_path / "photos.parquet")
    made = [pt.tasks.detection("boxes", ["light"], size=[48, 64]), pt.tasks.binary("left", positive="yes")]
    model = pt.MultiTaskModel(pt.sharing.Hard(FPN({"name": "convnet", "channels": [4, 4]}, channels=4)), made)
    run = pt.fit(model, frame, frame, epochs=1, batch_size=8, device="cpu", progress=False, out=tmp_path / "run")
    assert 0 <= run.scores["boxes"]["map"] <= 1
    predictor = pt.load(tmp_path / "run" / "bundle")
    assert predictor.predict(tmp_path / "photos.parquet").equals(predictor.predict(frame))


def test_photos_beside_numbers(folder, tmp_path):
    frame = pl.read_csv(folder / "photos.csv", separator=";").with_columns(age=pl.int_range(pl.len()) % 7)
    frame.write_csv(folder / "mixed.csv", separator=";")
    plain = recipe(folder, on_bad="skip") | {"tasks": {"left": {"type": "binary", "positive": "yes"}}}
    plain["data"] = plain["data"] | {"table": str(folder / "mixed.csv")}
    plain["inputs"] = {**plain["inputs"], "age": "number"}
    photo = {"name": "convnet", "in_channels": 3, "channels": [4, 4]}
    plain["model"] = {"encoder": {"name": "fusion", "parts": {"photo": photo}, "hidden": [8]}}
    with pytest.warns(UserWarning, match="Skipped 1 of 24 rows"):
        run = pt.run(plain, out=tmp_path / "run", progress=False)
    frame.filter(pl.col("photo") != "files/5.png").write_csv(folder / "whole.csv")
    assert len(pt.load(tmp_path / "run" / "bundle").predict(folder / "whole.csv")) == 23
    for encoder, text in (("tabular", "other columns: photo"), ("fusion", "image column 'photo' has no encoder")):
        with (
            pytest.warns(UserWarning, match="Skipped 1 of 24 rows"),
            pytest.raises((DataError, RecipeError), match=text),
        ):
            pt.run({**plain, "model": {"encoder": encoder}}, progress=False)
    assert run.scores["left"]["log_loss"] > 0
