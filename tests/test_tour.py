"""The notebook, run from its first cell to its last on tiny sizes, and what it was saved with."""

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

TOUR = ROOT / "docs/tour.ipynb"
TINY = 'images, epochs, detector_epochs, seeds, storage = 256, 1, 1, [0, 1], "runs"'
"""In place of the cell that is tagged `parameters`."""


def pictures(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def test_it_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel draws inline
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(TOUR, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = TINY
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(pictures(notebook)) == 4
    report = json.loads((tmp_path / "runs/tour-gains/report.json").read_text())
    gain = next(row for row in report["rows"] if row["label"] == "yours")["gain"]["AP"]["absolute"]["value"]
    told = [out["text"] for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs if "text" in out]
    assert any(f"gain in AP {100 * gain:+.1f} (" in text for text in told)


def test_it_is_saved_with_its_pictures() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert len(pictures(notebook)) == 4
    assert TOUR.stat().st_size < 300_000
    assert str(ROOT) not in TOUR.read_text(), "says where it was made"
