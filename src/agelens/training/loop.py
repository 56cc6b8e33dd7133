"""
The training loop: one recipe and one folder of prepared faces to one run's folder.

    train
    ├── _prepare      network, faces, teachers, optimiser
    └── _Run.fit      epochs
        ├── _learn    steps: batches -> losses -> gradients -> weights -> averaged weights
        └── _judge    validation -> best checkpoint, history, curves, state

Everything random is a function of the seed and of where the run stands: draws and augmentation of
the epoch and the place in it, dropout of the step. So a run that was killed goes on, in the middle
of an epoch too, to the very numbers of an unbroken one; on a GPU as far as its kernels repeat
themselves. ``accelerate`` gives device, bf16 and data parallelism; start several processes with
``torchrun`` or ``accelerate launch``.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

try:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, gather_object
    from timm.layers.norm_act import convert_sync_batchnorm
    from torch import Tensor, nn
    from torch.utils.data import DataLoader
except ImportError as error:
    from agelens.errors import MissingExtra

    raise MissingExtra("train", "training") from error

import numpy as np
from numpy.typing import NDArray

from agelens.data.loading import (
    BalancedDraws,
    FaceBatch,
    PreparedFaces,
    ShardFolder,
    draw_weights,
    loss_weights,
    start_worker,
    to_tensors,
)
from agelens.errors import ArgumentError, TrainingError
from agelens.results import AGE_COUNT
from agelens.training import journal
from agelens.training.checkpoint import (
    BEST,
    LAST,
    DatasetUsed,
    Start,
    TrainingData,
    datasets_of,
    first_network,
    save_checkpoint,
    write_safetensors,
)
from agelens.training.describing import (
    DESCRIPTIONS,
    JUDGED,
    describe_faces,
    describer_identity,
    hints,
    judge,
    load_describer,
)
from agelens.training.distillation import (
    SOFT_LABELS,
    Answers,
    faces_digest,
    load_teachers,
    read_answers,
    soft_labels,
    within_labels,
    write_answers,
)
from agelens.training.losses import Objectives, Targets, UncertaintyWeights
from agelens.training.network import (
    AgeGenderNetwork,
    expected_age,
    parameter_groups,
    read_safetensors,
)
from agelens.training.progress import Progress
from agelens.training.recipe import OptimizerPart, Recipe
from agelens.training.validation import Predictions, predict, validation_metrics

STATE_SCHEMA: Final = "agelens.state/1"
_DEV_STEPS: Final = 2
_TASK_RATE: Final = 5.0
"""Factor of the learning rate for the task weights, which have to follow the falling losses."""
_EXTRA_REPORT: Final = ("age_error", "age_count", "gender_right", "gender_count", "weighted")


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        folder: The run's.
        best: Checkpoint with the best validation figure.
        last: Checkpoint of the last epoch.
        epochs: Epochs that were run.
        best_epoch: Epoch of the best checkpoint, from 1.
        metrics: Validation figures of the best epoch; see ``validation_metrics``.
        history: One mapping an epoch, as ``metrics.csv``.
        stopped_early: True when patience ended it.
    """

    folder: Path
    best: Path
    last: Path
    epochs: int
    best_epoch: int
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...]
    stopped_early: bool


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    fast_dev_run: bool = False,
) -> RunResult:
    """Train a network.

    Args:
        recipe: What to do.
        data: Folder of prepared faces.
        out: The run's folder; new or empty unless ``resume``.
        resume: Go on where the run in ``out`` stands; starts it when there is none yet.
        fast_dev_run: Two steps and two batches of validation, to see that everything holds.

    Returns:
        Paths and figures.

    Raises:
        TrainingError: ``out`` holds another run, or the loss is no longer a number.
        ArgumentError: Recipe and data do not fit.
        DataError: The prepared faces cannot be read.
        ModelNotFound, ModelCorrupt: First weights or teachers cannot be loaded.
    """
    recipe = _for_development(recipe) if fast_dev_run else recipe
    accelerator = _accelerator(recipe)
    try:
        _claim(Path(out), resume, accelerator)
        run = _prepare(recipe, Path(data), Path(out), accelerator, fast_dev_run)
        if resume:
            run.resume()
        result = run.fit()
        accelerator.wait_for_everyone()  # who leaves first takes the connection along
        return result
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Its threads must not outlive the run: the interpreter aborts on them at its end.
            torch.distributed.destroy_process_group()
        # The next run of this process may ask for another precision.
        AcceleratorState._reset_state(True)


