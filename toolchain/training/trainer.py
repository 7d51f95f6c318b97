"""Training of a source network: gradients for the activations that spikes can express, chosen by what spikes do.

After each epoch the network is converted and its integer network runs a part of the data that is not trained on:
the noise of NQ is measured there, and the epoch with the best *spiking* accuracy is kept (Huang et al., section 5.2).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from exporters.bundle import digest
from exporters.report import TaskName
from sim.arguments import checked
from sim.findings import Refused, refuse
from sim.progress import counting
from toolchain.frontends import import_model
from toolchain.frontends.advice import LEAVE_OFF
from toolchain.frontends.plain import copied
from toolchain.frontends.tracing import one_line
from toolchain.graph.activations import NQ
from toolchain.graph.channels import spread
from toolchain.inputs import as_inputs
from toolchain.surgery import RECORD, is_activation, record, replace_activations
from toolchain.task import Task, resolve
from toolchain.training import checkpoint, data
from toolchain.training.noise import Residual, Spiking, as_cpu, induce, measure
from toolchain.training.settings import Settings

SAMPLE = 256  #: training inputs on which the first thresholds are chosen
LEAST = 1e-2  #: of its first value, that a trained threshold does not fall below


@dataclass(frozen=True)
class Epoch:
    """What came of one epoch; None where the epoch was not validated."""

    epoch: int  #: from 1
    loss: float  #: mean over the batches
    ann: float | None  #: accuracy of the trained network on the validation part, in %, or R²
    snn: float | None  #: of the converted network, after T steps
    noise: dict[str, float]  #: by NQ module: the noise of the next epoch
    residuals: tuple[Residual, ...]  #: between activations and spikes, by layer
    seconds: float
    refused: str | None = None  #: why the network of this epoch could not be converted

    def __str__(self) -> str:
        measured = "" if self.snn is None else f", ANN {self.ann:.2f} %, SNN {self.snn:.2f} %"
        measured += "" if self.refused is None else f", not converted: {self.refused}"
        return f"epoch {self.epoch}: loss {self.loss:.4f}{measured}"


@dataclass(frozen=True, eq=False)
class Trained:
    """The network of the best epoch and how it came about."""

    model: nn.Module  #: in eval mode, on the CPU
    settings: Settings
    history: tuple[Epoch, ...]
    best: int  #: epoch, from 1
    input_shape: tuple[int, ...]

    def weights(self) -> dict[str, Any]:
        """Return the state_dict as :func:`toolchain.loading.load_model` reads it, with the record of activations."""
        kept = {"state_dict": self.model.state_dict()}
        if self.settings.activation == "relu":
            return kept
        return {RECORD: record(self.settings.activation, self.settings.levels, self.input_shape)} | kept

    def as_dict(self) -> dict[str, Any]:
        """Return settings and history as JSON types."""
        return {
            "settings": self.settings.as_dict(),
            "best": self.best,
            "history": [asdict(epoch) for epoch in self.history],
        }

    @checked
    def save(self, directory: str | Path) -> None:
        """Write ``trained.pt``, ``history.json`` and ``curves.png``, each as a whole."""
        from toolchain.training.curves import picture  # drawing takes time to load

        directory = Path(directory)
        checkpoint.write(directory / checkpoint.WEIGHTS, self.weights())
        checkpoint.write_json(directory / checkpoint.HISTORY, self.as_dict())
        checkpoint.replace_file(directory / checkpoint.CURVES, picture(self.history, self.settings))


Callback = Callable[[Epoch], object]

#: By task: (outputs (B, *shape), labels as :meth:`toolchain.task.Task.labels` returns them) -> loss
LOSSES: dict[TaskName, Callable[[Tensor, Tensor], Tensor]] = {
    "classes": lambda outputs, y: functional.cross_entropy(outputs.flatten(1), y),
    "binary": lambda outputs, y: functional.binary_cross_entropy_with_logits(outputs.flatten(), y.float()),
    "labels": lambda outputs, y: functional.binary_cross_entropy_with_logits(outputs, y.float()),
    "pixels": lambda outputs, y: (
        functional.cross_entropy(outputs, y)
        if outputs.shape[1] > 1
        else functional.binary_cross_entropy_with_logits(outputs[:, 0], y.float())
    ),
    "regression": lambda outputs, y: functional.mse_loss(outputs, y.float()),
}


@checked
def train(
    model: nn.Module,
    x: Any,
    y: Any,
    settings: Settings | None = None,
    *,
    teacher: nn.Module | None = None,
    transform: Callable[..., Tensor] | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Train a copy of ``model`` with the activations of ``settings`` in the place of its ReLUs; see the module.

    ``x`` (N, ...) and ``y`` (N, ...) are inputs and labels, of which ``settings.validation`` are held out; x of uint8
    stays so in memory and is divided by 255 batch by batch. ``teacher`` is what ``settings.distill`` compares with, the
    model as it is given if None. ``transform`` changes each batch (B, ...) of inputs at random, after
    ``settings.augment``; :func:`toolchain.training.data.one_by_one` makes one of a torchvision transform. With a
    ``directory`` every epoch is kept there, and ``resume`` goes on after the last. ``callbacks`` are called with each
    :class:`Epoch`. Under ``torchrun`` each process computes its share of every batch on a device of its own, and the
    first one validates and writes. Deterministic for a seed, number of threads and processes on one machine's CPU.
    Raises :class:`sim.findings.Refused` for data, labels and models that cannot be used, and where the loss is no
    number any more.
    """
    settings = settings or Settings()
    for callback in callbacks:
        if not callable(callback):
            raise refuse("callbacks", f"{type(callback).__name__} given", "give functions of an Epoch")
    with _processes(device) as (place, rank, processes):
        run = _Run(model, x, y, settings, teacher, place, rank, processes, transform)
        folder = None if directory is None else Path(directory)
        if folder is not None and rank == 0:
            checkpoint.prepare(folder, resume)
        if folder is not None and resume:
            run.restore(checkpoint.load(folder, run.identity()))
        for epoch in range(len(run.history), settings.epochs):
            found = run.epoch(epoch)
            if rank == 0:
                if folder is not None:
                    checkpoint.write(folder / checkpoint.CHECKPOINT, run.state())
                for callback in callbacks:
                    callback(found)
        trained = run.finished()
        if folder is not None and rank == 0:
            trained.save(folder)
        return trained


