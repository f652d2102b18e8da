"""Messages can be printed, whatever a file is called."""

import os

import pytest

from backbone.errors import BadImage, StorageError, StorageLost, UserError, printable


@pytest.mark.parametrize("kind", [UserError, BadImage])
def test_bytes_that_are_not_utf8_are_written_as_python_does(kind: type[UserError]):
    name = os.fsdecode(b"caf\xe9/\x80.jpg")
    assert str(kind(f"{name}: is empty")) == r"caf\xe9/\x80.jpg: is empty"
    assert printable("caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"
    assert printable("\ud83d") == "?"


@pytest.mark.parametrize("kind", [UserError, BadImage, StorageError, StorageLost])
def test_what_loader_processes_hand_over_is_the_message_alone(kind: type[UserError]) -> None:
    told = f"Caught X in DataLoader worker process 0.\nTraceback\nbackbone.errors.{kind.__name__}: s3://b/x: gone\n"
    assert str(kind(told)) == "s3://b/x: gone"
