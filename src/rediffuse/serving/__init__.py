"""Serve runs over HTTP: an API for programs, and pages to explore runs in a browser. Needs the extra ``serve``."""
