"""Localisation on several ranks: the same weights as on one, and each image judged once."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

from backbone.training.world import local_world
from detection.localisation import artifact
from detection.localisation.localise import localise, prepare
from detection.localisation.recipe import Localise
from tests.detection.localisation.conftest import Make, write_classifier
from tests.detection.localisation.test_clsloc import CAT, DOG, write_image, write_list
from tests.detection.localisation.test_localise import place, run


def _rank(rank: int, size: int, port: int, tree: dict[str, Any]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(use_gpu=False, threads=1) as world:
        localise(prepare(Localise.model_validate(tree), lambda text: None), world, lambda record: None)


def run_ranks(recipe: Localise, size: int) -> None:
    prepare(recipe, lambda text: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["detection.localisation.localise"])
    ranks = [context.Process(target=_rank, args=(r, size, port, recipe.model_dump(mode="json"))) for r in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * size


def plant(root: Path) -> dict[str, Any]:
    """16 training images, 7 to judge by, one of them torn: the `data:` section that reads them."""
    names = [f"{synset}/{synset}_{k}" for synset in (CAT, DOG) for k in range(8)]
    for k, name in enumerate(names):
        write_image(root, f"train/{name}", [(name[:9], (1 + k, 2 + k, 30 + k, 24 + k))])
    write_list(root, "train_loc", names)
    write_list(root, "val", list("abcdefg"))
    for k, name in enumerate("abcdefg"):
        write_image(root, f"val/{name}", [((CAT, DOG)[k % 2], (1, 1, 20 + 5 * k, 40))])
    torn = root / "Data/CLS-LOC/val/b.JPEG"
    torn.write_bytes(torn.read_bytes()[:30])
    augment = {"kind": "paper", "shorter_side": [50, 60]}
    lists = {"train": f"{root}:train_loc", "val": f"{root}:val", "cache": str(root / "cache")}
    return {"source": "clsloc", **lists, "workers": 0, "on_bad": "skip", "augment": augment}


def test_two_ranks_train_the_same_weights_and_judge_each_image_once(where: Make, tmp_path: Path) -> None:
    """Two micro-batches a step, on one rank or one each; images are judged one by one, so that sums do not differ."""
    changes = {
        "data": plant(tmp_path / "ILSVRC"),
        "backbone": write_classifier(tmp_path / "classifier", (CAT, DOG)),
        "localiser.norm": "frozen",
        "schedule.total": 4,
        "eval_batch": 1,
    }
    alone, both = where({**changes, "name": "alone"}), where({**changes, "name": "both"})
    first = run(alone)
    run_ranks(both, 2)
    weights = [(place(one) / "artifact/model.safetensors").read_bytes() for one in (alone, both)]
    assert weights[0] == weights[1]
    told = [json.loads((place(one) / "results/guesses.json").read_text()) for one in (alone, both)]
    assert told[0] == told[1]
    assert [Path(one["image"]).stem for one in told[1]] == list("acdefg")
    results = json.loads((place(both) / "results/results.json").read_text())["results"]
    assert results == json.loads(json.dumps(first["results"]))
    assert [(one["images"], len(one["unreadable"])) for one in results] == [(6, 1)] * 2
    assert artifact.load(place(both) / "artifact").block["provenance"]["workers"] == 2
