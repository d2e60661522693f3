"""The records of a run: on disk, in TensorBoard and on the terminal."""

import json
import os

from tensorboardX import SummaryWriter
from tqdm import tqdm

from bsevox_jax import parallel


class Log:
    """`metrics.jsonl`, TensorBoard events and the terminal; silent in all but the main process."""

    def __init__(self, workdir: str) -> None:
        self._active = parallel.is_main_process()
        self._workdir = workdir
        self._events = None

    def begin(self, step: int) -> None:
        """Opens the files; records after `step`, left by a killed run, are dropped: they will come again."""
        if not self._active:
            return
        os.makedirs(self._workdir, exist_ok=True)
        self._path = os.path.join(self._workdir, "metrics.jsonl")
        kept = []
        if os.path.exists(self._path):
            with open(self._path) as file:
                kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= step]
        with open(f"{self._path}.tmp", "w") as file:
            file.writelines(kept)
        os.replace(f"{self._path}.tmp", self._path)
        self._events = SummaryWriter(os.path.join(self._workdir, "events"), purge_step=step + 1)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and one event per value."""
        if not self._active:
            return
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name.replace("_", "/", 1), value, step)

    def text(self, line: str) -> None:
        """One line on the terminal, above the progress bar."""
        if self._active:
            tqdm.write(line)

    def bar(self, name: str, steps: int, done: int) -> tqdm:
        """A progress bar over steps with the time left."""
        return tqdm(total=steps, initial=done, desc=name, unit="step", disable=not self._active)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
