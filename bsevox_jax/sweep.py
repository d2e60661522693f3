"""The search over learning rate, weight decay and lambda: points side by side, the best of a round go on.

Every round is a whole training of each of its points, with the schedules shortened to the epochs of the
round; only the best share enters the next, longer one (successive halving: Jamieson and Talwalkar 2016).
"""

import functools
import itertools
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

from bsevox_jax import data, imageio, losses, models, parallel
from bsevox_jax import source as sources
from bsevox_jax import step as steps
from bsevox_jax import task as tasks

WARM_UP_SHARE = 0.1  # of a phase, at most


class Point(NamedTuple):
    """What is searched: numbers, or arrays with those of all points that train at once."""

    learning_rate: Any  # of phase 1; that of phase 2 in proportion
    weight_decay: Any
    lam: Any


def sweep(config: ConfigDict, workdir: str) -> dict:
    """Trains the points of `config.sweep`, round by round; writes `sweep.json` and `sweep.png`.

    Points that `sweep.json` has are not trained again: the same command goes on after a stop.

    Args:
        config: as of configs/sweep.py.
        workdir: folder of the results.

    Returns:
        What `sweep.json` holds: `rounds`, each with its `epochs` and its `points`, best first, with their
        mean IoU of Cu on the validation split.

    Raises:
        ValueError: a value of the config is impossible, or the results are of another search; one line.
        FileNotFoundError, OSError: data set missing or damaged, or the disk is full.
    """
    workdir = os.path.abspath(os.path.expanduser(workdir))
    grid = config.sweep
    if not 0 < grid.kept <= 1 or grid.side_by_side < 1:
        raise ValueError(
            "sweep.kept must lie in (0, 1] and side_by_side be from 1; "
            f"got {grid.kept} and {grid.side_by_side}. Use 0.2 and 4."
        )
    parallel.check_batch_size(config.data.batch_size)
    source, network = sources.load(config), models.build(**config.model)
    points = [Point(*p) for p in itertools.product(grid.learning_rates, grid.weight_decays, grid.lams)]
    results = _read(workdir, config)
    for number, epochs in enumerate(grid.epochs):
        if number == len(results["rounds"]):
            results["rounds"].append({"epochs": epochs, "points": []})
        done = results["rounds"][number]["points"]
        trained = {_point(row) for row in done}
        missing = [point for point in points if point not in trained]
        if missing:  # a finished round needs no programs
            train = _trainer(config, source, network, epochs)
        bar = dict(unit="group", disable=not parallel.is_main_process())
        for first in tqdm(range(0, len(missing), grid.side_by_side), f"training for {epochs} epochs", **bar):
            group = missing[first : first + grid.side_by_side]
            same_shape = (group * grid.side_by_side)[: grid.side_by_side]  # so that one program serves all
            scores = train(same_shape)
            done += [p._asdict() | {"iou_cu_mean": s} for p, s in zip(group, scores, strict=False)]
            done.sort(key=lambda row: -row["iou_cu_mean"])
            _write(workdir, results)
        points = [_point(row) for row in done[: max(1, round(grid.kept * len(done)))]]
    return results


def _point(row: dict) -> Point:
    return Point(*(row[name] for name in Point._fields))


def _trainer(config: ConfigDict, source, network, epochs: int) -> Callable[[list[Point]], list[float]]:
    """A function that trains points side by side and returns their mean IoU of Cu on the validation split."""
    share = config.phase1.epochs / (config.phase1.epochs + config.phase2.epochs)
    lengths = {1: round(share * epochs), 2: epochs - round(share * epochs)}
    batch_size, rows = config.data.batch_size, parallel.local_rows(config.data.batch_size)
    batches = data.batches_per_epoch(source.training, batch_size)
    steps_of = {
        phase: parallel.map_step(_side_by_side(config, source, network, phase, length * batches))
        for phase, length in lengths.items()
    }
    score = _scorer(config, source, network)
    any_point = Point(config.phase1.learning_rate, config.optim.weight_decay, config.phase1.loss.lam)
    optimiser = _optimiser(config, 1, any_point, lengths[1] * batches)  # all begin in the same state
    first = steps.init_state(network, optimiser, source.validation.counts.shape[1:], config.seed)

    def train(points: list[Point]) -> list[float]:
        values = jax.tree.map(lambda *numbers: np.array(numbers, np.float32), *points)
        state = jax.tree.map(lambda leaf: np.stack([leaf] * len(points)), first)
        for phase, step in steps_of.items():
            if phase == 2:  # from the averaged weights with a fresh optimiser, as a training
                begin = jax.vmap(functools.partial(steps.begin, optimiser=optimiser))
                state = begin(state.average, state.batch_stats, step=state.step)
            carried, done = parallel.replicate((values, state)), lengths[1] * (phase - 1)
            for epoch in range(done, done + lengths[phase]):
                order = dict(seed=config.seed, epoch=epoch, rows=rows)
                for batch in data.epoch_batches(source.training.at(epoch), batch_size, **order):
                    carried, _ = step(carried, parallel.shard(batch))
            state = parallel.unreplicate(carried)[1]
        return score(state.weights)

    return train