class _TrainingModel(nn.Module):
    """Network and losses in one, so that data parallelism averages all their gradients.

    A loss is a sum over the labelled faces of the whole step, of all processes and accumulated
    batches, over their number: how the step is cut up makes no difference.
    """

    def __init__(
        self,
        network: AgeGenderNetwork,
        objectives: Objectives,
        weights: UncertaintyWeights | None,
        projection: nn.Linear | None,
    ) -> None:
        super().__init__()
        self.network, self.objectives, self.weights = network, objectives, weights
        self.projection = projection
        factors = [objectives.weights[task] for task in objectives.tasks]
        self.register_buffer("factors", torch.tensor(factors), persistent=False)

    def forward(
        self, chips: Tensor, targets: Targets, counts: Tensor, parts: float, share: float
    ) -> tuple[Tensor, Tensor]:
        """Loss of a batch and what to report of it.

        Args:
            chips: (B, S, S, 3) uint8.
            targets: Of the batch.
            counts: (T,) labelled faces of the whole step.
            parts: Number of processes, over which the gradients will be averaged.
            share: Share of the step that this batch is.

        Returns:
            () loss and (T + 5,) sums: a loss a task, then ``_EXTRA_REPORT``.
        """
        outputs = self.outputs(chips)
        sums = self.objectives.sums(outputs, targets)
        totals = torch.stack([sums[task].total for task in self.objectives.tasks])
        losses, factors = totals * parts / counts.clamp(min=1), cast("Tensor", self.factors)
        if self.weights is None:
            loss = (factors * losses).sum()
        else:
            # The factor stands before the whole term: before the loss alone it would be unlearned.
            loss = self.weights(losses, factors * (counts > 0), share)
        with torch.no_grad():
            report = torch.cat(
                [totals, self._correctness(outputs, targets), loss.reshape(1) / parts]
            )
        return loss, report

    def outputs(self, chips: Tensor) -> dict[str, Tensor]:
        """Everything that the losses are of, in float32."""
        features = self.network.features(chips)
        outputs = {key: value.float() for key, value in self.network.answers(features).items()}
        if "distillation_age" in self.objectives.tasks:
            outputs["log_probabilities"] = self.network.log_probabilities(outputs)
        if self.projection is not None:
            outputs["features"] = self.projection(features).float()
        return outputs

    def _correctness(self, outputs: dict[str, Tensor], targets: Targets) -> Tensor:
        mean = expected_age(self.network.probabilities(outputs))
        distance = (targets.low - mean).clamp(min=0) + (mean - targets.high).clamp(min=0)
        gendered = targets.female >= 0
        said_female = outputs["gender"][:, 0] > 0 if "gender" in outputs else gendered
        right = gendered & (said_female == (targets.female == 1)) & ("gender" in outputs)
        values = (
            torch.where(targets.has_age, distance, 0).sum(),
            targets.has_age.sum(),
            right.sum(),
            gendered.sum(),
        )
        return torch.stack([value.to(mean.dtype) for value in values])


