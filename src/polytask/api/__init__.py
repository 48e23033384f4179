"""The doors: fit, evaluate, run, and what the commands do."""

from polytask.api.commands import evaluate_run, predict_file, summary
from polytask.api.doors import evaluate, fit
from polytask.api.runs import resume_run, run

__all__ = ["evaluate", "evaluate_run", "fit", "predict_file", "resume_run", "run", "summary"]
