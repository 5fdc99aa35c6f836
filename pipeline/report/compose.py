"""From a label set to its page: measure all images, choose some, and put the page together.

Shapes: N images measured.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.compare import different_settings
from pipeline.report.album import Album
from pipeline.report.choice import List, choose, confused_pairs, lists_of
from pipeline.report.description import in_words
from pipeline.report.labelled import Labelled
from pipeline.report.measures import difference, measure
from pipeline.report.numbers import Number, numbers_of
from pipeline.report.page import Templates
from pipeline.report.summary import agreement, table_of_classes, table_of_pairs
from pipeline.report.trainings import Training, curves, results, settings_table, versions_table
from relabel.labels.manifest import Manifest
from relabel.labels.stored import class_dtype
from relabel.runtime.defaults import CROP_RATIO, CROP_SCALE
from relabel.runtime.errors import InputError
from relabel.runtime.machine import relabel_version

MAX_BYTES = 10_000_000  # of the page
CONTROLS_BYTES = 500_000  # of it for what grows with the images: the choices of classes, and the numbers of the lists

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """A page, and how many images it shows."""

    content: bytes
    images: int


def compose(first: Labelled, second: Labelled | None, templates: Templates, trainings: Sequence[Training]) -> Page:
    """Measure, choose, and put the page together.

    Raises:
        InputError: the two label sets have no image in common.
        UnavailableImage: the system cannot read an image's file.
    """
    sets = [first] if second is None else [first, second]
    measures = [measure(of.store, of.rows, of.given) for of in sets]
    distance = distances(first, second) if second is not None else None
    manifest = first.store.manifest
    pairs = confused_pairs(measures[0])
    rows, class_count = table_of_classes(measures[0], pairs, manifest.num_classes)
    places = ["cells" if of.store.manifest.regions is None else "regions" for of in sets]
    numbers = numbers_of(measures[0], distance, manifest.num_classes, places[0])
    lists = lists_of(measures[0], pairs, distance)
    counts = [agreement(of, place) for of, place in zip(measures, places, strict=True)]
    values: dict[str, Any] = {
        "title": str(first.labels),
        "total": len(first.images),
        "measured": len(first.rows),
        "num_classes": manifest.num_classes,
        "places": places[0],
        "sets": [described(of, "AB"[number], len(sets)) for number, of in enumerate(sets)],
        "different_settings": different_settings(manifest, second.store.manifest) if second is not None else [],
        "agreement": list(zip(*counts, strict=True)),
        "numbers": numbers,
        "classes": rows,
        "class_count": class_count,
        "pairs": table_of_pairs(measures[0], pairs),
        "pair_count": len(pairs),
        "version": relabel_version(),
        "trainings": trainings,
        "results": results(trainings),
        "curves": curves(trainings),
        "settings": [
            ("Settings in which the runs differ", settings_table(trainings, differing=True), True),
            (
                "Settings" if len(trainings) < 2 else "Settings that the runs share",
                settings_table(trainings, differing=False),
                False,
            ),
            ("Versions, hardware and time of the last start", versions_table(trainings), False),
        ],
        "notes": [note for of in sets for note in of.notes],
    }
    empty = Album(sets, measures[0], numbers, templates, 0)
    fixed = len(render(templates, values, lists, empty, {}, manifest))
    album = Album(sets, measures[0], numbers, templates, MAX_BYTES - fixed - CONTROLS_BYTES)
    chosen = choose(lists, album.admit)
    for what, keys in (("cannot be read", album.unreadable), ("have changed since they were annotated", album.changed)):
        if keys:
            note = f"{len(keys)} of the {len(album.cards)} images on the page {what} (first: {keys[0]})"
            logger.warning(note)
            values["notes"].append(note)
    return Page(render(templates, values, lists, album, chosen, manifest), len(album.cards))


def distances(first: Labelled, second: Labelled) -> np.ndarray:
    """(N,) how much two label sets differ; NaN for images of which the second has no labels.

    Raises:
        InputError: they have no image in common.
    """
    other_rows = second.rows_by_index()[first.indices]
    both = other_rows >= 0
    if not both.any():
        raise InputError(f"{first.labels} and {second.labels} have no image in common")
    found = np.full(len(first.rows), np.nan, np.float32)
    found[both] = difference(first.store, second.store, first.rows[both], other_rows[both])
    return found


def described(of: Labelled, mark: str, sets: int) -> dict[str, Any]:
    """A label set for the template; its mark tells it from another one."""
    return {
        "labels": str(of.labels),
        "words": in_words(of.store.manifest, of.labels),
        "measured": len(of.rows),
        "mark": mark,
        "in": f" ({mark})" if sets > 1 else "",
    }


def render(
    templates: Templates,
    values: dict[str, Any],
    lists: Sequence[List],
    album: Album,
    chosen: dict[str, list[int]],
    manifest: Manifest,
) -> bytes:
    """The page with the images of an album.

    Args:
        values: all that does not depend on the images that were chosen.
        chosen: from `choose`.
    """
    places = {of.name: [album.place_of[number] for number in chosen.get(of.name, [])] for of in lists}
    order = dict.fromkeys([*places[lists[0].name], *range(len(album.cards))])  # the worst, or most different, come first
    labels = Counter(entry["given"] for entry in album.entries)
    suggestions = Counter(entry["suggestion"] for entry in album.entries)
    numbers: Sequence[Number] = values["numbers"]
    data = {
        "images": album.entries,
        "names": album.names,
        "lists": places,
        "totals": {of.name: of.total for of in lists},
        "numbers": [
            {"name": of.name, "title": of.title, "about": of.about, "range": of.range, "digits": of.digits}
            | {"ascending": of.ascending}
            for of in numbers
        ],
        "numClasses": manifest.num_classes,
        "classBytes": class_dtype(manifest.num_classes).itemsize,
        "cropScale": manifest.crop_scale or CROP_SCALE,
        "cropRatio": manifest.crop_ratio or CROP_RATIO,
    }
    return templates.page(
        data,
        **values,
        cards=[album.cards[place] for place in order],
        lists=[{"of": of, "shown": len(places[of.name])} for of in lists],
        shown_labels=labels,
        shown_pairs=Counter(
            (album.entries[place]["given"], album.entries[place]["suggestion"]) for place in places["worst"]
        ),
        label_choices=by_name(labels, templates),
        suggestion_choices=by_name(suggestions, templates),
    )


def by_name(counts: Counter[int], templates: Templates) -> list[tuple[int, int]]:
    """(class, number of images), in the order of their names."""
    return sorted(counts.items(), key=lambda item: templates.name_of(item[0]))
