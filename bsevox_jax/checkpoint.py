"""Weights on disk: checkpoints of a run, and the export of a trained network. The one place that knows Orbax.

Orbax keeps no checksum of the data, so a sha256 of all leaves is stored beside them and verified on reading.
Trees are saved as host arrays: what one machine wrote, any number of devices can read.
"""

import contextlib
import dataclasses
import errno
import functools
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

import bsevox_jax
from bsevox_jax import parallel
from bsevox_jax.data import Examples, Normalisation

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shipped")  # exports by name
OVERHEAD = 4096  # bytes on disk per leaf, for its metadata and unfilled blocks


class Store:
    """A folder with one checkpoint, the newest saved; older ones are deleted once it is complete.

    The folder is made when something is first saved.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)  # Orbax fails late on relative paths

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.path, options=options)

    @property
    def step(self) -> int | None:
        """The step of the checkpoint, None if there is none."""
        return self._manager.latest_step() if os.path.isdir(self.path) else None

    def save(self, step: int, tree: Any, meta: dict) -> None:
        """Starts to save a tree of host arrays and a JSON-able dict; every process must call it.

        Training goes on while threads write; the next `save`, `restore`, `wait` or `close` waits for them. A
        process killed meanwhile leaves the previous checkpoint. Saving a step again does nothing, because a
        resumed run repeats its steps exactly.

        Raises:
            OSError: the disk is full or the folder cannot be written, by this save or the one before; the
                previous checkpoint remains.
        """
        self.wait()
        leaves = _named_leaves(tree)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves),
            meta=ocp.args.JsonSave({**meta, "sha256": _digest(leaves)}),
        )
        with self._whole_or_nothing():
            _make_folder(self.path, leaves)
            self._manager.save(step, args=args)

    def wait(self) -> None:
        """Returns when what was saved is on disk; raises OSError, in one line, if it cannot be."""
        if "_manager" in vars(self):
            with self._whole_or_nothing():
                self._manager.wait_until_finished()

    def _whole_or_nothing(self):
        unfinished = os.path.join(self.path, "*.orbax-checkpoint-tmp")
        return _whole_or_nothing(self.path, unfinished, lambda: vars(self).pop("_manager").close())

    def restore(self, like: Any) -> tuple[Any, dict]:
        """The saved tree, in the structure of `like`, and the dict.

        Raises:
            FileNotFoundError: nothing has been saved.
            OSError: the files are damaged.
            ValueError: the checkpoint has other leaves than `like`.
        """
        self.wait()
        if self.step is None:
            raise FileNotFoundError(f"a checkpoint must exist; got the empty {self.path}. Train first.")
        with _damage_as_oserror(self.path):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
            restored = self._manager.restore(self.step, args=args)
            _verify(restored.state, restored.meta["sha256"])
        return _as(like, restored.state, self.path, "another workdir"), restored.meta

    def close(self) -> None:
        """Waits for the last save and ends the threads."""
        self.wait()
        if "_manager" in vars(self):
            self._manager.close()


@dataclasses.dataclass(frozen=True)
class Export:
    """A trained network with all it takes to use it.

    Attributes:
        weights: {"params", "batch_stats"} for `network.apply`, host arrays.
        config: the resolved configuration, plain dicts; `models.build(**config["model"])` is the network.
        normalisation: of the yields, [e].
        beam_energies_kev: [e] the images must have been taken at.
        field: (y, x) pixels of the training images.
        electrons_per_pixel: dose of the training images.
        dataset: name of the training set.
        version: of this package when it trained.
        sha256: of weights and normalisation.
    """

    weights: dict
    config: dict
    normalisation: Normalisation
    beam_energies_kev: tuple[float, ...]
    field: tuple[int, int]
    electrons_per_pixel: int
    dataset: str
    version: str
    sha256: str

    @property
    def doses(self) -> tuple[float, float]:
        """Lowest and highest electrons per pixel of the training images."""
        settings = self.config["data"]
        if settings["source"] == "forward":
            return settings["forward"]["lowest_electrons_per_pixel"], self.electrons_per_pixel
        return settings["lowest_dose_fraction"] * self.electrons_per_pixel, self.electrons_per_pixel


def shipped(name: str) -> str:
    """The folder of the export of a network that comes with the project.

    Raises:
        ValueError: none comes of this name.
    """
    path = os.path.join(SHIPPED, name)
    if not os.path.exists(os.path.join(path, "config.json")):
        known = sorted(os.path.basename(os.path.dirname(f)) for f in glob.glob(f"{SHIPPED}/*/config.json"))
        raise ValueError(
            f"without a workdir the network must be shipped, one of {', '.join(known)}; got {name}. Train "
            "it, and give --workdir."
        )
    return path


def of_run(workdir: str | None, name: str) -> tuple[str, str]:
    """The folder of the export of a run, and that of its results; without a run the shipped network `name`.

    Raises:
        ValueError: as of `shipped`.
    """
    if workdir is None:
        return shipped(name), os.path.abspath(os.path.join("runs", "shipped", name))
    workdir = os.path.abspath(os.path.expanduser(workdir))
    return os.path.join(workdir, "export"), workdir


def export(path: str, weights: dict, config: dict, normalisation: Normalisation, examples: Examples) -> None:
    """Writes a trained network to a folder: Orbax weights, and `config.json` with everything else.

    Args:
        path: the folder; replaced if it exists.
        weights: {"params", "batch_stats"}, host arrays.
        config: the resolved configuration, JSON-able.
        normalisation: of the inputs.
        examples: a split of the training set, for its energies, field of view, dose and name.

    Raises:
        OSError: the disk is full or the folder cannot be written; an earlier export remains.
    """
    path = os.path.abspath(path)
    temporary = f"{path}.tmp"
    statistics = {"mean": normalisation.mean, "std": normalisation.std}
    leaves = _named_leaves({"weights": weights, **statistics})
    about = {
        "config": config,
        "normalisation": {name: np.asarray(value).tolist() for name, value in statistics.items()},
        "beam_energies_kev": list(examples.beam_energies_kev),
        "field": list(examples.labels.shape[1:3]),
        "electrons_per_pixel": examples.electrons_per_pixel,
        "dataset": examples.name,
        "version": bsevox_jax.__version__,
        "sha256": _digest(leaves),
    }
    with _whole_or_nothing(path, temporary):
        _make_folder(temporary, leaves)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(os.path.join(temporary, "weights"), weights, force=True)
        if not parallel.is_main_process():
            return
        # Orbax's mark that the folder is whole names the temporary one; here the renaming is the mark.
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(temporary, "weights", "commit_success.txt"))
        with open(os.path.join(temporary, "config.json"), "w") as file:
            json.dump(about, file, indent=1)
        if os.path.exists(path):
            shutil.rmtree(path)
        os.replace(temporary, path)


def load_export(path: str) -> Export:
    """Reads an exported network, on any number of devices.

    Raises:
        FileNotFoundError: no export in the folder.
        OSError: the files are damaged.
    """
    path = os.path.abspath(os.path.expanduser(path))
    file = os.path.join(path, "config.json")
    if not os.path.exists(file):
        raise FileNotFoundError(
            f"an exported network must have a config.json; got {path}. Give <workdir>/export."
        )
    with _damage_as_oserror(path):
        with open(file) as opened:
            about = json.load(opened)
        checkpointer = ocp.StandardCheckpointer()
        weights = checkpointer.restore(os.path.join(path, "weights"))
        checkpointer.close()
        statistics = {name: np.array(value, np.float32) for name, value in about["normalisation"].items()}
        _verify(_named_leaves({"weights": weights, **statistics}), about["sha256"])
        return Export(
            weights=weights,
            config=about["config"],
            normalisation=Normalisation(**statistics),
            beam_energies_kev=tuple(about["beam_energies_kev"]),
            field=tuple(about["field"]),
            electrons_per_pixel=about["electrons_per_pixel"],
            dataset=about["dataset"],
            version=about["version"],
            sha256=about["sha256"],
        )


def load_weights(path: str, like: Any) -> Any:
    """The weights of an exported network, in the structure of `like`.

    Raises:
        FileNotFoundError, OSError: as of `load_export`.
        ValueError: they are those of another network.
    """
    return _as(like, _named_leaves(load_export(path).weights), path, "another start_from")


def _as(like: Any, leaves: dict[str, np.ndarray], path: str, remedy: str) -> Any:
    """Leaves by name in the structure of `like`; raises ValueError, in one line, if they do not fit."""
    expected = _named_leaves(like)
    for name in sorted(expected.keys() | leaves.keys()):
        got, want = (np.shape(tree[name]) if name in tree else "nothing" for tree in (leaves, expected))
        if got != want:
            raise ValueError(
                f"the checkpoint must fit the configuration; got {got} for {name} in {path}, where {want} is "
                f"configured. Use the configuration of that run, or {remedy}."
            )
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in expected])


def _named_leaves(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _digest(leaves: dict[str, np.ndarray]) -> str:
    hashed = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        hashed.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        hashed.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return hashed.hexdigest()


def _verify(leaves: dict[str, np.ndarray], sha256: str) -> None:
    if _digest(leaves) != sha256:
        raise OSError("the weights do not match their checksum")


def _make_folder(folder: str, leaves: dict[str, np.ndarray]) -> None:
    """Raises OSError without room for the leaves: half-way, TensorStore's threads would print tracebacks."""
    os.makedirs(folder, exist_ok=True)
    if shutil.disk_usage(folder).free < sum(leaf.nbytes + OVERHEAD for leaf in leaves.values()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _whole_or_nothing(path: str, unfinished: str, settle=lambda: None) -> Iterator[None]:
    """Raises whatever fails as one OSError, and removes the folders of the pattern `unfinished`.

    `settle` ends the threads that write into them.
    """
    logging.set_verbosity(logging.FATAL)  # each thread of Orbax logs the traceback of what is raised below
    try:
        yield
    except Exception as error:  # TensorStore tells a full disk by a ValueError
        with contextlib.suppress(Exception):
            settle()
        for folder in glob.glob(unfinished):
            shutil.rmtree(folder, ignore_errors=True)
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or _brief(error)
        raise OSError(
            f"a checkpoint must be writable; got {reason!r} in {path}. Free some space or choose another "
            "workdir; the same command resumes from the last checkpoint."
        ) from error


@contextlib.contextmanager
def _damage_as_oserror(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file can fail at any depth of Orbax, with any type
        raise OSError(
            f"the checkpoint must be whole; got {_brief(error)!r} in {path}. Restore a copy or delete it."
        ) from error


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
