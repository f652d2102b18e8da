"""A strict YAML file plus overrides on the command line, for every job. Imports nothing slow.

    recipe, flags = parse(Recipe, sys.argv[1:], flags={"dry_run": "print the plan and stop"})

tyro draws the help. File and command line are merged into one tree and checked once by the pydantic model, so that the
faults of both come together, in one form, and a pair of fields that depend on each other may come from either.
"""

import copy
import difflib
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model

from backbone.errors import LOST, Lost, UserError
from backbone.kinds import section_model
from backbone.stopping import Stopped, asked, heed, stop_of
from backbone.supervise import BUG, end_with_watcher, is_watched

T = TypeVar("T", bound=BaseModel)


def parse(model: type[T], argv: list[str], flags: dict[str, str] | None = None) -> tuple[T, dict[str, bool]]:
    """Read `--config FILE` and `--section.field value` into a `model`; exit with code 2 and every fault otherwise.

    `flags` are the job's own switches, name -> help; they come back as name -> given or not. Of two values for a
    field, the command line wins over the file.
    """
    flags = flags or {}
    try:
        overrides, file, given, wants_help = _read(model, argv, flags)
        tree = read_yaml(file) if file else {}
        if wants_help:
            _help(model, validate(model, tree, file) if file else None, flags)
        return validate(model, tree, file, overrides), given
    except UserError as error:
        fail(error)


def run_main(main: Callable[[], None], again: str = "") -> None:
    """A job from beginning to end.

    Mistakes of the user's, and training that diverged, are told without a traceback: exit code 2; what was lost with
    its cluster likewise, 75. Ctrl-C and SIGTERM end it with one line, 130 and 143. `again` is what submitting it again
    does.
    """
    end_with_watcher()
    heed()
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
        if is_watched() and isinstance(error, Exception):
            traceback.print_exc()
            raise SystemExit(BUG) from None
        raise


def rates_of(words: list[str]) -> tuple[list[str], str]:
    """The command line without `--rates FILE`, which is no part of a recipe, and the file."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--rates=") else [word])]
    if "--rates" not in words:
        return words, ""
    at = words.index("--rates")
    if at + 1 == len(words) or words[at + 1].startswith("--"):
        fail("--rates: name the file of measured rates")
    if "--dry-run" not in words:
        fail("--rates is read with --dry-run only")
    return words[:at] + words[at + 2 :], words[at + 1]


def load(model: type[T], path: str | Path) -> T:
    """Read one YAML file into a `model`.

    Raises:
        UserError: the file is missing or not YAML, or all its faults, one a line, each with file and field.
    """
    return validate(model, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file; UserError naming the file where there is none or it does not parse."""
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")])
        there = "; there is " + ", ".join(f"{stem}.yaml" for stem in near) if near else ""
        raise UserError(f"{path}: no such recipe{there}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not sections of fields")
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
    tree, overrides = copy.deepcopy(tree), overrides or {}
    for name, value in overrides.items():
        *sections, field = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"{where}: {section}: is a {type(node).__name__}, not a section of fields")
        node[field] = value
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = []
        for fault in error.errors(include_url=False):
            field = ".".join(map(str, fault["loc"]))
            overridden = any(f"{field}.".startswith(f"{name}.") for name in overrides)
            concerned = any(not field or name.startswith(f"{field}.") for name in overrides)
            origins = [where] * (not overridden) + ["command line"] * (overridden or concerned)
            origin = " and ".join(filter(None, origins))
            message = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                message = "unknown key" + _suggestion(field, list(fields(model)))
            elif not isinstance(fault["input"], dict | BaseModel):
                message += f" (got {fault['input']!r})"
            lines.append(": ".join(part for part in (origin, field, message) if part))
        raise UserError("\n".join(lines)) from error


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


def _read(
    model: type[BaseModel], argv: list[str], flags: dict[str, str]
) -> tuple[dict[str, Any], str, dict[str, bool], bool]:
    """Split the words of a command line into (overrides, recipe file, flags given, help wanted)."""
    known = fields(model)
    overrides: dict[str, Any] = {}
    faults: list[str] = []
    file, given, wants_help = "", dict.fromkeys(flags, False), False
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        values = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if word in ("-h", "--help"):
            wants_help = True
        elif word.startswith("--") and name in flags:
            given[name] = True
            if values:
                faults.append(f"command line: {word}: takes no value, not {' '.join(values)}")
        elif word == "--config" and len(values) == 1:
            file = values[0]
        elif word == "--config":
            faults.append(f"command line: --config: name one recipe file, not {len(values)}")
        elif not word.startswith("--") or not _is_field(name, known):
            faults.append(f"command line: {word}: unknown option{_suggestion(name, [*known, *flags], '--')}")
        elif get_origin(known.get(name)) is tuple:
            overrides[name] = values if values != [""] else []
        elif name not in known:  # below a dict, whose fields have no types here
            overrides[name] = yaml.safe_load(values[0]) if len(values) == 1 else values or True
        elif len(values) > 1:
            faults.append(f"command line: {word}: takes one value, not {' '.join(values)}")
        else:
            overrides[name] = values[0] if values else "true"
    if faults:
        raise UserError("\n".join(faults))
    return overrides, file, given, wants_help


def _is_field(name: str, known: dict[str, Any]) -> bool:
    """True for a field, and for anything below a field that is a dict."""
    return name in known or any(
        get_origin(kind) is dict and name.startswith(f"{field}.") for field, kind in known.items()
    )


def _suggestion(name: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, 1, 0.6)
    near = near or [field for field in known if field.split(".")[-1] == name.split(".")[-1]]
    return f"; perhaps you meant {prefix}{near[0]}" if near else ""


def _help(model: type[BaseModel], default: BaseModel | None, flags: dict[str, str]) -> NoReturn:
    import tyro  # slow, and for this alone

    switches = [f"--{name.replace('_', '-')}: {text}" for name, text in flags.items()]
    text = "\n".join([(model.__doc__ or "").strip(), "", "--config FILE: recipe to start from", *switches])
    tyro.cli(
        _shown(model, default),
        args=["--help"],
        description=text,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
    )
    raise SystemExit(0)


def _shown(model: type[BaseModel], default: BaseModel | None) -> type[BaseModel]:
    """The model as tyro is to show it, which makes commands of unions: kinds side by side, defaults those given."""
    shown: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value = getattr(default, name, field.get_default(call_default_factory=True))
        if nested := section_model(field.annotation):
            shown[name] = (_shown(nested, value), ...)
        else:
            shown[name] = (field.rebuild_annotation(), Field(value, description=field.description))
    return create_model(model.__name__, __doc__=model.__doc__, **shown)
