"""What a job says of itself: examples first, then the options that most runs need, or with --help-all every one."""

import shutil
import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, create_model
from pydantic_core import PydanticUndefined

from backbone.console import typed
from backbone.kinds import section_model

MANY = 40
"""Fields; of more, --help shows those on the first level and `ESSENTIAL` alone."""

ESSENTIAL = (
    "data.source data.train data.val data.size data.shorter_side data.augment.kind data.workers model.net model.depth "
    "model.width model.shortcut detector.kind detector.norm detector.freeze_at detector.masks schedule.kind "
    "schedule.unit schedule.total schedule.warmup optim.batch optim.micro_batch optim.lr optim.lr_batch "
    "compute.precision scaling.num_workers scaling.use_gpu scaling.cpus_per_worker run.storage run.eval_every"
).split()
ORDER = ("", "data", "model", "detector", "schedule", "optim", "compute", "scaling", "run")


def examples(doc: str) -> list[str]:
    """The commands of a job's docstring, each in one line."""
    lines = doc.replace("\\\n", " ").splitlines()
    return [typed(" ".join(line.split())) for line in lines if line.startswith("python jobs/")]


def usage(doc: str, what: str) -> str:
    """What is said to somebody who gave nothing to do: examples, and what is missing."""
    what_it_does = doc.partition("\n\n")[0].strip().rstrip(":")
    shown = [f"  {line}" for line in examples(doc)]
    more = "--help explains the options that most runs need, --help-all every one"
    return "\n".join([f"{what_it_does}, such as", "", *shown, "", f"{what}; {more}"])


def short_help(model: type[BaseModel], default: BaseModel | None, flags: dict[str, str], doc: str) -> str:
    """Description, examples, and options with what they are; of a model with many the essential ones."""
    every = rows(model, default)
    shown = every if len(every) <= MANY else [row for row in every if "." not in row[0] or row[0] in ESSENTIAL]
    sections = sorted({row[0].rpartition(".")[0].partition(".")[0] for row in shown}, key=_place)
    lines = [typed(doc.strip() or (model.__doc__ or "").strip()), ""]
    lines += _option("--config FILE", "recipe to start from; the options below replace its fields")
    for name, text in flags.items():
        lines += _option(f"--{name.replace('_', '-')}", text)
    for section in sections:
        lines.append("")
        for name, kind, text, value in shown:
            if name.rpartition(".")[0].partition(".")[0] == section:
                lines += _option(f"--{name} {kind}", f"{text} {value}".strip())
    left = len(every) - len(shown)
    lines += ["", f"--help-all shows {left} more." if left else ""]
    return "\n".join(lines).rstrip()


def full_help(model: type[BaseModel], default: BaseModel | None, flags: dict[str, str], doc: str) -> None:
    """Print every option, drawn by tyro."""
    import tyro  # slow, and for this alone

    switches = [f"--{name.replace('_', '-')}: {text}" for name, text in flags.items()]
    about = [typed(doc.strip()), "", (model.__doc__ or "").strip()]
    tyro.cli(
        _shown(model, default),
        args=["--help"],
        description="\n".join([*about, "", "--config FILE: recipe to start from", *switches]).strip(),
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
    )


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a field that takes one of some; none for other fields."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _place(section: str) -> int:
    return ORDER.index(section) if section in ORDER else len(ORDER)


def _option(name: str, text: str) -> list[str]:
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    body = textwrap.wrap(text, width - 34) or [""]
    first = f"  {name:<31} {body[0]}" if len(name) <= 31 else f"  {name}\n{'':34}{body[0]}"
    return [first.rstrip(), *(f"{'':34}{line}" for line in body[1:])]


def rows(model: type[BaseModel], default: Any = None, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Name, kind of value, description and default of each field."""
    found = []
    for name, field in model.model_fields.items():
        value = getattr(default, name, field.get_default(call_default_factory=True))
        if nested := section_model(field.annotation):
            found += rows(nested, value, f"{prefix}{name}.")
            continue
        says = value not in ("", (), {}, PydanticUndefined, None)
        shown = f"(default: {_said(value)})" if says else ""
        found.append((prefix + name, _kind(field.annotation), " ".join((field.description or "").split()), shown))
    return found


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind(annotation: Any) -> str:
    if found := choices(annotation):
        return f"{{{','.join(map(str, found))}}}"
    origin = get_origin(annotation)
    if origin is tuple:
        return f"{_kind(get_args(annotation)[0])} ..."
    if origin is dict:
        return "..."
    names = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT"}
    base = get_args(annotation)[0] if origin else annotation
    return names.get(base, "VALUE")


def _shown(model: type[BaseModel], default: BaseModel | None) -> type[BaseModel]:
    """The model as tyro is to show it, which makes commands of unions: kinds side by side, defaults those given."""
    shown: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value = getattr(default, name, field.get_default(call_default_factory=True))
        if nested := section_model(field.annotation):
            shown[name] = (_shown(nested, value), ...)
        else:
            shown[name] = (_as_given(field.rebuild_annotation(), value), Field(value, description=field.description))
    return create_model(model.__name__, __doc__=model.__doc__, **shown)


def _as_given(kind: Any, value: Any) -> Any:
    """Of a union with a dict, of which tyro would make commands, the member that the value is of, or the first."""
    members = get_args(kind)
    if dict not in map(get_origin, members):
        return kind
    return next((one for one in members if isinstance(value, get_origin(one) or one)), members[0])