@contextmanager
def _processes(device: str) -> Iterator[tuple[torch.device, int, int]]:
    """Say where this process computes, which of how many it is; torchrun's, where it has started several."""
    processes, local = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("LOCAL_RANK", "0")
    try:
        place = torch.device(device)
        if place.type == "cuda" and place.index is None and processes > 1:
            place = torch.device("cuda", int(local))
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise refuse(
            "device", f"{device!r} is not there ({str(error).splitlines()[0]})", "give cpu, or cuda"
        ) from error
    if processes == 1 or torch.distributed.is_initialized():
        group = torch.distributed.is_initialized()
        yield place, *((torch.distributed.get_rank(), torch.distributed.get_world_size()) if group else (0, 1))
        return
    torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield place, torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        torch.distributed.destroy_process_group()


class _Run:
    """One training, as it stands."""

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        y: Any,
        settings: Settings,
        teacher: nn.Module | None,
        place: torch.device,
        rank: int,
        processes: int,
        transform: Callable[..., Tensor] | None,
    ) -> None:
        self.settings, self.place, self.rank, self.processes = settings, place, rank, processes
        self.transform = transform
        inputs = _inputs(x)
        validation = settings.validation or min(1000, max(1, len(inputs) // 10))
        if validation >= len(inputs):
            problem = f"{validation} samples of {len(inputs)}"
            raise refuse("validation", problem, "hold out fewer, so that some are left to train on")
        chosen, held = data.split(len(inputs), validation, settings.seed)
        model = as_cpu(model)
        first = _scaled(inputs[chosen[spread(len(chosen), SAMPLE)]])
        shape = tuple(first.shape[1:])
        outputs = _outputs(model, first)
        self.task, _ = resolve("auto", tuple(outputs.shape[1:]), y)
        labels = torch.from_numpy(self.task.labels(y, len(inputs)))
        self.origin = digest({"x": inputs[spread(len(inputs))].numpy(), "y": labels.numpy(), **_arrays(model)})
        self.shape, self.history, self.best = shape, [], (-math.inf, -math.inf, 0, {})  # type: ignore[var-annotated]
        self.student = self._student(model, first)
        if rank == 0:
            try:
                import_model(as_cpu(self.student), shape, samples=first)  # what no conversion takes is said before
            except Refused as error:  # the loss is one of logits
                found = (replace(f, remedy="take it out") if LEAVE_OFF in f.remedy else f for f in error.findings)
                raise Refused(found) from None
        self.teacher = None
        if settings.distill:
            self.teacher = _placed(model if teacher is None else as_cpu(teacher), place, shape)
        self.x, self.y = inputs[chosen].to(place), labels[chosen].to(place)
        self.held = _scaled(inputs[held]), labels[held].numpy()
        self.calibration = _scaled(inputs[chosen[spread(len(chosen), settings.calibration)]])
        self.augment = data.augmentation(settings.augment, settings.padding)
        if settings.augment != "none" and len(shape) < 2:
            raise refuse("augment", f"{settings.augment} for inputs of shape {shape}", "give none")
        self.optimizer, self.floors = self._optimizer()
        self.loop: nn.Module = self.student
        if processes > 1:
            self.loop = DistributedDataParallel(self.student, [place.index] if place.type == "cuda" else None)

    def _student(self, model: nn.Module, first: Tensor) -> nn.Module:
        s = self.settings
        if s.activation != "relu":
            model = replace_activations(model, s.activation, levels=s.levels, sample=first, per_channel=s.per_channel)
            for module in model.modules():
                if type(module) is NQ:
                    module.noise.fill_(s.delta)
        return _placed(model, self.place, self.shape, own=True)

    def _optimizer(self) -> tuple[torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
        thresholds = [parameter for m in self.student.modules() if is_activation(m) for parameter in m.parameters()]
        names = {id(parameter) for parameter in thresholds}
        others = [p for p in self.student.parameters() if p.requires_grad and id(p) not in names]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": self.settings.weight_decay},
            {"params": [*(p for p in others if p.ndim <= 1), *thresholds], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]], self.settings.learning_rate, self.settings.momentum
        )
        return optimizer, [(p, p.detach() * LEAST) for p in thresholds]

    def identity(self) -> dict[str, Any]:
        """Return what makes a file to go on from one of this training."""
        return {"settings": self.settings.as_dict(), "origin": self.origin, "processes": self.processes}

    def state(self) -> dict[str, Any]:
        """Return everything that the next epoch depends on."""
        return self.identity() | {
            "epoch": len(self.history),
            "model": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": list(self.best),
            "history": [asdict(epoch) for epoch in self.history],
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a :meth:`state`."""
        if state is not None:
            self.student.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best = tuple(state["best"])
            self.history = [
                Epoch(**entry | {"residuals": tuple(Residual(**r) for r in entry["residuals"])})
                for entry in state["history"]
            ]

    def epoch(self, epoch: int) -> Epoch:
        """Train for one epoch and validate what it led to."""
        start, s = time.perf_counter(), self.settings
        loss = self._pass(epoch)
        if not math.isfinite(loss):
            raise refuse("training", f"the loss is {loss} in epoch {epoch + 1}", "give a lower learning rate")
        done = Epoch(epoch + 1, loss, None, None, {}, (), 0.0)
        if self.rank == 0 and ((epoch + 1) % s.every == 0 or epoch + 1 == s.epochs):
            try:
                done = self._validated(done)
            except Refused as error:  # registers may be left early, and not by what training comes to
                done = replace(done, refused=str(error).splitlines()[0])
        self.history.append(replace(done, seconds=time.perf_counter() - start))
        return self.history[-1]

    def _validated(self, done: Epoch) -> Epoch:
        """Measure what an epoch led to, keep it if it is the best, and set the noise of the next."""
        s, found, noise = self.settings, self._measured(self.settings.steps), {}
        if (found.snn, found.ann) > self.best[:2]:
            kept = {key: value.detach().cpu().clone() for key, value in self.student.state_dict().items()}
            self.best = found.snn, found.ann, done.epoch, kept
        if s.activation == "nq" and s.noise == "layerwise":
            noise = induce(self.student, found if s.measured == s.steps else self._measured(s.measured))
        return replace(done, ann=found.ann, snn=found.snn, noise=noise, residuals=found.residuals)

    def _measured(self, timesteps: int) -> Spiking:
        recipe = replace(self.settings.recipe(timesteps), task=self.task.name)
        return measure(self.student, *self.held, self.calibration, recipe)

    def _pass(self, epoch: int) -> float:
        s, n = self.settings, len(self.x)
        whole = data.updates(n, s.batch, self.processes)
        self.loop.train()
        total = torch.zeros((), device=self.place)
        # What an epoch draws depends on its number alone, so that it may be the first of a process.
        order, drawn = (int(v) for v in np.random.SeedSequence([s.seed, epoch]).generate_state(2))
        generator = torch.Generator(self.place).manual_seed(drawn + self.rank)
        devices = [self.place] if self.place.type == "cuda" else []
        with torch.random.fork_rng(devices), counting(f"training, epoch {epoch + 1} of {s.epochs}", whole) as advance:
            torch.manual_seed(drawn + self.rank)
            for step, index in enumerate(data.batches(n, s.batch, order, self.rank, self.processes)):
                rate = s.learning_rate * (1 + math.cos(math.pi * (epoch + step / whole) / s.epochs)) / 2
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                index = index.to(self.place)
                batch = self.augment(_scaled(self.x[index]), generator)
                loss = self._loss(batch if self.transform is None else self.transform(batch), self.y[index])
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
                with torch.no_grad():
                    for threshold, floor in self.floors:
                        torch.maximum(threshold, floor, out=threshold)
                total += loss.detach()
                advance(1)
        if self.processes > 1:
            torch.distributed.all_reduce(total)
        return float(total) / whole / self.processes

    def _loss(self, batch: Tensor, y: Tensor) -> Tensor:
        s = self.settings
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.place.type, torch.bfloat16, enabled=s.precision == "bfloat16"):
            try:
                outputs = self.loop(batch)
            except (RuntimeError, TypeError, ValueError) as error:  # of the model's own, as a norm over one value
                problem = f"the model fails on a batch of shape {tuple(batch.shape)}: {one_line(error)}"
                raise refuse(
                    "training", problem, "give other batches (--batch), or inputs as the model takes them"
                ) from error
            if self.teacher is not None:
                with torch.no_grad():
                    wanted = self.teacher(batch).float()
        outputs = outputs.float()
        loss = LOSSES[self.task.name](outputs, y)
        if self.teacher is None:
            return loss
        return (1 - s.distill) * loss + s.distill * distillation(outputs, wanted, s.temperature, self.task)

    def finished(self) -> Trained:
        """Return the network of the best epoch; processes that do not validate return the last."""
        model = as_cpu(self.student)
        *_, best, kept = self.best
        if kept:
            model.load_state_dict(kept)
        elif self.rank == 0:
            raise refuse("training", f"no epoch could be converted: {self.history[-1].refused}", "train otherwise")
        return Trained(model, self.settings, tuple(self.history), best, self.shape)


def distillation(outputs: Tensor, wanted: Tensor, temperature: float, task: Task) -> Tensor:
    """Compare with a teacher's outputs: ``t^2 KL(softmax(teacher / t) | softmax(outputs / t))`` over classes.

    Hinton et al., arXiv:1503.02531. Outputs that do not compete are compared by their squared error.
    """
    if task.name not in ("classes", "pixels") or outputs.shape[1] == 1:
        return functional.mse_loss(outputs, wanted)
    found, target = (functional.log_softmax(values / temperature, 1) for values in (outputs, wanted))
    divergence = functional.kl_div(found, target, reduction="none", log_target=True).sum(1).mean()
    return temperature**2 * divergence


def _inputs(x: Any) -> Tensor:
    """Return inputs as they are kept: bytes as bytes, all else as :func:`toolchain.inputs.as_inputs` has it."""
    tensor = torch.from_numpy(x) if isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim > 1 else x
    if isinstance(tensor, Tensor) and tensor.dtype == torch.uint8 and len(tensor):
        as_inputs(tensor[:1], where="x")
        return tensor
    return as_inputs(x, where="x")


def _scaled(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _placed(model: Any, place: torch.device, shape: tuple[int, ...], own: bool = False) -> nn.Module:
    """Bring a copy of a model, or our own, to a device, channels last where it computes on images; in eval mode."""
    layout = torch.channels_last if len(shape) == 3 else torch.preserve_format
    own_copy: Any = model if own else copied(model)
    return own_copy.to(place, memory_format=layout).eval()


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model on a few inputs; :class:`Refused` where it cannot, or returns something else than outputs."""
    try:
        with torch.no_grad():
            outputs = model(x[:2])
    except Exception as error:  # whatever the user's own forward raises
        problem = f"it fails on inputs of shape {tuple(x.shape[1:])}: {' '.join(str(error).split())}"
        raise refuse(type(model).__name__, problem, "check the data and the model") from error
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise refuse(
            type(model).__name__, "does not return one tensor of outputs", "return the logits and nothing else"
        )
    return outputs


def _arrays(model: nn.Module) -> dict[str, Any]:
    return {f"model.{name}": value.float().numpy() for name, value in model.state_dict().items()}
