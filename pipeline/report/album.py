"""The images of a report's page: their cards and their data, as many as there is room for."""

from collections.abc import Sequence
from typing import Any

from pipeline.report.entries import labels_of, no_picture, thumbnail
from pipeline.report.labelled import Labelled
from pipeline.report.measures import Measures
from pipeline.report.numbers import Number
from pipeline.report.page import Templates, as_bytes, as_script
from relabel.images.decoding import UnreadableImage

MAX_IMAGES = 400  # more would make a page slow


class Album:
    """Images that have been admitted to the page, in that order.

    Attributes:
        cards, entries: their HTML, and their data for the scripts.
        names: of the classes that are named in them, by number.
        place_of: number of an image among those measured -> its place on the page.
        unreadable: messages of those whose files are no images.
        changed: keys of those whose files have another size than when they were annotated.
    """

    def __init__(
        self,
        sets: Sequence[Labelled],
        measures: Measures,
        numbers: Sequence[Number],
        templates: Templates,
        room: int,
    ) -> None:
        """Args:
        sets: one or two label sets; the images are the first's.
        measures: of the first's N images.
        room: bytes.
        """
        self.cards: list[str] = []
        self.entries: list[dict[str, Any]] = []
        self.names: dict[int, str] = {}
        self.place_of: dict[int, int] = {}
        self.unreadable: list[str] = []
        self.changed: list[str] = []
        self._sets, self._numbers, self._templates, self._room = sets, numbers, templates, room
        self._file_sizes = sets[0].store.file_sizes
        self._given, self._suggestion = measures.given, measures.suggestion
        self._other_rows = [of.rows_by_index() for of in sets[1:]]

    def admit(self, number: int) -> bool:
        """Add one of the N images; False if there is no room for it.

        Raises:
            UnavailableImage: the system cannot read its file.
        """
        first, index = self._sets[0], int(self._sets[0].indices[number])
        rows = [int(first.rows[number]), *(int(rows[index]) for rows in self._other_rows)]
        given = int(self._given[number])
        try:
            picture, problem = thumbnail(first.images, index, first.store.manifest.window), None
        except UnreadableImage as error:
            picture, problem = no_picture(), str(error)
        labels = [labels_of(of.store, row, given) if row >= 0 else None for of, row in zip(self._sets, rows, strict=True)]
        entry: dict[str, Any] = {
            "key": first.images.keys[index],
            "full": picture.full,
            "given": given,
            "suggestion": int(self._suggestion[number]),
            "numbers": {of.name: of.of(number) for of in self._numbers},
            "sets": [of[0] if of is not None else None for of in labels],
        }
        card = self._templates.card(image=entry, picture=picture, number=len(self.cards), numbers=self._numbers)
        named: set[int] = {given, entry["suggestion"]}.union(*(of[1] for of in labels if of is not None))
        names = {c: self._templates.name_of(c) for c in named - self.names.keys()}
        size = len(as_bytes(card)) + len(as_bytes(as_script([entry, names])))
        if len(self.cards) == MAX_IMAGES or size > self._room:
            return False
        self._room -= size
        self.place_of[number] = len(self.cards)
        self.cards.append(card)
        self.entries.append(entry)
        self.names |= names
        if problem is not None:
            self.unreadable.append(problem)
        if self._file_sizes[rows[0]] not in (0, first.images.file_size(index)):  # 0: not recorded
            self.changed.append(entry["key"])
        return True
