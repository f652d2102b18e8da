"""Which files lack of a numbered series, such as shards of which some were not fetched."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

OF = re.compile(r"(.*?)(\d{1,9})(-of-(\d{1,9}))\D*?((?:\.[^.\d]*)?)")
NUMBERED = re.compile(r"(.*?)(\d{1,9})(\D*)")  # one number in all
DATE = re.compile(r"(?:19|20)\d\d(?:[01]\d[0-3]\d)?")  # a year or a day: nobody says that each of them has a file


class _Series(NamedTuple):
    before: str
    after: str
    total: int  # 0: the names do not say


def generations(names: Sequence[str]) -> Iterator[list[str]]:
    """The first file of each, where files of one name say that they are of different numbers of files."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        if match := OF.fullmatch(name):
            found.setdefault((match[1], match[5]), {}).setdefault(int(match[4]), name)
    yield from (list(first.values()) for first in found.values() if len(first) > 1)


def lacking(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The first file that lacks of each series among `names`, and how many lack of it.

    How many there should be is what the names say (`train-00002-of-00004.tar`), counted from 0 or from 1; or else no
    number between the first and the last is to lack, unless most do: then they count something else, such as days.
    """
    found: dict[_Series, list[str]] = {}
    for name in names:
        if match := OF.fullmatch(name):
            # Between number and suffix some write a hash of their own for each file.
            found.setdefault(_Series(match[1], match[3] + match[5], int(match[4])), []).append(match[2])
        elif (match := NUMBERED.fullmatch(name)) and not DATE.fullmatch(match[2]):
            found.setdefault(_Series(match[1], match[3], 0), []).append(match[2])
    for series, numbers in found.items():
        there = set(map(int, numbers))
        first, last = min(there), max(there)
        if series.total:
            first, last = (1, series.total) if last == series.total else (0, series.total - 1)
        there = {number for number in there if first <= number <= last}
        count = last - first + 1 - len(there)
        if count > 0 and (series.total or count <= len(there)):
            lost = next(number for number in range(first, last + 1) if number not in there)
            yield f"{series.before}{lost:0{min(map(len, numbers))}d}{series.after}", count
