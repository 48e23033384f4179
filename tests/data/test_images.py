"""Columns of images: files, bytes and pixels."""

import io
import sys

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from polytask.data.images import read_images, read_masks, with_folder
from polytask.data.infer import guess_inputs
from polytask.data.preprocess import InputSpec, TablePreprocessor
from polytask.data.schema import TableSchema
from polytask.data.source import TensorSource
from polytask.errors import DataError, MissingExtraError, RecipeError


def pixels(seed=0, size=(6, 8), channels=3):
    array = np.random.default_rng(seed).integers(0, 256, (*size, channels)).astype(np.uint8)
    return array[..., 0] if channels == 1 else array


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(pixels(number)))
    return tmp_path


def paths(folder, *names):
    return pl.Series("photo", [None if name is None else str(folder / name) for name in names])


def test_paths_and_bytes_give_the_pixels(folder):
    expected = np.stack([pixels(number).transpose(2, 0, 1) for number in (2, 0)])
    found = read_images(paths(folder, "2.png", "0.png"))
    assert found.pixels.dtype == np.uint8
    np.testing.assert_array_equal(found.pixels, expected)
    assert found.sizes.tolist() == [[6, 8]] * 2
    of_bytes = pl.Series("photo", [png(pixels(2)), png(pixels(0))])
    np.testing.assert_array_equal(read_images(of_bytes).pixels, expected)
    categorical = paths(folder, "2.png", "0.png").cast(pl.Categorical)
    np.testing.assert_array_equal(read_images(categorical).pixels, expected)


def test_images_are_resized_and_made_grey(folder):
    (folder / "wide.png").write_bytes(png(pixels(5, (10, 4), 1)))
    found = read_images(paths(folder, "0.png", "wide.png"), (3, 5), 1)
    assert found.pixels.shape == (2, 1, 3, 5)
    assert found.sizes.tolist() == [[6, 8], [10, 4]]
    expected = Image.fromarray(pixels(0)).convert("L").resize((5, 3))
    np.testing.assert_array_equal(found.pixels[0, 0], np.asarray(expected))
    grey = read_images(paths(folder, "wide.png"), None, 1)
    np.testing.assert_array_equal(grey.pixels[0, 0], pixels(5, (10, 4), 1))


def test_what_is_wrong_with_a_file_names_the_record(folder):
    (folder / "text.png").write_text("not an image")
    (folder / "half.png").write_bytes(png(pixels())[:-60])
    (folder / "large.png").write_bytes(png(pixels(size=(7, 8))))
    for name, message in (
        ("3.png", r"Record 2, column 'photo': there is no image file '.*3\.png'.*on_bad: skip"),
        (None, "Record 2, column 'photo': there is no image"),
        ("text.png", "is not an image"),
        ("half.png", "cannot be read as an image"),
    ):
        with pytest.raises(DataError, match=message):
            read_images(paths(folder, "0.png", name))
    with pytest.raises(DataError, match=r"has 7 x 8 pixels .*others 6 x 8\. Give the input a size"):
        read_images(paths(folder, "0.png", "large.png"))
    with pytest.raises(DataError, match=r"1 more records have a fault like this"):
        read_images(paths(folder, "a.png", "0.png", "b.png"))
    found = read_images(paths(folder, "a.png", "0.png", None), skip_bad=True)
    assert list(found.bad) == [0, 2]
    assert not found.pixels[0].any()
    np.testing.assert_array_equal(found.pixels[1], pixels(0).transpose(2, 0, 1))
    with pytest.raises(DataError, match="no image that can be read"):
        read_images(paths(folder, "a.png"), skip_bad=True)


def test_without_pillow_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"polytask\[vision\]"):
        read_images(paths(folder, "0.png"))


def test_masks_are_class_numbers_of_grey_and_palette_images(folder):
    numbers = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    palette = Image.fromarray(numbers).convert("P")
    palette.putpalette([5] * 768)
    file = io.BytesIO()
    palette.save(file, "png")
    found = read_masks(pl.Series("mask", [png(numbers), file.getvalue(), None]))
    assert found[0].tolist() == found[1].tolist() == numbers.tolist()
    assert found[2] is None
    wide = read_masks(pl.Series("mask", [png(numbers)]), (4, 4))
    assert wide[0].tolist() == np.kron(numbers, np.ones((2, 2), dtype=int)).tolist()
    with pytest.raises(DataError, match=r"Record 1, column 'mask': a mask is a grey or palette image.*RGB"):
        read_masks(pl.Series("mask", [png(pixels())]))


def test_tables_learn_the_size_and_read_later_images_alike(folder):
    frame = pl.DataFrame({"photo": ["0.png", "1.png"], "age": [1.0, 3.0]})
    frame = with_folder(frame, ["photo", "age", "nowhere"], folder)
    table = TablePreprocessor.fit(frame, {"photo": InputSpec("image"), "age": InputSpec("number")})
    inputs = table.transform(frame)
    assert inputs["photo"].dtype == torch.uint8
    assert inputs["photo"].shape == (2, 3, 6, 8)
    again = TablePreprocessor(TableSchema.from_dict(table.schema.to_dict()))
    assert again.schema == table.schema
    (folder / "large.png").write_bytes(png(pixels(size=(12, 16))))
    later = pl.DataFrame({"photo": [str(folder / "large.png"), str(folder / "0.png")], "age": [2.0, 2.0]})
    found = again.transform(later)["photo"]
    assert found.shape == (2, 3, 6, 8)
    np.testing.assert_array_equal(found[1], pixels(0).transpose(2, 0, 1))
    assert again.image_sizes(later).tolist() == [[12, 16], [6, 8]]
    read = later.with_columns(pl.Series("photo", found.numpy()))
    assert torch.equal(again.transform(read)["photo"], found)
    with pytest.raises(DataError, match=r"in training it was images of \[3, 6, 8\]"):
        again.transform(later.with_columns(pl.Series("photo", np.zeros((2, 1, 6, 8), dtype=np.uint8))))


def test_schemas_from_before_there_were_images_still_load():
    plain = TableSchema().to_dict()
    del plain["images"]
    assert TableSchema.from_dict(plain) == TableSchema()


def test_guesses():
    frame = pl.DataFrame({"photo": ["a/b.PNG", "c.jpeg"], "data": [b"1", b"2"], "name": ["a.png", "b"]})
    found = {guess.column: guess.kind for guess in guess_inputs(frame)}
    assert found == {"photo": "image", "data": "image", "name": "category"}


def test_options_that_cannot_be_used():
    with pytest.raises(RecipeError, match=r"Unknown colour 'gray'. Known: rgb, grey. Did you mean 'grey'"):
        InputSpec("image", colour="gray")
    with pytest.raises(RecipeError, match=r"size is \[0, 4\]"):
        InputSpec("image", size=(0, 4))


def test_images_are_evaluated_few_at_a_time_and_numbers_as_many_as_asked_for():
    many = TensorSource({"photo": torch.zeros(700, 3, 64, 64, dtype=torch.uint8)}, {"up": torch.zeros(700)})
    sizes = [len(rows) for rows in many.readings(8192)]
    assert sizes == [341, 341, 18]
    assert [len(rows) for rows in many.readings(300)] == [300, 300, 100]
    wide = TensorSource(torch.zeros(9000, 2000), {"up": torch.zeros(9000)})
    assert [len(rows) for rows in wide.readings(8192)] == [8192, 808]
