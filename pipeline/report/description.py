"""A label set's manifest in words."""

from pathlib import Path

from relabel.labels.manifest import PUBLISHED, Manifest, Member

KINDS = {
    "exact": "The mean of a map is the classifier's own logits.",
    "nonlinear": "The classifier's head is not linear, so the mean of a map is only close to its own logits.",
    "dense": "The model has a head of its own for single locations, so the mean of a map is not its own logits.",
    "token": "The classifier reads a class token: nothing trained its patch tokens to name what they show.",
    "imported": "The labels were imported, so how they were computed is not recorded.",
}
TAILS = {
    "mean": "the mean of the other logits",
    "logmeanexp": "the logarithm of the mean of the other exponentials",
    "zero": "0, as in published label maps",
}


def in_words(manifest: Manifest, labels: Path) -> list[str]:
    """What the label set is and how it was made, one sentence or two each."""
    k, classes = manifest.topk, manifest.num_classes
    place = "cell" if manifest.regions is None else "region"
    if manifest.regions is None:
        rows, columns = manifest.map_grid
        what = f"A label map for each image, of {rows} rows and {columns} columns of cells."
    else:
        what = f"Up to {manifest.regions} regions of each image: random crops with the classifier's answer to each."
    kept = f"Each {place} stores the {k} largest of {classes:,} logits with their classes"
    rest = f", and one number for the other {classes - k:,} classes: {TAILS[manifest.tail]}" if k < classes else ""
    sentences = [what, f"{kept}{rest}.", f"Annotator: {model(manifest)}."]
    sentences += [f"Averaged with {model(member)}." for member in manifest.ensemble or ()]
    if manifest.regions is None or manifest.kind == "imported":
        sentences.append(KINDS[manifest.kind])
    if manifest.input_size is not None:
        rows, columns = manifest.input_size
        squashed = "The whole image" if manifest.regions is None else "Each crop"
        how = f" ({manifest.interpolation})" if manifest.interpolation else ""
        sentences.append(f"{squashed} was squashed to {rows} x {columns} pixels{how}; precision {manifest.precision}.")
    if manifest.recentre:
        sentences.append("Each map was shifted so that its mean is exactly the classifier's logits.")
    if manifest.flip:
        sentences.append("Each map was averaged with the map of the mirrored image.")
    if manifest.window is not None:
        sentences.append(
            f"A map covers the central square of its image, {manifest.window:g} of its shorter side, as do the pictures."
        )
    if manifest.crop_scale is not None and manifest.crop_ratio is not None:
        scale, ratio = ((f"{low:g} to {high:g}") for low, high in (manifest.crop_scale, manifest.crop_ratio))
        sentences.append(f"Crops were drawn with {scale} of the image's area and a width / height of {ratio}.")
    sentences.append(f"Made with timm {manifest.timm_version} and torch {manifest.torch_version}. Folder: {labels}.")
    return sentences


def model(made_by: Manifest | Member) -> str:
    weights = "its published weights" if made_by.weights == PUBLISHED else f"weights {made_by.weights}"
    sha256 = f", sha256 {made_by.weights_sha256[:12]}…" if made_by.weights_sha256 else ""
    return f"{made_by.model} ({weights}{sha256})"
