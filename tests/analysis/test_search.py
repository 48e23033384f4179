"""The search of one method, with results that are made up."""

import math

from polytask.analysis.methods import Method
from polytask.analysis.plan import Budget
from polytask.analysis.search import best, search
from polytask.evaluation import Criterion
from polytask.tasks import regression

METHOD = Method("hard + cagrad", "network", {"name": "hard"}, {"name": "cagrad"})
CRITERION = Criterion("mean_improvement", {"size": regression("size")})


def outcome(settings):
    """Best at a learning rate of 0.02 and c = 0.8."""
    rate, c = settings["training", "lr"], settings["balancer", "c"]
    error = 1 + abs(math.log(rate / 0.02)) + abs(c - 0.8)
    return {"validation": {"size": {"rmse": error}}, "seconds": 10.0}


def played(store, budget, stop_after=None, result=outcome):
    """Run a search to its end, or leave it after some trials."""
    asking = search(METHOD, 0.01, budget, CRITERION, store)
    asked = [next(asking)]
    try:
        while stop_after is None or len(asked) <= stop_after:
            asked.append(asking.send(result(asked[-1])))
    except StopIteration as stop:
        return asked, stop.value
    return asked, None


def test_first_the_recipe_and_then_better(tmp_path):
    asked, trials = played(tmp_path / "a.sqlite3", Budget(12))
    assert asked[0] == {("training", "lr"): 0.01, ("balancer", "c"): 0.4}
    assert trials[0].value == 0.0
    assert len(trials) == len(asked) == 12
    assert all(0.002 <= t.settings["training", "lr"] <= 0.05 for t in trials)
    assert best(trials).value == max(trial.value for trial in trials) > 0.2


def test_interrupted_asks_the_same_questions(tmp_path):
    straight, _ = played(tmp_path / "a.sqlite3", Budget(6))
    for stop_after in (0, 3):
        # Left with a question open, as a kill does.
        store = tmp_path / f"{stop_after}.sqlite3"
        first, _ = played(store, Budget(6), stop_after)
        second, trials = played(store, Budget(6))
        assert first == straight[: stop_after + 1]
        assert second == straight
        assert len(trials) == 6
    # A finished search asks nothing new.
    assert played(tmp_path / "a.sqlite3", Budget(6))[0] == straight


def test_minutes_are_counted_by_the_trainings(tmp_path):
    _, trials = played(tmp_path / "a.sqlite3", Budget(None, 0.5))
    assert len(trials) == 3  # of 10 seconds each
    _, trials = played(tmp_path / "b.sqlite3", Budget(None, 0.01))
    assert len(trials) == 1


def test_failures_are_passed_over(tmp_path):
    def fails_first(settings):
        good = outcome(settings)
        return {"failed": "diverged", "seconds": 0.0} if settings["training", "lr"] == 0.01 else good

    _, trials = played(tmp_path / "a.sqlite3", Budget(4), result=fails_first)
    assert math.isnan(trials[0].value)
    assert best(trials) is not trials[0]
    _, trials = played(tmp_path / "b.sqlite3", Budget(2), result=lambda s: {"failed": "diverged", "seconds": 0.0})
    assert best(trials) is trials[0]
