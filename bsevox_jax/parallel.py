"""Devices and processes: the one place that maps a per-device function over a leading replica axis.

A mapped function is written for one device and knows the others only through collectives over `AXIS`. State
is replicated (every device holds a copy, along a leading axis), batches are sharded (row i of the global
batch lies on device i // rows_per_device, processes in order). One device is the same code, axis length 1.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Joins the processes of one run; must precede every other use of jax. Does nothing for a single process.

    Args:
        coordinator: host:port of process 0; empty takes the environment's JAX_COORDINATOR_ADDRESS.
        processes: number of processes; 0 takes JAX_NUM_PROCESSES.
        process: index of this process; -1 takes JAX_PROCESS_ID.

    Raises:
        ValueError: only some of the three are given, or the index is out of range.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    processes = processes or int(os.environ.get("JAX_NUM_PROCESSES", 0))
    process = process if process >= 0 else int(os.environ.get("JAX_PROCESS_ID", -1))
    if not coordinator and processes <= 1 and process <= 0:
        return
    if not coordinator or not 0 <= process < processes:
        raise ValueError(
            "several processes need the coordinator's host:port, their number, and an index below it; "
            f"got {coordinator!r}, {processes} and {process}. Give all three."
        )
    jax.distributed.initialize(coordinator, processes, process)


def is_main_process() -> bool:
    """True in the one process that writes logs and folders."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """True in every process as soon as it is true in one, so that all stop after the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def wait_for_all(event: str) -> None:
    """Returns when every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless every device gets the same number of rows of a global batch."""
    devices = jax.device_count()
    if batch_size <= 0 or batch_size % devices:
        low = batch_size // devices * devices
        choices = f"{low} or {low + devices}" if low > 0 else f"{devices}"
        raise ValueError(
            "batch_size must be divisible by the number of devices; "
            f"got {batch_size} and {devices}. Use {choices}."
        )


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that belong to the devices of this process."""
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def replicate(tree: Any) -> Any:
    """Copies every leaf of a host tree to all local devices, along a new leading axis."""
    devices = np.array(jax.local_devices())
    # The layout of pmap's own outputs: with any other, the second call would compile anew.
    layout = NamedSharding(Mesh(devices, (AXIS,)), PartitionSpec(AXIS))
    return jax.tree.map(
        lambda leaf: jax.device_put(np.broadcast_to(leaf, (len(devices), *np.shape(leaf))), layout), tree
    )


def unreplicate(tree: Any) -> Any:
    """The first local replica of every leaf, copied to numpy: a fetch, which waits for the device."""
    # A view of a buffer that the next step overwrites would change under a checkpoint being written.
    return jax.tree.map(lambda leaf: np.array(np.asarray(leaf.addressable_shards[0].data)[0]), tree)


def shard(batch: Any) -> Any:
    """Splits this process's rows over its devices: [rows, ...] -> [devices, rows / devices, ...]."""
    devices = jax.local_device_count()
    return jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), batch)


def map_step(step: Callable) -> Callable:
    """Maps `step(state, batch) -> (state, outcome)` over the devices; the given state is overwritten."""
    return _with_checked_axis(jax.pmap(step, axis_name=AXIS, donate_argnums=(0,)))


def map_evaluation(evaluate: Callable) -> Callable:
    """Maps `evaluate(weights, batch) -> outputs` over the devices; nothing is overwritten."""
    return _with_checked_axis(jax.pmap(evaluate, axis_name=AXIS))


def _with_checked_axis(mapped: Callable) -> Callable:
    def call(*trees: Any) -> Any:
        devices = jax.local_device_count()
        for leaf in jax.tree.leaves(trees):  # a shorter axis would silently use fewer devices
            if leaf.shape[0] != devices:
                raise ValueError(
                    "the leading axis of a mapped array must be the number of local devices; "
                    f"got {leaf.shape[0]} and {devices}. Replicate states and shard batches first."
                )
        return mapped(*trees)

    return call


def processor() -> str:
    """Name of the processor, where the system tells it."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    return "unknown"
