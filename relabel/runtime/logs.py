"""What the programs log: the command line shows it on standard output, beside progress bars.

Library code logs through `logging`, under the names of its modules. Somebody who uses it from Python configures logging as
they like; by default Python shows warnings only.
"""

import logging
import os

from tqdm import tqdm

PACKAGES = ("relabel", "annotate", "train", "pipeline")


class BesideProgressBars(logging.Handler):
    """Writes a line where progress bars are drawn, without breaking them."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage())


def show_logs() -> None:
    """Show what our packages log from INFO on; of torchrun's processes the first one only. Calling it again does nothing."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(level)
        if not any(isinstance(handler, BesideProgressBars) for handler in logger.handlers):
            logger.addHandler(BesideProgressBars())
