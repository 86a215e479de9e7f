"""From a split to a run folder."""

from rediffuse.training.run_folder import Run, RunContents, add_files, read_config, read_run
from rediffuse.training.train import train

__all__ = ["Run", "RunContents", "add_files", "read_config", "read_run", "train"]
