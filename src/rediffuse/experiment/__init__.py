"""Experiment files: data, splits, models, seeds and budgets in one YAML file, trained, evaluated and compared."""

from rediffuse.experiment.plan import read_experiment
from rediffuse.experiment.planned import Experiment
from rediffuse.experiment.running import Outcome, report_again, run_experiment

__all__ = ["Experiment", "Outcome", "read_experiment", "report_again", "run_experiment"]
