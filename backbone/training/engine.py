"""The training loop: plain PyTorch, no Ray, any task. Read `train` first.

What is trained comes as a `Task`; where and with whom as a `World`; what a resume needs lives in a `Store`.
"""

import copy
import inspect
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbone.compute import Compute
from backbone.data.stream import MicroBatches, mix
from backbone.errors import UserError
from backbone.training import schedule
from backbone.training.recipe import Optim, TrainingRecipe
from backbone.training.state import Checkpointer, Progress, Store, training_seconds
from backbone.training.world import Report, World


class Task(Protocol):
    """What is trained."""

    @property
    def model(self) -> nn.Module:
        """What is saved, averaged and exported: never wrapped, so its keys carry no prefix."""
        ...

    @property
    def num_samples(self) -> int:
        """Training samples of one epoch."""
        ...

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The tensors of a batch, on the device -> (losses of its samples, float [N]; sums over them to log)."""
        ...

    def batches(self, micro_batches: MicroBatches) -> Iterable[Any]:
        """This rank's batches; each a dict with at least `position` (of its first sample) and `bad` (names)."""
        ...

    @property
    def max_bad(self) -> int:
        """Unreadable images that may be passed over before the run stops."""
        ...

    def blame(self, position: int) -> str:
        """What to look at where the loss of the sample at this position is not finite."""
        ...

    def evaluate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Validation metrics over all ranks; `error`, percent, is what schedules and the best checkpoint go by."""
        ...


def train(task: Task, recipe: TrainingRecipe, world: World, store: Store, report: Report) -> tuple[nn.Module, Progress]:
    """Train to the end of the recipe's schedule, from the newest checkpoint in `store` if there is one.

    Returns the model to judge and export (the moving average where the recipe keeps one) and the progress. All ranks
    call it; only the first writes and reports.

    Raises:
        FloatingPointError: a loss is not finite; names step and sample.
        UserError: the storage is full, or too many images are unreadable.
    """

    def say(text: str) -> None:
        if world.is_first:
            report({"kind": "say", "text": text})

    steps = schedule.in_steps(recipe.schedule, recipe.optim.batch, task.num_samples)
    trainer = Trainer(task, recipe.optim, recipe.compute, recipe.seed, world)
    progress = trainer.restore(store.newest(say))
    if progress.step:
        say(f"resuming at step {progress.step} of {steps.total}")
    micro_batches = MicroBatches(
        recipe.optim.batch, recipe.optim.micro_batch, world.rank, world.size, progress.step, steps.total
    )
    batches = iter(task.batches(micro_batches) if progress.step < steps.total else ())
    checkpointer = Checkpointer(store, recipe.run.keep)
    meter = Meter(world, recipe.optim.batch)

    while progress.step < steps.total:
        lr = schedule.learning_rate(recipe.schedule, recipe.optim, steps, progress.step, progress.events)
        trainer.step(batches, micro_batches, lr, progress.step, meter)
        progress.step += 1

        ends = progress.step == steps.total
        ends_epoch = ends or steps.ends_epoch(progress.step)
        evaluates = ends or (ends_epoch and steps.epochs_done(progress.step) % recipe.run.eval_every == 0)
        saves = evaluates or (recipe.run.checkpoint_every and progress.step % recipe.run.checkpoint_every == 0)
        if progress.step % recipe.run.log_every == 0 or saves:
            record = meter.record(progress, task)  # also the finite check: nothing broken is ever saved
            record |= {"step": progress.step, "epoch": progress.step * steps.batch / steps.num_samples, "lr": lr}
            if progress.step % recipe.run.log_every == 0:
                train_error = record.get("error", math.nan)
                progress.events = schedule.after_log(recipe.schedule, progress.events, progress.step, train_error)
            progress.history.append(record)
            _check_bad(progress, task.max_bad)
            if world.is_first:
                report({"kind": "log", "total": steps.total, **record})
        if evaluates:
            metrics = evaluate(task, trainer.evaluated, world)
            progress.events = schedule.after_evaluation(
                recipe.schedule, progress.events, progress.step, metrics["val_error"]
            )
            if metrics["val_error"] < progress.best:
                progress.best, progress.best_step = metrics["val_error"], progress.step
            progress.history.append({"step": progress.step, **metrics})
            report(
                {
                    "kind": "evaluation",
                    "step": progress.step,
                    "total": steps.total,
                    "epoch": progress.step * steps.batch / steps.num_samples,
                    "train_seconds": training_seconds(progress.history, steps.batch),
                    **metrics,
                }
            )
        if saves:
            if world.is_first:
                latest = {key: value for key, value in progress.history[-1].items() if key.startswith("val_")}
                checkpointer.save(trainer.state(), progress, latest)
            meter.restart()
    checkpointer.wait()
    return trainer.evaluated, progress


def evaluate(task: Task, model: nn.Module, world: World) -> dict[str, float]:
    """Metrics of `model`, prefixed `val_`, the same on every rank; the model's mode is put back."""
    world.share_buffers(model)
    was_training = model.training
    model.eval()
    began = time.perf_counter()
    metrics = {f"val_{name}": value for name, value in task.evaluate(model, world).items()}
    model.train(was_training)
    return {**metrics, "val_seconds": time.perf_counter() - began}


