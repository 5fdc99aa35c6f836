"""The command line, one file per group of commands. A command imports its stage when it runs: --help needs no torch."""

import importlib

from pipeline.cli.app import app

for group in ("annotating", "label_sets", "exchange", "training", "evaluating", "data"):  # in the order of --help
    importlib.import_module(f"pipeline.cli.{group}")


def main() -> None:
    app()
