"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, a log file, TensorBoard files."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from backbone.storage import filesystem, is_local


class Display:
    """Shows the records of a run as they come (see `engine.Report`), on the driver."""

    def __init__(
        self,
        url: str,
        label: str = "",
        watch: Callable[[dict[str, Any]], None] = lambda record: None,
        keeps: bool = True,
    ) -> None:
        """`label` goes before every line, where several runs share an output; then no bar is drawn.

        `watch` is given each record too. `keeps`: whether this process writes the run's files; of torchrun's the first.
        """
        self.url = url
        self._watch, self._keeps = watch, keeps
        self._label = f"[{label}] " if label else ""
        self._bar: tqdm | None = None
        self._writer: Any = None
        self._folder = filesystem(url)[1] if is_local(url) else tempfile.mkdtemp(prefix="raybone-")
        self._began: tuple[float, int] | None = None
        self._step: int | None = None
        self._is_stopped = self._is_hindered = False
        if not is_local(url) and keeps:  # what attempts before this one have written
            fs, path = filesystem(url)
            if fs.exists(f"{path}/log.txt"):
                fs.get_file(f"{path}/log.txt", f"{self._folder}/log.txt")

    @property
    def has_begun(self) -> bool:
        """Whether training was seen to run."""
        return self._step is not None

    def show(self, record: dict[str, Any]) -> None:
        """Take one record: a log, an evaluation, or something to say. After `stopped` nothing is shown."""
        if not self._is_stopped:  # workers go on for a moment
            self._show(record)
        self._watch(record)

    def _show(self, record: dict[str, Any]) -> None:
        if record["kind"] == "say":
            self.say(record["text"])
            return
        self._step = record["step"]
        with self._unhindered():
            self._to_tensorboard(record)
        if record["kind"] == "evaluation":
            metrics = {name.removeprefix("val_"): value for name, value in record.items() if name.startswith("val_")}
            # A detector's error, 100 - AP, is what the loop goes by; people read AP.
            hidden = ("seconds", "error") if "AP" in metrics else ("seconds",)
            facts = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in hidden)
            self.say(f"step {record['step']}/{record['total']}  validation: {facts}  ({metrics['seconds']:.1f} s)")
            return
        if self._began is None:
            self._began = (time.monotonic(), record["step"])
        facts = f"loss {record['loss']:.3f}"
        if "error" in record:
            facts += f"  error {record['error']:.1f} %"
        else:
            parts = {name: value for name, value in record.items() if name.startswith("loss_")}
            facts += " (" + ", ".join(f"{name[5:]} {value:.2f}" for name, value in parts.items()) + ")" if parts else ""
        rate = record["images_per_second"]
        facts += f"  {rate:{'.0f' if rate >= 10 else '.2g'}} img/s"
        facts += f"  grad {record['grad_norm']:.3g}" if "grad_norm" in record else ""
        began, first = self._began
        done = record["step"] - first
        left = (record["total"] - record["step"]) * (time.monotonic() - began) / done if done else None
        line = f"epoch {record['epoch']:.2f}  step {record['step']}/{record['total']}  {facts}  lr {record['lr']:.4g}"
        line += f"  data wait {record['data_wait']:.0%}"
        line += f"  eta {tqdm.format_interval(left)}" if left is not None else ""
        if not sys.stderr.isatty() or self._label:
            self.say(line)
            return
        if self._bar is None:
            self._bar = tqdm(total=record["total"], initial=record["step"], unit="step", dynamic_ncols=True)
        self._bar.n = record["step"]
        self._bar.set_postfix_str(f"{facts}  data {record['data_wait']:.0%}")
        self.note(line)

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        tqdm.write(self._label + text, file=sys.stdout)
        sys.stdout.flush()
        self.note(text)

    def note(self, text: str) -> None:
        """Add to the run's log.txt alone."""
        with self._unhindered(), Path(self._folder, "log.txt").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextmanager
    def _unhindered(self) -> Generator[None]:
        """A full disk stops the run where it matters, by the message of the checkpoint; here it is told once."""
        try:
            yield
        except OSError as error:
            if not self._is_hindered:
                self._is_hindered = True
                what = f"log.txt and TensorBoard files of {self.url} cannot be written"
                tqdm.write(f"{self._label}{what}: {error}", file=sys.stdout)

    def stopped(self, again: str) -> None:
        """The last word of a run that somebody stopped, said once; submitted again it will `again`, if it will."""
        if self._is_stopped:
            return
        self._is_stopped = True
        at = f" at step {self._step}" if self._step is not None else ""
        self.say(f"stopped{at}; submit again to {again}" if again else f"stopped{at}")

    def close(self) -> None:
        """Finish the bar and the TensorBoard files; of a remote run, all of it is in its folder then."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            with self._unhindered():
                self._writer.close()
        self._upload()
        if not is_local(self.url):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _to_tensorboard(self, record: dict[str, Any]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # What an interrupted attempt wrote past the checkpoint that was resumed is dropped.
            self._writer = SummaryWriter(f"{self._folder}/tensorboard", purge_step=record["step"])
        split = "train" if record["kind"] == "log" else "val"
        for name, value in record.items():
            if name not in ("kind", "step", "total"):
                self._writer.add_scalar(f"{split}/{name.removeprefix('val_')}", value, record["step"])
        if split == "val":
            self._writer.flush()
            self._upload()

    def _upload(self) -> None:
        """What has been written so far, where the run is remote. A store that does not answer now may the next time."""
        if is_local(self.url) or not self._keeps:
            return
        fs, path = filesystem(self.url)
        try:
            fs.put(self._folder + "/", path + "/", recursive=True)
        except OSError as error:
            tqdm.write(f"{self._label}log and TensorBoard files cannot be uploaded to {self.url}: {error}", sys.stdout)
