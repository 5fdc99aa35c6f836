"""How the command line shows log messages: on standard output, without breaking progress bars.

Library code logs through `logging`, under the names of its modules. Python code that imports it configures logging as usual;
by default Python shows only warnings.
"""

import logging
import os

from tqdm import tqdm

PACKAGES = ("relabel", "annotate", "train", "pipeline")


class BesideProgressBars(logging.Handler):
    """Prints each message above any progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage())


def show_logs() -> None:
    """Show log messages from INFO up; under torchrun, every process but the first shows only errors. Safe to call again."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(level)
        if not any(isinstance(handler, BesideProgressBars) for handler in logger.handlers):
            logger.addHandler(BesideProgressBars())
