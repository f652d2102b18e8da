"""Which files lack of a numbered series, such as shards of which some were not fetched."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

OF = re.compile(r"(.*?)(\d{1,9})(-of-(\d{1,9})\D*)")
NUMBERED = re.compile(r"(.*?)(\d{1,9})(\D*)")  # one number in all


class _Series(NamedTuple):
    before: str
    after: str
    total: int  # 0: the names do not say


def lacking(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The first file that lacks of each series among `names`, and how many lack of it.

    How many there should be is what the names say (`train-00002-of-00004.tar`), counted from 0 or from 1; or else no
    number between the first and the last is to lack, unless most do: then they count something else, such as days.
    """
    found: dict[_Series, list[str]] = {}
    for name in names:
        if match := OF.fullmatch(name):
            found.setdefault(_Series(match[1], match[3], int(match[4])), []).append(match[2])
        elif match := NUMBERED.fullmatch(name):
            found.setdefault(_Series(match[1], match[3], 0), []).append(match[2])
    for series, numbers in found.items():
        there = set(map(int, numbers))
        first, last = min(there), max(there)
        if series.total:
            first, last = (1, series.total) if last == series.total else (0, series.total - 1)
        count = last - first + 1 - len(there)
        if count > 0 and (series.total or count <= len(there)):
            lost = next(number for number in range(first, last + 1) if number not in there)
            yield f"{series.before}{lost:0{min(map(len, numbers))}d}{series.after}", count
