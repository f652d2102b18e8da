"""The site's own parts: pages made of models and notebooks, and links that lead out of docs/."""

import importlib.util
import json
import re

import pytest
import yaml

from backbone.cli import fields
from backbone.console import commands
from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
assert spec
assert spec.loader
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)

OTHERS = {"curves", "dashboard"}
"""Jobs that take no recipe."""


def test_every_job_has_its_page() -> None:
    assert {*hooks.MODELS} == {*commands()} - OTHERS
    text = (ROOT / "mkdocs.yml").read_text()
    assert all(f"reference/{job}.md" in text for job in hooks.MODELS)


@pytest.mark.parametrize("job", hooks.MODELS)
def test_every_field_is_explained(job: str) -> None:
    page = hooks.reference(job, hooks.MODELS[job])
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {cells[0].strip("|` "): cells[-1].strip(" |") for cells in rows}
    wanted = [name for model in hooks.MODELS[job] for name in fields(model)]
    assert [name for name in dict.fromkeys(wanted) if name not in told] == []
    assert [name for name, text in told.items() if not text] == []


@pytest.mark.parametrize(
    ("link", "source", "uri", "wanted"),
    [
        ("[a](training.md#x)", "docs/files.md", "files.md", "[a](training.md#x)"),
        ("[a](../training.md)", "docs/export/onnx.md", "export/onnx.md", "[a](../training.md)"),
        ("[a](../../README.md#x)", "docs/export/onnx.md", "export/onnx.md", "[a](../readme.md#x)"),
        ("[a](docs/training.md)", "README.md", "readme.md", "[a](training.md)"),
        ("![a](docs/quickstart.png)", "README.md", "readme.md", "![a](quickstart.png)"),
        ("[a](https://x.org)", "README.md", "readme.md", "[a](https://x.org)"),
        ("[a](#b)", "README.md", "readme.md", "[a](#b)"),
        ("[benchmarks](../benchmarks/README.md)", "docs/README.md", "README.md", "benchmarks (`benchmarks/README.md`)"),
        ("[results/](results)", "docs/README.md", "README.md", "`docs/results`"),
        ("[t](docs/tour.ipynb)", "README.md", "readme.md", "[t](tour.md)"),
    ],
)
def test_links(link: str, source: str, uri: str, wanted: str) -> None:
    here = {"files.md", "training.md", "export/onnx.md", "readme.md", "quickstart.png", "README.md", "tour.md"}
    assert hooks.relinked(f"so {link}, and", source, uri, here) == f"so {wanted}, and"


def test_a_notebook_is_a_page_with_its_pictures() -> None:
    tree = json.loads((ROOT / "docs/tour.ipynb").read_text())
    text, pictures = hooks.notebook(tree, "tour")
    assert text.startswith("# A tour from Python")
    assert all(content.startswith(b"\x89PNG") and f"]({path})" in text for path, content in pictures.items())
    assert text.count("```python") == sum(cell["cell_type"] == "code" for cell in tree["cells"])


def test_nothing_is_loaded_from_elsewhere() -> None:
    settings = yaml.load(re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text()), yaml.BaseLoader)
    assert settings["theme"]["font"] == "false"
    assert settings["plugins"] == ["search"]
