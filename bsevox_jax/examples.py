"""The examples of a data set in memory, and in one file for machines without tensorflow-datasets."""

import dataclasses
import os

import numpy as np

from bsevox_jax import imageio


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split of a data set.

    Attributes:
        counts: [n, y, x, e] backscattered electrons per pixel and beam energy, integers.
        labels: [n, y, x, z] uint8, 0 vacuum, 1 Si, 2 Cu.
        electrons_per_pixel: dose, incident electrons per pixel and energy.
        beam_energies_kev: [e] ascending.
        name: of the data set and its configuration.
        families: [n] name of the family of each specimen, where the data set knows them.
    """

    counts: np.ndarray
    labels: np.ndarray
    electrons_per_pixel: int
    beam_energies_kev: tuple[float, ...]
    name: str
    families: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.counts.ndim != 4 or self.counts.shape[-1] != len(self.beam_energies_kev):
            raise ValueError(
                "counts must be [n, y, x, e] with one e per beam energy; "
                f"got {self.counts.shape} and {len(self.beam_energies_kev)} energies. Rebuild the data set."
            )
        if self.labels.ndim != 4 or self.labels.shape[:3] != self.counts.shape[:3]:
            raise ValueError(
                "labels must be [n, y, x, z] over the pixels of the counts; "
                f"got {self.labels.shape} and {self.counts.shape}. Rebuild the data set."
            )
        if self.families is not None and len(self.families) != len(self.counts):
            raise ValueError(
                f"families must name each of the {len(self.counts)} specimens; got {len(self.families)}. "
                "Rebuild the data set."
            )

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a batch takes rows of."""
        return {"counts": self.counts, "labels": self.labels}

    def at(self, epoch: int) -> "Examples":
        """The examples of an epoch: the same in all."""
        del epoch
        return self

    def __len__(self) -> int:
        return len(self.counts)


def save_npz(path: str, splits: dict[str, Examples]) -> None:
    """Writes splits to one file, so that a machine without tensorflow-datasets can train."""
    first = next(iter(splits.values()))
    arrays = {
        f"{split}_{kind}": getattr(s, kind)
        for split, s in splits.items()
        for kind in ("counts", "labels", "families")
        if getattr(s, kind) is not None
    }
    with imageio.whole_files(os.path.dirname(path)) as folder:
        with open(os.path.join(folder, os.path.basename(path)), "wb") as file:
            np.savez_compressed(
                file,
                electrons_per_pixel=first.electrons_per_pixel,
                beam_energies_kev=np.array(first.beam_energies_kev),
                name=first.name,
                **arrays,
            )


def load_npz(path: str) -> dict[str, Examples]:
    """The splits of a file of `save_npz`.

    Raises:
        FileNotFoundError, OSError: it does not exist or is damaged; one line.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"the data set must exist; got {path}. Correct data.data_dir or data.config.")
    try:
        with np.load(path) as file:
            about = {
                "electrons_per_pixel": int(file["electrons_per_pixel"]),
                "beam_energies_kev": tuple(file["beam_energies_kev"].tolist()),
                "name": str(file["name"]),
            }
            names = [name.removesuffix("_counts") for name in file if name.endswith("_counts")]
            arrays = {s: {"counts": file[f"{s}_counts"], "labels": file[f"{s}_labels"]} for s in names}
            families = {s: tuple(file[f"{s}_families"].tolist()) for s in names if f"{s}_families" in file}
    except Exception as error:  # a damaged archive may raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise OSError(
            f"the data set must be whole; got {reason!r} in {path}. Restore a copy or write it anew."
        ) from error
    return {s: Examples(**arrays[s], **about, families=families.get(s)) for s in names}
