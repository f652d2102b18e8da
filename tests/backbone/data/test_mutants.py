"""Every damaged image decodes as by PIL or is a bad image: what benchmarks/decode_fuzz.py does, in small."""

import pytest

from backbone.data.decode import decode
from benchmarks.mutants import mutant, originals, verdict

MUTANTS = 2_000
PARTS = 4
FORMS = originals()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_as_by_pil(name: str):
    assert verdict(name, FORMS[name]) == "same"


@pytest.mark.filterwarnings("ignore")  # PIL says what it thinks of each
@pytest.mark.parametrize("part", range(PARTS))
def test_every_mutant_is_read_as_by_pil_or_reported(part: int):
    counts = {"same": 0, "bad": 0}
    for number in range(part, MUTANTS, PARTS):
        name, data = mutant(FORMS, 1, number)
        what = verdict(name, data)
        assert what in counts, f"{number} {name}: {what}"
        counts[what] += 1
    assert min(counts.values()) > 100  # both happen


def test_a_mutant_is_a_function_of_its_number():
    for number in range(200):
        assert mutant(FORMS, 3, number) == mutant(FORMS, 3, number)
    assert len({mutant(FORMS, 3, number)[1] for number in range(0, 10 * len(FORMS), len(FORMS))}) > 5


def test_a_fault_is_one(monkeypatch: pytest.MonkeyPatch):
    """Other pixels and other exceptions are told apart from what is right."""
    right = FORMS["png"]
    monkeypatch.setattr("benchmarks.mutants.decode", lambda *given: decode(*given) ^ 1)
    assert verdict("png", right).startswith("differs from PIL")

    def fails(data: bytes, name: str, shrink: int = 1) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("benchmarks.mutants.decode", fails)
    assert verdict("png", right) == "ZeroDivisionError: division by zero"


def test_a_profile_that_is_compressed_in_some_other_way() -> None:
    """PIL reads no such PNG; OpenCV would."""
    name, data = mutant(FORMS, 0, 96_839)
    assert name == "png profile"
    assert verdict(name, data) == "bad"
