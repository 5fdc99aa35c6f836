"""Which images a report shows: a bounded choice, each list with a share of it.

Shapes: N images measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.measures import Measures

MAX_CANDIDATES = 2000  # of a list: more than any page has room for
PER_PAIR = 4  # images of a pair of classes that are confused

ConfusedPair = tuple[int, int, np.ndarray]  # ground-truth label, another class that is suggested, numbers of the images


@dataclass(frozen=True)
class List:
    """A list of images, in the order in which a report shows them.

    Attributes:
        name: for the page's address, such as "worst".
        title, about: what it is, for people.
        share: of the images that a report shows; the list may hold more of them, which other lists chose.
        total: how many images of the whole set belong to it.
        candidates: numbers of its first images.
    """

    name: str
    title: str
    about: str
    share: float
    total: int
    candidates: np.ndarray


def lists_of(
    measures: Measures, pairs: Sequence[ConfusedPair], difference: np.ndarray | None = None, seed: int = 0
) -> list[List]:
    """The lists of a report.

    Args:
        pairs: from `confused_pairs`.
        difference: (N,) between two label sets; NaN for images that only one of them has. None for a single set.
    """
    count = len(measures)
    nowhere = np.flatnonzero(measures.area == 0)
    several = np.flatnonzero(measures.shown > 1)
    in_pairs = [
        of_pair[np.argsort(measures.label_prob[of_pair], kind="stable")][:PER_PAIR]
        for _, _, of_pair in pairs[: MAX_CANDIDATES // PER_PAIR]
    ]
    lists = [
        List(
            "worst",
            "label nowhere",
            "The ground-truth label is top-1 in no place of the image; the least probable labels first.",
            0.35,
            len(nowhere),
            nowhere[np.argsort(measures.label_score[nowhere], kind="stable")],
        ),
        List(
            "confused",
            "confused classes",
            f"Up to {PER_PAIR} images of each pair of classes that are confused, the most frequent pairs first.",
            0.2,
            int((measures.suggestion != measures.given).sum()),
            np.concatenate([np.empty(0, np.int64), *in_pairs]),
        ),
        List(
            "several",
            "several classes",
            "Several classes are top-1 in a twentieth of the places or more; the most classes first.",
            0.15,
            len(several),
            several[np.lexsort((-measures.entropy[several], -measures.shown[several]))],
        ),
        List(
            "uncertain",
            "highest entropy",
            "The whole image's target spreads over many classes; the highest entropy first.",
            0.1,
            count,
            np.argsort(-measures.entropy, kind="stable"),
        ),
        List(
            "random",
            "random sample",
            "Every image of the set had the same chance.",
            0.2,
            count,
            np.random.default_rng(seed).permutation(count),
        ),
    ]
    if difference is not None:
        both = np.flatnonzero(np.isfinite(difference))
        order = both[np.argsort(-difference[both], kind="stable")]
        about = "What the two label sets say of the whole image differs most; the largest difference first."
        lists.insert(0, List("different", "two sets differ", about, 0.5, len(both), order))
    total = sum(entry.share for entry in lists)
    return [
        List(entry.name, entry.title, entry.about, entry.share / total, entry.total, entry.candidates[:MAX_CANDIDATES])
        for entry in lists
    ]


def confused_pairs(measures: Measures) -> list[ConfusedPair]:
    """The images whose suggestion is not their ground-truth label, by pair of classes; most images first."""
    wrong = np.flatnonzero(measures.suggestion != measures.given)
    pair = measures.given[wrong].astype(np.int64) << 32 | measures.suggestion[wrong]
    order = wrong[np.argsort(pair, kind="stable")]
    found, starts = np.unique(np.sort(pair), return_index=True)
    parts = np.split(order, starts[1:])
    pairs = [(int(code >> 32), int(code & 0xFFFFFFFF), part) for code, part in zip(found.tolist(), parts, strict=False)]
    return sorted(pairs, key=lambda entry: -len(entry[2]))


def choose(lists: Sequence[List], admit: Callable[[int], bool]) -> dict[str, list[int]]:
    """The first images of each list, by its name; next comes the list that is furthest behind its share.

    Args:
        admit: called with the number of each image once; False if there is no room for it, which ends the choice.
    """
    taken, reached = [0] * len(lists), [0] * len(lists)
    chosen: set[int] = set()
    waiting = set(range(len(lists)))
    while waiting:
        place = min(waiting, key=lambda number: (taken[number] / lists[number].share, number))
        reached[place] += chosen_before(lists[place].candidates[reached[place] :], chosen)
        if reached[place] == len(lists[place].candidates):
            waiting.remove(place)
            continue
        number = int(lists[place].candidates[reached[place]])
        if not admit(number):
            break
        chosen.add(number)
        taken[place] += 1
    ends = [n + chosen_before(entry.candidates[n:], chosen) for entry, n in zip(lists, reached, strict=True)]
    return {entry.name: entry.candidates[:end].tolist() for entry, end in zip(lists, ends, strict=True)}


def chosen_before(candidates: np.ndarray, chosen: set[int]) -> int:
    """How many of a list's next images other lists have chosen already."""
    return next((n for n, number in enumerate(candidates.tolist()) if number not in chosen), len(candidates))