class Trainer:
    """Model, optimizer, moving average and scaler: one optimizer step at a time."""

    def __init__(self, task: Task, optim: Optim, compute: Compute, seed: int, world: World) -> None:
        self.task, self.optim, self.compute, self.seed, self.world = task, optim, compute, seed, world
        model = task.model.to(world.device)
        if compute.channels_last:
            model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(model, optim)
        self.average = copy.deepcopy(model).eval().requires_grad_(False) if optim.ema else None
        self.autocast = autocast(compute, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=compute.precision == "fp16")
        self.units = optim.batch // optim.micro_batch
        module: nn.Module = _Loss(task)
        if compute.compile != "none":
            module.compile(mode=compute.compile)  # in place: the saved keys carry no prefix
        self.graphs = compute.compile == "reduce-overhead" and world.device.type == "cuda"
        self.keeps_gradients = self.graphs and self.units > world.size
        if self.keeps_gradients:
            # A graph's gradients lie in its own memory, which the next micro-batch overwrites; where several add up
            # they must have memory of their own. A single one's are read before that, and copying them is saved.
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        if world.size > 1:
            # Buffers are batch statistics, which each rank keeps alone and shares when they are read.
            device_ids = [world.device] if world.device.type == "cuda" else None
            # torch 2.15 renamed the option.
            renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
            local_buffers: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
            module = DistributedDataParallel(
                module, device_ids=device_ids, gradient_as_bucket_view=True, **local_buffers
            )
        self.module = module.train()

    @property
    def evaluated(self) -> nn.Module:
        """The moving average where one is kept, else the model."""
        return self.average if self.average is not None else self.task.model

    def step(self, batches: Any, micro_batches: MicroBatches, lr: float, step: int, meter: "Meter") -> None:
        """One optimizer step: this rank's micro-batches forward and backward, gradients averaged over all of them."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        units = micro_batches.units
        for unit in units:
            batch = meter.wait_for(batches)
            # Dropout's generator is a function of the step too; it need not be saved to be resumed.
            seed_draws(mix(self.seed, step, unit) >> 1, self.world.device)
            is_last = unit == units[-1]
            if self.graphs:  # what the one before gave may be overwritten: `meter` has copied it
                torch.compiler.cudagraph_mark_step_begin()
            no_sync = self.module.no_sync if isinstance(self.module, DistributedDataParallel) and not is_last else None
            with no_sync() if no_sync else nullcontext():
                with self.autocast:
                    losses, sums = self.module({k: v for k, v in batch.items() if isinstance(v, Tensor)})
                # DDP divides by the number of ranks; ranks may hold different numbers of micro-batches.
                loss = losses.mean() * (self.world.size / self.units)
                self.scaler.scale(loss).backward()
            meter.add(losses.detach(), sums, batch)
        if self.optim.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.task.model.parameters(), self.optim.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)
        if self.average is not None:
            with torch.no_grad():
                average: list[Tensor] = list(self.average.parameters())
                now: list[Tensor] = list(self.task.model.parameters())
                torch._foreach_lerp_(average, now, 1 - self.optim.ema)
                for mine, latest in zip(self.average.buffers(), self.task.model.buffers(), strict=True):
                    mine.copy_(latest)

    def state(self) -> dict[str, Any]:
        """Everything but the progress, as a tree of tensors and numbers."""
        average = self.average.state_dict() if self.average is not None else {}
        return {
            "model": dict(self.task.model.state_dict()),
            "average": dict(average),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any] | None) -> Progress:
        """Take up a saved state, strictly; a fresh `Progress` where there is none."""
        if state is None:
            return Progress()
        self.task.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        fused = [group["fused"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, fused, strict=True):
            group["fused"] = own  # this device's, not that of the one the run began on
        self.scaler.load_state_dict(state["scaler"])
        return Progress.from_dict(state["progress"])


def autocast(compute: Compute, device: torch.device) -> torch.autocast:
    """The context in which the net runs: the recipe's precision."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[compute.precision]
    return torch.autocast(device.type, dtype, enabled=compute.precision != "fp32")


