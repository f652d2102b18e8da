"""The task of the R-CNN step: a localiser's proposals are learned one at a time, and its boxes moved."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbone.data.index import cache_directory, is_fresh, store
from backbone.data.loader import train_loader
from backbone.data.stream import MicroBatches, share
from backbone.errors import UserError, last_line
from backbone.evaluate.views import view_for
from backbone.inputs import InputConvention
from backbone.storage import filesystem, is_local, join, write_folder
from backbone.training import engine
from backbone.training.memory import cured, smaller_eval_batch
from backbone.training.notice import Leaving, Lookout
from detection.localisation.artifact import Loaded, load_localiser
from detection.localisation.judge import Guess, Views, changes, images_of
from detection.localisation.net import Localiser
from detection.localisation.rcnn import RegionNet, losses, refine
from detection.localisation.recipe import ClsLocData, Localise, RegionOptions
from detection.localisation.regions import Boxes, RegionSet, propose
from detection.localisation.sources import LocatedSource
from detection.localisation.task import Localisation, loading, mean_colour

FOLDER, MARK = "proposals", "proposals.json"
FILES = "boxes.npy", "starts.npy"
TOGETHER = 64
"""Batches after which ranks hand over what they have proposed: none may be 600 s behind another, and the first alone
keeps them."""


def load_proposer(recipe: Localise, inputs: InputConvention, classes: list[str]) -> Loaded:
    """The localiser that `proposals` names, verified.

    Raises:
        UserError: it is of another kind, of other classes, or wants images otherwise than the backbone.
    """
    _, loaded = load_localiser(recipe.proposals, "proposals")
    theirs, ours = ({**asdict(one), "mean_image": None} for one in (loaded.inputs, inputs))
    if theirs != ours or (loaded.inputs.mean_image is None) != (inputs.mean_image is None):
        raise UserError(f"proposals {recipe.proposals}: reads images as {theirs}, the backbone as {ours}")
    if list(loaded.classes) != list(classes):
        raise UserError(f"proposals {recipe.proposals}: its classes are not those of {recipe.backbone}")
    return loaded


def proposals_bytes(options: RegionOptions, images: int) -> int:
    """The most that the proposals of so many training images take on disk."""
    return images * options.proposals * 4 * 4 + (images + 1) * 8


def are_made(url: str) -> bool:
    """Whether all proposals lie in the folder of the run at `url`: their mark is written last."""
    fs, path = filesystem(join(url, FOLDER))
    return fs.exists(join(path, MARK))


@dataclass
class Refiner:
    """A `judge.Step`: of a localiser's proposals the one that the R-CNN is surest of, moved."""

    net: RegionNet  # in eval mode, on its device
    source: LocatedSource

    def boxes_of(
        self, localiser: Localiser, asked: Tensor, views: Views, shown: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `judge.Step`."""
        proposals = propose(localiser, asked, views, self.net.options)
        pairs = zip(shown["samples"], shown["labels"].tolist(), strict=True)
        images = [self.source.image(sample) if label >= 0 else None for sample, label in pairs]
        classes, how = asked.cpu().numpy(), (views.batch, views.channels_last)
        found, _ = refine(self.net, views.inputs, images, classes, proposals, *how)
        none = np.zeros(4)
        return found, np.array([[boxes[0] if len(boxes) else none for boxes in row] for row in proposals])


@dataclass
class Refinement(Localisation):
    """The engine's task: proposals and their classes to scores and boxes."""

    url: str

    @property
    def regions(self) -> RegionOptions:
        """The recipe's."""
        assert isinstance(self.recipe.localiser, RegionOptions)
        return self.recipe.localiser

    @property
    def origin(self) -> dict[str, Any]:
        """See `Localisation.origin`."""
        return {"proposals": {"weights_sha256": self._proposer.block["weights_sha256"]}}

    def train_set(self) -> RegionSet:
        """What is trained on: the localiser's proposals, which are made now unless they were."""
        localiser, self._proposer = load_localiser(self.recipe.proposals, "proposals")
        self.localiser = localiser.to(self.world.device)
        if self.recipe.compute.channels_last:
            localiser.to(memory_format=torch.channels_last)
        self._make()
        return RegionSet(
            source=self.train_source,
            options=loading(self.recipe, self.inputs),
            seed=self.recipe.seed,
            fill=mean_colour(self.inputs),
            boxes=self._open(),
            regions=self.regions,
        )

    def batches(self, micro_batches: MicroBatches) -> Iterator[Any]:
        """This rank's training batches."""
        assert isinstance(self.train, RegionSet)
        for batch in train_loader(self.train, micro_batches, self.world.device):
            classes = torch.from_numpy(self.train_targets[np.asarray(batch["samples"])])
            located = self.train.located(batch["samples"], batch["position"])
            yield {**batch, **located, "classes": classes}

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of each region, and the sums of its two parts."""
        images = self.inputs.normalize(batch["images"])
        if self.recipe.compute.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits, deltas = self.model(images, batch["classes"])
        score, box = losses(logits, deltas, batch["positive"], batch["deltas"], self.regions)
        return score + box, {"loss_score": score.sum(), "loss_box": box.sum()}

    def steps(self, model: nn.Module) -> tuple[Localiser, Refiner]:
        """See `Localisation.steps`."""
        assert isinstance(model, RegionNet)
        return self.localiser, Refiner(model, self.val_source)

    def judge(self, model: nn.Module, protocol: str) -> tuple[dict[str, Any], list[Guess]]:
        """See `Localisation.judge`; `changed` is by `judge.changes`."""
        result, found = super().judge(model, protocol)
        return result | {"changed": changes(found, self.val_source, self.val_targets, self.world)}, found

    def _make(self) -> None:
        """Proposals of all training images, for their own classes, into the run's folder. All ranks call it."""
        if self.world.gather(are_made(self.url))[0]:
            return
        recipe, inputs, count = self.recipe, self.inputs, len(self.train_source)
        if self.world.is_first:
            self.report({"kind": "say", "text": f"proposals of {count:,} training images"})
        view = view_for(inputs, "multi-scale", self.regions.scales)
        data = recipe.data
        shown_batches = images_of(self.train_source, [view], self.world, recipe.eval_batch, data.workers, data.on_bad)
        mine: list[np.ndarray] = []
        kept: list[list[np.ndarray]] = [[] for _ in range(self.world.size)]
        batches, mark = iter(shown_batches), 0
        most = max(-(-len(share(count, rank, self.world.size)) // recipe.eval_batch) for rank in range(self.world.size))
        how = (view, recipe.eval_batch, recipe.compute.channels_last)
        lookout = Lookout(self.world, recipe.scaling.notice_every, 0)
        short_of_memory = cured(lambda: smaller_eval_batch(recipe.eval_batch), self.world.device)
        with short_of_memory, engine.autocast(recipe.compute, self.world.device):
            for turn in range(1, most + 1):
                shown = next(batches, None)
                if shown is not None:
                    asked = torch.from_numpy(self.train_targets[shown["samples"]])[:, None].to(self.world.device)
                    views = Views(inputs, shown["sides"], shown["groups"][0], *how)
                    found = propose(self.localiser, asked, views, self.regions)
                    mine += [boxes.astype(np.float32) for (boxes,) in found]
                if turn % TOGETHER == 0 or turn == most:
                    for own, part in zip(kept, self.world.gather(mine), strict=True):
                        own += part if self.world.is_first else []
                    mine = []
                    if self.world.is_first and 10 * turn // most > mark:
                        mark = 10 * turn // most
                        self.report(
                            {"kind": "say", "text": f"proposals of {sum(map(len, kept)):,} of {count:,} images"}
                        )
                if turn < most and (told := lookout.look(turn)):
                    raise Leaving(f"{told}; the proposals of training images were not all made, and begin anew")
        if not self.world.is_first:
            self.world.gather(None)  # nobody reads them before they are there
            return
        every = [boxes for own in kept for boxes in own]
        if len(every) != count:
            raise RuntimeError(f"proposals of {len(every)} images, of {count}")
        starts = np.cumsum([0, *map(len, every)], dtype=np.int64)
        files = dict(zip(FILES, (_bytes(np.concatenate(every)), _bytes(starts)), strict=True))
        told = {"sha256": hashlib.sha256(b"".join(files.values())).hexdigest(), "images": count, **self.origin}
        files[MARK] = (json.dumps(told, indent=2) + "\n").encode()
        write_folder(join(self.url, FOLDER), files, "proposals")
        none = int((starts[1:] == starts[:-1]).sum())
        lacking = f"; {none:,} images have none" if none else ""
        self.report({"kind": "say", "text": f"{starts[-1] / count:.1f} proposals an image{lacking}"})
        self.world.gather(None)

    def _open(self) -> Boxes:
        """The run's proposals, of a remote one by a copy in the cache. All ranks call it.

        Raises:
            UserError: on all ranks the same, where one of them finds the proposals damaged or the store says no.
        """
        place, fault = Path(filesystem(join(self.url, FOLDER))[1]), None
        try:
            if not is_local(self.url):
                place = self._fetched()
            elif self.world.is_first:
                check(join(self.url, FOLDER))
        except UserError as error:
            fault = error
        except (OSError, ValueError) as error:
            fault = damaged(join(self.url, FOLDER), f"is not whole ({last_line(error)})")
        if faults := [one for one in self.world.gather(fault) if one]:
            raise faults[0]
        return Boxes(place)

    def _fetched(self) -> Path:
        """This node's copy of a remote run's proposals, which are verified as they are fetched."""
        folder = join(self.url, FOLDER)
        fs, path = filesystem(folder)
        cache = self.recipe.data.cache if isinstance(self.recipe.data, ClsLocData) else None
        state = recorded(fs, path)
        copy = cache_directory(cache) / f"proposals-{state[:16]}.index"
        if not is_fresh(copy, state):
            check(folder)
            arrays = {Path(name).stem: np.load(BytesIO(fs.cat_file(join(path, name)))) for name in FILES}
            store([copy], state, arrays)
        return copy


def check(folder: str) -> None:
    """UserError unless a folder's proposals are those that were written; OSError or ValueError as `recorded`."""
    fs, path = filesystem(folder)
    if digest_of(fs, path) != recorded(fs, path):
        raise damaged(folder, f"SHA-256 is not the one in {MARK}")


def recorded(fs: Any, path: str) -> str:
    """SHA-256 of the proposals as they were written; OSError or ValueError where the mark cannot be read."""
    try:
        told = json.loads(fs.cat_file(join(path, MARK)))
    except ValueError as error:
        raise ValueError(f"{MARK}: {error}") from error
    if not isinstance(told, dict) or not isinstance(told.get("sha256"), str):
        raise ValueError(f"{MARK} has no sha256")
    return told["sha256"]


def digest_of(fs: Any, path: str) -> str:
    """SHA-256 over a folder's proposals, hexadecimal, read in parts: on ImageNet they are gigabytes."""
    found = hashlib.sha256()
    for name in FILES:
        with fs.open(join(path, name), "rb") as file:
            while part := file.read(2**24):
                found.update(part)
    return found.hexdigest()


def damaged(folder: str, why: str) -> UserError:
    """What to say of proposals that are not those that were written."""
    return UserError(
        f"{folder}: {why}, so the proposals are damaged; remove that folder and submit again: they are made anew"
    )


def _bytes(array: np.ndarray) -> bytes:
    data = BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()
