"""What the images allow: the accuracy of one who knows the truth about everything but the specimen.

    python -m benchmarks.bound                               # beside the shipped network
    python -m benchmarks.bound --search --steps=2000         # without knowing where to begin

Whoever knows the family of a specimen and how its numbers are drawn (`phantoms.specimen_of`) can weigh all
specimens by the likelihood of the images. Their mean is the probability of Cu in every voxel, and no method
has a better IoU on average. The weighing is a Metropolis walk through the uniform numbers that make the
specimen, with the likelihood of the image model. It starts at the truth, so what it misses of the other
specimens makes the bound too high, never too low. With `--search` it starts at a random specimen of the
family and cools down from a high temperature: that is a reconstruction, and what it reaches the images do
tell. Beside both stands the network on the same images, and how often these contradict it: where they are
much more likely with the true specimen, a better network could know better; elsewhere none could.

Writes `bound.json` or `search.json` into the folder of the run, ten specimens at a time; the same command
goes on where it stopped.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from bsevox_jax import checkpoint, data, forward, likelihood
from bsevox_jax.evaluate import SINGLE_BODIES, iou_cu
from bsevox_jax.inference import cu_probability
from bsevox_jax.parallel import processor
from bsevox_jax.sim import phantoms
from bsevox_jax.sim.files import write_whole
from tfds_bse import sets

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "of the run beside which the bound stands; none: the shipped network")
flags.DEFINE_integer("specimens", 200, "of the test set")
flags.DEFINE_integer("steps", 400, "of each walk, of which the second half is counted")
flags.DEFINE_bool("search", False, "start at a random specimen instead of the true one")

ROWS = 10  # walks at a time
SILENT = 16  # moves in a row that change no voxel; they need no likelihood
KEPT = 40  # specimens of each walk that are kept
SEED = 0
SCALES = (0.002, 1.0)  # of a move, log-uniform, in units of the range of a number
CONTRADICTED = 10.0  # difference of log-likelihoods from which the images speak against an answer
HOT = 1000.0  # first temperature of a search, in units of the log-likelihood; 1 at half of its steps


def numbers_of(config: sets.Config, index: int) -> tuple[jax.Array, int]:
    """The uniform numbers and the family of a test specimen."""
    one = range(index, index + 1)
    (key,), ((labels,), (family,)) = sets.keys(config, "test", one), sets.draw(config, "test", one)
    for draw in range(phantoms.MAX_DRAWS):
        u = phantoms.uniform_numbers(key, draw)
        if np.array_equal(phantoms.specimen_of(u, family), labels):
            return u, int(family)
    raise AssertionError(f"specimen {index} is not drawn from its key")


@functools.cache
def effective(family: int) -> np.ndarray:
    """Which of the numbers change specimens of a family, bool [MAX_BODIES, 9]."""
    found = [_changed(key, family) for key in jax.random.split(jax.random.key(SEED), 32)]
    return np.any(found, axis=0).reshape(-1, 9)


@jax.jit
def _changed(key, family):
    """Which numbers make another specimen of one when they alone are drawn anew."""
    u, other = jax.random.uniform(key, (2, phantoms.MAX_BODIES * 9))
    make = lambda numbers: phantoms.specimen_of(numbers.reshape(-1, 9), family)  # noqa: E731
    one = make(u)
    return jax.lax.map(
        lambda k: (make(u.at[k].set(other[k])) != one).any(), jnp.arange(phantoms.MAX_BODIES * 9)
    )


def moved(key: jax.Array, u: jax.Array, mask: jax.Array) -> jax.Array:
    """Some of the numbers, one on average, moved by a symmetric step; reflected at 0 and 1."""
    which, scale, step = jax.random.split(key, 3)
    low, high = np.log(SCALES)
    size = jnp.exp(low + (high - low) * jax.random.uniform(scale))
    chosen = mask & (jax.random.uniform(which, u.shape) < 1.5 / mask.sum())
    folded = jnp.mod(u + jnp.where(chosen, size * jax.random.normal(step, u.shape), 0), 2)
    return jnp.where(folded > 1, 2 - folded, folded)


def proposal(key, u, labels, family, mask):
    """Silent moves up to one that changes voxels: numbers before and after it, specimen, and moves made."""

    def unchanged(state):
        tries, _, _, proposed = state
        return (tries < SILENT) & jnp.all(proposed == labels)

    def again(state):
        tries, _, u, _ = state
        next_u = moved(jax.random.fold_in(key, tries), u, mask)
        return tries + 1, u, next_u, phantoms.specimen_of(next_u, family)

    tries, before, after, proposed = jax.lax.while_loop(unchanged, again, (0, u, u, labels))
    return before, after, proposed, tries


@jax.jit
def step(model, counts, dose, family, mask, state, key, temperature):
    """One move of every walk: its state, Cu times the moves spent on it, these, and whether it changed."""
    u, labels, level = state
    propose_key, accept_key = jax.random.split(key)
    keys = jax.random.split(propose_key, len(u))
    before, after, proposed, tries = jax.vmap(proposal)(keys, u, labels, family, mask)
    fraction = (proposed == phantoms.COPPER).mean((1, 2, 3))
    low, high = phantoms.CU_FRACTION
    new_level = likelihood.log_likelihood(model, counts, proposed, dose)
    taken = jnp.log(jax.random.uniform(accept_key, (len(u),))) < (new_level - level) / temperature
    taken &= (fraction >= low) & (fraction <= high)

    def choose(new, old):
        return jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    state = choose(after, before), choose(proposed, labels), choose(new_level, level)
    cu = (tries - 1)[:, None, None, None] * (labels == phantoms.COPPER) + (state[1] == phantoms.COPPER)
    return state, cu, tries, (state[1] != labels).any((1, 2, 3))


def walks(model, counts, dose, u, family, mask, steps: int):
    """Of walks: mean Cu [n, y, x, z], kept specimens [k, n, y, x, z], last likelihood, share taken."""
    labels = jax.jit(jax.vmap(phantoms.specimen_of))(u, family)
    state = u, labels, likelihood.log_likelihood(model, counts, labels, dose)
    total, moves, accepted, kept = 0.0, 0, 0, []
    first = steps // 2
    every = max(1, (steps - first) // KEPT)
    for k in range(steps):
        key = jax.random.fold_in(jax.random.key(SEED), k)
        temperature = HOT ** max(0.0, 1 - 2 * k / steps) if FLAGS.search else 1.0
        state, cu, tries, moved = step(model, counts, dose, family, mask, state, key, temperature)
        if k >= first:
            total, moves, accepted = total + cu, moves + tries, accepted + moved
            if (k - first) % every == 0:
                kept.append(np.asarray(state[1] == phantoms.COPPER))
    mean = np.asarray(total) / np.asarray(moves)[:, None, None, None]
    return mean, np.stack(kept), np.asarray(state[2]), np.asarray(accepted) / (steps - first)


def best_volume(probability: np.ndarray) -> np.ndarray:
    """The volume, bool, of greatest expected IoU, as the expectations of intersection over union say it."""
    p = np.sort(probability.ravel())[::-1]
    inside = np.cumsum(p)
    score = inside / (np.arange(1, p.size + 1) + p.sum() - inside)
    return probability >= p[score.argmax()]


def best_volumes(probability: np.ndarray) -> np.ndarray:
    """1 in the `best_volume` of every specimen [n, y, x, z], 0 elsewhere."""
    return np.stack([best_volume(p) for p in probability]).astype(np.float32)


def ahead_of(model, counts, labels: np.ndarray, found: np.ndarray, dose) -> np.ndarray:
    """How much more likely the images are with the true specimens than with what was found, log [n]."""
    answer = np.where(found, phantoms.COPPER, np.minimum(labels, phantoms.SILICON))  # the vacuum is given
    true, other = (likelihood.log_likelihood(model, counts, volume, dose) for volume in (labels, answer))
    return np.asarray(true - other)


def bound(model, test: data.Examples, rows: range, network: np.ndarray) -> list[dict]:
    """What the walks of some specimens found, and the network on the same images."""
    made = [numbers_of(sets.find("standard-test"), index) for index in rows]
    u = jnp.stack([numbers for numbers, _ in made])
    if FLAGS.search:
        u = jax.random.uniform(jax.random.fold_in(jax.random.key(SEED), rows.start), u.shape)
    family = jnp.array([index for _, index in made])
    mask = jnp.stack([effective(int(index)) for index in family])
    counts, dose = jnp.asarray(test.counts[rows.start : rows.stop], jnp.float32), test.electrons_per_pixel
    mean, kept, level, taken = walks(model, counts, dose, u, family, mask, FLAGS.steps)
    labels, found = (array[rows.start : rows.stop] for array in (test.labels, network))
    ahead = ahead_of(model, counts, labels, found > 0.5, dose)
    true_level = np.asarray(likelihood.log_likelihood(model, counts, labels, dose))
    best = best_volumes(mean)
    columns = {
        "specimen": rows,
        "family": [family_of(test, index) for index in rows],
        "likelihood": iou_cu(best, labels),
        "likelihood_expected": np.mean([iou_cu(best, phantoms.COPPER * other) for other in kept], 0).tolist(),
        "behind": (true_level - level).tolist(),  # the last specimen of the walk, in log-likelihood
        "network": iou_cu(found, labels),
        "network_best_volume": iou_cu(best_volumes(found), labels),
        "contradicted": (ahead > CONTRADICTED).astype(float).tolist(),
        "moves_taken": taken.tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def family_of(test: data.Examples, index: int) -> str:
    """Its family, and of a wire its attitude: how high one lies in the vacuum no image shows."""
    family, labels = test.families[index], test.labels[index]
    if family != "core-shell wire":
        return family
    return f"{family}, {'upright' if (labels == labels[:, :, :1]).all() else 'lying'}"


def summary(rows: list[dict]) -> dict:
    """Means over all, over single bodies and by family."""
    single = [row for row in rows if row["family"].split(",")[0] in SINGLE_BODIES]
    groups = {
        "all": rows,
        "one body": single,
        "one body, no lying wire": [row for row in single if "lying" not in row["family"]],
    }
    for row in rows:
        groups.setdefault(row["family"], []).append(row)
    names = [name for name in rows[0] if name not in ("specimen", "family")]
    return {
        group: {"specimens": len(members)} | {n: float(np.mean([row[n] for row in members])) for n in names}
        for group, members in groups.items()
        if members
    }


def main(_):
    logging.set_verbosity(logging.WARNING)
    folder, workdir = checkpoint.of_run(FLAGS.workdir, "compact")
    export = checkpoint.load_export(folder)
    model, test = forward.load(), data.load("data", "standard-test")["test"]
    network = cu_probability(export, test.counts, test.electrons_per_pixel)
    name = "search.json" if FLAGS.search else "bound.json"
    path = Path(workdir) / name
    about = {
        "steps": FLAGS.steps,
        "electrons_per_pixel": test.electrons_per_pixel,
        "checkpoint_sha256": export.sha256,
        "image_model_sha256": model.sha256,
        "processor": processor(),
    }
    found = json.loads(path.read_text()) if path.exists() else {}
    rows = found["rows"] if about.items() <= found.items() else []
    for first in tqdm(range(len(rows), FLAGS.specimens, ROWS), unit="block"):
        rows += bound(model, test, range(first, min(first + ROWS, FLAGS.specimens)), network)
        write_whole(path, json.dumps(about | {"summary": summary(rows), "rows": rows}, indent=1))
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    app.run(main)
