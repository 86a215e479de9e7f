"""Variables of launchers that are no numbers are refused by name."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rediffuse import distributed
from rediffuse.cli import app
from rediffuse.errors import ConfigError


@pytest.mark.parametrize(
    "name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_MAX_RESTARTS"]
)
@pytest.mark.parametrize("value", ["x", "-1", "1.5", "²"])
def test_values_that_are_no_numbers(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        distributed.check_launcher()
    assert name in str(CliRunner().invoke(app, ["models"]).exception)


def test_empty_and_usual_values_are_accepted(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    distributed.check_launcher()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="RANK=2 and WORLD_SIZE=2"):
        distributed.check_launcher()
