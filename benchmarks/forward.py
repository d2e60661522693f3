"""The image model: how fast it is, how right on the standard test set, how wrong against Monte Carlo.

    python -m benchmarks.forward                  # speed and the shipped test set; five minutes on two cores
    python -m benchmarks.forward --high_dose      # and the error budget and the gradients; an hour more

Prints one JSON object and writes it to `forward.json` in the folder of results, where the Monte Carlo images
of high dose are kept: an interrupted run goes on with the next image. Chi^2 counts the pixels whose column
holds matter. Its variance is that of the model for counts (a primary may free several counted electrons),
which the replicas check: the scatter of independent Monte Carlo images of equal specimens.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from bsevox_jax import data, forward, losses, models, parallel, sim
from bsevox_jax import source as sources
from bsevox_jax import step as steps
from bsevox_jax import task as tasks
from bsevox_jax.evaluate import agreement
from bsevox_jax.parallel import processor
from bsevox_jax.sim import shapes
from bsevox_jax.sim.files import whole_file, write_whole
from configs import compact
from tfds_bse import sets

FLAGS = flags.FLAGS
flags.DEFINE_string("model", forward.SHIPPED, "folder of the fitted image model")
flags.DEFINE_string("results", "runs/forward", "folder of the results")
flags.DEFINE_bool("high_dose", False, "whether to compare with fresh Monte Carlo images of high dose")
flags.DEFINE_float("seconds", 10, "of every timing")

SEED = 5  # of the fresh specimens and electrons; that of the standard sets is 0
BATCH = {"cpu": 16, "gpu": 1024}  # volumes at a time
COUNTS_PER_PIXEL = 500  # of the high-dose images, on average: enough for 1 % in the mean of a few pixels
HIGH_DOSE_KEV = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
REPLICAS, REPLICA_ELECTRONS = 40, 100
PROBE_NM = 2  # edge of the Cu cube that is put in
PROBES = {1.0: (1, 5, 10), 2.0: (1, 5, 10, 15), 5.0: (1, 10, 19)}  # keV -> depths of its middle, nm
PROBE_ELECTRONS = {1.0: 20_000, 2.0: 20_000, 5.0: 60_000}  # per pixel
PROBE_PARTS = 20  # of the electrons, whose scatter gives the standard error
DEPTHS_NM, SIZES_NM = (0, 2, 5, 10, 15), (2, 3, 5, 10)


def volumes_per_second(model) -> dict:
    """Labels in, images out; the median over the batches of some seconds."""
    labels, _ = sets.draw(sets.find("standard-test"), "test", range(64))
    size = BATCH.get(jax.default_backend(), BATCH["gpu"])
    batch = jax.device_put(np.resize(labels, (size, *labels.shape[1:])))
    images = jax.jit(lambda labels: forward.expect(model, labels).yields)
    gradient = jax.jit(jax.grad(lambda volume: forward.expect(model, volume).yields.sum()))
    soft = forward.soft_volume(batch)
    return {
        "volumes_per_second": size / _seconds(lambda: images(batch)),
        "gradients_per_second": size / _seconds(lambda: gradient(soft)),
    }


def _seconds(run) -> float:
    run().block_until_ready()
    times, end = [], time.perf_counter() + FLAGS.seconds
    while time.perf_counter() < end or len(times) < 5:
        started = time.perf_counter()
        run().block_until_ready()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def on_the_fly() -> dict:
    """What a step of `compact` costs on drawn specimens, and how much of it trains the network.

    Steps on counts of the data set and on drawn specimens take turns. New specimens are drawn between the
    epochs; a step bears its share.
    """
    configs = {name: compact.get_config() for name in ("counts", "drawn")}
    configs["counts"].data.update(source="counts", held_out="")
    source_of = {name: sources.load(config) for name, config in configs.items()}
    step_of = {name: _step(config, source_of[name]) for name, config in configs.items()}
    drawn = source_of["drawn"].training
    started = time.perf_counter()
    drawn.at(1)
    of_epoch_s = time.perf_counter() - started
    times, end = {name: [] for name in configs}, time.perf_counter() + 6 * FLAGS.seconds
    while time.perf_counter() < end or len(times["drawn"]) < 5:
        for name, step in step_of.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    counts_ms, drawn_ms = (1000 * float(np.median(of_one)) for of_one in times.values())
    fresh_ms = 1000 * of_epoch_s / data.batches_per_epoch(drawn, configs["drawn"].data.batch_size)
    return {
        "step_on_counts_ms": counts_ms,
        "step_on_drawn_ms": drawn_ms,
        "fresh_specimens_per_step_ms": fresh_ms,
        "specimens_per_second": drawn.fresh / of_epoch_s,
        "busy": counts_ms / (drawn_ms + fresh_ms),
    }


def _step(config, source):
    """A function that does one step of the second phase, most of the training, and waits; compiled."""
    network = models.build(**config.model)
    loss = functools.partial(losses.lovasz, **config.phase2.loss)
    dose = source.validation.electrons_per_pixel
    task = tasks.volumes(loss, source.augment, source.normalisation, dose)
    optim = {name: config.optim[name] for name in ("name", "b1", "b2", "eps", "weight_decay")}
    rates = dict(learning_rate=1e-3, final_learning_rate=1e-3, warmup_steps=0, steps=1000)
    optimiser, _ = steps.make_optimiser(**optim, **rates)
    learning = dict(seed=SEED, average_decay=config.optim.average_decay)
    mapped = parallel.map_step(steps.make_step(network, task, optimiser, **learning))
    batch = next(data.epoch_batches(source.training.at(0), config.data.batch_size, seed=SEED))
    batch, input_shape = parallel.shard(batch), source.validation.counts.shape[1:]
    state = parallel.replicate(steps.init_state(network, optimiser, input_shape, SEED))

    def step():
        nonlocal state
        state, outcome = mapped(state, batch)
        jax.block_until_ready(outcome)

    step()
    return step


def standard_test(model) -> dict:
    """Agreement with every split of the shipped test set, and by family of the random specimens."""
    of_split, of_family = {}, {}
    for split, examples in data.load("data", "standard-test").items():
        dose, labels, counts = examples.electrons_per_pixel, examples.labels, examples.counts
        images = forward.expect_all(model, labels)
        of_split[split] = agreement(images, labels, counts, dose)
        if split == "test":
            _, family = sets.draw(sets.find("standard-test"), split, range(len(examples)))
            for k in np.unique(family):
                rows = family == k
                some = forward.Expected(*(field[rows] for field in images))
                of_family[sets.FAMILIES[k]] = agreement(some, labels[rows], counts[rows], dose)
    return {"splits": of_split, "families": of_family}


def places(model) -> list[int]:
    """Of the high-dose energies among those of the model."""
    return [model.beam_energies_kev.index(energy) for energy in HIGH_DOSE_KEV]


def replicas(model) -> list[dict]:
    """Variance of counts over binomial: of independent images of three specimens, and as the model has it."""
    labels, _ = sets.draw(sets.find("standard-test"), "test", range(3))
    rows, chosen = [], places(model)
    for k, specimen in enumerate(labels):
        equal, dose = np.repeat(specimen[None], REPLICAS, 0), dict.fromkeys(HIGH_DOSE_KEV, REPLICA_ELECTRONS)
        counts = monte_carlo(f"replicas{k}", equal, dose)
        share = counts / REPLICA_ELECTRONS
        mean = share.mean(0)
        electrons = REPLICAS * REPLICA_ELECTRONS  # the mean is of so many, so its own variance is small
        binomial = mean * (1 - mean) * electrons / (electrons - 1) / REPLICA_ELECTRONS
        of_model = forward.expect_all(model, specimen[None])
        y, excess = (field[0][..., chosen] for field in of_model[:2])
        rows.append(
            {
                "found": (share.var(0, ddof=1).sum((0, 1)) / binomial.sum((0, 1))).tolist(),
                "model": (1 + (excess * y * (1 - y)).sum((0, 1)) / (y * (1 - y)).sum((0, 1))).tolist(),
            }
        )
    return rows


def monte_carlo(name, labels, dose_of_energy, side_walls="mirror", first_electron=0) -> np.ndarray:
    """Counts [n, y, x, e], kept in the folder of results energy by energy."""
    block = sim.Specimen(labels, side_walls=side_walls)
    images = []
    for energy, dose in dose_of_energy.items():
        path = Path(FLAGS.results) / f"{name}_{energy:g}keV_{first_electron}_{dose}.npy"
        if not path.exists():
            print(f"simulating {name}, {energy:g} keV, {dose} per pixel", file=sys.stderr, flush=True)
            found = sim.simulate_bse(
                block,
                electrons_per_pixel=dose,
                beam_energies_kev=(energy,),
                seed=SEED,
                first_electron=first_electron,
            )
            with whole_file(path) as temporary:
                with open(temporary, "wb") as file:
                    np.save(file, found.counts[..., 0])
        images.append(np.load(path))
    return np.stack(images, axis=-1)


def cases() -> dict:
    """Group -> (labels, side walls) of the error budget; none is in a data set of the fit."""
    fresh = dataclasses.replace(sets.find("standard-test"), seed=SEED)
    random, _ = sets.draw(fresh, "test", range(8))
    textures, _ = sets.draw(fresh, sets.TEXTURES, range(4))
    odd = np.stack([shapes.SHAPES[name]() for name in ("torus", "gyroid", "tilted slab", "helix")])
    return {
        "random": (random, "mirror"),
        "textures": (textures, "mirror"),
        "out of the families": (odd, "mirror"),
        **{f"cube of 5 nm, {d} nm deep": (cube(5, d)[None], "mirror") for d in DEPTHS_NM},
        **{f"cube of {s} nm, 4 nm deep": (cube(s, 4)[None], "mirror") for s in SIZES_NM},
        "random, periodic walls": (random[:2], "periodic"),
        "random, open walls": (random[:2], "open"),
    }


def cube(size_nm: int, depth_nm: int) -> np.ndarray:
    """A Cu cube in the middle of Si, its top so deep."""
    labels = np.ones(sim.phantoms.SHAPE, np.uint8)
    start = (labels.shape[0] - size_nm) // 2
    labels[start : start + size_nm, start : start + size_nm, depth_nm : depth_nm + size_nm] = 2
    return labels


def budget(model) -> dict:
    """Agreement with fresh Monte Carlo images of high dose, by group of specimens."""
    chosen = places(model)
    doses = np.round(COUNTS_PER_PIXEL / model.mean_yields[chosen]).astype(int)
    dose = dict(zip(HIGH_DOSE_KEV, doses.tolist(), strict=True))
    found = {}
    for name, (labels, side_walls) in cases().items():
        counts = monte_carlo(name.replace(" ", "_").replace(",", ""), labels, dose, side_walls)
        images = forward.expect_all(model, labels, side_walls=side_walls)
        images = forward.Expected(*(field[..., chosen] for field in images))
        found[name] = agreement(images, labels, counts, doses)
    return {"energies_kev": HIGH_DOSE_KEV, "electrons_per_pixel": dose, "groups": found}


def gradients(model) -> list[dict]:
    """The change of the summed yields when a small Cu cube is put into Si, by gradient and by Monte Carlo.

    The gradient is taken where the cube is half there: for the difference between none and all of it, that is
    the central one. Monte Carlo takes the same electrons with and without the cube, in parts, whose scatter
    is the standard error.
    """
    rows = []
    for energy, depths in PROBES.items():
        k, dose = model.beam_energies_kev.index(energy), PROBE_ELECTRONS[energy] // PROBE_PARTS
        without = np.ones(sim.phantoms.SHAPE, np.uint8)
        for depth in depths:
            with_cube = cube(PROBE_NM, depth - PROBE_NM // 2)
            both = np.stack([without, with_cube])
            parts = [probe_yields(f"probe{depth}", both, energy, dose, n * dose) for n in range(PROBE_PARTS)]
            change = np.diff(parts)[:, 0]
            found, error = float(change.mean()), float(change.std(ddof=1) / np.sqrt(PROBE_PARTS))
            of_model = directional(model, without, with_cube, k)
            deviation = (of_model["gradient"] - found) / error
            rows.append(
                {"energy_kev": energy, "depth_nm": depth, "monte_carlo": found, "standard_error": error}
                | of_model
                | {"deviation_in_standard_errors": deviation}
            )
    return rows


def probe_yields(name, both, energy, dose, first):
    """Summed yields [2] of both specimens, with the same random numbers."""
    sums = []
    for which, specimen in zip(("without", "with"), both, strict=True):
        label = f"{name if which == 'with' else 'probe'}_{which}"
        counts = monte_carlo(label, specimen[None], {energy: dose}, first_electron=first)
        sums.append(counts.sum() / dose)
    return sums


def directional(model, without, with_cube, k) -> dict:
    """Change of the summed yields of energy k by the model: two gradients, and the difference."""
    start, end = (forward.soft_volume(jnp.asarray(labels)) for labels in (without, with_cube))

    def total(share):
        return forward.expect(model, start + share * (end - start)).yields[..., k].sum()

    slope = jax.jit(jax.grad(total))
    return {
        "gradient": float(slope(0.5)),
        "gradient_at_none": float(slope(0.0)),
        "difference": float(total(1.0) - total(0.0)),
    }


def benchmark(model) -> dict:
    test = standard_test(model)
    splits = test["splits"]
    result = {
        "chi2_per_dof": splits["test"]["chi2_per_dof"],
        "chi2_per_dof_out_of_family": splits["out_of_family"]["chi2_per_dof"],
        **volumes_per_second(model),
        "on_the_fly": on_the_fly(),
        "beam_energies_kev": model.beam_energies_kev,
        "standard_test": test,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.weights["params"])),
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "simulator": sim.SIMULATOR_VERSION,
        "seed": SEED,
    }
    if FLAGS.high_dose:
        result |= {"gradients": gradients(model), "replicas": replicas(model), "budget": budget(model)}
    written = json.dumps(result, default=lambda array: array.tolist())
    return json.loads(written, parse_float=lambda text: float(f"{float(text):.4g}"))


def main(_):
    Path(FLAGS.results).mkdir(parents=True, exist_ok=True)
    result = benchmark(forward.load(FLAGS.model))
    write_whole(Path(FLAGS.results) / "forward.json", json.dumps(result, allow_nan=False, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
