"""Options, presets and settings: what they become, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import pytest

from rediffuse.config import ModelConfig, parse_settings, read_settings
from rediffuse.errors import ConfigError, RediffuseWarning


class Config(ModelConfig):
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"epochs": 7, "heads": 4},
        "paper:toys": {"epochs": 9},
    }

    heads: int = 2


def test_a_preset_sets_options_and_is_overridden():
    assert Config.build("paper").epochs == 7
    assert Config.build("paper", {"epochs": 1}).heads == 4
    assert Config.build("paper", {"epochs": 1}).epochs == 1
    assert Config.build("paper:toys").epochs == 9
    assert Config.build("default") == Config.build() == Config.model_validate({})


def test_every_model_has_the_named_presets():
    assert Config.preset_names() == ["default", "paper", "released", "paper:toys"]
    assert Config.build("released") == Config.model_validate({})
    assert ModelConfig.preset_names() == ["default", "paper", "released"]


@pytest.mark.parametrize(("preset", "closest"), [("papre", "paper"), ("paper:toy", "paper:toys")])
def test_an_unknown_preset_is_refused_with_the_closest(preset, closest):
    with pytest.raises(ConfigError, match=f"Did you mean '{closest}'"):
        Config.build(preset)


def test_a_preset_that_changes_nothing_is_warned_about_where_the_model_is_named():
    with pytest.warns(RediffuseWarning, match="The preset 'released' of mine changes nothing: it equals the default"):
        Config.build("released", {"epochs": 3}, model="mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config.build("paper", model="mine")
        Config.build("default", model="mine")
        Config.build(model="mine")
        Config.build("released")


def test_unknown_options_and_values_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"Unknown option 'epoch'\.\n.*'epochs'"):
        Config.build(None, {"epoch": 1})
    with pytest.raises(ConfigError, match="Option 'epochs' was given -1"):
        Config.build(None, {"epochs": -1})


def test_settings_are_yaml_and_dots_lead_into_mappings():
    settings = ["epochs=20", "form=prefix", "a.b.c=[1, 2]", "a.b.d=null", " heads =4"]
    expected = {"epochs": 20, "form": "prefix", "a": {"b": {"c": [1, 2], "d": None}}, "heads": 4}
    assert parse_settings(settings) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["epochs"], "not of the form"),
        (["=3"], "not of the form"),
        (["a=1", "a.b=2"], "leads into 'a'"),
        (["a=["], "YAML"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(settings)


@pytest.mark.parametrize(("text", "message"), [("- 1", "has no options"), ("a: [", "not valid YAML")])
def test_files_without_options_are_refused(tmp_path, text, message):
    path = tmp_path / "options.yaml"
    with pytest.raises(ConfigError, match="does not exist"):
        read_settings(path)
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings(path)
    path.write_text("epochs: 3\n")
    assert read_settings(path) == {"epochs": 3}
