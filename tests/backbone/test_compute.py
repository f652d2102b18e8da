"""`scaling.use_gpu: auto` is settled on the machine that the job is started on, before anything slow is imported."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from backbone.compute import Scaling


@pytest.mark.parametrize(
    ("listed", "visible", "found"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)", None, True),
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)", "", False),
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)", "-1", False),
        ("No devices were found", None, False),
        ("", None, False),
    ],
)
def test_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, visible: str | None, found: bool) -> None:
    if listed:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{listed}'\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if listed else str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Scaling.model_validate({"use_gpu": "auto"}).use_gpu is found
    assert Scaling.model_validate({"use_gpu": "false"}).use_gpu is False


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(ValidationError, match="boolean"):
        Scaling.model_validate({"use_gpu": "perhaps"})
