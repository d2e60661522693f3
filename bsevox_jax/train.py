"""Training: the loop over two phases (cross-entropy, then Lovasz), resumable at any step."""

import dataclasses
import functools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import bsevox_jax
from bsevox_jax import checkpoint, data, losses, models, parallel
from bsevox_jax import source as sources
from bsevox_jax import step as steps
from bsevox_jax import task as tasks
from bsevox_jax.log import Log
from bsevox_jax.step import TrainState
from bsevox_jax.task import Task


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands; stored with each checkpoint."""

    phase: int = 1
    epoch: int = 0  # finished in this phase
    batch: int = 0  # done of the epoch under way; not 0 only in a run that was stopped
    best_merit: float = -math.inf  # of the task on the validation split, over both phases
    lowest_loss: float = math.inf  # on the validation split, in this phase
    lowest_loss_epoch: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
    """What does not change while a run lasts."""

    config: ConfigDict
    source: sources.Source
    network: Any
    latest: checkpoint.Store
    best: checkpoint.Store
    log: Log
    stop: threading.Event

    @property
    def batches(self) -> int:
        """Steps per epoch."""
        return data.batches_per_epoch(self.source.training, self.config.data.batch_size)

    def section(self, phase: int) -> ConfigDict:
        """The part of the config that describes a phase."""
        return self.config.phase1 if phase == 1 else self.config.phase2


def train(config: ConfigDict, workdir: str) -> str | None:
    """Trains a network, or goes on where the run in `workdir` stopped, and exports the best weights.

    Writes checkpoints (`latest`, `best`), `metrics.jsonl`, TensorBoard events and, at the end, `export`.
    SIGTERM saves after the step under way and returns. On one device a resumed run equals an uninterrupted
    one bit for bit.

    Args:
        config: complete, as in configs/moderate.py.
        workdir: folder of this run.

    Returns:
        The folder of the exported network, or None if SIGTERM stopped the run.

    Raises:
        ValueError: a value of the config is impossible, or the loss is no longer finite.
        FileNotFoundError, OSError: data set or checkpoint missing or damaged, or the disk is full.
    """
    workdir = os.path.abspath(os.path.expanduser(workdir))
    parallel.check_batch_size(config.data.batch_size)
    source = sources.load(config)
    network = models.build(**config.model)
    stop, log = threading.Event(), Log(workdir)
    latest, best = (checkpoint.Store(os.path.join(workdir, name)) for name in ("latest", "best"))
    run = Run(config, source, network, latest, best, log, stop)
    input_shape = _check(run)
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        state, progress = _start(run, input_shape)
        for phase in range(progress.phase, 3):  # those that are left
            if progress.phase < phase:
                state, progress = _enter_phase(run, state, progress, phase)
            state, progress = _run_phase(run, state, progress)
            if progress.batch:
                log.text(
                    f"stopped after step {int(state.step)}; the same command with workdir {workdir} resumes"
                )
                return None
        task = _task(run, 1)
        weights = task.finish(best.restore(state.weights)[0])
        path = os.path.join(workdir, "export")
        checkpoint.export(path, weights, _plain(config), source.normalisation, source.training)
        merit = f"{task.merit} {abs(progress.best_merit):.4f}"
        log.text(f"exported step {best.step}, validation {merit}, to {path}")
        return path
    finally:
        signal.signal(signal.SIGTERM, previous)
        for closing in (latest, best, log):
            closing.close()


def _check(run: Run) -> tuple[int, ...]:
    """Raises for a value that either phase could not run with, before anything is written.

    Returns:
        The shape of one input.
    """
    if run.config.eval_every_epochs < 1:
        raise ValueError(f"eval_every_epochs must be from 1; got {run.config.eval_every_epochs}. Use 5.")
    batch = next(data.epoch_batches(run.source.training, 1))
    for phase in (1, 2):
        _optimiser(run, phase)
        input_shape = steps.trace(run.network, _task(run, phase), batch)
    return input_shape


def _start(run: Run, input_shape: tuple[int, ...]) -> tuple[TrainState, Progress]:
    """The state to begin with, fresh or of the latest checkpoint, and the opening lines of the log."""
    config = run.config
    optimiser, _ = _optimiser(run, 1)
    state = steps.init_state(run.network, optimiser, input_shape, config.seed)
    progress = Progress()
    if run.latest.step is not None:
        state, meta = run.latest.restore(state)
        progress = Progress(**meta["progress"])
        run.log.changes(meta["config"], _plain(config))
    elif config.start_from:
        weights = checkpoint.load_weights(config.start_from, like=state.weights)
        state = steps.begin(weights["params"], weights["batch_stats"], optimiser, state.step)
    run.log.begin(int(state.step))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    run.log.text(f"bsevox_jax {bsevox_jax.__version__}, {config.model.name} with {parameters:,} parameters")
    run.log.text(run.source.about)
    if config.start_from:
        run.log.text(f"began with the weights of {config.start_from}")
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    run.log.text(f"{devices}, seed {config.seed}, from step {int(state.step)}")
    return state, progress


def _enter_phase(run: Run, state: TrainState, progress: Progress, phase: int) -> tuple[TrainState, Progress]:
    """The best weights so far with a fresh optimiser; steps go on counting.

    Saved before phase 2 replaces them, so that a run killed in phase 2 never starts it from its own weights.
    """
    weights = state.weights if run.best.step is None else run.best.restore(state.weights)[0]
    state = steps.begin(weights["params"], weights["batch_stats"], _optimiser(run, phase)[0], state.step)
    progress = Progress(phase=phase, best_merit=progress.best_merit)
    if phase == 2:
        _save(run, state, progress)
        run.latest.wait()
    return state, progress


def _run_phase(run: Run, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
    """The loop over the epochs of one phase; returns early, with everything saved, when asked to stop."""
    config, epochs = run.config, run.section(progress.phase).epochs
    task, step, evaluate, schedule = _mapped_functions(run, progress.phase)
    state = parallel.replicate(state)
    done = progress.epoch * run.batches + progress.batch
    with run.log.bar(f"phase {progress.phase}", epochs * run.batches, done) as bar:
        while progress.epoch < epochs:
            if progress.epoch - progress.lowest_loss_epoch >= config.early_stop_epochs:
                run.log.text(
                    f"phase {progress.phase} ends: no lower loss in {config.early_stop_epochs} epochs"
                )
                break
            started = time.time()
            state, progress, outcomes = _run_epoch(run, step, state, progress, bar)
            if progress.batch:
                _save(run, parallel.unreplicate(state), progress)
                break
            record = {"phase": progress.phase, "epoch": progress.epoch, "seconds": time.time() - started}
            record["learning_rate"] = float(schedule(progress.epoch * run.batches - 1))
            for name in ("loss", "gradient_norm") if outcomes else ():  # none if only the evaluation was left
                record[f"train_{name}"] = float(np.mean([o[name] for o in outcomes]))
            due = is_due(progress.epoch, config.eval_every_epochs, epochs)
            if due:
                rows = parallel.local_rows(config.data.batch_size)
                batches = data.epoch_batches(run.source.validation, config.data.batch_size, rows=rows)
                measured = steps.measure(evaluate, task, state.weights, batches)
                record |= {f"validation_{name}": value for name, value in measured.items()}
                progress = _judge(run, task, state, progress, measured)
                shown = {name: f"{measured[name]:.4f}" for name in ("loss", task.merit)}
                bar.set_postfix(shown)
            run.log.record(int(parallel.unreplicate(state.step)), record)
            if due:  # after its record, which a run killed in between writes again
                _save(run, parallel.unreplicate(state), progress)
    return parallel.unreplicate(state), progress


def _run_epoch(run: Run, step: Callable, state: TrainState, progress: Progress, bar: tqdm) -> tuple:
    """The rest of one epoch: (state, progress, the outcome of every step); progress.batch is 0 at its end."""
    config, outcomes, pending = run.config, [], None
    epoch = progress.epoch + (config.phase1.epochs if progress.phase == 2 else 0)
    batches = data.epoch_batches(
        run.source.training.at(epoch),
        config.data.batch_size,
        seed=config.seed,
        epoch=epoch,
        first=progress.batch,
        rows=parallel.local_rows(config.data.batch_size),
    )
    for batch in batches:
        state, outcome = step(state, parallel.shard(batch))
        if pending is not None:  # fetched while the next step runs, so the device never waits
            outcomes.append(_finite(pending, progress))
        pending, progress = outcome, dataclasses.replace(progress, batch=progress.batch + 1)
        bar.update()
        if parallel.any_process(run.stop.is_set()):
            _finite(pending, progress)
            return state, progress, outcomes
    if pending is not None:
        outcomes.append(_finite(pending, progress))
    return state, dataclasses.replace(progress, epoch=progress.epoch + 1, batch=0), outcomes


def _mapped_functions(run: Run, phase: int) -> tuple[Task, Callable, Callable, Callable]:
    """The task of a phase, its step and evaluation over all devices, and the learning rate per step."""
    task, config = _task(run, phase), run.config
    optimiser, schedule = _optimiser(run, phase)
    learning = dict(seed=config.seed, average_decay=config.optim.average_decay)
    step = steps.make_step(run.network, task, optimiser, **learning)
    evaluate = steps.make_evaluation(run.network, task)
    return task, parallel.map_step(step), parallel.map_evaluation(evaluate), schedule


def _task(run: Run, phase: int) -> Task:
    """What is learnt in a phase.

    Raises:
        ValueError: the config names no task.
    """
    config, source = run.config, run.source
    if config.task == "images":
        return tasks.images(run.network, source.normalisation.mean, source.training, source.held_out)
    if config.task != "volumes":
        raise ValueError(f"task must be volumes or images; got {config.task!r}. Use volumes.")
    loss = functools.partial(
        losses.weighted_cross_entropy if phase == 1 else losses.lovasz, **run.section(phase).loss
    )
    return tasks.volumes(loss, source.augment, source.normalisation, source.validation.electrons_per_pixel)


def _optimiser(run: Run, phase: int) -> tuple:
    optim, section = run.config.optim, run.section(phase)
    return steps.make_optimiser(
        **{name: optim[name] for name in ("name", "b1", "b2", "eps", "weight_decay")},
        learning_rate=section.learning_rate,
        final_learning_rate=section.final_learning_rate,
        warmup_steps=optim.warmup_epochs * run.batches,
        steps=section.epochs * run.batches,
    )


def _judge(run: Run, task: Task, state: TrainState, progress: Progress, measured: dict) -> Progress:
    """Keeps the weights of the best merit, and notes when the loss was lowest."""
    merit = task.sign * measured[task.merit]
    if merit > progress.best_merit:
        progress = dataclasses.replace(progress, best_merit=merit)
        run.best.save(int(parallel.unreplicate(state.step)), parallel.unreplicate(state.weights), measured)
    if measured["loss"] < progress.lowest_loss:
        progress = dataclasses.replace(
            progress, lowest_loss=measured["loss"], lowest_loss_epoch=progress.epoch
        )
    return progress


def _save(run: Run, state: TrainState, progress: Progress) -> None:
    meta = {"progress": dataclasses.asdict(progress), "config": _plain(run.config)}
    # The start of phase 2 is a checkpoint of its own, at the step where phase 1 ended.
    run.latest.save(int(state.step) + progress.phase - 1, state, meta)


def _finite(outcome: dict, progress: Progress) -> dict[str, float]:
    """Fetches the outcome of a step and raises ValueError, in one line, if it is not finite."""
    outcome = {name: float(value) for name, value in parallel.unreplicate(outcome).items()}
    if not (math.isfinite(outcome["loss"]) and math.isfinite(outcome["gradient_norm"])):
        raise ValueError(
            f"the loss must stay finite; got loss {outcome['loss']} and gradient norm "
            f"{outcome['gradient_norm']} at step {outcome['step']:.0f}. "
            f"Resume with a lower phase{progress.phase}.learning_rate."
        )
    return outcome


def is_due(count: int, every: int, last: int) -> bool:
    """Whether something done every so many epochs happens after this one; the last one always counts."""
    return count % every == 0 or count == last


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json())
