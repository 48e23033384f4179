"""Text columns, tag columns and column files: what they become, and which of them are refused."""

import polars as pl
import pytest
import torch

from polytask.data.arrays import as_source
from polytask.data.columns import read_column_file
from polytask.data.preprocess import InputSpec, TablePreprocessor
from polytask.data.schema import TableSchema
from polytask.data.table import read_table
from polytask.data.tags import check_tag_lengths, with_all_labels
from polytask.data.targets import encode_target, fit_target
from polytask.errors import DataError, RecipeError
from polytask.tasks import multiclass, tagging

TEXTS = pl.DataFrame({"s": ["Fly to Rome", "to Oslo", "go"], "tags": ["O O B-CITY", "O B-CITY", "O"]})


def fitted(frame=TEXTS, **options):
    return TablePreprocessor.fit(frame, {"s": InputSpec("text", **options)})


def test_words_and_characters_have_the_numbers_of_the_vocabulary():
    table = fitted(min_count=2)
    column = table.schema.texts[0]
    assert column.words == ("to",)
    assert column.characters == ("l", "o", "t")
    found = table.transform(pl.DataFrame({"s": ["To ROME", "unseen to to"]}))["s"]
    assert found["tokens"].tolist() == [[1, 0, -1], [0, 1, 1]]
    assert found["words"].tolist() == [[0, 1, -1], [0, 1, 2]]
    letters = {letter: at for at, letter in enumerate(column.characters, start=1)}
    wanted = [letters.get(letter, 0) for letter in "unseen"]
    assert found["characters"][1, 0].tolist() == wanted
    assert (found["characters"][0, 2] == -1).all()


def test_case_and_length_of_words_are_options():
    column = fitted(lowercase=False, longest_word=2).schema.texts[0]
    assert {"Fly", "Rome"} <= set(column.words)
    assert fitted(longest_word=2).transform(TEXTS)["s"]["characters"].shape[2] == 2


def test_lists_of_words_and_text_are_the_same():
    lists = pl.DataFrame({"s": [["Fly", "to", "Rome"], ["to", "Oslo"], ["go"]]})
    first, second = fitted().transform(TEXTS)["s"], fitted(lists).transform(lists)["s"]
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key])


def test_a_schema_with_texts_goes_to_json_and_back():
    schema = fitted().schema
    assert TableSchema.from_dict(schema.to_dict()) == schema


def test_tables_of_json_hold_lists(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"s": ["a", "b"], "tags": ["O", "O"]}\n{"s": ["c"], "tags": ["O"]}\n')
    assert read_table(path)["s"].to_list() == [["a", "b"], ["c"]]
    (tmp_path / "rows.json").write_text('[{"s": ["a"], "n": 1}]')
    assert read_table(tmp_path / "rows.json", columns=["s"]).columns == ["s"]


@pytest.mark.parametrize(
    ("series", "text"),
    [
        (["a", None], "Record 2, column 's': there is no text"),
        ([["a"], ["b", ""]], "Record 2, column 's': a word of the list is missing or empty"),
        ([1, 2], "column holds text or lists|a text column holds text or lists of words"),
        (["", " "], "has no word in the training rows"),
    ],
)
def test_texts_that_cannot_be_read_are_named(series, text):
    with pytest.raises(DataError, match=text):
        fitted(pl.DataFrame({"s": series}))


def test_options_of_text_columns_are_checked():
    with pytest.raises(RecipeError, match="longest is 0"):
        InputSpec("text", longest=0)


def test_tags_are_numbers_with_padding():
    task = fit_target(TEXTS, tagging("tags"))
    assert task.target.classes == ("B-CITY", "O")
    assert encode_target(TEXTS, task).tolist() == [[1, 1, 0], [1, 0, -1], [1, -1, -1]]
    some = pl.DataFrame({"tags": [["O", None], None]})
    assert encode_target(some, task).tolist() == [[1, -1], [-1, -1]]


def test_tags_that_break_the_scheme_are_named_or_written_anew():
    frame = pl.DataFrame({"tags": ["O B-X", "O I-X I-X"]})
    with pytest.raises(DataError, match=r"Record 2, task 'tags', column 'tags', word 2: 'I-X' stands behind 'O'"):
        fit_target(frame, tagging("tags"))
    task = fit_target(frame, tagging("tags", repair=True))
    assert task.target.classes == ("B-X", "I-X", "O")
    assert encode_target(frame, task).tolist() == [[2, 0, -1], [2, 0, 1]]
    with pytest.raises(DataError, match="word 2: the row ends behind 'B-X'"):
        fit_target(pl.DataFrame({"tags": ["B-X"]}), tagging("tags", scheme="bioes"))
    with pytest.raises(DataError, match="no tags such as: NN"):
        fit_target(pl.DataFrame({"tags": ["NN O"]}), tagging("tags"))


