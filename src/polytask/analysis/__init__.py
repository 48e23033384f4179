"""Many runs: comparing methods, and what the runs of one recipe say together.

What every analysis can use:

- ``pool``: worker processes that are started once, take jobs as plain data, and are replaced when they die;
- ``rows``: a recipe's rows, encoded once by the parent and mapped into the memory of every worker;
- ``jobs``: training one network in a worker, and scoring it;
- ``claims``: who does what, where several processes work in one folder;
- ``space``: ranges and choices for Optuna, read from text;
- ``polytask.evaluation.statistics``: intervals, paired tests, Holm's correction;
- ``polytask.reporting``: ``page`` (the frame), ``blocks`` (what sections are made of), ``dots``, ``plots``.
"""
