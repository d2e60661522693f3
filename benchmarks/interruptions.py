"""Builds that are killed and that are shared: `python -m benchmarks.interruptions` prints one JSON object.

The data set `smoke` is built undisturbed, then with twenty kill -9 at random times, then by two processes. A
build that ends before all kills are spent is compared and begun anew. All files must have the SHA-256 of
those of the undisturbed build.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("kills", 20, "number of kill -9")
flags.DEFINE_integer("seed", 0, "of the times of the kills")
ROOT = Path(__file__).parent.parent


def start(folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tfds_bse", "--config=smoke", f"--data_dir={folder}", *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        if process.wait():
            raise RuntimeError(f"a build must end without error; got exit code {process.returncode}.")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files, by their path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def undisturbed(folder: Path) -> float:
    """Seconds of a build, with everything compiled."""
    finish(start(folder))
    shutil.rmtree(folder)
    started = time.perf_counter()
    finish(start(folder))
    return time.perf_counter() - started


def killed(folder: Path, seconds: float, expected: dict) -> dict:
    """Kills builds at times spread over all of an undisturbed one; counts those that ended equal or not."""
    draw, kills, builds, equal, leftovers = random.Random(FLAGS.seed), 0, 0, 0, 0
    while kills < FLAGS.kills or folder.exists():
        process = start(folder)
        try:
            process.wait(draw.uniform(0, seconds) if kills < FLAGS.kills else None)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            leftovers += len(list(folder.rglob("*.part")))
            continue
        finish(process)
        builds, equal = builds + 1, equal + (digests(folder) == expected)
        shutil.rmtree(folder)
    return {"kills": kills, "builds": builds, "equal_builds": equal, "temporary_files_seen": leftovers}


def shared(folder: Path, expected: dict) -> bool:
    finish(*(start(folder, f"--shard={i}/2") for i in range(2)))
    return digests(folder) == expected


def main(_):
    with tempfile.TemporaryDirectory() as temporary:
        whole, disturbed, together = (Path(temporary) / name for name in ("whole", "killed", "shared"))
        seconds = undisturbed(whole)
        expected = digests(whole)
        result = {
            "undisturbed_seconds": round(seconds, 1),
            "files": len(expected),
            "killed": killed(disturbed, seconds, expected),
            "two_processes_equal": shared(together, expected),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
