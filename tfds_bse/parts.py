"""Temporary files and folders that a killed run leaves behind, and their removal."""

import contextlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

FOREIGN_AGE_S = 24 * 3600  # after it the temporary file of another machine counts as left behind


def name(path: Path) -> Path:
    """A temporary name beside `path` that says which process writes it."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Removes what `name` named, unless the process that writes it may still live."""
    for path in list(paths):
        with contextlib.suppress(OSError):  # another process removes it too
            if _abandoned(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _abandoned(path: Path) -> bool:
    host, process, _ = path.name.removesuffix(".part").rsplit("-", 2)
    if not host.endswith(f".{socket.gethostname()}"):
        return time.time() - path.stat().st_mtime > FOREIGN_AGE_S
    try:
        os.kill(int(process), 0)  # only asks
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False
