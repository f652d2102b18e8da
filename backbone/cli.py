"""A strict YAML file plus overrides on the command line, for every job. Imports nothing slow.

    recipe, flags = parse(Recipe, sys.argv[1:], {"dry_run": "print the plan and stop"}, __doc__, recipe=True)

`backbone.usage` draws the help. File and command line are merged into one tree and checked by the pydantic model, so
that the faults of both come together, in one form, and a pair of fields that depend on each other may come from either.
"""

import copy
import difflib
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as filled
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from backbone.console import RECIPES, recipe_file, typed
from backbone.errors import LOST, Lost, StorageError, UserError
from backbone.hints import meant, of_another_job, spelling, suggestion
from backbone.kinds import section_model
from backbone.plain_yaml import GivenTwice, parse_yaml, yaml_or_text
from backbone.stopping import UNREAD, Stopped, asked, heed, is_of_a_pipe, stop_of, unread
from backbone.supervise import BUG, end_with_watcher, is_watched
from backbone.usage import choices, full_help, short_help, usage

T = TypeVar("T", bound=BaseModel)


HOW = ("name", "seed", "run.", "storage", "scaling.", "compute.")
"""Fields that say how to carry a recipe out, and not what it is."""


def parse(
    model: type[T], argv: list[str], flags: dict[str, str] | None = None, doc: str = "", recipe: bool = False
) -> tuple[T, dict[str, bool]]:
    """Read `--config FILE` and `--section.field value` into a `model`; exit with code 2 and every fault otherwise.

    `flags` are the job's own switches, name -> help; they come back as name -> given or not. Of two values for a
    field, the command line wins over the file. `doc` is the job's docstring with its examples, which who gives nothing
    is shown; with `recipe` also who gives no recipe and nothing of one.
    """
    flags = flags or {}
    try:
        told = _read(model, argv, flags)
        what = [name for name in told.overrides if not name.startswith(HOW)]
        if doc and not told.help and not told.faults and not told.file and not (what if recipe else argv):
            missing = "no recipe: name one with --config FILE" if recipe else "nothing to do"
            print(usage(doc, missing), file=sys.stderr)
            raise SystemExit(2)
        found, faults = _carried_out(model, told)
        if told.help:
            shown = (model, found if told.file else None, flags, doc)
            with suppress(BrokenPipeError):  # `--help | head` has seen enough
                print(short_help(*shown)) if told.help == "--help" else full_help(*shown)
            unread()
            raise SystemExit(0)
        if faults or found is None:
            none = ["no recipe was given: --config FILE names one"] if recipe and not told.file else []
            raise UserError("\n".join([*faults, *none]))
        return found, told.flags
    except UserError as error:
        fail(error)


@dataclass
class _Told:
    """A command line, taken apart."""

    flags: dict[str, bool]
    overrides: dict[str, Any] = filled(default_factory=dict)
    file: str = ""
    help: str = ""
    faults: list[str] = filled(default_factory=list)
    repeated: list[str] = filled(default_factory=list)
    """Fields that are lists and were given more than once; their values are those of all times."""


def _carried_out(model: type[T], told: _Told) -> tuple[T | None, list[str]]:
    """What file and command line make together, and all that is wrong with either."""
    faults = list(told.faults)
    try:
        tree = read_yaml(told.file) if told.file else {}
        if told.help:
            return (validate(model, tree, told.file) if told.file else None), []
        return validate(model, tree, told.file, told.overrides), faults
    except UserError as error:
        return None, [*faults, *str(error).splitlines()]


def run_main(main: Callable[[], None], again: str = "") -> None:
    """A job from beginning to end.

    Mistakes of the user's, and training that diverged, are told without a traceback: exit code 2; what was lost with
    its cluster likewise, 75. Ctrl-C and SIGTERM end it with one line, 130 and 143, and output that nobody reads, 141.
    `again` is what submitting it again does.
    """
    end_with_watcher()
    heed()
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        # torchrun shows what all processes say, and the first speaks for them. What C libraries say, as NCCL, stays.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # lines are seen when they are said, in a file or a pipe, too
    try:
        main()
    except Lost as error:
        fail(error if is_watched() or not again else f"{error}; submit again to {again}", LOST)
    except (UserError, FloatingPointError) as error:
        fail(error)
    except BaseException as error:
        stop = stop_of(error) or asked()  # importing makes other errors of it
        if stop and not Stopped.told:
            print(f"stopped; submit again to {again}" if again else "stopped")
        if stop:
            raise SystemExit(stop.code) from None
        if is_of_a_pipe(error) and unread():
            raise SystemExit(UNREAD) from None
        if is_watched() and isinstance(error, Exception):
            traceback.print_exc()
            raise SystemExit(BUG) from None
        raise


def rates_of(words: list[str]) -> tuple[list[str], str]:
    """The command line without `--rates FILE`, which is no part of a recipe, and the file."""
    return _taken_out(words, "--rates", "name the file of measured rates")


