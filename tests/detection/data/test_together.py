"""Workers of one machine that open the same annotations at the same time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from detection.data.coco import open_coco
from detection.data.coco_table import tabulate_coco
from tests.detection.data.making import make_coco


def test_of_workers_that_begin_together_one_parses(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight workers of a node would else take eight times the memory that parsing takes."""
    folder, parsed = str(make_coco(tmp_path)), []

    def slow(tree: Any) -> Any:
        parsed.append(threading.get_ident())
        time.sleep(0.5)
        return tabulate_coco(tree)

    monkeypatch.setattr("detection.data.coco.tabulate_coco", slow)
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_coco(folder), range(4)))
    assert len(parsed) == 1
    assert len({source.fingerprint for source in opened}) == 1
