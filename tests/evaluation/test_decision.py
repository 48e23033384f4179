"""A decision follows its rules row by row."""

import numpy as np
import pytest
import torch

import polytask as pt
from polytask.errors import RecipeError
from polytask.evaluation import Decision, decision_settings

TASKS = {
    "pays": pt.tasks.binary("pays"),
    "size": pt.tasks.regression("size"),
    "job": pt.tasks.multiclass("job", classes=["cook", "smith", "nurse"]),
    "visits": pt.tasks.counts("visits"),
}
ROWS = 200


def raw(seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"pays": (ROWS,), "size": (ROWS,), "job": (ROWS, 3), "visits": (ROWS,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def test_rules_are_applied_in_order():
    rules = ["yes if pays > 0.6 and size < 0.5", "ask if job.label == 'cook' or visits > 2", "else no"]
    outputs = raw()
    found = Decision(rules, TASKS)(outputs)
    pays = 1 / (1 + np.exp(-outputs["pays"].double().numpy()))
    size, visits = outputs["size"].double().numpy(), np.exp(outputs["visits"].double().numpy())
    cook = outputs["job"].argmax(1).numpy() == 0
    wanted = np.where((pays > 0.6) & (size < 0.5), "yes", np.where(cook | (visits > 2), "ask", "no"))
    assert found.tolist() == wanted.tolist()
    assert set(found) == {"yes", "ask", "no"}


def test_what_it_reads_and_may_say():
    decision = Decision("yes if job.probability_cook > 0.5 else no", TASKS)
    assert decision.needs == ("job",)
    assert decision.labels == ("yes", "no")


def test_no_rule_and_undefined_outputs_decide_nothing():
    decision = Decision("yes if not pays > 0.5", TASKS)
    assert decision({"pays": torch.tensor([1.0, -1.0, float("nan")])}).tolist() == [None, "yes", None]


def test_a_label_may_have_several_words():
    settings = decision_settings("ask a person if pays > 0.5 else send home")
    assert settings.rules == ("ask a person if pays > 0.5",)
    assert settings.otherwise == "send home"
    assert decision_settings({"rules": list(settings.rules), "otherwise": "send home"}) == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pays > 0.5", "decision: 'pays > 0.5' is no rule. Write LABEL if CONDITION"),
        ([], "decision.rules is empty"),
        ("yes if pasy > 0.5", r"unknown name 'pasy'. Known: pays.probability, .*Did you mean 'pays'\?"),
        ("yes if job > 0.5", r"unknown name 'job'.*job.label"),
        ("yes if job.label == 'cok'", r"Unknown class 'cok'. Known: cook, smith, nurse. Did you mean 'cook'\?"),
        ("yes if 1 > 0", "the rules read no task"),
        (["yes if pays > 0.5 else no", "else maybe"], "has an else, but rules follow it"),
        ({"rules": ["yes if pays > 0.5 else no"], "otherwise": "maybe"}, "Say once what else is decided"),
        ({"rules": ["yes if pays > 0.5"], "column": "size"}, "decision.column is 'size', which a task's prediction"),
        ({"rules": ["yes if pays > 0.5"], "column": "pays_probability"}, "which a task's prediction has"),
    ],
)
def test_a_rule_that_is_wrong_is_refused(given, message):
    with pytest.raises(RecipeError, match=message):
        Decision(given, TASKS)
