import pytest

from polytask import registry
from polytask.analysis import spaces
from polytask.analysis.methods import changed, choose, defaults_of, label, parse_names, recipe_of, space_of
from polytask.analysis.space import Choice, Range
from polytask.recipes.load import dump_recipe, load_recipe

RECIPE = load_recipe(
    {
        "data": {"table": "a.csv"},
        "tasks": {"a.b": {"type": "binary"}, "c": {"type": "regression"}},
        "balancer": {"name": "static", "weights": {"a.b": 3, "c": 1}},
        "model": {"sharing": {"name": "mmoe", "experts": 3}},
        "training": {"lr": 0.01},
    }
)


def test_names_with_options_and_back():
    text = "equal, cagrad(c=0.2, at=features),static(weights={a: 1, b: [2, 3]}),my.module:Thing"
    entries = parse_names(text, "x")
    assert [entry["name"] for entry in entries] == ["equal", "cagrad", "static", "my.module:Thing"]
    assert entries[2]["weights"] == {"a": 1, "b": [2, 3]}
    assert parse_names(", ".join(map(label, entries)), "x") == entries


def test_what_is_compared_when_nothing_or_little_is_said():
    names = [method.name for method in choose(RECIPE, None, None, None)]
    assert names == ["separate", "mmoe + equal", "mmoe + static"]
    methods = choose(RECIPE, "static,dwa", "hard,mmoe,mmoe(experts=2)", ["trees", "tuned_static"])
    assert [method.name for method in methods] == [
        "separate", "tuned_static", "trees", "hard + static", "hard + dwa", "mmoe + static", "mmoe + dwa",
        "mmoe(experts=2) + static", "mmoe(experts=2) + dwa",
    ]  # fmt: skip
    # The recipe's own names keep the options that it gives them.
    assert methods[5].sharing == {"name": "mmoe", "experts": 3}
    assert methods[3].balancer == {"name": "static", "weights": {"a.b": 3, "c": 1}}
    assert methods[1].sharing == {"name": "mmoe", "experts": 3}


def test_a_method_changes_the_recipe_and_nothing_else():
    base = dump_recipe(RECIPE)
    (method,) = [m for m in choose(RECIPE, "cagrad(at=features)", "hard", None) if not m.is_baseline]
    settings = {("balancer", "c"): 0.7, ("training", "lr"): 0.5}
    plain = recipe_of(base, method, settings, 9)
    assert plain["balancer"] == {"name": "cagrad", "at": "features", "c": 0.7}
    assert plain["model"]["sharing"] == {"name": "hard"}
    assert (plain["training"]["lr"], plain["training"]["seed"]) == (0.5, 9)
    plain["model"]["sharing"], plain["balancer"] = base["model"]["sharing"], base["balancer"]
    plain["training"] = base["training"]
    assert plain == base
    # A task's name may hold a dot.
    assert changed({"balancer": "static"}, ("balancer", "weights", "a.b"), 2.0)["balancer"] == {
        "name": "static",
        "weights": {"a.b": 2.0},
    }


def test_given_options_are_not_searched():
    free, fixed = (choose(RECIPE, text, "hard", None)[1] for text in ("cagrad", "cagrad(c=0.1)"))
    assert set(space_of(free, 0.01)) == {("training", "lr"), ("balancer", "c")}
    assert set(space_of(fixed, 0.01)) == {("training", "lr")}
    static = choose(RECIPE, None, None, ["tuned_static"])[1]
    assert set(space_of(static, 0.01)) == {
        ("training", "lr"),
        ("balancer", "weights", "a.b"),
        ("balancer", "weights", "c"),
    }


def contains(values, value):
    return value in values.values if isinstance(values, Choice) else values.low <= value <= values.high


@pytest.mark.parametrize("group", ["balancers", "sharings"])
def test_every_searched_option_exists_takes_its_ends_and_holds_the_default(group):
    known = spaces.BALANCERS if group == "balancers" else spaces.SHARINGS
    for name, options in known.items():
        ways = ("hard", name) if group == "sharings" else (name, "hard")
        balancer, sharing = ways if group == "balancers" else ("equal", name)
        method = choose(RECIPE, balancer, sharing, None)[-1]
        for path, value in defaults_of(method, 0.01).items():
            assert contains(space_of(method, 0.01)[path], value), (name, path)
        for option, values in options.items():
            ends = values.values if isinstance(values, Choice) else (values.low, values.high)
            for end in ends:
                encoder = registry.build("encoders", "mlp", {"in_features": 32, "hidden": [32, 32]})
                given = {} if group == "balancers" else {"encoder": encoder}
                assert registry.build(group, name, {option: end}, **given) is not None


def test_tree_options_hold_the_defaults_of_scikit_learn():
    from sklearn.ensemble import HistGradientBoostingClassifier

    method = choose(RECIPE, None, None, ["trees"])[1]
    real = HistGradientBoostingClassifier().get_params()
    for path, value in defaults_of(method, 0.01).items():
        assert real[path[1]] == value
        assert contains(spaces.TREES[path[1]], value)
    assert isinstance(spaces.TREES["max_leaf_nodes"], Range)
