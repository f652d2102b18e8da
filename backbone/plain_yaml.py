"""YAML as it is meant in recipes: every key once, and what looks like a word is one."""

import re
from typing import Any

import yaml

BOOL, INT, FLOAT, DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp"))
MERGE = "tag:yaml.org,2002:merge"
# As YAML 1.2 has them. By 1.1, which PyYAML follows, no is false, 010 is 8, 1:30 is 90 and 2026-01-31 no text.
PLAIN = {
    BOOL: re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
    INT: re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*|0x[0-9a-fA-F]+)$"),
    FLOAT: re.compile(
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
}


class GivenTwice(yaml.YAMLError):
    """A key that stands twice in one section; of the two, PyYAML would take the last and drop the first."""


class _Loader(yaml.SafeLoader):
    """As PyYAML's, with what looks like a word being one."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, PLAIN.get(tag, pattern)) for tag, pattern in kinds if tag != DATE]
    for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is none, or `GivenTwice`.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_keys(root, set())  # before anything is constructed: then what is merged stands beside what was given
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    """GivenTwice where a section below has a key twice. `seen`: nodes done, since aliases name one again."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for item in node.value:
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise GivenTwice(f"{key.value} is given twice, in lines {lines[key.value]} and {line}; keep one")
            lines[key.value] = line
        _check_keys(value, seen)


def yaml_or_text(text: str) -> Any:
    """A value as YAML has it, or the text itself: *.tar and {a,b}.tar are none."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text
