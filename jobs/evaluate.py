"""Judge a detector by COCO's and Pascal VOC's measures, backbones as classifiers by the paper's protocols, or
localisers as ImageNet LOC is judged, on this machine or on a Ray cluster:

python jobs/evaluate.py --detector runs/my-detector/artifact --data.source coco --data.val /data/coco/val2017
python jobs/evaluate.py --detector runs/a/artifact runs/b/artifact --refine --vote --flip --scales 600 800 1000
python jobs/evaluate.py --backbone runs/a/artifact runs/b/artifact --protocols 1-crop 10-crop multi-scale
python jobs/evaluate.py --localiser runs/a/artifact runs/b/artifact --backbone runs/c/artifact --data.source clsloc \\
    --data.val /data/ILSVRC:val

--detector --help, --backbone --help and --localiser --help say what each takes.
"""

import sys
from typing import Any

import backbone.begin  # noqa: F401
from backbone.cli import parse, run_main
from backbone.evaluate.options import BackboneEvaluation
from backbone.next_steps import after_backbone, after_evaluation
from detection.judged import JUDGED, together, what
from detection.localisation.options import LocaliserEvaluation
from detection.recipe import DetectorEvaluation


def main() -> None:
    words = sys.argv[1:]
    for option in JUDGED:
        words = together(words, option)
    kind = what(words)
    if kind == "--localiser":
        evaluate_localisers(words)
    elif kind == "--backbone":
        evaluate_backbones(words)
    else:
        evaluate_detectors(words)


def evaluate_detectors(words: list[str]) -> None:
    recipe, _ = parse(DetectorEvaluation, words, doc=__doc__)
    from detection.artifact import read_config
    from detection.evaluate import EVALUATE  # from here on torch and Ray are imported, which takes seconds
    from detection.scoring import table

    carry_out(EVALUATE, recipe, table)
    print(after_evaluation(read_config(recipe.detector[0])["raybone_detector"]["provenance"]))


def evaluate_backbones(words: list[str]) -> None:
    recipe, _ = parse(BackboneEvaluation, words, doc=__doc__)
    from backbone.artifact import read_config
    from backbone.evaluate.evaluation import EVALUATE, table

    carry_out(EVALUATE, recipe, table)
    made = read_config(recipe.backbone[0])["raybone"]["provenance"].get("recipe", {})
    print(after_backbone(recipe.backbone[0], made.get("data", {}).get("source") == "synthetic"))


def evaluate_localisers(words: list[str]) -> None:
    recipe, _ = parse(LocaliserEvaluation, words, doc=__doc__)
    from detection.localisation.evaluate import EVALUATE, table

    carry_out(EVALUATE, recipe, table)


def carry_out(job: Any, options: Any, table: Any) -> None:
    from backbone.job import submit

    outcome = submit(job, options)
    print(table(outcome.results))
    print(f"results   {outcome.url}")


if __name__ == "__main__":
    run_main(main, "start over")
