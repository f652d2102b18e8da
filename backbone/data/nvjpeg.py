"""JPEGs to views on a GPU: loader processes hand over bytes, nvJPEG decodes, the crop is resized and flipped there."""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg

from backbone.data.batches import Batch, TrainSet, Undecoded
from backbone.errors import UserError


class Decoder:
    """Completes batches with images on the device: pixels are a function of key and data, and of the GPU's nvJPEG."""

    def __init__(self, train_set: TrainSet, device: str = "cuda") -> None:
        """On the current GPU; `device` "cpu" decodes with libjpeg, which is for tests.

        Raises:
            UserError: there is no GPU, or torchvision was built without nvJPEG.
        """
        instead = "set data.decode to exact or scaled"
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(f"data.decode nvjpeg: torch sees no GPU here; look at nvidia-smi, or {instead}")
        self.train_set, self.device = train_set, torch.device(device)
        try:
            _, tiny = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))
            self._decode([torch.from_numpy(tiny)])
        except RuntimeError as error:
            raise UserError(f"data.decode nvjpeg: torchvision cannot ({error}); {instead}") from error

    def __call__(self, batch: Batch) -> Batch:
        """The batch, its images uint8 [N, 3, S, S] on the device, all of them filled in."""
        undecoded = batch.pop("undecoded")
        images = batch["images"]
        if len(undecoded) == len(images):
            images = torch.empty_like(images, device=self.device)
        else:  # some are CMYK, PNG, turned...: those came decoded
            images = images.to(self.device, non_blocking=True)
        encoded = [torch.from_numpy(np.frombuffer(one.data, np.uint8).copy()) for one in undecoded]
        try:
            pictures: list[Tensor | None] = list(self._decode(encoded)) if encoded else []
        except RuntimeError:  # it does not say which
            pictures = [self._try(one) for one in encoded]
        for one, picture in zip(undecoded, pictures, strict=True):
            images[one.place] = self._on_host(one, batch) if picture is None else self._view(picture, one)
        batch["images"] = images
        return batch

    def _decode(self, encoded: list[Tensor]) -> list[Tensor]:
        found = decode_jpeg(encoded, ImageReadMode.RGB, self.device)
        assert isinstance(found, list)
        return found

    def _try(self, encoded: Tensor) -> Tensor | None:
        try:
            return self._decode([encoded])[0]
        except RuntimeError:
            return None

    def _on_host(self, one: Undecoded, batch: Batch) -> Tensor:
        """What nvJPEG cannot read OpenCV or PIL may; what they cannot is named, or replaced as data.on_bad says."""
        view, sample = self.train_set.decoded(one, batch["bad"])
        batch["labels"][one.place] = int(self.train_set.source.labels[sample])
        return view

    def _view(self, picture: Tensor, one: Undecoded) -> Tensor:
        """uint8 [3, H, W] -> [3, S, S]: antialiased as torchvision's and PIL's filter, rounded."""
        view = self.train_set.view
        top, left, height, width = view.box(*picture.shape[-2:], one.key)
        crop = picture[None, :, top : top + height, left : left + width].float()
        side = self.train_set.options.size
        image = F.interpolate(crop, (side, side), mode="bilinear", antialias=True)[0].round_().to(torch.uint8)
        if view.flips(one.key):
            image = image.flip(-1)
        return view.policy(image, one.key) if view.policy else image