@dataclass
class _Standing:
    """Where a run stands; everything that ``resume`` needs besides tensors."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    timings: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float = math.inf
    finished: bool = False
    stopped_early: bool = False


class _Run:
    """A run in progress: the parts, and where it stands."""

    def __init__(
        self,
        *,
        start: Start,
        accelerator: Accelerator,
        out: Path,
        faces: PreparedFaces,
        val: PreparedFaces,
        data: TrainingData,
        answers: Answers | None,
        wanted_features: NDArray[np.float32] | None,
        development: bool,
    ) -> None:
        self.recipe, self.accelerator, self.out = start.recipe, accelerator, out
        self.faces, self.val, self.data = faces, val, data
        self.answers, self.development = answers, development
        self.wanted_features = wanted_features
        self.standing = _Standing()
        loop, distillation = self.recipe.loop, self.recipe.distillation
        assert self.recipe.heads is not None
        objectives = Objectives(
            self.recipe.heads,
            interval_weight=self.recipe.tasks.interval_weight,
            distillation_weight=distillation.weight if answers and distillation else 0.0,
            subjects=distillation.subjects if distillation else (),
            features_weight=distillation.describer_weight
            if distillation and distillation.describer
            else 0.0,
            temperature=distillation.temperature if distillation else 1.0,
        )
        self.tasks = objectives.tasks
        self.network = start.network
        self.network.batch_norm_frozen = self.recipe.optimizer.batch_norm == "frozen"
        if loop.channels_last:
            self.network.to(memory_format=cast("Any", torch.channels_last))
        self.weights = (
            UncertaintyWeights(
                objectives.tasks, objectives.absolute, self.recipe.tasks.log_variance_limit
            )
            if self.recipe.tasks.weighting == "learned"
            else None
        )
        self.projection = (
            nn.Linear(self.network.feature_count, wanted_features.shape[1])
            if wanted_features is not None
            else None
        )
        model = _TrainingModel(self.network, objectives, self.weights, self.projection)
        self.objectives = objectives
        self.model = accelerator.prepare_model(
            _with_shared_statistics(model, self.recipe, accelerator)
        )
        self.averaged = copy.deepcopy(self.network) if loop.ema_decay else self.network
        self.optimizer = _optimizer(
            self.network, self.weights, self.projection, self.recipe.optimizer
        )
        self.draws, self.loader = self._loader()
        self.loss_weights = self._loss_weights()

    # --- the plan ---------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser."""
        if self.development:
            return _DEV_STEPS
        loop = self.recipe.loop
        together: int = loop.batch_size * loop.accumulate * self.accelerator.num_processes
        samples = self.recipe.data.samples_per_epoch or len(self.faces)
        return math.ceil(samples / together)

    def _loader(self) -> tuple[BalancedDraws, DataLoader[FaceBatch]]:
        loop, part = self.recipe.loop, self.recipe.data
        draws = BalancedDraws(
            draw_weights(self.faces.labels, part.sampling, part.balance_by),
            batch_size=loop.batch_size,
            batches=self.steps_per_epoch * loop.accumulate,
            seed=self.recipe.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        loader: DataLoader[FaceBatch] = DataLoader(
            cast("Any", self.faces),
            batch_size=loop.batch_size,
            sampler=cast("Any", draws),
            collate_fn=cast("Any", to_tensors),
            num_workers=part.workers,
            worker_init_fn=start_worker if part.workers else None,
            persistent_workers=part.workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return draws, loader

    def _loss_weights(self) -> NDArray[np.float32] | None:
        """(N,) factor of each face's losses; None when all count the same."""
        part = self.recipe.data
        if part.reweight is None:
            return None
        return loss_weights(
            self.faces.labels,
            part.reweight.by,
            power=part.reweight.power,
            limit=part.reweight.limit,
            drawn=draw_weights(self.faces.labels, part.sampling, part.balance_by),
        )

    # --- the loop ---------------------------------------------------------------------------------

    def fit(self) -> RunResult:
        """Run the epochs that are left."""
        standing, loop = self.standing, self.recipe.loop
        main = self.accelerator.is_main_process
        events = self.out / "tensorboard" if loop.tensorboard and main else None
        with (
            journal.EventLog(events, first_step=standing.step) as log,
            Progress(self.steps_per_epoch, loop.epochs, shown=main) as progress,
        ):
            while not standing.finished:
                timing = self._learn(log, progress)
                self._judge(log, progress, timing)
        return self._result()

    def _learn(self, log: journal.EventLog, progress: Progress) -> dict[str, float]:
        """Run the steps that are left of this epoch; returns how long they took."""
        standing, loop = self.standing, self.recipe.loop
        frozen = standing.epoch < self.recipe.optimizer.freeze_epochs
        self.network.backbone_frozen = frozen
        self.model.train()
        if standing.step_in_epoch == 0:
            standing.sums = [0.0] * (2 * len(self.tasks) + len(_EXTRA_REPORT))
        self.draws.go_to(standing.epoch, standing.step_in_epoch * loop.accumulate)
        progress.start_epoch(standing.epoch, standing.step_in_epoch)
        began, waited, first = time.perf_counter(), 0.0, standing.step
        batches = iter(self.loader)
        while True:
            asked = time.perf_counter()
            step = list(islice(batches, loop.accumulate))
            waited += time.perf_counter() - asked
            if not step:
                break
            self._step(step)
            figures = self._running()
            progress.advance(figures)
            if standing.step % 20 == 0:
                now = {"step_loss": figures["train_loss"], "step_rate": self._rate()}
                log.write(now, standing.step)
            self._maybe_save_inside_epoch()
        seconds = time.perf_counter() - began
        together = loop.batch_size * loop.accumulate * self.accelerator.num_processes
        return {
            "epoch": float(standing.epoch + 1),
            "seconds": seconds,
            "faces_per_second": (standing.step - first) * together / seconds,
            "waited_share": waited / seconds,
        }

    def _step(self, batches: Sequence[FaceBatch]) -> None:
        """One step of the optimiser on the accumulated batches."""
        accelerator, standing = self.accelerator, self.standing
        settings, processes = self.recipe.optimizer, self.accelerator.num_processes
        torch.manual_seed(_step_seed(self.recipe.seed, standing.step, accelerator.process_index))
        factor = rate_factor(settings, standing.step, self.steps_per_epoch, self.recipe.loop.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor * group["lr_scale"]
        moved = [self._to_device(batch) for batch in batches]
        counts = torch.stack([self.objectives.counts(targets) for _, targets in moved]).sum(dim=0)
        counts = accelerator.reduce(counts, "sum")
        if standing.step == 0 and self.weights is not None:
            self._settle(self.weights, moved, counts)
        report = torch.zeros(len(self.tasks) + len(_EXTRA_REPORT), device=accelerator.device)
        for number, (chips, targets) in enumerate(moved):
            last = number == len(moved) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss, said = self.model(chips, targets, counts, float(processes), 1 / len(moved))
                accelerator.backward(loss)
            report += said
        if settings.clip_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.weights is not None:
            self.weights.clamp()
        self._average()
        report = torch.cat([counts, accelerator.reduce(report, "sum")])
        self._note(report.double().cpu().tolist())
        standing.step += 1
        standing.step_in_epoch += 1

    def _judge(self, log: journal.EventLog, progress: Progress, timing: dict[str, float]) -> None:
        """Validate, keep the best, write down how it went, and move to the next epoch."""
        standing, loop = self.standing, self.recipe.loop
        metrics = self._validate(progress)
        row = {"epoch": float(standing.epoch + 1), "step": float(standing.step)}
        row |= {"learning_rate": self._rate(), **self._running(), **self._task_weights()}
        row |= {f"val_{name}": value for name, value in metrics.items()}
        standing.history.append(row)
        standing.timings.append(timing)
        value = metrics[loop.monitor]
        improved = value < standing.best_value or standing.best_epoch == 0
        if improved:
            standing.best_value, standing.best_epoch = value, standing.epoch + 1
        standing.epoch += 1
        standing.step_in_epoch = 0
        patience_over = standing.epoch - standing.best_epoch >= loop.patience > 0
        standing.stopped_early = patience_over and standing.epoch < loop.epochs
        standing.finished = standing.epoch >= loop.epochs or patience_over
        if self.accelerator.is_main_process:
            self._write_epoch(metrics, improved=improved)
            log.write({k: v for k, v in row.items() if k not in ("epoch", "step")}, standing.step)
        progress.end_epoch(row, improved=improved)
        self.accelerator.wait_for_everyone()

    def _validate(self, progress: Progress) -> dict[str, float]:
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        batch_size = self.recipe.loop.batch_size
        rows = np.arange(len(self.val))
        if self.development:
            rows = rows[: 2 * batch_size]
        progress.start_validation(len(rows[index::count]))
        answers = predict(
            self.averaged,
            self.val,
            rows=rows[index::count],
            batch_size=batch_size,
            workers=self.recipe.data.workers,
            advance=progress.advance_validation,
        )
        parts: list[Predictions] = gather_object([answers]) if count > 1 else [answers]
        return validation_metrics(Predictions.joined(parts), self.val.labels)

    # --- pieces of a step -------------------------------------------------------------------------

    @torch.no_grad()
    def _settle(
        self,
        weights: UncertaintyWeights,
        batches: Sequence[tuple[Tensor, Targets]],
        counts: Tensor,
    ) -> None:
        """Start the task weights from the losses of the first step."""
        self.network.eval()
        totals = torch.zeros_like(counts)
        model = cast("_TrainingModel", self.accelerator.unwrap_model(self.model))
        for chips, targets in batches:
            sums = self.objectives.sums(model.outputs(chips), targets)
            totals += torch.stack([sums[task].total for task in self.tasks])
        self.model.train()
        totals = self.accelerator.reduce(totals, "sum")
        weights.settle(totals / counts.clamp(min=1), counts)

    def _to_device(self, batch: FaceBatch) -> tuple[Tensor, Targets]:
        device = self.accelerator.device
        chips, low, high, std, female = (
            tensor.to(device, non_blocking=True) for tensor in batch[:5]
        )
        if self.answers is None:
            age, said = torch.empty(len(low), 0, device=device), torch.empty(0, device=device)
        else:
            rows = batch.row.numpy()
            age = torch.from_numpy(self.answers.age[rows]).to(device)
            said = torch.from_numpy(self.answers.female[rows]).to(device)
        if self.wanted_features is None:
            features = torch.empty(len(low), 0, device=device)
        else:
            features = torch.from_numpy(self.wanted_features[batch.row.numpy()]).to(device)
        if self.loss_weights is None:
            weight = torch.empty(0, device=device)
        else:
            weight = torch.from_numpy(self.loss_weights[batch.row.numpy()]).to(device)
        return chips, Targets(low, high, std, female, age, said, features, weight)

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the current ones, faster at the start of the run."""
        if self.averaged is self.network:
            return
        step = self.standing.step
        decay = min(self.recipe.loop.ema_decay, (1 + step) / (10 + step))
        own, current = self.averaged.state_dict(), self.network.state_dict()
        for name, value in own.items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])

    def _note(self, report: list[float]) -> None:
        if not all(math.isfinite(value) for value in report):
            raise TrainingError(
                f"step {self.standing.step + 1}: the loss is no longer a number; lower "
                "optimizer.learning_rate, raise optimizer.warmup_epochs, or clip harder"
            )
        pairs = zip(self.standing.sums, report, strict=True)
        self.standing.sums = [total + new for total, new in pairs]

    def _running(self) -> dict[str, float]:
        """Means over the faces of this epoch so far."""
        tasks, sums = self.tasks, self.standing.sums
        counts, totals = sums[: len(tasks)], sums[len(tasks) : 2 * len(tasks)]
        error, ages, right, genders, weighted = sums[2 * len(tasks) :]
        steps = max(1, self.standing.step_in_epoch)
        figures = {"train_loss": weighted / steps}
        for task, total, count in zip(tasks, totals, counts, strict=True):
            figures[f"train_loss_{task}"] = total / count if count else math.nan
        figures["train_age_error"] = error / ages if ages else math.nan
        figures["train_gender_accuracy"] = right / genders if genders else math.nan
        return figures

    def _task_weights(self) -> dict[str, float]:
        if self.weights is None:
            return {}
        values = self.weights.log_variances.detach().double().cpu().tolist()
        return {f"log_variance_{t}": v for t, v in zip(self.tasks, values, strict=True)}

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[-1]["lr"])

    # --- files ------------------------------------------------------------------------------------

    def _write_epoch(self, metrics: Mapping[str, float], *, improved: bool) -> None:
        # The state comes last of what counts: a kill before it repeats the epoch's end, whole.
        standing = self.standing
        names = (BEST, LAST) if improved else (LAST,)
        for name in names:
            save_checkpoint(
                self.out / name,
                self.averaged,
                self.recipe,
                self.data,
                epoch=standing.epoch,
                metrics=metrics,
            )
        self._save_state()
        self._write_history()

    def _write_history(self) -> None:
        journal.write_table(self.out / journal.METRICS, self.standing.history)
        journal.write_table(self.out / journal.TIMINGS, self.standing.timings)
        journal.draw_curves(self.out / journal.CURVES, self.standing.history)

    def _maybe_save_inside_epoch(self) -> None:
        every, done = self.recipe.loop.save_every_steps, self.standing.step_in_epoch
        inside = every and done % every == 0 and done < self.steps_per_epoch
        if inside and self.accelerator.is_main_process:
            self._save_state()

    def _save_state(self) -> None:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.averaged is not self.network:
            tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        if self.weights is not None:
            tensors["log_variances"] = self.weights.log_variances
        if self.projection is not None:
            tensors |= {f"projection.{k}": v for k, v in self.projection.state_dict().items()}
        for number, parameter in enumerate(self._parameters()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
        header = {
            "schema": STATE_SCHEMA,
            "standing": json.dumps(asdict(self.standing)),
            "recipe": json.dumps(self.recipe.to_table()),
            "data": self.data.digest,
            "processes": str(self.accelerator.num_processes),
        }
        write_safetensors(self.out / journal.STATE, tensors, header)

    def resume(self) -> None:
        """Take up the state in the run's folder; nothing when there is none yet.

        Raises:
            TrainingError: It is of another recipe or of other faces.
        """
        path = self.out / journal.STATE
        if not path.is_file():
            return
        tensors, header = read_safetensors(path)
        self._check_same(path, header)
        self.standing = _Standing(**json.loads(header["standing"]))
        self.network.load_state_dict(_under("network.", tensors))
        if self.averaged is not self.network:
            self.averaged.load_state_dict(_under("averaged.", tensors))
        if self.weights is not None:
            with torch.no_grad():
                self.weights.log_variances.copy_(tensors["log_variances"])
        if self.projection is not None:
            self.projection.load_state_dict(_under("projection.", tensors))
        for number, parameter in enumerate(self._parameters()):
            for name, value in _under(f"optimizer.{number}.", tensors).items():
                # In the parameter's memory layout, so that the arithmetic is the same to the bit.
                like = torch.empty_like(parameter) if value.shape == parameter.shape else value
                self.optimizer.state[parameter][name] = like.copy_(value)
        if self.accelerator.is_main_process and self.standing.history:
            self._write_history()

    def _check_same(self, path: Path, header: Mapping[str, str]) -> None:
        if header.get("schema") != STATE_SCHEMA:
            raise TrainingError(
                f"{path}: schema is {header.get('schema')!r}, expected {STATE_SCHEMA!r}"
            )
        changed = _differences(json.loads(header["recipe"]), self.recipe.to_table())
        if changed:
            raise TrainingError(
                f"{self.out}: was started with another recipe ({', '.join(changed)} differ); "
                "resume with the same one, or start in a new folder with init"
            )
        if header["data"] != self.data.digest:
            raise TrainingError(f"{self.out}: was started on other prepared faces; use those")
        if header["processes"] != str(self.accelerator.num_processes):
            raise TrainingError(
                f"{self.out}: was started with {header['processes']} processes, there are "
                f"{self.accelerator.num_processes}"
            )

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _result(self) -> RunResult:
        standing = self.standing
        best = standing.history[standing.best_epoch - 1]
        metrics = {k.removeprefix("val_"): v for k, v in best.items() if k.startswith("val_")}
        return RunResult(
            folder=self.out,
            best=self.out / BEST,
            last=self.out / LAST,
            epochs=standing.epoch,
            best_epoch=standing.best_epoch,
            metrics=metrics,
            history=tuple(standing.history),
            stopped_early=standing.stopped_early,
        )


# --- starting -------------------------------------------------------------------------------------


def _prepare(
    recipe: Recipe, data: Path, out: Path, accelerator: Accelerator, development: bool
) -> _Run:
    torch.manual_seed(recipe.seed)
    start = first_network(recipe)
    recipe = start.recipe
    assert recipe.network is not None
    part = recipe.data
    folder = ShardFolder(data, group_column=part.group_column)
    extra = [
        ShardFolder(path, group_column=part.group_column)
        for path in (recipe.distillation.unlabelled if recipe.distillation else ())
    ]
    if part.cache and not development:
        with accelerator.main_process_first():
            for prepared in (folder, *extra):
                prepared.cache()
    size, margin = recipe.network.size, recipe.network.margin
    faces = PreparedFaces(
        [folder],
        split=part.train_split,
        size=size,
        margin=margin,
        settings=recipe.augmentation,
        datasets=part.datasets,
        unlabelled=extra,
    )
    val = PreparedFaces(
        [folder], split=part.val_split, size=size, margin=margin, datasets=part.datasets
    )
    _check_monitor(recipe, val)
    taught = _lessons(recipe, faces, out, accelerator)
    inherited = (*start.inherited, *taught.inherited)
    described = TrainingData.of([folder, *extra], faces.labels, inherited)
    if accelerator.is_main_process:
        _describe_run(recipe, start, described, out, accelerator)
    return _Run(
        start=start,
        accelerator=accelerator,
        out=out,
        faces=faces,
        val=val,
        data=described,
        answers=taught.answers,
        wanted_features=taught.features,
        development=development,
    )


def _check_monitor(recipe: Recipe, val: PreparedFaces) -> None:
    labels, monitor = val.labels, recipe.loop.monitor
    known = {
        "age_nll": labels.low >= 0,
        "age_error": labels.low >= 0,
        "mae": (labels.low >= 0) & (labels.low == labels.high),
        "gender_nll": labels.female >= 0,
    }
    if not known[monitor].any():
        usable = [name for name, rows in known.items() if rows.any()]
        raise ArgumentError(
            f"loop.monitor = {monitor!r} has no labels in the {recipe.data.val_split} split; "
            f"take {' or '.join(usable) or 'a split with labels'}"
        )


class _Lessons(NamedTuple):
    """What other networks say of the faces, and what those networks learned from."""

    answers: Answers | None = None
    features: NDArray[np.float32] | None = None
    inherited: tuple[DatasetUsed, ...] = ()


def _lessons(recipe: Recipe, faces: PreparedFaces, out: Path, accelerator: Accelerator) -> _Lessons:
    part = recipe.distillation
    if part is None:
        return _Lessons()
    threads = recipe.loop.threads or 1
    answers: Answers | None = None
    learned: list[DatasetUsed] = []
    identities = []
    if part.teachers:
        teachers = load_teachers(part.teachers, accept_licence=part.accept_licence, threads=threads)
        learned += [used for teacher in teachers for used in datasets_of(teacher.card)]
        identities += [teacher.identity for teacher in teachers]
        with accelerator.main_process_first():
            answers = soft_labels(teachers, faces, out / SOFT_LABELS)
    if answers is not None and part.within_labels:
        answers = Answers(within_labels(answers.age, faces.labels), answers.female)
    if part.describer is None:
        return _Lessons(answers, None, tuple(learned))
    describer = load_describer(part.describer, threads=threads)
    learned.append(DatasetUsed(part.describer, describer.licence, describer.licence_class, None))
    with accelerator.main_process_first():
        mirrored = part.describer_mirrors
        descriptions = describe_faces(describer, faces, out / DESCRIPTIONS, mirrored=mirrored)
        if part.describer_judges:
            several = [f"{part.judges} judges"] if part.judges > 1 else []
            described = describer_identity(describer, mirrored=mirrored)
            key = faces_digest([described, *identities, *several], faces)
            answers = _judged(descriptions, faces, answers, out / JUDGED, key, part.judges)
    return _Lessons(answers, hints(descriptions), tuple(learned))


def _judged(
    descriptions: NDArray[np.float32],
    faces: PreparedFaces,
    answers: Answers | None,
    kept: Path,
    key: str,
    judges: int,
) -> Answers:
    found = read_answers(kept, key)
    if found is not None:
        return found
    even = np.full((len(faces), AGE_COUNT), 1 / AGE_COUNT, np.float32)
    ages = within_labels(even if answers is None else answers.age, faces.labels)
    judged = judge(descriptions, faces.labels, ages, judges=judges)
    write_answers(kept, key, judged)
    return judged


def _describe_run(
    recipe: Recipe, start: Start, data: TrainingData, out: Path, accelerator: Accelerator
) -> None:
    # A resumed run with another recipe is refused later, and must not overwrite the first one.
    if (out / journal.RECIPE).is_file():
        return
    journal.write_whole(out / journal.RECIPE, recipe.to_toml())
    run = {
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "weights": list(start.notes),
    }
    journal.write_environment(out, data=asdict(data), run=run)


def _claim(out: Path, resume: bool, accelerator: Accelerator) -> None:
    with accelerator.main_process_first():
        if out.exists() and not out.is_dir():
            raise TrainingError(f"{out}: is a file; expected a new or empty folder")
        taken = out.is_dir() and any(out.iterdir()) and accelerator.is_main_process
        if taken and not resume:
            raise TrainingError(
                f"{out}: is not empty; go on with that run (--resume, resume=True) or name a new "
                "folder"
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{out}: cannot be made ({error.strerror}); name a folder that you may write to"
            ) from error
        if not os.access(out, os.W_OK | os.X_OK):
            raise TrainingError(
                f"{out}: may not be written to; name a folder that you may write to"
            )


def _accelerator(recipe: Recipe) -> Accelerator:
    loop = recipe.loop
    if loop.threads:
        torch.set_num_threads(loop.threads)
    on_gpu = loop.device != "cpu" and torch.cuda.is_available()
    if loop.device == "cuda" and not on_gpu:
        raise TrainingError("loop.device = 'cuda', but torch sees no GPU; take 'auto' or 'cpu'")
    wants_bf16 = loop.precision == "bf16" or (
        loop.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()
    )
    unused = DistributedDataParallelKwargs(
        find_unused_parameters=recipe.optimizer.freeze_epochs > 0
    )
    return Accelerator(
        cpu=not on_gpu,
        mixed_precision="bf16" if wants_bf16 else "no",
        kwargs_handlers=[unused],
    )


def _with_shared_statistics(
    model: _TrainingModel, recipe: Recipe, accelerator: Accelerator
) -> nn.Module:
    several = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
    if recipe.optimizer.batch_norm == "sync" and several:
        # timm's, because torch's own drops the activation that timm's batch norm carries.
        convert: Any = convert_sync_batchnorm
        converted: nn.Module = convert(model)
        return converted
    return model


def _optimizer(
    network: AgeGenderNetwork,
    weights: UncertaintyWeights | None,
    projection: nn.Linear | None,
    settings: OptimizerPart,
) -> torch.optim.AdamW:
    groups = parameter_groups(network, settings)
    if projection is not None:
        groups.append(
            {
                "params": list(projection.parameters()),
                "weight_decay": 0.0,
                "lr_scale": 1.0,
                "part": "projection",
            }
        )
    if weights is not None:
        groups.insert(
            0,
            {
                "params": [weights.log_variances],
                "weight_decay": 0.0,
                "lr_scale": _TASK_RATE,
                # They start where their gradient is zero; its rounding is no direction to go.
                "eps": 0.01,
                "part": "tasks",
            },
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


def _for_development(recipe: Recipe) -> Recipe:
    loop = recipe.loop.model_copy(update={"epochs": 1, "tensorboard": False})
    data = recipe.data.model_copy(update={"workers": 0, "cache": False})
    optimizer = recipe.optimizer.model_copy(update={"freeze_epochs": 0})
    return recipe.model_copy(update={"loop": loop, "data": data, "optimizer": optimizer})


# --- numbers --------------------------------------------------------------------------------------


def rate_factor(settings: OptimizerPart, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of a step as a share of the highest.

    Args:
        settings: Schedule, warm-up and final share.
        step: From 0.
        steps_per_epoch: Steps of an epoch.
        epochs: Of the run.

    Returns:
        Over 0 and up to 1. ``cosine`` (Loshchilov and Hutter 2017) and ``constant`` after a linear
        rise; ``one_cycle`` (Smith 2019) rises from 1 / 25 by a cosine and falls by another.
    """
    total = steps_per_epoch * epochs
    rise = min(round(settings.warmup_epochs * steps_per_epoch), total - 1)
    if step < rise:
        share = (step + 1) / (rise + 1)
        if settings.schedule == "one_cycle":
            return 1 / 25 + (1 - 1 / 25) * _cosine_rise(share)
        return share
    if settings.schedule == "constant":
        return 1.0
    share = (step - rise) / max(1, total - rise)
    return settings.final_scale + (1 - settings.final_scale) * _cosine_rise(1 - share)


def _cosine_rise(share: float) -> float:
    return 0.5 * (1 - math.cos(math.pi * share))


def _step_seed(seed: int, step: int, process: int) -> int:
    state = np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Dotted names of the values that differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = sorted({*one, *other})
        return [
            difference
            for name in names
            for difference in _differences(
                one.get(name), other.get(name), f"{path}.{name}" if path else str(name)
            )
        ]
    return [] if one == other else [path]


__all__ = ["RunResult", "rate_factor", "train"]