def _side_by_side(config, source, network, phase: int, length: int):
    """The step ((points, states), batch) -> ((points, states), outcomes) of all points on the same batch."""

    def one(point, state, batch):
        optimiser = _optimiser(config, phase, point, length)
        task = _task(config, source, phase, point.lam)
        about = dict(seed=config.seed, average_decay=config.optim.average_decay)
        return steps.make_step(network, task, optimiser, **about)(state, batch)

    def step(carried, batch):
        points, states = carried
        states, outcomes = jax.vmap(one, (0, 0, None))(points, states, batch)
        return (points, states), outcomes

    return step


def _optimiser(config, phase: int, point: Point, length: int) -> optax.GradientTransformation:
    optim, section = config.optim, config.phase1 if phase == 1 else config.phase2
    optimiser, _ = steps.make_optimiser(
        **{name: optim[name] for name in ("name", "b1", "b2", "eps")},
        weight_decay=point.weight_decay,
        learning_rate=section.learning_rate,
        final_learning_rate=section.final_learning_rate,
        warmup_steps=int(WARM_UP_SHARE * length),
        steps=length,
    )
    # Updates are in proportion to the learning rate, which the schedule wants as a plain number.
    return optax.chain(optimiser, optax.scale(point.learning_rate / config.phase1.learning_rate))


def _task(config, source, phase: int, lam) -> tasks.Task:
    if phase == 1:
        loss = functools.partial(losses.weighted_cross_entropy, **{**config.phase1.loss, "lam": lam})
    else:
        loss = functools.partial(losses.lovasz, **config.phase2.loss)
    return tasks.volumes(loss, source.augment, source.normalisation, source.validation.electrons_per_pixel)


def _scorer(config, source, network) -> Callable[[dict], list[float]]:
    """A function from the weights of points to their scores."""
    task = _task(config, source, 1, config.phase1.loss.lam)
    evaluate = parallel.map_evaluation(steps.make_evaluation(network, task))
    rows = parallel.local_rows(config.data.batch_size)

    def score(weights: dict) -> list[float]:
        scores = []
        for point in range(len(jax.tree.leaves(weights)[0])):
            of_point = parallel.replicate(jax.tree.map(lambda leaf, k=point: leaf[k], weights))
            batches = data.epoch_batches(source.validation, config.data.batch_size, rows=rows)
            scores.append(steps.measure(evaluate, task, of_point, batches)[task.merit])
        return scores

    return score


def _read(workdir: str, config: ConfigDict) -> dict:
    """The results so far."""
    settings = json.loads(config.to_json())
    path = os.path.join(workdir, "sweep.json")
    if not os.path.exists(path):
        return {"rounds": [], "config": settings}
    with open(path) as file:
        results = json.load(file)
    if results["config"] != settings:
        raise ValueError(
            f"the results in workdir must be of this configuration; got those of another in {path}. "
            "Choose another workdir."
        )
    return results


def _write(workdir: str, results: dict) -> None:
    if parallel.is_main_process():
        with imageio.whole_files(workdir) as folder:
            with open(os.path.join(folder, "sweep.json"), "w") as file:
                json.dump(results, file, indent=1)
            _draw(os.path.join(folder, "sweep.png"), results["rounds"])


def _draw(path: str, rounds: list[dict]) -> None:
    """IoU by learning rate and lambda, of the best weight decay, one panel per round."""
    figure = Figure(figsize=(4.2 * len(rounds), 4.2), dpi=100, layout="constrained")
    for panel, finished in zip(np.atleast_1d(figure.subplots(1, len(rounds))), rounds, strict=True):
        points = finished["points"]
        rates, lams = (sorted({row[name] for row in points}) for name in ("learning_rate", "lam"))
        best = np.full((len(lams), len(rates)), np.nan)
        for row in reversed(points):  # the best last
            best[lams.index(row["lam"]), rates.index(row["learning_rate"])] = row["iou_cu_mean"]
        picture = panel.imshow(best, aspect="auto", origin="lower")
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], rotation=60)
        panel.set_yticks(range(len(lams)), [f"1/{1 / lam:.3g}" for lam in lams])
        panel.set(title=f"epochs: {finished['epochs']}", xlabel="learning rate", ylabel="lambda")
        figure.colorbar(picture, ax=panel, label="mean IoU of Cu, validation")
    figure.savefig(path, format="png")
