"""Run folders: what training writes to disk, and what recommendations need."""

from rediffuse.runs.run_folder import Run, RunContents, add_files, read_config, read_run

__all__ = ["Run", "RunContents", "add_files", "read_config", "read_run"]
