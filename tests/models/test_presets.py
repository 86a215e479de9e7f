"""Presets of every registered model: one set of names, and options that fit."""

from __future__ import annotations

import pytest

from rediffuse import models

# A preset that is the recipe of another paper, for the same networks.
OF_ANOTHER_PAPER = {"sasrec": "esasrec", "diffurec": "esasrec", "preferdiff": "dreamrec"}


@pytest.mark.parametrize("name", models.names())
def test_presets_are_paper_released_and_configurations_of_data_sets(name):
    config = models.model_class(name).Config
    named, of_data_sets = config.preset_names()[:3], config.preset_names()[3:]
    assert named == ["default", "paper", "released"]
    if name in OF_ANOTHER_PAPER:
        of_data_sets.remove(OF_ANOTHER_PAPER[name])
    assert all(preset.startswith("paper:") and preset.removeprefix("paper:") for preset in of_data_sets)
    assert config.presets.keys() == {*config.preset_names()} - {"default"}
    assert "presets" not in config.model_fields


@pytest.mark.parametrize("name", models.names())
def test_every_preset_builds_and_holds_what_it_says(name):
    config = models.model_class(name).Config
    for preset, options in config.presets.items():
        built = config.build(preset)
        for option, value in options.items():
            wanted = tuple(value) if isinstance(getattr(built, option), tuple) else value
            assert getattr(built, option) == wanted
        assert config.build(preset, {"epochs": 3}).epochs == 3
    assert config.build("default") == config.build() == config.model_validate({})
