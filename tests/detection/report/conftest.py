"""One report for all tests."""

from typing import Any

import pytest

from detection.report.summary import GainsReport, to_json
from tests.detection.report.made import made


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> GainsReport:
    return made(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def summary(report: GainsReport) -> dict[str, Any]:
    return to_json(report, resamples=100)
