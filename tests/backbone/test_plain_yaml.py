"""YAML as recipes have it: keys given once, and words that stay words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from backbone.cli import load
from backbone.errors import UserError
from backbone.plain_yaml import GivenTwice, parse_yaml
from backbone.training.recipe import Recipe

RECIPES = sorted(Path("jobs/recipes").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("no", "yes", "on", "off", "No", "OFF", "y", "n", "2026-01-31", "1:30", "1e3")),
        *((word, word) for word in ("010", "0b11", "1__0")),
        *(("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("'true'", "true")),
        *(("12", 12), ("-3", -3), ("0", 0), ("1_000", 1000), ("0x1F", 31)),
        *(("0.5", 0.5), ("-.5", -0.5), ("5.", 5.0), ("1.5e-3", 0.0015), (".inf", float("inf"))),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_our_recipes_are_what_pyyaml_reads(path: Path) -> None:
    assert parse_yaml(path.read_text()) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: {b: 1}\nc: 2\na: {d: 3}\n", "a is given twice, in lines 1 and 3"),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", "b is given twice, in lines 2 and 4"),
        ("a: [{b: 1, b: 2}]", "b is given twice, in lines 1 and 1"),
    ],
)
def test_a_key_given_twice_is_refused(text: str, said: str) -> None:
    with pytest.raises(GivenTwice, match=said):
        parse_yaml(text)


def test_anchors_may_be_merged_and_written_over() -> None:
    assert parse_yaml("a: &a {b: 1, c: 2}\nd: {<<: *a, b: 3}")["d"] == {"b": 3, "c": 2}
    twice = "a: &a {x: 0, y: 2}\nb: {c: &c {<<: *a, x: 1}}\nd: {<<: *c}"
    assert parse_yaml(twice)["d"] == {"x": 1, "y": 2}
    assert parse_yaml("") is None


def test_a_recipe_with_a_section_twice_names_its_lines(tmp_path: Path) -> None:
    """The first would be lost, learning rate and all."""
    path = tmp_path / "r.yaml"
    path.write_text("name: on\noptim: {lr: 0.5}\nseed: 1\noptim: {batch: 8}\n")
    with pytest.raises(UserError, match=r"r\.yaml: optim is given twice, in lines 2 and 4; keep one$"):
        load(Recipe, path)
    path.write_bytes(b"\xef\xbb\xbfname: on\noptim: {lr: 0.5}\n")
    assert (load(Recipe, path).name, load(Recipe, path).optim.lr) == ("on", 0.5)
    path.write_text("optim:\n\tlr: 0.5\n")
    with pytest.raises(UserError, match="indent by spaces, not tabs"):
        load(Recipe, path)
