"""Composed scenes: what they hold is what their boxes and masks say; the parts share no picture."""

import gzip

import numpy as np
import pytest

from polytask.data.datasets import multi_fashion, shapes
from polytask.data.scenes import MOST, SIDE, SIZES, Things, scenes
from polytask.errors import DataError, MissingExtraError


def squares(name, colour):
    """Opaque squares of one colour, with a clear border that a scene cuts off."""

    def cutout(number, generator):
        picture = np.zeros((20, 24, 4), dtype=np.uint8)
        picture[3:17, 5:19] = (*colour, 255)
        return picture

    return Things(name, 3, cutout)


TWO = [squares("red", (250, 0, 0)), squares("blue", (0, 0, 250))]


def test_boxes_masks_and_labels_agree_with_the_pixels():
    frame = scenes(TWO, 150, seed=1)
    image, parts = frame["image"].to_numpy(), frame["parts"].to_numpy()
    assert image.shape == (150, 3, SIDE, SIDE)
    assert image.dtype == np.uint8
    counts = frame["things"].to_numpy()
    assert set(counts) == set(range(MOST + 1))
    for row, boxes in enumerate(frame["boxes"].to_list()):
        assert counts[row] == len(boxes)
        assert frame["shown"][row] == "|".join(sorted({box["label"] for box in boxes}))
        covered = np.zeros((SIDE, SIDE), dtype=bool)
        for box in boxes:
            x1, y1, x2, y2 = (int(box[side]) for side in ("x1", "y1", "x2", "y2"))
            assert SIZES[0] <= max(x2 - x1, y2 - y1) <= SIZES[1]
            covered[y1:y2, x1:x2] = True
            seen = parts[row, y1:y2, x1:x2] == 1 + ["red", "blue"].index(box["label"])
            assert seen.mean() >= 0.55
        # A square fills its box, so the mask is the union of the boxes.
        np.testing.assert_array_equal(parts[row] > 0, covered)
        for number, channel in ((1, 0), (2, 2)):
            inside = image[row][:, parts[row] == number].astype(int)
            assert (np.abs(inside[channel] - 250) < 25).all()


def test_the_seed_alone_decides():
    first, again, other = (scenes(TWO, 5, seed=seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first["image"].equals(other["image"])


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"polytask\[vision\]"):
        scenes(TWO, 1, seed=0)


LIST = """\
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                  ; fully-qualified     # a face
263A FE0F              ; fully-qualified     # another
263A                   ; unqualified         # without its selector
1F636 200D 1F32B FE0F  ; fully-qualified     # of several points
# subgroup: heart
2764 FE0F              ; fully-qualified     # no face
# group: Animals & Nature
# subgroup: animal-mammal
1F435                  ; fully-qualified     # monkey
# subgroup: plant-flower
1F490                  ; fully-qualified     # no animal
# group: Food & Drink
# subgroup: food-fruit
1F347                  ; fully-qualified     # grapes
"""


def test_emoji_of_one_point_by_class(tmp_path):
    path = tmp_path / "emoji-test.txt"
    path.write_text(LIST)
    assert shapes.read_emoji(path) == {
        "face": ["\U0001f600", "\u263a"],
        "animal": ["\U0001f435"],
        "food": ["\U0001f347"],
    }
    path.write_text("# group: Flags\n")
    with pytest.raises(DataError, match="has no emoji for 'face'; it is not Unicode's"):
        shapes.read_emoji(path)


def test_no_emoji_is_in_two_parts_and_shares_are_as_said():
    parts = shapes._divided({"face": [chr(0x1F600 + at) for at in range(60)]})
    found = [set(parts[part]["face"]) for part in ("train", "validation", "test")]
    assert [len(symbols) for symbols in found] == [42, 6, 12]
    assert len(set.union(*found)) == 60


def test_files_of_ones_own_are_read(tmp_path, monkeypatch):
    """A small Fashion-MNIST; the font is replaced by drawn squares, since no font with emoji is at hand."""
    monkeypatch.setattr(multi_fashion, "COUNTS", {"train": 40, "t10k": 20})
    monkeypatch.setattr(multi_fashion, "VALIDATION", 20)
    monkeypatch.setattr(shapes, "ROWS", {"train": 6, "validation": 3, "test": 4})
    generator = np.random.default_rng(0)
    for part, count in multi_fashion.COUNTS.items():
        for kind, array in (
            ("images-idx3", generator.integers(100, 256, (count, 28, 28))),
            ("labels-idx1", np.arange(count) % 10),
        ):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))
    (tmp_path / "emoji-test.txt").write_text(LIST)
    (tmp_path / "NotoColorEmoji.ttf").write_bytes(b"")
    symbols = {}
    monkeypatch.setattr(
        shapes, "_symbols", lambda font, emoji: symbols.update({font.name: emoji}) or [squares("face", (9, 9, 250))]
    )
    found = shapes.load(tmp_path)
    assert {part: frame.height for part, frame in found.items()} == {"train": 6, "validation": 3, "test": 4}
    assert list(symbols) == ["NotoColorEmoji.ttf"]
    labels = {box["label"] for frame in found.values() for boxes in frame["boxes"] for box in boxes}
    assert labels <= {*shapes.GARMENTS, "face"}
    with pytest.raises(DataError, match=r"has no file 'train-images-idx3-ubyte.gz'"):
        shapes.load(tmp_path / "..")


def test_the_font_draws_what_the_list_names():
    """The real font and list, where they have been fetched before."""
    from polytask.data.fetch import cache_folder

    fonts = sorted((cache_folder() / "datasets").glob("noto_color_emoji-*/NotoColorEmoji.ttf"))
    if not fonts:
        pytest.skip("the font has not been fetched")
    grapes, dog = (shapes._symbols(fonts[0], {"food": [symbol]})[0].cutout(0, None) for symbol in "🍇🐶")
    assert grapes.shape == (128, 136, 4)
    assert 0.2 < (grapes[..., 3] > 127).mean() < 0.9
    assert not np.array_equal(grapes, dog)
    with pytest.raises(DataError, match="has no picture of"):
        shapes._symbols(fonts[0], {"food": ["\u200b"]})
