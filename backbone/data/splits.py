"""Names that say of which split a file or folder is: what holds two is read as neither."""

import itertools
import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence

# Hugging Face's words, and those that archives are called by.
WORDS = (
    dict.fromkeys(("train", "training", "trainval"), "train")
    | dict.fromkeys(("val", "valid", "validation", "dev"), "val")
    | dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
)
THINGS = "set|images?|imgs?|data|split"
WORD = re.compile(rf"({'|'.join(WORDS)})(?:{THINGS})?", re.I)
FOLDER = re.compile(  # a class may be called bullet_train or test_tube
    rf"(?:(?:{THINGS})[-_ ]?)?({'|'.join(WORDS)})(?:[-_ ]?(?:{THINGS}))?[-_ ]?\d*", re.I
)
OTHERS = "unnamed"  # files whose names say nothing of a split
JUDGED = "all of it would be trained on and judged by"
SPLIT_COLUMNS = ("split", "splits", "subset", "partition")  # of tables, that say for each row what names of files say
MOST = 8  # names that a brace pattern in a message enumerates


def split_of_folder(name: str) -> str:
    """train, val or test where that is all that the name of a folder says, or else ""."""
    match = FOLDER.fullmatch(name)
    return WORDS[match[1].lower()] if match else ""


def splits_among(names: Iterable[str]) -> dict[str, list[str]]:
    """The folders of these names by their splits, where they are of two at least."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if split := split_of_folder(name):
            found.setdefault(split, []).append(name)
    return found if len(found) > 1 else {}


def split_folders(paths: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Of all folders that these paths of folders pass through: those that hold several splits, and which."""
    below: dict[str, set[str]] = {}
    for path in set(paths):
        above = ""
        for part in filter(None, path.split("/")):
            below.setdefault(above, set()).add(part)
            above = f"{above}/{part}".lstrip("/")
    return {folder: splits for folder, names in sorted(below.items()) if (splits := splits_among(names))}


def words_in(name: str) -> set[str]:
    """The splits that a path speaks of: `data/Train-00000-of-00004.parquet` of train."""
    words = map(WORD.fullmatch, re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
    return {WORDS[word[1].lower()] for word in words if word}


def by_split(names: Sequence[str]) -> dict[str, list[str]]:
    """Files by the splits that their names speak of, where those are several; {} where they make up one.

    What all names have in common tells nothing apart. Files without a word (`OTHERS`) go with train, as SVHN's extra
    does, but not with what is there to judge by.
    """
    spoken = {name: words_in(name) for name in names}
    common = set.intersection(*spoken.values())
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault("+".join(sorted(spoken[name] - common)) or OTHERS, []).append(name)
    if len(found) < 2 or found.keys() == {"train", OTHERS}:
        return {}
    return found


def typed(places: dict[str, str]) -> str:
    """How to name one split each, as it must be typed; `places` are the locations of splits."""
    train = next((split for split in ("train", OTHERS) if split in places), "")
    val = next((split for split in ("val", "test") if split in places and split != train), "")
    named = {"train": train, "val": val}
    options = [f"--data.{field} {shlex.quote(places[split])}" for field, split in named.items() if split]
    if not options or not all(places.values()):
        return "Put each split into a folder of its own and name that"
    return f"Name one: {' '.join(options)} (for jobs/doctor.py and jobs/prepare.py: --images)"


def pattern_for(names: list[str], others: list[str]) -> str:
    """The folder, glob or brace pattern that takes these files and none of the others; "" where none is short."""
    return next((one for one in _patterns(names) if _takes_only(one, names, others)), "")


def _patterns(names: list[str]) -> list[str]:
    prefix, suffix = _beginning(names), _beginning([name[::-1] for name in names])[::-1]
    folders, extension = {posixpath.dirname(name) for name in names}, posixpath.splitext(names[0])[1]
    patterns = [folder for folder in folders if folder and len(folders) == 1]
    if len(names) == 1:
        return [*patterns, names[0]]
    patterns += [f"{prefix.rstrip('0123456789')}*{extension}", f"{prefix}*{suffix}"]
    return [*patterns, "{" + ",".join(names) + "}"] if len(names) <= MOST else patterns


def _beginning(names: list[str]) -> str:
    """What all names begin with."""
    return "".join(letters[0] for letters in itertools.takewhile(lambda one: len(set(one)) == 1, zip(*names)))  # noqa: B905


def _takes_only(pattern: str, names: list[str], others: list[str]) -> bool:
    if pattern.startswith("{") or pattern in names:
        return True
    if "*" not in pattern:  # a folder
        return not any(name.startswith(f"{pattern}/") for name in others)
    like = re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))
    return all(map(like.fullmatch, names)) and not any(map(like.fullmatch, others))
