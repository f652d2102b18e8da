"""JPEGs to views on a GPU: loader processes hand over bytes, nvJPEG decodes, the crop is resized and flipped there.

torchvision decodes on a stream of its own, into memory of the current stream, and does not wait for what is queued
there: blocks that the net's kernels have yet to read are overwritten (pytorch/vision, pull request 9606). So everything
here happens on a third stream, whose memory nothing else uses, and which is waited for before it is given anything to
do. Whether that holds on this GPU is looked at before training begins.

torchvision has deprecated its decoders for torchcodec's; without them `data.decode` nvjpeg is refused.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbone.data.batches import Batch, TrainSet, Undecoded
from backbone.data.decode import decode
from backbone.errors import UserError

INSTEAD = "set data.decode to exact or scaled"
TRIALS = 20
TOLERANCE = 32
"""Largest difference to libjpeg, grey levels, in pictures whose colours change slowly: the two round and upsample."""


class Decoder:
    """Completes batches with images on the device: pixels are a function of key and data, and of the GPU's nvJPEG."""

    def __init__(self, train_set: TrainSet, device: str = "cuda") -> None:
        """On the current GPU; `device` "cpu" decodes with libjpeg, which is for tests.

        Raises:
            UserError: there is no GPU, torchvision has no nvJPEG, or it does not decode what it should.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(f"data.decode nvjpeg: torch sees no GPU here; look at nvidia-smi, or {INSTEAD}")
        self.train_set, self.device = train_set, torch.device(device)
        self._stream = torch.cuda.Stream() if device == "cuda" else None
        try:
            wrong = self._count_wrong()
        except (ImportError, RuntimeError) as error:
            raise UserError(f"data.decode nvjpeg: torchvision cannot ({error}); {INSTEAD}") from error
        if wrong:
            raise UserError(
                f"data.decode nvjpeg: of {TRIALS} pictures decoded to try it, beside other work of the GPU, {wrong} "
                f"came out wrong; {INSTEAD}, or take another torchvision or driver"
            )

    def __call__(self, batch: Batch) -> Batch:
        """The batch, its images uint8 [N, 3, S, S] on the device, all of them filled in.

        Waits until they are; what the net has queued goes on meanwhile.
        """
        with self._apart():
            completed = self._complete(batch)
        if self._stream is not None:
            completed["images"].record_stream(torch.cuda.current_stream())
        return completed

    @contextmanager
    def _apart(self) -> Generator[None]:
        """The decoder's stream as the current one, with nothing under way on it: neither before nor after."""
        if self._stream is None:
            yield
            return
        self._stream.synchronize()
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def _count_wrong(self) -> int:
        """How many of `TRIALS` pictures are not what libjpeg makes of them, decoded while the GPU is busy."""
        pictures = [_picture(k) for k in range(TRIALS)]
        encoded = [cv2.imencode(".jpg", one[:, :, ::-1])[1] for one in pictures]
        work = torch.randn(2048, 2048, device=self.device) if self._stream is not None else torch.zeros(1, 1)
        found: list[Tensor] = []
        for k in range(0, TRIALS, 5):
            for _ in range(8):
                work = (work @ work).clamp_(-1, 1)  # frees and takes blocks that kernels still read
            with self._apart():
                found += [one.cpu() for one in self._decode([torch.from_numpy(one) for one in encoded[k : k + 5]])]
        wrong = 0
        for picture, one in zip(found, encoded, strict=True):
            expected = decode(one.tobytes(), "the picture")
            wrong += int(np.abs(picture.permute(1, 2, 0).numpy().astype(int) - expected).max()) > TOLERANCE
        return wrong

    def _complete(self, batch: Batch) -> Batch:
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
            if self._stream is not None:
                torch.cuda.synchronize()  # what it had begun may still be written
            pictures = [self._try(one) for one in encoded]
        for one, picture in zip(undecoded, pictures, strict=True):
            side = images.shape[-1]
            images[one.place] = self._on_host(one, side, batch) if picture is None else self._view(picture, one, side)
        batch["images"] = images
        return batch

    def _decode(self, encoded: list[Tensor]) -> list[Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg

        found = decode_jpeg(encoded, ImageReadMode.RGB, self.device)
        assert isinstance(found, list)
        return found

    def _try(self, encoded: Tensor) -> Tensor | None:
        try:
            return self._decode([encoded])[0]
        except RuntimeError:
            return None

    def _on_host(self, one: Undecoded, side: int, batch: Batch) -> Tensor:
        """What nvJPEG cannot read OpenCV or PIL may; what they cannot is named, or replaced as data.on_bad says."""
        view, sample = self.train_set.decoded(one, side, batch["bad"])
        batch["labels"][one.place] = int(self.train_set.source.labels[sample])
        batch["samples"][one.place] = sample
        return view

    def _view(self, picture: Tensor, one: Undecoded, side: int) -> Tensor:
        """uint8 [3, H, W] -> [3, side, side]: antialiased as torchvision's and PIL's filter, rounded."""
        view = self.train_set.view_at(side)
        top, left, height, width = view.box(*picture.shape[-2:], one.key)
        crop = picture[None, :, top : top + height, left : left + width].float()
        image = F.interpolate(crop, (side, side), mode="bilinear", antialias=True)[0].round_().to(torch.uint8)
        if view.flips(one.key):
            image = image.flip(-1)
        for name, magnitude in view.operations(one.key):
            image = self._policy._apply_image_or_video_transform(image, name, magnitude, "bilinear", {})
        erased = view.erased(one.key)
        if erased:
            colour = torch.tensor(view.colour, dtype=torch.uint8, device=image.device)
            top, left, height, width = erased
            image[:, top : top + height, left : left + width] = colour[:, None, None]
        return image

    @cached_property
    def _policy(self) -> Any:
        """torchvision's operations: on tensors a turned image fades into black, in PIL's and ours it ends sharply."""
        from torchvision.transforms import v2

        return v2.TrivialAugmentWide()


def _picture(k: int) -> np.ndarray:
    """uint8 RGB [H, W, 3], each of another size, colours changing slowly."""
    height, width = 40 + 7 * k, 200 - 5 * k
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin((x + y) / 80 + k)], 2).astype(np.uint8)
