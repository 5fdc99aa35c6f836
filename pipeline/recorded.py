"""The classifiers that a manifest records, made again with exactly the same weights."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from annotate.config import AnnotateConfig
from annotate.convert import FullyConvolutional
from annotate.models import load_annotator, load_classifier
from annotate.regions import CropClassifier
from annotate.squash import Squash
from relabel.labels.manifest import PUBLISHED, Manifest, Member
from relabel.models.weights import weights_from_hub, weights_in_folder
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of


def recorded_annotator(
    manifest: Manifest, labels: Path, checkpoints: Sequence[Path], device: torch.device
) -> tuple[FullyConvolutional, Squash]:
    """The annotator of a set of label maps.

    Args:
        checkpoints: the user's own weights.
    Raises:
        InputError: the set was imported, or made with other weights than those given or published today.
    """
    config = recorded_config(of_manifest(manifest), manifest, labels, checkpoints)
    config = dataclasses.replace(
        config, recentre=manifest.recentre, flip=manifest.flip, class_token=manifest.kind == "token"
    )
    with told_by(labels):
        annotator, squash = load_annotator(config, device)
    check_published(annotator.classifier, of_manifest(manifest), labels)
    if manifest.outputs is not None:
        annotator.select(manifest.outputs)
    return annotator, recorded_squash(of_manifest(manifest), squash)


def recorded_teachers(
    manifest: Manifest, labels: Path, checkpoints: Sequence[Path], device: torch.device
) -> list[CropClassifier]:
    """The classifiers of a set of regions; arguments and errors as of `recorded_annotator`."""
    teachers = []
    for member in (of_manifest(manifest), *(manifest.ensemble or ())):
        config = recorded_config(member, manifest, labels, checkpoints)
        with told_by(labels):
            classifier, squash = load_classifier(config, device)
        check_published(classifier, member, labels)
        outputs = list(member.outputs) if member.outputs is not None else None
        teachers.append(CropClassifier(member.model, classifier, recorded_squash(member, squash), outputs))
    return teachers


def of_manifest(manifest: Manifest) -> Member:
    """The first classifier of a set that was annotated here."""
    fields = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(Member)}
    return Member(**fields)


def recorded_config(member: Member, manifest: Manifest, labels: Path, checkpoints: Sequence[Path]) -> AnnotateConfig:
    """The settings that create a recorded classifier, with the user's checkpoint of it where there is one."""
    if manifest.kind == "imported":
        raise InputError(f"{labels} was imported: its annotator is not recorded, so its labels cannot be computed again")
    published = member.weights == PUBLISHED
    single = manifest.ensemble is None
    if published and checkpoints and single:
        raise InputError(f"{labels} was made with the published weights of {member.model}; omit --checkpoint")
    own = None if published else own_weights(member, labels, checkpoints, single)
    return AnnotateConfig(
        model=member.model,
        model_kwargs=member.model_kwargs,
        checkpoint=None if own == weights_in_folder(member.model) else own,
        num_classes=member.num_outputs or manifest.num_classes,
        topk=manifest.topk,
        input_size=member.input_size,
    )


def own_weights(member: Member, labels: Path, checkpoints: Sequence[Path], single: bool) -> Path:
    """Which of the user's checkpoints has the recorded weights, whatever its name."""
    candidates = list(checkpoints) or [path for path in [weights_in_folder(member.model)] if path is not None]
    if not candidates:
        raise InputError(f"{labels} was made with the checkpoint {member.weights}; pass it as --checkpoint")
    for path in candidates:
        if not path.is_file():
            raise InputError(f"checkpoint {path} does not exist")
        if sha256_of(path) == member.weights_sha256:
            return path
    if single and len(candidates) == 1:
        raise InputError(f"{candidates[0]} is not the checkpoint that {labels} was made with ({member.weights}, by sha256)")
    raise InputError(
        f"none of the given checkpoints is the one of {member.model} that {labels} was made with ({member.weights}, by"
        " sha256); pass it as --checkpoint too"
    )


@contextlib.contextmanager
def told_by(labels: Path) -> Iterator[None]:
    """An error in making a recorded classifier names the label set: the options in its message are not verify's."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"the annotator that {labels} records cannot be used here (options named below are those of `relabel annotate`):"
            f" {error}"
        ) from error


def check_published(classifier: nn.Module, member: Member, labels: Path) -> None:
    """Raises InputError if the published weights are no longer those that were recorded."""
    from_hub = weights_from_hub(classifier) if member.weights == PUBLISHED else None
    if from_hub is not None and member.weights_sha256 not in (None, sha256_of(from_hub)):
        raise InputError(
            f"the published weights of {member.model} have changed since {labels} was made (by sha256); annotate again, or"
            " give the revision, as hf-hub:OWNER/NAME@REVISION"
        )


def recorded_squash(member: Member, squash: Squash) -> Squash:
    """The recorded preprocessing, in case timm's settings of the model have changed."""
    return Squash(squash.input_size, member.mean, member.std, member.interpolation)
