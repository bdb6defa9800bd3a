"""What the documents say of settings is what the program reads."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from moat_kv import config

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_documented_settings_are_all_that_there_are() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "settings.md").read_text(), re.DOTALL)
    loaded = config.parse(text)
    for part in (loaded.client, loaded.server, loaded.runner):
        for item in dataclasses.fields(part):
            assert f"  {item.name}: " in text
    assert "\noutput: " in text


def test_the_documented_places_are_all_that_there_are() -> None:
    _, text = (DOCS / "settings.md").read_text().split("The places and their defaults:")
    names = {item.name for item in dataclasses.fields(config.Places)} - {"config"}
    assert set(re.findall(r"`([a-z]+)`", text)) == names
