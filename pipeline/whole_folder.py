"""A folder that is complete or absent, whatever kills its writer."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its name at the end; a killed writer's is deleted first.

    Raises:
        InputError: `folder` is not empty, or within, the disk cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty; name another folder, or delete it")
    unfinished = folder.resolve().with_name(f".{folder.resolve().name}.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.replace(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InputError(f"cannot write {folder}: {error}") from error
