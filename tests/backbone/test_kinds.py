"""A section in kinds is read by its kind, and every fault carries the field's own name."""

import pickle
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from backbone.kinds import OneOf, section_model
from backbone.options import Strict


class _Shape(Strict):
    """What is cut out."""

    form: str
    name: str = "it"
    """On the rim."""

    number: int = Field(1, lt=2**63)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if "{" in name:
            raise ValueError(f"name {name}: holds {{braces}}")
        return name


class Circle(_Shape):
    form: Literal["circle"] = "circle"
    """circle: round."""

    radius: float = Field(1.0, gt=0)
    """From the middle."""


class Box(_Shape):
    form: Literal["square", "cube"] = "square"
    """square, cube: with corners."""

    sides: tuple[int, int]
    tilt: float = 0.0
    name: str = "it"
    """On the lid."""


Shape = Annotated[Circle | Box, OneOf()]


class Cut(Strict):
    shape: Shape = Circle()
    depth: int = 1


def faults(shape: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        Cut.model_validate({"shape": shape})
    return [(".".join(map(str, f["loc"])), f["msg"].removeprefix("Value error, ")) for f in caught.value.errors()]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, Circle()),
        ({"radius": 2}, Circle(radius=2)),
        ({"form": "square", "sides": [1, 2]}, Box(sides=(1, 2))),
        ({"form": "cube", "sides": [1, 2]}, Box(form="cube", sides=(1, 2))),
        (Box(sides=(1, 2)), Box(sides=(1, 2))),
    ],
)
def test_the_first_field_says_the_kind_and_the_first_kind_is_the_default(given: Any, found: Strict):
    read = Cut.model_validate({"shape": given})
    assert read.shape == found
    assert type(read.shape) is type(found)
    assert Cut.model_validate(read.model_dump()) == Cut.model_validate_json(read.model_dump_json()) == read
    assert pickle.loads(pickle.dumps(read)) == read


def test_a_dump_holds_its_kinds_fields_and_what_was_given():
    assert Cut.model_validate({"shape": {"radius": 2}}).model_dump() == {
        "shape": {"form": "circle", "name": "it", "number": 1, "radius": 2.0},
        "depth": 1,
    }
    assert Cut.model_validate({"shape": {"radius": 2}}).model_dump(exclude_unset=True) == {"shape": {"radius": 2.0}}


def test_a_field_of_another_kind_is_refused_by_name():
    assert faults({"sides": [1, 2], "tilt": 1, "radius": -1}) == [
        ("shape.radius", "Input should be greater than 0"),
        ("shape.sides", "is read by form square or cube, not by circle; leave it out or empty, or give another form"),
        ("shape.tilt", "is read by form square or cube, not by circle; leave it out or empty, or give another form"),
    ]


@pytest.mark.parametrize("nothing", [{"sides": []}, {"sides": ()}, {"sides": ""}, {"tilt": None}, {"tilt": 0.0}])
def test_empty_values_and_defaults_of_other_kinds_say_nothing(nothing: dict[str, Any]):
    assert Cut.model_validate({"shape": nothing}).shape == Circle()


def test_what_no_kind_knows_is_unknown_however_empty():
    assert faults({"colour": ""}) == [("shape.colour", "Extra inputs are not permitted")]


def test_other_faults_are_told_as_they_are():
    """Bounds beyond signed 64 bits, and braces, too."""
    assert faults({"number": 2**64, "name": "{x}"}) == [
        ("shape.name", "name {x}: holds {braces}"),
        ("shape.number", f"Input should be less than {2**63}"),
    ]


def test_what_a_kind_needs_is_named():
    assert faults({"form": "cube"}) == [("shape.sides", "form cube needs it")]


@pytest.mark.parametrize("form", ["ball", 3, None, ["circle"]])
def test_kinds_are_listed_with_all_other_faults(form: Any):
    assert faults({"form": form, "radius": 0, "sides": [1, 2, 3], "colour": 1})[:2] == [
        ("shape.form", "Input should be 'circle', 'square' or 'cube'"),
        ("shape.radius", "Input should be greater than 0"),
    ]
    assert faults({"form": form}) == [("shape.form", "Input should be 'circle', 'square' or 'cube'")]


@pytest.mark.parametrize("shape", [3, "circle", [1], None])
def test_what_is_no_section_is_refused_once(shape: Any):
    assert [field for field, _ in faults(shape)] == ["shape"]


def test_side_by_side_are_all_fields_with_their_readers():
    found = section_model(Cut.model_fields["shape"].annotation)
    assert found
    assert found.__doc__ == "What is cut out."
    assert {name: field.description for name, field in found.model_fields.items()} == {
        "form": "circle: round. square, cube: with corners.",
        "name": "circle: On the rim. square, cube: On the lid.",
        "number": None,
        "radius": "circle: From the middle.",
        "sides": "square, cube: ",
        "tilt": "square, cube: ",
    }
    assert section_model(Cut) is Cut
    assert section_model(int) is section_model(tuple[int, ...]) is section_model(int | None) is None