def gpu_rate_of(words: list[str]) -> tuple[list[str], float]:
    """The command line without `--gpu-rate N`, which is no part of a recipe, and N, images/s of one GPU; 0: none."""
    words, given = _taken_out(words, "--gpu-rate", "give the images/s that one GPU trains, such as 3000")
    try:
        rate = float(given or 0)
    except ValueError:
        rate = 0.0
    if given and not 0 < rate < math.inf:
        fail(f"--gpu-rate {given}: give the images/s that one GPU trains, such as 3000")
    return words, rate


def _taken_out(words: list[str], option: str, meant: str) -> tuple[list[str], str]:
    """The words without an option of `--dry-run`'s and its value, and the value; `meant` says what that should be."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith(f"{option}=") else [word])]
    if option not in words:
        return words, ""
    at = words.index(option)
    if at + 1 == len(words) or words[at + 1].startswith("--"):
        fail(f"{option}: {meant}")
    if "--dry-run" not in words:
        fail(f"{option} is read with --dry-run only")
    return words[:at] + words[at + 2 :], words[at + 1]


def load(model: type[T], path: str | Path) -> T:
    """Read one YAML file into a `model`.

    Raises:
        UserError: the file is missing or not YAML, or all its faults, one a line, each with file and field.
    """
    return validate(model, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, or of one at a URL; UserError naming it where there is none or it does not parse."""
    if "://" in str(path):
        return _remote_yaml(str(path))
    path = recipe_file(path)
    try:
        tree = parse_yaml(path.read_text("utf-8-sig")) or {}
    except FileNotFoundError as error:
        ours = RECIPES / path.parent.as_posix().removeprefix("jobs/recipes/")
        stems = [one.stem for folder in (path.parent, ours) for one in folder.glob("*.yaml")]
        near = list(dict.fromkeys(difflib.get_close_matches(path.stem, stems)))
        there = "; there is " + ", ".join(f"{stem}.yaml" for stem in near) if near else ""
        raise UserError(f"{path}: no such recipe{there}") from error
    except GivenTwice as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        spaces = "; indent by spaces, not tabs" if r"'\t'" in str(error) else ""
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}{spaces}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not sections of fields")
    return tree


def _remote_yaml(url: str) -> dict[str, Any]:
    """`read_yaml` of a URL: a sweep in a bucket leaves its best.yaml there, and a run its recipe.yaml."""
    from backbone.storage import filesystem  # slow, and for this alone

    fs, path = filesystem(url)
    try:
        tree = parse_yaml(fs.cat_file(path).decode("utf-8-sig")) or {}
    except StorageError:
        raise
    except Exception as error:  # no YAML, or what the store has: of many kinds
        raise UserError(f"{url}: cannot be read as a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{url}: holds a {type(tree).__name__}, not sections of fields")
    return tree


