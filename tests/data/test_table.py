import polars as pl
import pytest

from polytask.data import table
from polytask.data.table import as_frame, as_text, column_of, parse_numbers, read_table
from polytask.errors import DataError


@pytest.fixture
def write(tmp_path):
    def save(text, name="people.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return save


def test_csv_is_text_stripped_with_missing_values(write):
    frame = read_table(write('\ufeffage , sex\r\n 31 ,"f, or m"\r\nNA,\r\n'))
    assert frame.to_dicts() == [{"age": "31", "sex": "f, or m"}, {"age": None, "sex": None}]


def test_own_missing_values_replace_the_usual_ones(write):
    assert read_table(write("a,b\n?,NA\n"), na=("?",)).row(0) == (None, "NA")


def test_quoted_fields_may_hold_line_breaks_and_separators(write):
    assert read_table(write('a;b\n"x\ny;z";2\n'), separator=";").row(0) == ("x\ny;z", "2")


def test_tsv_uses_tabs(write):
    assert read_table(write("a\tb\n1\t2,5\n", "t.tsv")).row(0) == ("1", "2,5")


def test_without_header(write):
    path = write("1,2\n3,4\n")
    assert read_table(path, header=False).columns == ["column_1", "column_2"]
    named = read_table(path, header=False, columns=["a", "b"])
    assert named.to_dicts() == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    with pytest.raises(DataError, match="has 2 fields a record but columns names 1"):
        read_table(path, header=False, columns=["a"])


def test_blank_lines_are_no_records_but_empty_fields_are(write):
    assert read_table(write("a,b\n\n1,2\n\n,\n3,4\n\n")).rows() == [("1", "2"), (None, None), ("3", "4")]


@pytest.mark.parametrize(
    ("body", "number", "fields"), [("1,2\n3\n", 2, 1), ("1,2\n\n3,4,5\n", 2, 3), ("1,2\n\n3\n4,5\n", 2, 1)]
)
def test_ragged_record_is_named(write, body, number, fields):
    with pytest.raises(DataError, match=f"Record {number} of .* has {fields} fields, but 2 were expected"):
        read_table(write("a,b\n" + body))


def test_a_single_column_may_have_missing_values(write):
    assert read_table(write('a\n1\n""\n3\n')).to_series().to_list() == ["1", None, "3"]


def test_duplicate_and_empty_names(write):
    with pytest.raises(DataError, match=r"names more than once: a. Rename"):
        read_table(write("a,b, a\n1,2,3\n"))
    with pytest.raises(DataError, match="has no name for column 2"):
        read_table(write("a,,c\n1,2,3\n"))


def test_missing_file_names_the_nearest(write, tmp_path):
    write("a\n1\n")
    with pytest.raises(DataError, match=r"There is no table at .*Did you mean 'people.csv'\?"):
        read_table(tmp_path / "peple.csv")
    with pytest.raises(DataError, match=r"its folder .* does not exist"):
        read_table(tmp_path / "no" / "people.csv")
    with pytest.raises(DataError, match=r"is a folder. Give one file: people.csv"):
        read_table(tmp_path)


def test_other_formats_and_broken_files(write):
    with pytest.raises(DataError, match=r"has the ending '.xlsx'. Tables are read from: .csv"):
        read_table(write("x", "people.xlsx"))
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_table(write("not parquet", "people.parquet"))
    with pytest.raises(DataError, match="is empty"):
        read_table(write("", "none.csv"))
    with pytest.raises(DataError, match="has no records"):
        read_table(write("a,b\n", "none.csv"))


def test_other_encodings_are_named(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("a\né\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8|utf-8|UTF-8"):
        read_table(path)


@pytest.mark.parametrize(
    ("ending", "write_with"), [("parquet", "write_parquet"), ("arrow", "write_ipc"), ("feather", "write_ipc")]
)
def test_binary_tables_keep_their_types(tmp_path, ending, write_with):
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    getattr(frame, write_with)(tmp_path / f"t.{ending}")
    assert read_table(tmp_path / f"t.{ending}").equals(frame)
    assert read_table(tmp_path / f"t.{ending}", columns=["b"]).columns == ["b"]


def test_large_tables_hold_repeating_text_compactly_and_say_the_same(write, monkeypatch):
    rows = [(str(i / 7), "yes" if i % 3 else "NA") for i in range(400)]
    path = write("x,y\n" + "".join(f"{x}, {y}\n" for x, y in rows))
    plain = read_table(path)
    monkeypatch.setattr(table, "_COMPACT_FROM", 1)
    compact = read_table(path)
    assert compact.dtypes == [pl.String, pl.Categorical]
    assert compact.cast(pl.String).equals(plain)
    assert as_text(compact["y"]).equals(plain["y"])


def test_value_that_is_no_number_is_named():
    with pytest.raises(DataError, match=r"Record 3, column 'age': 'old' is not a number. 1 more records"):
        parse_numbers(pl.Series("age", ["1", None, "old", "1e3", "young"]))


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt64, pl.Float32, pl.Boolean, pl.String, pl.Categorical])
def test_numbers_of_any_type(dtype):
    values = [True, False] if dtype == pl.Boolean else ["1", "0"] if dtype in (pl.String, pl.Categorical) else [1, 0]
    assert parse_numbers(pl.Series("a", values, dtype=dtype)).to_list() == [1.0, 0.0]


def test_lists_and_dates_are_no_numbers():
    with pytest.raises(DataError, match="holds List"):
        parse_numbers(pl.Series("a", [[1.0]]))


def test_classes_are_the_same_text_from_any_type():
    for values in ([1, None], [1.0, None], ["1", None], [1.0, float("nan")]):
        assert as_text(pl.Series("a", values, strict=False)).to_list() == ["1", None]
    assert as_text(pl.Series("a", [1.5, 2.0])).to_list() == ["1.5", "2.0"]


def test_pandas_frames():
    pd = pytest.importorskip("pandas")
    frame = as_frame(
        pd.DataFrame({"n": [1.5, None], "s": ["x", None], "c": pd.Categorical(["u", "v"]), "b": [True, False]})
    )
    assert frame.to_dict(as_series=False) == {"n": [1.5, None], "s": ["x", None], "c": ["u", "v"], "b": [True, False]}
    nullable = as_frame(pd.DataFrame({"i": pd.array([1, None], "Int64"), "t": pd.array(["x", None], "string")}))
    assert nullable.to_dict(as_series=False) == {"i": [1, None], "t": ["x", None]}
    mixed = as_frame(pd.DataFrame({"m": [1, "x", None]}))
    assert mixed["m"].to_list() == ["1", "x", None]


def test_other_things_are_no_frames():
    with pytest.raises(DataError, match="found list"):
        as_frame([1, 2])


def test_missing_column_names_the_nearest():
    with pytest.raises(DataError, match=r"has no input column 'agee'. It has: age, sex. Did you mean 'age'\?"):
        column_of(pl.DataFrame({"age": [1], "sex": ["f"]}), "agee", "input column")
