"""Judge a detector by COCO's and Pascal VOC's measures, or backbones as classifiers by the paper's protocols, on this
machine or on a Ray cluster:

python jobs/evaluate.py --detector runs/my-detector/artifact --data.source coco --data.val /data/coco/val2017
python jobs/evaluate.py --detector runs/a/artifact runs/b/artifact --refine --vote --flip --scales 600 800 1000
python jobs/evaluate.py --backbone runs/a/artifact runs/b/artifact --protocols 1-crop 10-crop multi-scale

--detector --help and --backbone --help say what each takes.
"""

import sys
from itertools import pairwise
from typing import Any

import backbone.begin  # noqa: F401
from backbone.cli import parse, read_yaml, run_main
from backbone.errors import UserError
from backbone.evaluate.options import BackboneEvaluation
from backbone.next_steps import after_backbone, after_evaluation
from detection.recipe import DetectorEvaluation


def main() -> None:
    words = together(together(sys.argv[1:], "--backbone"), "--detector")
    if names_backbones(words):
        evaluate_backbones(words)
        return
    recipe, _ = parse(DetectorEvaluation, words, doc=__doc__)
    from detection.artifact import read_config
    from detection.evaluate import EVALUATE  # from here on torch and Ray are imported, which takes seconds
    from detection.scoring import table

    carry_out(EVALUATE, recipe, table)
    print(after_evaluation(read_config(recipe.detector[0])["raybone_detector"]["provenance"]))


def evaluate_backbones(words: list[str]) -> None:
    recipe, _ = parse(BackboneEvaluation, words, doc=__doc__)
    from backbone.evaluate.evaluation import EVALUATE, table

    carry_out(EVALUATE, recipe, table)
    print(after_backbone(recipe.backbone[0]))


def carry_out(job: Any, options: Any, table: Any) -> None:
    from backbone.job import submit

    outcome = submit(job, options)
    print(table(outcome.results))
    print(f"results   {outcome.url}")


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


def names_backbones(words: list[str]) -> bool:
    """Whether the command line, or else the recipe it names, has a backbone and no detector."""
    if "--detector" in words or "--backbone" in words:
        return "--detector" not in words
    files = [after for word, after in pairwise(words) if word == "--config"]
    try:
        return bool(files) and "backbone" in read_yaml(files[-1])
    except UserError:
        return False  # `parse` says it


if __name__ == "__main__":
    run_main(main, "start over")