def laid_over(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` put over `tree`, section by section."""
    laid = dict(tree)
    for key, value in changes.items():
        below = tree.get(key)
        laid[key] = laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return laid


def validate(model: type[T], tree: dict[str, Any], where: str, overrides: dict[str, Any] | None = None) -> T:
    """Check `tree`, with dotted `overrides` on top of it; UserError with one line a fault."""
    if other := of_another_job(model.__name__, tree):
        says = f"this is a recipe of jobs/{other}.py"
        command = typed(f"python jobs/{other}.py --config {where}")
        raise UserError(f"{where}: {says}; give it to that: {command}" if where else says)
    tree, overrides = copy.deepcopy(tree), overrides or {}
    for name, value in overrides.items():
        if section := _put(tree, name, value):
            raise UserError(f"{where}: {section}: is a {type(tree[section]).__name__}, not a section of fields")
    lines: list[str] = []
    while True:
        try:
            found = model.model_validate(tree)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            said = [_line(model, fault, where, overrides) for fault in faults]
            lines += [line for line in said if line not in lines]
            # Unknown keys keep sections from being looked at as a whole: once more, with what is meant by them.
            unknown = [fault for fault in faults if fault["type"] in UNKNOWN]
            if sum(_taken_as_meant(model, tree, fault["loc"], fault["type"] == UNKNOWN[0]) for fault in unknown):
                continue
            raise UserError("\n".join(lines)) from error
        if lines:
            raise UserError("\n".join(lines))
        return found


UNKNOWN = ("extra_forbidden", "of_another_kind")


def _line(model: type[BaseModel], fault: Any, where: str, overrides: dict[str, Any]) -> str:
    """A fault of pydantic's in a line: file or command line, field, what is wrong."""
    name = ".".join(map(str, fault["loc"]))
    overridden = any(f"{name}.".startswith(f"{one}.") for one in overrides)
    concerned = any(not name or one.startswith(f"{name}.") for one in overrides)
    origins = [where] * (not overridden) + ["command line"] * (overridden or concerned)
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "unknown key" + suggestion(name, list(fields(model)))
    elif fault["type"] == "missing":
        option = name + _first_required(model, name)
        *some, last = map(str, choices(fields(model).get(option)) or [""])
        message += f"; give --{option}" + (f": {', '.join(some)} or {last}" if last else "")
    elif not isinstance(fault["input"], dict | BaseModel):
        message += f" (got {fault['input']!r})"
        if fault["type"] == "tuple_type":
            message += f"; a list of one is written [{fault['input']}]"
        if fault["type"] == "literal_error":  # its message quotes each value that may stand there
            message += spelling(str(fault["input"]), re.findall(r"'([^']+)'", fault["msg"]))
    return ": ".join(part for part in (" and ".join(filter(None, origins)), name, message) if part)


def _first_required(model: type[BaseModel], name: str) -> str:
    """Of a section that is missing, `.field` of the first one that has no default; empty for other fields."""
    field = model.model_fields.get(name)
    section = section_model(field.annotation) if field else None
    required = [one for one, told in section.model_fields.items() if told.is_required()] if section else []
    return f".{required[0]}" if required else ""


def _taken_as_meant(model: type[BaseModel], tree: dict[str, Any], place: tuple[Any, ...], misspelt: bool) -> bool:
    """Take an unknown key out, and where it is misspelt read its value as that of the field that was meant, if one was.

    Returns:
        Whether it was there. A field of another kind is no other field's misspelling: it goes, or two sections that
        only the other kind has would be taken for each other for ever.
    """
    node: Any = tree
    for part in place[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or place[-1] not in node:
        return False
    value, name = node.pop(place[-1]), ".".join(map(str, place))
    found = meant(name, list(fields(model))) if misspelt else []
    if found and not found[0].value:
        _put(tree, found[0].field, value, over=False)
    return True


def _put(tree: dict[str, Any], name: str, value: Any, over: bool = True) -> str:
    """Set the field of a dotted name; returns the section on the way that is none, if there is one."""
    *sections, last = name.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            return section
    if over or last not in node:
        node[last] = value
    return ""


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every field of a nested model by its dotted name -> its type; of a section in kinds those of all kinds."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        nested = section_model(field.annotation)
        found |= fields(nested, f"{prefix}{name}.") if nested else {prefix + name: field.annotation}
    return found


def fail(error: object, code: int = 2) -> NoReturn:
    """Print what is wrong and exit; 2 is the code for mistakes of the user's."""
    print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
    raise SystemExit(code)


def _read(model: type[BaseModel], argv: list[str], flags: dict[str, str]) -> _Told:
    """Take the words of a command line apart. Options that are none are read as what was meant by them."""
    known = fields(model)
    told = _Told(dict.fromkeys(flags, False))
    words = ["--help" if word == "-h" else word for word in argv]
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        values = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if word in ("--help", "--help-all"):
            told.help = "--help-all" if "--help-all" in (word, told.help) else "--help"
        elif word.startswith("--") and name in flags:
            told.flags[name] = True
            if values:
                told.faults.append(f"command line: {word}: takes no value, not {' '.join(values)}")
        elif word == "--config" and len(values) == 1:
            told.file = values[0]
        elif word == "--config":
            told.faults.append(f"command line: --config: name one recipe file, not {len(values)}")
        elif not word.startswith("--") and word.endswith((".yaml", ".yml")):
            told.faults.append(f"command line: {word}: a recipe is given with --config {word}")
            told.file = told.file or word
        elif word.startswith("--") and _is_field(name, known):
            _take(told, known, name, values)
        else:
            every = [*known, *flags, "config"]
            told.faults.append(f"command line: {word}: unknown option{suggestion(name, every, '--')}")
            found = next(iter(meant(name, every)), None)
            if found and found.field == "config":
                told.file = told.file or "".join(values[:1])
            elif found and "_with." in found.field:
                continue  # which of the recipes was meant is not known, so nothing more is said of its value
            elif found and found.field not in flags and not found.value and found.field not in told.overrides:
                _take(told, known, found.field, values)
    for name in dict.fromkeys(told.repeated):
        together = f"--{name} {shlex.join(told.overrides[name])}"
        told.faults.append(f"command line: --{name} is given twice; name all in one: {together}")
    return told


def _take(told: _Told, known: dict[str, Any], name: str, values: list[str]) -> None:
    """The values of a field, as the command line has them."""
    if get_origin(known.get(name)) is tuple:
        values = values if values != [""] else []
        if name in told.overrides and ... in get_args(known[name]):  # of a pair, as of one value, the last one counts
            told.repeated.append(name)
            values = told.overrides[name] + values
        told.overrides[name] = values
    elif name not in known:  # below a dict, whose fields have no types here
        told.overrides[name] = yaml_or_text(values[0]) if len(values) == 1 else values or True
    elif len(values) > 1:
        told.faults.append(f"command line: --{name}: takes one value, not {' '.join(values)}")
    else:
        told.overrides[name] = values[0] if values else "true"


def _is_field(name: str, known: dict[str, Any]) -> bool:
    """True for a field, and for anything below a field that is, or may be, a dict."""
    return name in known or any(
        name.startswith(f"{field}.") and dict in map(get_origin, (kind, *get_args(kind)))
        for field, kind in known.items()
    )
