"""Texts and tags from files to a report, a bundle and predictions."""

import json

import polars as pl
import pytest
import torch
from click.testing import CliRunner

import polytask as pt
from polytask import registry
from polytask.cli import main
from polytask.data.datasets import atis, conll2003
from polytask.errors import DataError, RecipeError
from polytask.evaluation import collect
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe, write_yaml

BILSTM = {"name": "bilstm", "embedding": 8, "characters": 4, "filters": 6, "hidden": 8}


def recipe_of(table, encoder=None, **changes):
    plain = {
        "data": {"table": str(table)},
        "tasks": {"slots": {"type": "tagging"}, "dated": {"type": "binary"}},
        "inputs": {"words": "text"},
        "model": {"encoder": encoder or BILSTM},
        "training": {"epochs": 3, "batch_size": 16, "lr": 0.02, "device": "cpu"},
    }
    return {**plain, **changes}


@pytest.fixture
def table(flights, tmp_path):
    path = tmp_path / "flights.parquet"
    pl.DataFrame(flights).write_parquet(path)
    return path


def as_column_file(rows, path):
    lines = ["".join(f"{word} {tag}\n" for word, tag in zip(row["words"], row["slots"], strict=True)) for row in rows]
    path.write_text("-DOCSTART- O\n\n" + "\n".join(lines))
    return path


def test_two_tasks_on_texts_through_the_command_line(table, tmp_path):
    path, run = tmp_path / "flights.yaml", tmp_path / "run"
    path.write_text(write_yaml(recipe_of(table)))
    done = CliRunner().invoke(main, ["fit", str(path), "--out", str(run)])
    assert done.exit_code == 0, done.output
    scores = json.loads((run / "metrics.json").read_text())["test"]
    assert scores["slots"]["f1"] > 0.9
    assert scores["dated"]["auroc"] > 0.9
    page = (run / "report.html").read_text()
    assert "Entities" in page
    assert "micro average" in page
    fresh = tmp_path / "fresh.csv"
    fresh.write_text("words\nfly me to Oslo\nmonday\ngo ROME friday go to oslo\n")
    out = tmp_path / "out.csv"
    told = CliRunner().invoke(main, ["predict", str(run), str(fresh), "--out", str(out)])
    assert told.exit_code == 0, told.output
    found = pl.read_csv(out)
    assert found["slots"].to_list() == ["O O O B-CITY", "B-DAY", "O B-CITY B-DAY O O B-CITY"]
    scored = CliRunner().invoke(main, ["evaluate", str(run), str(table)])
    assert scored.exit_code == 0, scored.output


def test_a_bundle_reads_raw_text_without_the_data_or_the_model(table, folder, tmp_path):
    """The tokenizer and the shape of the model lie in the bundle."""
    import shutil

    copy = tmp_path / "tiny"
    shutil.copytree(folder, copy)
    encoder = {"name": "hub", "model": str(copy), "case": True}
    inputs = {"words": {"kind": "text", "longest": 30}}
    for chosen, options in ((BILSTM, {}), (encoder, {"inputs": inputs})):
        out = tmp_path / chosen["name"]
        run = pt.run(recipe_of(table, chosen, **options), overrides=["training.steps=4"], out=out, progress=False)
        texts = {"words": ["fly to Rome", "go", "unaffable friday to oslo me me"]}
        wanted = pt.load(out / "bundle").raw(texts)
        if chosen is encoder:
            shutil.rmtree(copy)
        predictor = pt.load(out / "bundle")
        torch.testing.assert_close(predictor.raw(texts), wanted, equal_nan=True)
        torch.testing.assert_close(
            run.model.tasks["slots"].kept(wanted["slots"]).isnan().sum(1), torch.tensor([3, 5, 0])
        )
        # Rows come in their own order, however they are put together.
        alone = [predictor.raw({"words": [text]})["slots"][0] for text in texts["words"]]
        for at, raw in enumerate(alone):
            torch.testing.assert_close(wanted["slots"][at, : len(raw)], raw)
        assert predictor.predict(texts)["slots"].str.split(" ").list.len().to_list() == [3, 1, 6]


def test_outputs_come_in_the_order_of_the_rows(table):
    built = build(load_recipe(recipe_of(table)))
    pt.training.fit.prepare_model(built.model, built.sources["train"])
    source = built.sources["train"][0]
    assert source.lengths is not None
    found = collect(built.model, [source, source], batch_size=7)["slots"]
    whole = source.take(torch.arange(len(source)))
    with torch.inference_mode():
        raw = built.model.eval()(whole.inputs)["slots"]
    kept = built.model.tasks["slots"].kept(raw)
    torch.testing.assert_close(found.raw, torch.cat([kept, kept]), equal_nan=True)
    assert (found.target[: len(source)] == whole.targets["slots"].numpy()).all()