def seed_draws(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed` for the generators a step may draw from.

    That seeds those of all devices, and where CUDA is built in but absent notes the call stack: 0.2 ms a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class _Loss(nn.Module):
    """The task's loss as a module's forward, which is what DDP and torch.compile wrap."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._loss = task.loss

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._loss(batch)


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.SGD:
    """SGD with momentum and the recipe's weight decay.

    PyTorch keeps the learning rate outside the velocity, Caffe inside: they differ for some steps after a drop.
    """
    convolution = nn.Conv2d | nn.ConvTranspose2d
    norms = {id(p) for m in model.modules() if not isinstance(m, convolution | nn.Linear) for p in m.parameters(False)}
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, convolution)}

    def decays(name: str, parameter: nn.Parameter) -> bool:
        if optim.decay == "conv":
            return id(parameter) in convolutions
        return optim.decay == "all" or not (id(parameter) in norms or name.endswith("bias"))

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": optim.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    on_gpu = all(parameter.is_cuda for _, parameter in named)
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=optim.peak_lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        fused=True if on_gpu else None,  # a few kernels for all parameters
    )


class Meter:
    """Sums on the device between two log records; no step waits for the device."""

    def __init__(self, world: World, batch: int) -> None:
        self.world, self.batch = world, batch
        self._nowhere = torch.tensor(torch.iinfo(torch.int64).max, device=world.device)
        self.restart()

    def restart(self) -> None:
        """Begin a new window, e.g. after an evaluation, whose time is not training's."""
        self._sums: dict[str, Tensor] = {}
        self._first_broken = self._nowhere
        self._bad: list[str] = []
        self._steps_samples = 0
        self._waited = 0.0
        self._began = time.perf_counter()

    def wait_for(self, batches: Any) -> Any:
        """The next batch on the device; counts the time it was waited for."""
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        device = self.world.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def add(self, losses: Tensor, sums: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Count one micro-batch; remembers the first position whose loss is not finite."""
        self._steps_samples += len(losses)
        self._bad += batch["bad"]
        for name, value in {"loss": losses.sum(), **sums}.items():
            value = value.detach().to(torch.float64, copy=True)  # a CUDA graph overwrites what it gave
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        positions = batch["position"] + torch.arange(len(losses), device=losses.device)
        broken = torch.where(torch.isfinite(losses), self._nowhere, positions).min()
        self._first_broken = torch.minimum(self._first_broken, broken)

    def record(self, progress: Progress, task: Task) -> dict[str, float]:
        """Means over all ranks since the last record, speed, and a new window. All ranks call it."""
        first = int(self.world.min(self._first_broken.clone()))
        seconds = time.perf_counter() - self._began  # after the reduction above, which waited for the device
        names = sorted(self._sums)
        mine = [*(self._sums[name] for name in names), self._sums["loss"].new_tensor(self._steps_samples)]
        mine.append(self._sums["loss"].new_tensor(self._waited))
        *sums, samples, waited = self.world.sum(torch.stack(mine)).tolist()
        if first != self._nowhere:
            terms = ", ".join(n for n, total in zip(names, sums, strict=True) if not math.isfinite(total))
            raise FloatingPointError(
                f"{terms or 'loss'} is not finite at step {first // self.batch}, {task.blame(first)} (position "
                f"{first}); lower optim.lr, warm up, or look at the sample. The newest checkpoint is from before"
            )
        record = {name: total / samples for name, total in zip(names, sums, strict=True)}
        record |= {"images_per_second": samples / seconds, "data_wait": waited / self.world.size / seconds}
        for name in {name for names in self.world.gather(self._bad) for name in names}:
            progress.bad.setdefault(name, progress.step)
        self.restart()
        return {name: float(value) if math.isfinite(value) else math.nan for name, value in record.items()}


def _check_bad(progress: Progress, max_bad: int) -> None:
    if len(progress.bad) > max_bad:
        raise UserError(
            f"{len(progress.bad)} unreadable images, more than data.max_bad {max_bad}: "
            + "; ".join(list(progress.bad)[:5])
        )
