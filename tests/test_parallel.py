import os
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import small_run

from bsevox_jax import data, losses, parallel, task
from bsevox_jax.step import init_state, make_step


class Network(nn.Module):
    """The smallest with BatchNorm as the large ones use it."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(6, (3, 3))(images)
        x = nn.relu(
            nn.BatchNorm(use_running_average=not train, axis_name=parallel.AXIS if train else None)(x)
        )
        return nn.Dense(2 * small_run.PIXELS)(x).reshape(*x.shape[:3], small_run.PIXELS, 2)


def sgd_steps(splits):
    """Three steps, the second on a padded batch; with SGD every error of scale shows."""
    train = splits["train"]
    examples = data.Examples(
        train.counts[:11], train.labels[:11], train.electrons_per_pixel, train.beam_energies_kev, "small"
    )
    network, optimiser = Network(), optax.sgd(0.1)
    normalisation = data.Normalisation.fit(examples)

    def loss(logits, labels, mask):
        entropy = losses.weighted_cross_entropy(
            logits, labels, mask=mask, mode="class_weighted", lam=0.1, normalise="weight_sum"
        )
        lovasz = losses.lovasz(logits, labels, mask=mask, kind="softmax", classes="present", per_sample=False)
        return entropy + lovasz

    def augment(key, example):
        return data.augment(
            key,
            example,
            normalisation=normalisation,
            electrons_per_pixel=examples.electrons_per_pixel,
            symmetries=True,
            lowest_dose_fraction=1.0,
        )

    volumes = task.volumes(loss, augment, normalisation, examples.electrons_per_pixel)
    step = parallel.map_step(make_step(network, volumes, optimiser, seed=0, average_decay=0.5))
    state = parallel.replicate(init_state(network, optimiser, examples.counts.shape[1:], seed=0))
    outcomes = []
    for epoch in (0, 1):
        rows = parallel.local_rows(8)
        for batch in list(data.epoch_batches(examples, 8, seed=0, epoch=epoch, rows=rows))[: 2 - epoch]:
            state, outcome = step(state, parallel.shard(batch))
            outcomes.append(float(parallel.unreplicate(outcome)["loss"]))
    state = parallel.unreplicate(state)
    leaves = jax.tree.leaves((state.params, state.batch_stats, state.average))
    return np.concatenate([np.ravel(leaf) for leaf in leaves] + [outcomes])


def start_processes(folder, processes, devices):
    """This file as a program, `processes` times with `devices` forced devices; the path each will write."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for process in range(processes):
        path = str(folder / f"{processes}x{devices}_{process}.npy")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": small_run.ROOT,
            "JAX_COMPILATION_CACHE_DIR": os.path.join(small_run.ROOT, ".jax_cache"),
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(process),
            }
        command = [sys.executable, __file__, str(folder), path, str(processes * devices)]
        started.append((path, subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)))
    return started


def test_one_device_four_devices_and_two_processes_agree(tmp_path):
    splits = small_run.write_data(tmp_path)
    started = start_processes(tmp_path, 1, 1) + start_processes(tmp_path, 2, 2)
    assert jax.device_count() == 4
    here = sgd_steps(splits)
    for path, process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        np.testing.assert_allclose(np.load(path), here, atol=1e-6, rtol=0, err_msg=path)


def test_batch_that_devices_cannot_share_is_refused():
    parallel.check_batch_size(8)
    with pytest.raises(ValueError) as error:
        parallel.check_batch_size(30)
    assert str(error.value) == (
        "batch_size must be divisible by the number of devices; got 30 and 4. Use 28 or 32."
    )
    with pytest.raises(ValueError, match="Use 4."):
        parallel.check_batch_size(3)


def test_array_with_fewer_rows_than_devices_is_refused():
    add = parallel.map_evaluation(lambda a, b: a + b)
    two = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="got 2 and 4"):
        add(two, two)


def test_replicas_and_shards_keep_values_and_order():
    tree = {"a": np.arange(6.0, dtype=np.float32), "b": np.int32(3)}
    replicas = parallel.replicate(tree)
    assert replicas["a"].shape == (4, 6)
    back = parallel.unreplicate(replicas)
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert back["b"] == 3 and back["b"].dtype == np.int32
    shards = parallel.shard({"x": np.arange(16).reshape(8, 2)})["x"]
    np.testing.assert_array_equal(shards.reshape(8, 2), np.arange(16).reshape(8, 2))


def test_fetched_state_survives_the_step_that_reuses_its_buffers():
    step = parallel.map_step(lambda state, batch: (state + batch, state))
    state = parallel.replicate(np.zeros(1000, np.float32))
    before = parallel.unreplicate(state)
    state, _ = step(state, np.ones((4, 1000), np.float32))
    assert (before == 0).all() and (parallel.unreplicate(state) == 1).all()


def test_mapped_step_compiles_once():
    traces = []

    def step(state, batch):
        traces.append(1)
        return state + batch, batch

    mapped, state = parallel.map_step(step), parallel.replicate(np.zeros(3, np.float32))
    for _ in range(3):
        state, _ = mapped(state, np.ones((4, 3), np.float32))
    assert len(traces) == 1


def test_incomplete_description_of_processes_is_refused():
    with pytest.raises(ValueError, match="Give all three"):
        parallel.start("localhost:1234", 2)
    with pytest.raises(ValueError, match="got 'localhost:1234', 2 and 2"):
        parallel.start("localhost:1234", 2, 2)


if __name__ == "__main__":
    folder, path, expected_devices = sys.argv[1:]
    parallel.start()
    assert jax.device_count() == int(expected_devices)
    np.save(path, sgd_steps(data.load(folder, "small.npz")))
