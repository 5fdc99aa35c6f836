"""Which images a report shows: a bounded choice, each list with a share of it.

Shapes: N images measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.report.measures import Measures

PER_PAIR = 4  # images of a pair of classes that are confused
MAX_PAIRS = 500  # of which images are chosen

ConfusedPair = tuple[int, int, np.ndarray]  # ground-truth label, another class that is suggested, numbers of the images


@dataclass(frozen=True)
class List:
    """A list of images, in the order in which a report shows them.

    Attributes:
        name: for the page's address, such as "worst".
        title, about: what it is, for people.
        share: of a report's images that are chosen from it.
        total: how many images of the whole set belong to it.
        candidates: numbers of its images.
        ranked: a report shows the first of it, and no others that it has chosen from another list.
    """

    name: str
    title: str
    about: str
    share: float
    total: int
    candidates: np.ndarray
    ranked: bool = True


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
    beside = measures.label_score[nowhere] / measures.suggestion_score[nowhere]
    several = np.flatnonzero(measures.shown > 1)
    in_pairs = [
        of_pair[np.argsort(measures.label_score[of_pair], kind="stable")][:PER_PAIR] for _, _, of_pair in pairs[:MAX_PAIRS]
    ]
    lists = [
        List(
            "worst",
            "label nowhere",
            "The ground-truth label is top-1 in no place; first where it is least probable beside what is suggested.",
            0.35,
            len(nowhere),
            nowhere[np.lexsort((measures.label_score[nowhere], beside))],
            ranked=False,
        ),
        List(
            "confused",
            "confused classes",
            f"Of the same images up to {PER_PAIR} of each pair of classes, the most frequent pairs first.",
            0.2,
            len(nowhere),
            np.concatenate([np.empty(0, np.int64), *in_pairs]),
        ),
        List(
            "several",
            "several classes",
            "Several classes are top-1 in a twentieth of the places or more; the most classes first.",
            0.15,
            len(several),
            several[np.lexsort((-measures.entropy[several], -measures.shown[several]))],
            ranked=False,
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
    return [replace(entry, share=entry.share / total) for entry in lists]


def confused_pairs(measures: Measures) -> list[ConfusedPair]:
    """The images whose ground-truth label is top-1 nowhere, by pair of classes; most images first."""
    wrong = np.flatnonzero(measures.area == 0)
    pair = measures.given[wrong].astype(np.int64) << 32 | measures.suggestion[wrong]
    order = wrong[np.argsort(pair, kind="stable")]
    found, starts = np.unique(np.sort(pair), return_index=True)
    parts = np.split(order, starts[1:])
    pairs = [(int(code >> 32), int(code & 0xFFFFFFFF), part) for code, part in zip(found.tolist(), parts, strict=False)]
    return sorted(pairs, key=lambda entry: -len(entry[2]))


def choose(lists: Sequence[List], admit: Callable[[int], bool]) -> dict[str, list[int]]:
    """Take images from the lists, next from the one that is furthest behind its share.

    Args:
        admit: called with the number of each image once; False if there is no room for it, which ends the choice.
    Returns:
        numbers of the images of each list that are shown, in its order, by its name.
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
    shown = {}
    for entry, start in zip(lists, reached, strict=True):
        end = start + chosen_before(entry.candidates[start:], chosen)
        first = entry.candidates[:end] if entry.ranked else entry.candidates[np.isin(entry.candidates, list(chosen))]
        shown[entry.name] = first.tolist()
    return shown


def chosen_before(candidates: np.ndarray, chosen: set[int]) -> int:
    """How many of a list's next images other lists have chosen already."""
    return next((n for n, number in enumerate(candidates) if number not in chosen), len(candidates))
