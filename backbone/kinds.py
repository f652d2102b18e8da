"""Sections of a recipe that come in kinds, each with fields of its own: a union of options.

    Schedule = Annotated[CosineSchedule | StepsSchedule, OneOf()]

The first field of every kind, such as `kind`, says which it is. Code matches on the type. Imports nothing slow.
"""

from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

Models = tuple[type[BaseModel], ...]


class OneOf:
    """Reads a union of options. Which of them, is said by their first field; without it the first is meant.

    A field that only other kinds read is a fault that names them, unless its value says nothing: an empty one, which
    takes back what a recipe gives, or the default, as recipes recorded by earlier versions have it. Pydantic's own
    discriminated unions must be told the kind, put it into the names of fields, and know no kind but the chosen one.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        models: Models = get_args(source)
        return core_schema.no_info_before_validator_function(lambda given: _read(models, given), handler(source))


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that is a section; of one in kinds, one with all their fields. None for other fields."""
    models = get_args(annotation) or (annotation,)
    if not all(isinstance(model, type) and issubclass(model, BaseModel) for model in models):
        return None
    return _side_by_side(models) if len(models) > 1 else models[0]


def _read(models: Models, given: Any) -> BaseModel:
    if isinstance(given, models):
        return given
    if not isinstance(given, dict):
        return models[0].model_validate(given)
    by, kinds = _kinds(models)
    kind = given.get(by, next(iter(kinds)))
    model = kinds.get(kind) if isinstance(kind, str) else None
    known = model or _side_by_side(models)  # what is of no kind is checked all the same: its faults come at once
    foreign = {field: _readers(models, field) for field in given if field not in known.model_fields}
    read = {field: value for field, value in given.items() if not _says_nothing(foreign.get(field, {}), field, value)}
    try:
        return known.model_validate(read)
    except ValidationError as error:
        faults: list[InitErrorDetails] = []
        for fault in error.errors(include_url=False):
            field, message = str(fault["loc"][0]) if len(fault["loc"]) == 1 else "", fault["msg"]
            if readers := foreign.get(field):
                fault["type"] = "of_another_kind"
                *some, last = readers
                those = f"{', '.join(some)} or {last}" if some else last
                message = f"is read by {by} {those}, not by {kind}; leave it out or empty, or give another {by}"
            elif field and fault["type"] == "missing" and set(_readers(models, field)) != set(kinds):
                if not model:
                    continue
                message = f"{by} {kind} needs it"
            told: Any = PydanticCustomError(fault["type"], message)  # ty: ignore[invalid-argument-type]
            faults.append(InitErrorDetails(type=told, loc=fault["loc"], input=fault["input"]))
        raise ValidationError.from_exception_data(error.title, faults) from error


def _kinds(models: Models) -> tuple[str, dict[str, type[BaseModel]]]:
    """The field that says the kind, and kind -> model. Kinds that differ in nothing else share one."""
    by = next(iter(models[0].model_fields))
    return by, {kind: model for model in models for kind in get_args(model.model_fields[by].annotation)}


def _readers(models: Models, field: str) -> dict[str, type[BaseModel]]:
    """Kind -> model, of the kinds that have a field."""
    return {kind: model for kind, model in _kinds(models)[1].items() if field in model.model_fields}


def _says_nothing(readers: dict[str, type[BaseModel]], field: str, value: Any) -> bool:
    defaults = [model.model_fields[field].default for model in readers.values()]
    value = tuple(value) if isinstance(value, list) else value
    return bool(readers) and value in (None, "", (), *defaults)


@cache
def _side_by_side(models: Models) -> type[BaseModel]:
    by, kinds = _kinds(models)
    fields: dict[str, Any] = {}
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        readers = _readers(models, name)
        first = next(iter(readers.values())).model_fields[name]
        texts: dict[str, list[str]] = {}
        for kind, model in readers.items():
            texts.setdefault(model.model_fields[name].description or "", []).append(kind)
        annotation, text = first.rebuild_annotation(), " ".join(texts)
        if name == by:
            annotation = Literal[tuple(kinds)]  # ty: ignore[invalid-type-form]
        elif texts != {text: list(kinds)}:
            text = " ".join(f"{', '.join(those)}: {one}" for one, those in texts.items())
        fields[name] = (annotation, Field(first.default, description=text or None))
    base = models[0].__base__ or models[0]
    return create_model(base.__name__, __config__=ConfigDict(extra="forbid"), __doc__=base.__doc__, **fields)
