"""Experiment files: data, split, models, seeds and budgets in one YAML file, trained, evaluated and compared."""

from rediffuse.experiment.plan import Experiment, read_experiment
from rediffuse.experiment.running import Outcome, run_experiment

__all__ = ["Experiment", "Outcome", "read_experiment", "run_experiment"]
