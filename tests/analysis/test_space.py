import sys

import pytest

from polytask.analysis.space import Choice, Range, parse, require_optuna
from polytask.errors import MissingExtraError, RecipeError


def test_values_stay_inside_and_whole_numbers_stay_whole():
    optuna = require_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(30):
        trial = study.ask()
        drawn.append((parse("log:1e-4..1e-2").suggest(trial, "a"), parse("1..3").suggest(trial, "b")))
        assert parse("x,2,null").suggest(trial, "c") in ("x", 2, None)
        study.tell(trial, 0.0)
    assert all(1e-4 <= a <= 1e-2 for a, _ in drawn)
    assert {b for _, b in drawn} == {1, 2, 3}
    assert parse("0.5..2") == Range(0.5, 2.0)
    assert parse("true,false") == Choice((True, False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3..1", "lower end first"),
        ("log:0..1", "above 0"),
        ("a..b", "'a' is no number"),
        ("one", "nothing to choose"),
        ("log:1,2", "nothing to choose"),
    ],
)
def test_bad_spaces(text, message):
    with pytest.raises(RecipeError, match=message):
        parse(text)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polytask\[search\]'"):
        require_optuna()
