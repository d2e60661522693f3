"""Time and memory of reconstructions of growing fields.

    python -m benchmarks.field --output=docs/benchmarks/field.json

The interconnect of `benchmarks.interconnect`, imaged by the image model at 1,000 electrons per pixel, and
its images repeated to 512 and 1024 pixels are reconstructed and checked, each field in its own process.
Prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks import interconnect
from bsevox_jax import forward, imageio, observe, sim, tiles
from bsevox_jax.reconstruct import reconstruct
from bsevox_jax.sim.files import write_whole

DOSE = 1000
SIZES = (256, 512, 1024)


def counts() -> np.ndarray:
    """Counts [y, x, e] of the interconnect."""
    labels = interconnect.specimen()
    model, expect = forward.load(), jax.jit(forward.expect)
    halo = forward.reach(model.network)

    def images(batch):
        return np.concatenate([np.asarray(field) for field in expect(model, batch)[:2]], axis=-1)

    both = tiles.tiled(images, labels, channels=(40,), width=96 + 2 * halo, halo=halo)
    chances = observe.chances(both[..., :20], both[..., 20:])
    return np.asarray(observe.draw_counts(jax.random.key(0), chances, float(DOSE)))


def measured(path: str) -> dict:
    """Of the stack in a file, in this process."""
    stack = np.load(path)
    start = time.perf_counter()
    found = reconstruct(stack, sim.PAPER_ENERGIES_KEV, electrons_per_pixel=DOSE)
    truth = np.tile(interconnect.specimen(), (len(stack) // interconnect.FIELD,) * 2 + (1,)) == 2
    is_cu = found.labels == 2
    return {
        "pixels": len(stack),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gib": round(peak_gib(), 2),
        "chi2": found.chi2,
        "in_range": found.in_range,
        "iou": float((truth & is_cu).sum() / (truth | is_cu).sum()),
    }


def peak_gib() -> float:
    """The most memory that this process alone has held; Linux."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="", help="file of the JSON object")
    parser.add_argument("--stack", default="", help="only this file, of one field")
    options = parser.parse_args()
    if options.stack:
        print(json.dumps(measured(options.stack)))
        return
    one, fields = counts(), []
    folder = os.path.dirname(os.path.abspath(options.output or "runs/field/field.json"))
    for size in SIZES:
        with imageio.unfinished(folder, f"field-{size}") as path:
            os.makedirs(folder, exist_ok=True)
            np.save(path, np.tile(one, (size // len(one),) * 2 + (1,)))
            command = [sys.executable, "-m", "benchmarks.field", f"--stack={path}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        fields.append(json.loads(done.stdout.splitlines()[-1]))
    text = json.dumps({"electrons_per_pixel": DOSE, "fields": fields}, indent=1)
    if options.output:
        write_whole(options.output, text)
    print(text)


if __name__ == "__main__":
    main()
