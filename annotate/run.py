"""Stage one: run every image through the annotator once and store its sparse label map in a shard; or crops of it, and
store the answer to each.
"""

import dataclasses
import logging
from pathlib import Path

import torch

from annotate.config import AnnotateConfig, check
from annotate.convert import REJECTED
from annotate.forward import MapForward
from annotate.label_folder import finish, prepare, write_lock
from annotate.loop import annotate_shards
from annotate.manifests import build_manifest, build_region_manifest, member, num_outputs, tagged_name
from annotate.models import load_annotator, load_classifier, outputs_for_images, with_card
from annotate.regions import CropClassifier, RegionForward, check_output
from relabel.images.image_set import ImageSet
from relabel.images.sources import check_outside, find_images
from relabel.labels.manifest import Manifest
from relabel.runtime.distributed import processes
from relabel.runtime.errors import InputError
from relabel.runtime.workers import decoding_workers

logger = logging.getLogger(__name__)


def annotate(images: Path | str, labels: Path, config: AnnotateConfig, device: str | None = None) -> None:
    """Write the label set of an image folder; a rerun keeps finished shards and makes the rest.

    Args:
        images: any source that relabel/images/sources.py reads, such as ROOT/CLASS/*.JPEG.
        labels: the label set's folder; created if missing.
    Raises:
        InputError: no images, a model that cannot annotate, a folder that holds a different label set, unreadable images
            (all of a shard's are listed, after the pass over it), or a disk error. Finished shards are kept.
    """
    check(config)
    workers = decoding_workers(config.workers)
    check_outside(labels, images, "--labels")
    image_set = find_images(images)
    with processes(device) as group:
        make = map_forward if config.regions is None else region_forward
        forward, manifest = make(config, image_set, group.device)
        if manifest.num_classes != len(image_set.classes):
            what = "maps" if manifest.regions is None else "regions"
            logger.warning(
                f"{forward.name} has {manifest.num_classes} classes, but {image_set.source} has {len(image_set.classes)};"
                f" train accepts these {what} only for images with {manifest.num_classes} classes. Use --classes to match"
                " outputs by name"
            )
        if config.compile:
            forward.compile()
        try:
            labels.mkdir(parents=True, exist_ok=True)
            with write_lock(labels, group):
                pending = prepare(labels, manifest, group, config.skip_unreadable)
                mine = pending[group.rank :: group.world]
                annotate_shards(image_set, labels, mine, manifest, forward, group, workers, config.skip_unreadable)
                group.barrier()
                if group.is_first:
                    finish(labels, manifest)
        except OSError as error:
            raise InputError(
                f"annotating into {labels} stopped: {error}. Finished shards are kept; rerun to continue"
            ) from error


def map_forward(config: AnnotateConfig, image_set: ImageSet, device: torch.device) -> tuple[MapForward, Manifest]:
    """What makes the label maps, and the manifest of their set."""
    config, card = with_card(config)
    annotator, squash = load_annotator(config, device, card)
    outputs = outputs_for_images(config, card, annotator.classifier, image_set)
    if outputs is not None:
        annotator.select(outputs)
    if annotator.kind == "token":
        logger.warning(f"{annotator.name}: {REJECTED['token']}; look at its maps before you train on them")
    manifest = build_manifest(config, annotator, squash, image_set, outputs)
    return MapForward(annotator, squash, manifest, config.batch_size), manifest


def region_forward(config: AnnotateConfig, image_set: ImageSet, device: torch.device) -> tuple[RegionForward, Manifest]:
    """What answers for the regions, and the manifest of their set."""
    teachers, members = [], []
    for model, checkpoint in ((config.model, config.checkpoint), *config.further):
        of_model, card = with_card(dataclasses.replace(config, model=model, checkpoint=checkpoint))
        classifier, squash = load_classifier(of_model, device, card)
        outputs = outputs_for_images(of_model, card, classifier, image_set)
        check_output(tagged_name(classifier), classifier, squash)
        teachers.append(CropClassifier(tagged_name(classifier), classifier, squash, outputs))
        members.append(member(of_model, classifier, squash, outputs))
    answers = [len(teacher.outputs or range(num_outputs(teacher.model))) for teacher in teachers]
    if len(set(answers)) > 1:
        found = ", ".join(f"{teacher.name} {classes}" for teacher, classes in zip(teachers, answers, strict=True))
        raise InputError(f"the models of an ensemble must have the same classes; found {found}")
    manifest = build_region_manifest(config, members, answers[0], image_set)
    return RegionForward(teachers, manifest, config.batch_size), manifest
