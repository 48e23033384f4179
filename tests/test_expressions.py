"""Expressions of a recipe compute what Python would, and nothing else than arithmetic."""

import math

import numpy as np
import pytest

from polytask.errors import RecipeError
from polytask.expressions import Expression

KNOWN = ("income", "income.auroc", "risk", "marital status.accuracy", "job.label")
TEXTS = {"job.label": ("cook", "smith")}


def make(text):
    return Expression(text, KNOWN, "index", TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        "0.7*income + 0.3*risk",
        "-income ** 2 / (1 + abs(risk - 3))",
        "min(income, risk, 0.2) + max(income, 0.5)",
        "log(income) - exp(-risk) + sqrt(income)",
        "0.1 < income <= 0.5 or not (risk > 0.2)",
        "income > 0.3 and risk < 0.9 and income != risk",
        "(income > 0.5) + (risk > 0.5)",
        "-(income > 0.2)",
        "+income - 2",
    ],
)
def test_values_are_those_of_python(text):
    income, risk = [0.1, 0.3, 0.5, 0.9], [0.8, 0.2, 0.95, 0.6]
    found = np.broadcast_to(make(text)({"income": np.array(income), "risk": np.array(risk)}), 4)
    names = {"min": min, "max": max, "abs": abs, "log": math.log, "exp": math.exp, "sqrt": math.sqrt}
    wanted = [eval(text, {"__builtins__": {}}, {**names, "income": i, "risk": r}) for i, r in zip(income, risk)]  # noqa: B905
    np.testing.assert_allclose(found.astype(float), np.array(wanted, dtype=float), rtol=1e-15)


def test_names_may_have_parts_and_spaces():
    made = make("`marital status`.accuracy + income.auroc")
    assert made.names == ("marital status.accuracy", "income.auroc")
    assert made({"marital status.accuracy": 0.5, "income.auroc": 0.25}) == 0.75


def test_texts_are_compared():
    jobs = np.array(["cook", "smith"], dtype=object)
    assert make("job.label == 'cook' or income > 1")({"job.label": jobs, "income": 0.0}).tolist() == [True, False]


def test_a_tower_of_powers_is_infinite_at_once():
    assert make("9**9**9**9")({}) == math.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("income + rsik", r"'income \+ rsik': unknown name 'rsik'. Known: income, .*Did you mean 'risk'\?"),
        ("income.auoc", r"unknown name 'income.auoc'.*Did you mean 'income.auroc'\?"),
        ("income.__class__.__bases__", "unknown name 'income.__class__.__bases__'"),
        ("__import__('os').system('ls')", "unknown function"),
        ("sqr(income)", r"unknown function 'sqr'. Known: min, max, .*Did you mean 'sqrt'\?"),
        ("open('x')", "unknown function 'open'"),
        ("[income for x in risk]", "cannot be used. Use names, numbers"),
        ("(lambda: 1)()", "unknown function"),
        ("income if risk else 1", "'income if risk else 1' cannot be used"),
        ("income // 2", "'income // 2' cannot be used"),
        ("True", "'True' cannot be used"),
        ("1j", "'1j' cannot be used"),
        ("f'{income}'", "cannot be used"),
        ("(x := 1)", "cannot be used"),
        ("'a' + 'b'", "can only be compared"),
        ("income == 'a'", "compares a text with a number"),
        ("job.label > 'cook'", "'job.label' is a text"),
        ("job.label + 1", "'job.label' is a text"),
        ("job.label == 'smiht'", r"Unknown class 'smiht'. Known: cook, smith. Did you mean 'smith'\?"),
        ("income +", "does not parse"),
        ("", "does not parse"),
        ("\0", "does not parse"),
        ("min(income)", "min takes two numbers or more"),
        ("abs(income, risk)", "abs takes one number"),
        ("abs(x=income)", "abs takes one number"),
        ("income + " * 300 + "1", "has 2701 letters; 2000 is the most"),
        ("(" * 900 + "income" + ")" * 900, "nested too deeply|does not parse"),
    ],
)
def test_what_is_not_arithmetic_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        make(text)
