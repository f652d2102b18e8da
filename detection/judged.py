"""What `jobs/evaluate.py` is asked to judge. Imports nothing slow."""

from itertools import pairwise

from backbone.cli import read_yaml
from backbone.errors import UserError

JUDGED = ("--detector", "--localiser", "--backbone")
"""The first that is named is judged: backbones go along with localisers, and say their classes."""


def together(words: list[str], option: str) -> list[str]:
    """`--backbone A ... --backbone B` as `--backbone A B ...`: of an option given twice, the last alone would count."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if words.count(option) < 2:
        return words
    named, others, target = [], [], None
    for word in words:
        if word.startswith("--"):
            target = named if word == option else others
        if word != option:
            (others if target is None else target).append(word)
    return [option, *named, *others]


def what(words: list[str]) -> str:
    """The first of `JUDGED` that the command line names or, where that is `--backbone` or none, that its recipe names;
    where neither names any, a detector."""
    given = next((option for option in JUDGED if option in words), "")
    if given not in ("", "--backbone"):
        return given
    files = [after for word, after in pairwise(words) if word == "--config"]
    try:
        told = read_yaml(files[-1]) if files else {}
    except UserError:
        told = {}  # `parse` says it
    return next((option for option in JUDGED if option.removeprefix("--") in told), given or JUDGED[0])
