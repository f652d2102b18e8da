"""Make `kuberay.json`, what manifests are checked against, from a checkout of github.com/ray-project/kuberay:

python tests/deploy/crds.py /path/to/kuberay v1.7.0

The OpenAPI schemas of version v1 of three of its custom resources, without their descriptions; what occurs more than
once, such as the pod, once.
"""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

FOLDER = "helm-chart/kuberay-operator/crds"
FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
WORTH = 400
"""Characters from which on a part is kept once."""


def bare(tree: Any, in_properties: bool = False) -> Any:
    """Without descriptions; a property may be called so."""
    if isinstance(tree, list):
        return [bare(one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    return {k: bare(v, k == "properties") for k, v in tree.items() if in_properties or k != "description"}


def key(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def count(tree: Any, seen: Counter) -> None:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if isinstance(tree, dict) and "type" in tree and len(json.dumps(tree)) > WORTH:
        seen[key(tree)] += 1
        if seen[key(tree)] > 1:
            return
    for child in children:
        count(child, seen)


def shared(tree: Any, seen: Counter, parts: dict[str, Any], whole: bool = False) -> Any:
    """With what occurs more than once in `parts`."""
    if isinstance(tree, list):
        return [shared(one, seen, parts) for one in tree]
    if not isinstance(tree, dict):
        return tree
    name = key(tree)
    if not whole and seen[name] > 1 and isinstance(tree.get("type"), str):
        if name not in parts:
            parts[name] = shared(tree, seen, parts, True)
        return {"$ref": f"#/$defs/{name}"}
    return {k: shared(v, seen, parts) for k, v in tree.items()}


def main(checkout: str, version: str) -> None:
    schemas = {}
    for kind, name in FILES.items():
        words = ["git", "-C", checkout, "show", f"{version}:{FOLDER}/ray.io_{name}.yaml"]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        versions = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
        (one,) = (one for one in versions if one["name"] == "v1")
        schemas[kind] = bare(one["schema"]["openAPIV3Schema"])
    seen, parts = Counter[str](), dict[str, Any]()
    for schema in schemas.values():
        count(schema, seen)
    kinds = {kind: shared(schema, seen, parts, True) for kind, schema in schemas.items()}
    source = f"https://github.com/ray-project/kuberay/tree/{version}/{FOLDER}"
    told = {"source": source, "version": version, "licence": "Apache-2.0", "kinds": kinds, "$defs": parts}
    Path(__file__).with_name("kuberay.json").write_text(json.dumps(told, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