def test_an_unknown_tag_is_named_and_the_nearest_one_too():
    with pytest.raises(DataError, match=r"Record 1, .*'B-CITI' is not among the tags.*Did you mean 'B-CITY'"):
        encode_target(pl.DataFrame({"tags": ["B-CITI"]}), tagging("tags", ["B-CITY", "O"]))


def test_every_word_needs_a_tag():
    schema, tasks = fitted().schema, [tagging("tags")]
    check_tag_lengths(TEXTS, schema.texts, tasks)
    check_tag_lengths(TEXTS.with_columns(tags=pl.lit(None)), schema.texts, tasks)
    with pytest.raises(DataError, match=r"Record 2, .* there are 3 tags for the 2 words of 's'"):
        check_tag_lengths(TEXTS.with_columns(tags=pl.Series(["O O O", "O O O", "O"])), schema.texts, tasks)
    with pytest.raises(DataError, match="exactly one text column; found: none"):
        check_tag_lengths(TEXTS, (), tasks)


def test_a_source_of_a_frame_checks_them_and_cuts_padding():
    task = fit_target(TEXTS, tagging("tags"))
    source = as_source(TEXTS, [task], preprocessor=fitted())
    batch = source.take(torch.tensor([1, 2]))
    assert batch.inputs["s"]["tokens"].shape == (2, 2)
    assert batch.targets["tags"].tolist() == [[1, 0], [1, -1]]
    with pytest.raises(DataError, match=r"Record 3, .* there are 2 tags for the 1 words"):
        as_source(TEXTS.with_columns(tags=pl.Series(["O O O", "O O", "O O"])), [task], preprocessor=fitted())


def test_arrays_may_hold_tags_by_number_or_name():
    task = tagging("tags", ["B-CITY", "O"])
    tensors = {"tokens": torch.tensor([[4, 5], [6, -1]]), "words": torch.tensor([[0, 1], [0, -1]])}
    for given in (torch.tensor([[1, 0], [1, -1]]), [[1, 0], [1]], [["O", "B-CITY"], ["O"]]):
        source = as_source({**tensors, "tags": given}, [task])
        assert source.targets("tags").tolist() == [[1, 0], [1, -1]]
    with pytest.raises(DataError, match="a tag number for every word"):
        as_source({**tensors, "tags": torch.tensor([1, 0])}, [task])


def test_a_column_of_type_enum_brings_its_classes_along():
    parts = with_all_labels({"train": pl.DataFrame({"y": ["b", "a"]}), "test": pl.DataFrame({"y": ["c", "a"]})}, ["y"])
    task = fit_target(parts["train"], multiclass("y"))
    assert task.target.classes == ("a", "b", "c")
    assert encode_target(parts["test"], task).tolist() == [2, 0]
    lists = with_all_labels({"a": pl.DataFrame({"t": [["O"]]}), "b": pl.DataFrame({"t": [["B-X"]]})}, ["t"])
    assert fit_target(lists["a"], tagging("t")).target.classes == ("B-X", "O")


def test_column_files_say_which_line_is_wrong(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("-DOCSTART- -X- O\n\nOslo NNP B-LOC\nis VBZ O\n\n\nfine\tJJ\tO\n")
    found = read_column_file(path, ["word", "pos", "ner"])
    assert found["word"].to_list() == [["Oslo", "is"], ["fine"]]
    assert found["ner"].to_list() == [["B-LOC", "O"], ["O"]]
    path.write_text("Oslo NNP B-LOC\nis O\n")
    with pytest.raises(DataError, match=r"Line 2 of .* has 2 fields, but 3 were expected \(word, pos, ner\): 'is O'"):
        read_column_file(path, ["word", "pos", "ner"])
    path.write_text("\n")
    with pytest.raises(DataError, match="has no words"):
        read_column_file(path, ["word"])
    with pytest.raises(DataError, match="no file at"):
        read_column_file(tmp_path / "absent.txt", ["word"])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read_column_file(path, ["word"])
