"""Run folders: what a training leaves on disk, and what an answer needs."""

from rediffuse.runs.run_folder import Run, RunContents, add_files, read_config, read_run

__all__ = ["Run", "RunContents", "add_files", "read_config", "read_run"]