def test_column_files_train_and_predict(flights, tmp_path):
    parts = {"train": flights[:150], "validation": flights[150:200], "test": flights[200:]}
    files = {part: str(as_column_file(rows, tmp_path / f"{part}.txt")) for part, rows in parts.items()}
    data = {**files, "format": "conll", "columns": ["words", "slots"]}
    tasks = {"slots": {"type": "tagging", "crf": True, "constrained": True}}
    run = pt.run(recipe_of("", data=data, tasks=tasks), out=tmp_path / "run", progress=False)
    assert run.scores["slots"]["f1"] > 0.9
    out = tmp_path / "out.csv"
    assert pt.api.predict_file(tmp_path / "run", tmp_path / "test.txt", out) == 40
    (tmp_path / "test.txt").write_text("rome B-CITY\nand O extra\n")
    with pytest.raises(DataError, match=r"Line 2 of .*test.txt' has 3 fields, but 2 were expected"):
        pt.run(recipe_of("", data=data, tasks=tasks), out=tmp_path / "again", progress=False)


def test_a_resumed_run_on_texts_is_the_same_to_the_last_bit(table, tmp_path):
    plain = recipe_of(table)
    whole = pt.run(plain, out=tmp_path / "whole", progress=False)

    class Stop(pt.Callback):
        def on_step_end(self, loop, rows):
            if loop.step > 16:
                raise KeyboardInterrupt

    from polytask.api.rundir import RunDirectory
    from polytask.recipes.load import dump_recipe
    from polytask.training.fit import seeded, train

    loaded = load_recipe(plain, ["training.checkpoint_every=8"])
    with seeded(0):
        built = build(loaded)
    made = RunDirectory.create(tmp_path / "cut")
    made.write_start(dump_recipe(built.recipe), 0, "test")
    arguments = (built.model, built.sources["train"], built.sources["validation"])
    with pytest.raises(KeyboardInterrupt):
        train(*arguments, settings=loaded.training, callbacks=[Stop()], path=made.path)
    from polytask.api import resume_run

    resumed = resume_run(tmp_path / "cut", progress=False)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_accumulating_gives_what_the_whole_batch_gives(table):
    found = []
    for pieces in (1, 4):
        encoder = {**BILSTM, "dropout": 0.0, "word_dropout": 0.0}
        loaded = load_recipe(recipe_of(table, encoder), [f"training.accumulate={pieces}", "training.steps=3"])
        with pt.training.fit.seeded(0):
            built = build(loaded)
        pt.training.fit.train(built.model, built.sources["train"], settings=loaded.training)
        found.append(built.model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("balancer", [{"name": "cagrad", "at": "features"}, "pcgrad", "uncertainty"])
def test_texts_can_be_balanced_like_anything_else(table, balancer, tmp_path):
    run = pt.run(
        recipe_of(table, balancer=balancer), overrides=["training.steps=12"], out=tmp_path / "r", progress=False
    )
    losses = [row["loss.slots"] for row in run.history]
    assert losses[-1] < losses[0]


def test_from_python(flights):
    from polytask.data.preprocess import InputSpec, TablePreprocessor
    from polytask.models.encoders import BiLSTM

    frame = pl.DataFrame(flights)
    table = TablePreprocessor.fit(frame, {"words": InputSpec("text")})
    tasks = [pt.tasks.tagging("slots", ["B-CITY", "B-DAY", "O"]), pt.tasks.binary("dated")]
    model = pt.MultiTaskModel(pt.sharing.Hard(BiLSTM(table.schema, hidden=8)), tasks)
    model.input_schema = table.schema
    pt.fit(model, frame, epochs=3, batch_size=16, lr=0.02, progress=False)
    assert pt.evaluate(model, frame)["slots"]["f1"] > 0.9


def test_a_frame_with_lists_of_words_is_read_as_text(flights):
    from polytask.data.infer import infer_inputs

    assert infer_inputs(pl.DataFrame(flights), exclude=["slots", "dated"]) == {"words": "text"}


def test_pairs_of_texts_through_a_recipe(flights, tmp_path):
    frame = pl.DataFrame(flights).with_columns(other=pl.col("words").reverse())
    frame.write_parquet(tmp_path / "pairs.parquet")
    same = {"type": "binary", "column": "dated"}
    inputs = {"words": {"kind": "text", "pair": "other"}}
    run = pt.run(
        recipe_of(tmp_path / "pairs.parquet", tasks={"same": same}, inputs=inputs), out=tmp_path / "run", progress=False
    )
    assert run.scores["same"]["auroc"] > 0.5
    predictor = pt.load(tmp_path / "run" / "bundle")
    found = predictor.predict({"words": ["fly to rome"], "other": ["friday"]})
    assert found.height == 1
    with pytest.raises(DataError, match="no input column 'other'"):
        predictor.predict({"words": ["fly"]})
    with pytest.raises(RecipeError, match=r"inputs.dated is the target of a task"):
        build(load_recipe(recipe_of(tmp_path / "pairs.parquet", inputs={"words": {"kind": "text", "pair": "dated"}})))
    with pytest.raises(DataError, match="'words' is a pair of them"):
        build(load_recipe(recipe_of(tmp_path / "pairs.parquet", inputs=inputs)))


def test_wrong_recipes_are_named(table, folder, tmp_path):
    with pytest.raises(RecipeError, match=r"Unknown format 'conl'.*Did you mean 'conll'"):
        load_recipe(recipe_of(table, data={"table": str(table), "format": "conl", "columns": ["a"]}))
    with pytest.raises(RecipeError, match="go together"):
        load_recipe(recipe_of(table, data={"table": str(table), "columns": ["a"]}))
    with pytest.raises(RecipeError, match="hub needs model"):
        build(load_recipe(recipe_of(table, {"name": "hub"})))
    with pytest.raises(DataError, match="exactly one text column"):
        build(
            load_recipe(
                recipe_of(table, inputs={"dated2": "category"}, data={"table": str(with_copy(table, tmp_path))})
            )
        )
    bad = pl.read_parquet(table).with_columns(slots=pl.lit("O"))
    bad.write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad.parquet: Record \d+, .* there are 1 tags for the \d words"):
        build(
            load_recipe(
                recipe_of(tmp_path / "bad.parquet", tasks={"slots": {"type": "tagging", "classes": ["O", "B-X"]}})
            )
        )


def with_copy(table, tmp_path):
    path = tmp_path / "copy.parquet"
    pl.read_parquet(table).with_columns(dated2=pl.col("dated")).write_parquet(path)
    return path


def test_the_data_sets_are_read_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(atis, "ROWS", {"train": ("train_dev", 2), "test": ("test", 1)})
    (tmp_path / "train_dev").write_text("to:O rome:B-CITY <=> flight\nhi:O <=> other\n")
    (tmp_path / "test").write_text("at:O 9:00:B-TIME <=> when\n")
    parts = atis.load(tmp_path)
    assert parts["test"].to_dicts() == [{"sentence": ["at", "9:00"], "intent": "when", "slots": ["O", "B-TIME"]}]
    assert parts["train"]["intent"].dtype.categories.to_list() == ["flight", "other", "when"]
    (tmp_path / "test").write_text("at:O noon <=> when\n")
    with pytest.raises(DataError, match=r"Line 1 of .* is not 'word:TAG"):
        atis.load(tmp_path)
    (tmp_path / "test").write_text("at:O <=> when\n" * 2)
    with pytest.raises(DataError, match="2 sentences, not the 1 of 'atis'"):
        atis.load(tmp_path)

    files = {part: name for part, (name, _) in conll2003.ROWS.items()}
    monkeypatch.setattr(conll2003, "ROWS", {part: (name, 1) for part, name in files.items()})
    for name in files.values():
        (tmp_path / name).write_text("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n")
    parts = conll2003.load(tmp_path)
    assert parts["validation"].to_dicts() == [{"sentence": ["EU"], "pos": ["NNP"], "chunk": ["B-NP"], "ner": ["B-ORG"]}]
    assert set(registry.entries("datasets")) >= {"atis", "conll2003"}


@pytest.mark.slow
def test_the_data_sets_are_what_they_should_be():
    parts = conll2003.load()
    assert {part: frame["sentence"].list.len().sum() for part, frame in parts.items()} == {
        "train": 203_621,
        "validation": 51_362,
        "test": 46_435,
    }
    parts = atis.load()
    seen = {part: set(frame["intent"].cast(pl.String)) for part, frame in parts.items()}
    assert len(seen["train"]) == 22
    assert len(seen["test"] - seen["train"]) == 4
