"""relabel: localised multi-label maps for image classification. Three names open, read and pool a label set.

    from relabel import LabelMaps, LabelStore, label_pool

They are imported on first use, so `import relabel` itself does not load torch; the command line relies on that.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relabel.labels.maps import LabelMaps
    from relabel.labels.pooling import label_pool
    from relabel.labels.store import LabelStore

__all__ = ["LabelMaps", "LabelStore", "label_pool"]

MODULES = {"LabelMaps": "maps", "LabelStore": "store", "label_pool": "pooling"}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"relabel.labels.{MODULES[name]}"), name)
