"""WebDataset shards for tests, written by the webdataset package."""

import json
from pathlib import Path
from typing import Any

import webdataset


def imagenet_sample(image: Path, number: int) -> dict[str, Any]:
    """As in timm/imagenet-1k-wds: the key is the file's stem, and the JSON has its name with the class folder."""
    properties = {"filename": f"{image.parent.name}/{image.name}", "height": 3, "label": number, "width": 2}
    return {"__key__": image.stem, "jpg": image.read_bytes(), "cls": number, "json": properties}


def write_shards(folder: Path, samples: list[dict[str, Any]], split: str = "train", per_shard: int = 4) -> None:
    """Shards NAME-SPLIT-NUMBER.tar; the split is added to the folder's _info.json."""
    with webdataset.ShardWriter(f"{folder}/tiny-{split}-%04d.tar", maxcount=per_shard, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    info = folder / "_info.json"
    splits = json.loads(info.read_text())["splits"] if info.exists() else {}
    lengths = [min(per_shard, len(samples) - first) for first in range(0, len(samples), per_shard)]
    splits[split] = {
        "name": split,
        "num_samples": len(samples),
        "filenames": [f"tiny-{split}-{i:04d}.tar" for i in range(len(lengths))],
        "shard_lengths": lengths,
    }
    info.write_text(json.dumps({"splits": splits}))
