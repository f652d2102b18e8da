"""What jobs say of themselves: every option explained, examples first, and commands in them that are understood."""

import ast
import shlex

import pytest
from pydantic import BaseModel

from backbone.cli import parse
from backbone.kinds import section_model
from backbone.training.compare import Comparison
from backbone.usage import ESSENTIAL, examples, short_help
from detection.judged import what
from tests.test_readme import JUDGED, MODELS, ROOT

JOBS = {**MODELS, "curves": Comparison}


def unexplained(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        nested = section_model(field.annotation)
        if nested:
            found += unexplained(nested, f"{prefix}{name}.")
        elif not field.description:
            found.append(prefix + name)
    return found


@pytest.mark.parametrize("model", [*JOBS.values(), *JUDGED.values()])
def test_every_field_is_explained(model: type[BaseModel]) -> None:
    assert unexplained(model) == []


@pytest.mark.parametrize("job", JOBS)
def test_examples_of_a_job_are_understood(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    doc = ast.get_docstring(ast.parse((ROOT / f"jobs/{job}.py").read_text())) or ""
    found = [shlex.split(line) for line in examples(doc)]
    assert len(found) >= 2
    for python, path, *words in found:
        assert (python, path) == ("python", f"jobs/{job}.py")
        model = JUDGED[what(words)] if job == "evaluate" else JOBS[job]
        parse(model, [word for word in words if word != "..."], {"dry_run": ""})


def test_help_begins_with_examples_then_data_model_and_schedule() -> None:
    doc = "Do it:\n\npython jobs/pretrain.py --config FILE"
    shown = short_help(MODELS["pretrain"], None, {"dry_run": "the plan"}, doc)
    marks = ["python jobs/pretrain.py", "--config FILE  ", "--dry-run", "--name", "--data.source", "--model.depth"]
    marks += ["--schedule.total", "--optim.lr", "--scaling.num_workers", "--run.storage", "--help-all shows"]
    places = [shown.index(mark) for mark in marks]
    assert places == sorted(places)
    assert "--data.cache" not in shown


def test_the_essential_options_are_some_jobs() -> None:
    from backbone.cli import fields

    known = {name for model in JOBS.values() for name in fields(model)}
    assert [name for name in ESSENTIAL if name not in known] == []
