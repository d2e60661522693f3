"""Files that are whole or not there."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[str]:
    """A temporary name beside `path`: what is written there takes its place, or is removed after an error.

    A reader of `path` finds the old file or the new one.
    """
    temporary = f"{os.fspath(path)}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Writes a file of text, whole or not at all, and the folder that it lies in."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "w") as file:
        file.write(text)
