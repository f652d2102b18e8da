"""What lacks of numbered files."""

import pytest

from backbone.data.series import lacking


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (["t-00000-of-00004.tar", "t-00003-of-00004.tar"], [("t-00001-of-00004.tar", 2)]),
        (["t-1-of-3.tar", "t-2-of-3.tar"], [("t-0-of-3.tar", 1)]),  # whichever it begins with, one lacks
        (["t-1-of-3.tar", "t-3-of-3.tar"], [("t-2-of-3.tar", 1)]),
        (["t-1-of-2.tar", "t-2-of-2.tar"], []),
        (["t-0-of-2.tar", "t-1-of-2.tar"], []),
        (["a/t-0-of-2.tar", "b/t-1-of-2.tar"], [("a/t-1-of-2.tar", 1), ("b/t-0-of-2.tar", 1)]),
        (["s-000.tar", "s-001.tar", "s-003.tar"], [("s-002.tar", 1)]),
        (["s-8.tar", "s-9.tar", "s-11.tar"], [("s-10.tar", 1)]),
        (["s-4.tar", "s-5.tar"], []),  # a part of a series, whole in itself
        (["20260101.tar", "20260214.tar"], []),  # days
        (["20260101.tar", "20260102.tar", "20260104.tar"], []),
        (["s-2020.tar", "s-2021.tar", "s-2023.tar"], []),  # years
        (["t-00005-of-00004.tar", "t-00006-of-00004.tar"], [("t-00000-of-00004.tar", 4)]),
        (["t-0-of-3-abc.tar", "t-1-of-3-xyz.tar"], [("t-2-of-3.tar", 1)]),
        (["train.tar", "v2-1.tar"], []),
    ],
)
def test_lacking(names: list[str], lost: list[tuple[str, int]]) -> None:
    assert list(lacking(names)) == lost
