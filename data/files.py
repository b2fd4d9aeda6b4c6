"""Writing files so that a reader sees a whole file or none."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

DEFAULT_ROOT = Path("var")
"""Where data sets, checkpoints and logs go."""


def nearest(path: Path) -> Path:
    """`path`, or where it would be created: the nearest above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, which need not exist yet; None if it can."""
    place = nearest(folder)
    if place.is_dir() and os.access(place, os.W_OK):
        return None
    return f"{place} is not a folder that can be written to"


def always() -> bool:
    return True


def write_whole(
    path: Path, content: bytes | memoryview, may_appear: Callable[[], bool] = always
) -> bool:
    """Write `content` to `path`: beside it first, then synced to the disk, then renamed.

    Args:
        may_appear: asked when all is ready, just before the renaming; if not, an earlier file at
            `path` is left as it was.

    Returns:
        Whether it appeared.

    Raises:
        OSError: the disk is full or not writable; an earlier file at `path` is left as it was.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        appears = may_appear()
        if appears:
            temporary.replace(path)
        return appears
    finally:
        temporary.unlink(missing_ok=True)
