"""Go through the rows of a label set by batches, with as many threads as there are cores."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from relabel.runtime.machine import cores


def in_batches(of_batch: Callable[[slice], Any], count: int, size: int, title: str) -> Iterator[Any]:
    """The results of `of_batch` for every `size` of `count` rows, in order, behind a progress bar with this title."""
    parts = [slice(start, start + size) for start in range(0, count, size)]
    with ThreadPoolExecutor(cores()) as threads:  # torch's operations release the GIL
        yield from tqdm(threads.map(of_batch, parts), total=len(parts), desc=title, unit="batch", disable=None)
