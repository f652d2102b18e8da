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
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise GivenTwice(f"{key.value} is given twice, in lines {lines[key.value]} and {line}; keep one")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, PLAIN.get(tag, pattern)) for tag, pattern in kinds if tag != DATE]
    for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is none, or `GivenTwice`.
    """
    return yaml.load(text, _Loader)
