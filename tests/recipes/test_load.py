"""A recipe that is wrong says where and what was meant."""

import pytest

from polytask.errors import RecipeError
from polytask.recipes.load import dump_recipe, load_recipe, write_yaml

BASE = {"data": {"table": "people.csv"}, "tasks": {"income": {"type": "binary"}}}


def test_only_data_and_tasks_are_required():
    recipe = load_recipe(BASE)
    assert recipe.balancer == "equal"
    assert recipe.training.batch_size == 1024
    for missing in ("data", "tasks"):
        with pytest.raises(RecipeError, match=f"'{missing}' is required"):
            load_recipe({key: value for key, value in BASE.items() if key != missing})


def test_dumped_recipe_loads_to_the_same(tmp_path):
    recipe = load_recipe({**BASE, "inputs": {"age": "number", "job": {"kind": "category", "min_count": 5}}})
    path = tmp_path / "r.yaml"
    path.write_text(write_yaml(dump_recipe(recipe)))
    assert dump_recipe(load_recipe(path)) == dump_recipe(recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainning": {}}, r"In the recipe: Unknown key 'trainning'.*Did you mean 'training'\?"),
        ({"training": {"stratgy": "joint"}}, r"In training: Unknown key 'stratgy'.*Did you mean 'strategy'\?"),
        ({"training": {"epoch": 3}}, r"In training: Unknown key 'epoch'.*Did you mean 'epochs'\?"),
        ({"training": {"epochs": "many"}}, r"training.epochs is 'many': input should be a valid integer"),
        ({"training": {"epochs": 0}}, r"training.epochs is 0; it has to be at least 1"),
        ({"training": {"lr": -1}}, r"training.lr is -1.0; it has to be above 0"),
        ({"training": {"precision": "16"}}, r"precision is '16'; it has to be one of 32, bf16-mixed"),
        ({"training": {"schedule": "cosin"}}, r"training.schedule is 'cosin'; it has to be one of constant, cosine"),
        ({"training": {"optimizer": {"nme": "sgd"}}}, r"In training.optimizer: Unknown key 'nme'.*Did you mean 'name'"),
        ({"training": {"loggers": ["wandbx"]}}, r"loggers is 'wandbx'; it has to be among: tensorboard"),
        ({"data": {"tabel": "a.csv"}}, r"In data: Unknown key 'tabel'.*Did you mean 'table'\?"),
        ({"data": {}}, r"data needs exactly one of table, dataset, train, tables; found none"),
        ({"data": {"table": "a", "train": "b"}}, r"found table and train"),
        ({"data": {"table": "a", "test": "b"}}, r"go with data.train"),
        ({"data": {"table": "a", "split": {"validation": 2}}}, r"data.split.validation is 2.0; it is a share"),
        ({"tasks": {}}, "needs at least one task"),
        ({"tasks": {"income": {"tpye": "binary"}}}, r"tasks.income has no type"),
        ({"inputs": {"age": {"kidn": "number"}}}, r"In inputs.age: Unknown key 'kidn'.*Did you mean 'kind'\?"),
    ],
)
def test_the_message_names_the_key_and_what_was_meant(change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe({**BASE, **change})


def test_overrides_reach_any_key_and_turn_names_into_options():
    recipe = load_recipe(BASE, ["training.epochs=3", "balancer.lambdas=[1, 2]", "training.schedule={name: cosine}"])
    assert recipe.training.epochs == 3
    assert recipe.balancer == {"lambdas": [1, 2]}
    assert recipe.training.schedule_settings.name == "cosine"
    named = load_recipe({**BASE, "balancer": "static"}, ["balancer.lambdas=[1]"])
    assert named.balancer == {"name": "static", "lambdas": [1]}
    with pytest.raises(RecipeError, match="write KEY=VALUE"):
        load_recipe(BASE, ["training.epochs"])
    with pytest.raises(RecipeError, match=r"Unknown key 'epoch'"):
        load_recipe(BASE, ["training.epoch=3"])


def test_the_callers_mapping_is_left_alone():
    plain = {**BASE, "training": {"epochs": 2}}
    load_recipe(plain, ["training.epochs=3"])
    assert plain["training"] == {"epochs": 2}


def test_missing_and_broken_files(tmp_path):
    (tmp_path / "census.yaml").write_text("data: [")
    with pytest.raises(RecipeError, match=r"There is no recipe at .*Did you mean 'census.yaml'\?"):
        load_recipe(tmp_path / "cenus.yaml")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_recipe(tmp_path / "census.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(RecipeError, match="holds list, not a mapping"):
        load_recipe(tmp_path / "list.yaml")


def test_a_hub_model_in_one_word():
    plain = {"data": {"table": "a.csv"}, "tasks": {"up": {"type": "binary"}}}
    long = {**plain, "model": {"encoder": {"name": "hub", "model": "google-bert/bert-base-cased", "pool": "mean"}}}
    short = {**plain, "model": {"encoder": {"hub": "google-bert/bert-base-cased", "pool": "mean"}}}
    assert load_recipe(short) == load_recipe(long)
    with pytest.raises(RecipeError, match="'hub' beside 'name' or 'model'"):
        load_recipe({**plain, "model": {"encoder": {"name": "mlp", "hub": "bert"}}})
