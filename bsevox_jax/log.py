"""The records of a run: on disk, in TensorBoard and on the terminal."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter  # SummaryWriter's thread would hang on a full disk
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from bsevox_jax import imageio, parallel


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
        self._path = os.path.join(self._workdir, "metrics.jsonl")
        kept = []
        if os.path.exists(self._path):
            with open(self._path) as file:
                kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= step]
        with imageio.whole_files(self._workdir) as folder:
            with open(os.path.join(folder, "metrics.jsonl"), "w") as file:
                file.writelines(kept)
        with self._told_in_one_line():
            os.makedirs(os.path.join(self._workdir, "events"), exist_ok=True)
            self._events = EventsWriter(os.path.join(self._workdir, "events", "events"))
            # On reading it, TensorBoard drops what an earlier file has from this step on.
            self._write_event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def record(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and one event per value.

        Raises:
            OSError: the disk is full; one line.
        """
        if not self._active:
            return
        with self._told_in_one_line():
            with open(self._path, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self._write_event(step, summary=summary.scalar(name.replace("_", "/", 1), value))
            self._events.flush()

    def text(self, line: str) -> None:
        """One line on the terminal, above the progress bar."""
        if self._active:
            tqdm.write(line)

    def changes(self, before: dict, now: dict) -> None:
        """One line per value that differs between the configuration of the checkpoint and that of now."""
        before, now = flatten(before), flatten(now)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                self.text(f"config changed since the checkpoint: {key} {before.get(key)} -> {now.get(key)}")

    def bar(self, name: str, steps: int, done: int) -> tqdm:
        """A progress bar over steps with the time left."""
        return tqdm(total=steps, initial=done, desc=name, unit="step", disable=not self._active)

    def close(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):  # of what could not be written, and has been told
                self._events.close()

    def _write_event(self, step: int, **content) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    @contextlib.contextmanager
    def _told_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"the records must be writable; got {error.strerror!r} in {self._workdir}. Free some space "
                "or choose another workdir; the same command resumes from the last checkpoint."
            ) from error


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
