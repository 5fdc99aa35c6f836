"""A run's metrics for TensorBoard. Only --tensorboard needs the tensorboard package."""

from pathlib import Path
from typing import Any

from relabel.runtime.errors import InputError

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raises InputError if the tensorboard package is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError("--tensorboard needs the tensorboard package: pip install tensorboard") from error


def open_writer(run: Path, epochs: int) -> Any:
    """A SummaryWriter on RUN/tensorboard; it replaces what was written there after this many epochs."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run / FOLDER, purge_step=epochs + 1)


def write_epoch(writer: Any, metrics: dict[str, Any]) -> None:
    """Write every number of a line of metrics.jsonl; those of the validation as val/NAME."""
    validation = {f"val/{name}": number for name, number in metrics.get("val", {}).items()}
    for name, number in (metrics | validation).items():
        if name not in ("epoch", "val") and not name.endswith("images"):
            writer.add_scalar(name, number, metrics["epoch"])
    writer.flush()  # so that an interrupted run shows all its epochs
