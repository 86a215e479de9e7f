"""Runs over HTTP: an interface for programs, and pages for people. Needs the extra ``serve``."""
