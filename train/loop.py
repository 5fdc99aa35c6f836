"""Stage two: train any timm model on random crops whose target is the label map pooled over the crop.

`train` is meant to be read from top to bottom. What is done for labels in a step is one gather and one pooling on the
device; nothing of it waits on the host.
"""

import dataclasses
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.classifier import create_classifier
from pipeline.distributed import Processes, processes
from pipeline.errors import InputError
from pipeline.image_sources import find_images
from pipeline.images import (
    ImageSet,
    UnreadableImage,
    batches_of,
    digest_of,
    leave_signals_to_the_main_process,
    normalise,
)
from pipeline.manifest import write_whole
from pipeline.shards import LabelStore
from train import checkpoint
from train.checkpoint import LAST, WEIGHTS, ModelCard, bare
from train.crops import RandomCrops, TrainingBatches, collate, seed_of
from train.evaluate import View, evaluate, read_multilabels, refuse_other_classes
from train.metrics import append_metrics, draw_curves, keep_metrics
from train.recipe import Recipe
from train.supervision import LabelMapTargets, loss_of, match_labels

RUN_FILE = "run.json"
LOOK_EVERY = 20  # steps between two looks at the loss; each look waits for the device


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the state is saved, and `--resume` goes on from there."""


def train(
    images: Path | str,
    run: Path,
    arch: str,
    recipe: Recipe,
    *,
    labels: Path | None = None,
    val: Path | str | None = None,
    multilabels: Path | None = None,
    model_kwargs: dict[str, Any] | None = None,
    initial_weights: Path | None = None,
    pretrained: bool = False,
    workers: int | None = None,
    amp: bool | None = None,
    device: str | None = None,
    resume: bool = False,
) -> None:
    """Train, and leave weights.pth, metrics.jsonl and curves.png in `run`.

    Args:
        images: training images, as pipeline/image_sources.py reads them.
        labels: the label set that the recipe's target reads, if it reads one.
        val: validation images of the same classes, evaluated as the recipe says.
        multilabels: JSON of all the classes that each validation image shows.
        initial_weights, pretrained: start from these weights instead of random ones.
        amp: bfloat16; on CUDA if None.
        resume: go on from last.pt if there is one; on a CPU the weights come out as if never interrupted.
    Raises:
        InputError: images without labels, other classes, a run of other settings in the folder, a loss that is not
            finite, a full disk.
        Interrupted: stopped by a signal, state saved.
    """
    with processes(device) as group:
        # Data: which images, and their label maps
        folder = find_images(images)
        store = open_labels(labels, recipe)  # where labels are given but not the target, both arms leave out the same images
        if store is not None and store.unreadable:
            folder = folder.without(set(store.unreadable))
            say(group, f"{len(store.unreadable)} images are left out: annotate could not read them")
        row_of_image = match_labels(store, folder) if store is not None and recipe.needs_labels else None
        val_folder = find_images(val) if val is not None else None
        if val_folder is not None:
            refuse_other_classes(val_folder, folder.classes, f"the training images in {images}")
        shown = read_multilabels(multilabels, val_folder) if multilabels is not None and val_folder is not None else None
        steps_per_epoch = len(folder) // recipe.batch_size
        if steps_per_epoch == 0:
            raise InputError(
                f"{images} has {len(folder)} images, fewer than one batch of {recipe.batch_size}; set batch_size"
            )
        if recipe.batch_size % group.world:
            raise InputError(f"batch_size {recipe.batch_size} is no multiple of the {group.world} processes")

        # Model, optimiser, schedule
        torch.manual_seed(seed_of(recipe.seed))
        classes = len(folder.classes)
        kwargs = model_kwargs or {}
        model: nn.Module = create_classifier(
            arch, pretrained=pretrained, checkpoint=initial_weights, num_classes=classes, model_kwargs=kwargs
        )
        settings = resolve_model_data_config(model)
        view = View(recipe.eval_size, recipe.eval_crop, settings["interpolation"], settings["mean"], settings["std"])
        card = ModelCard(arch, kwargs, folder.classes, view)
        cuda = group.device.type == "cuda"
        model = model.to(group.device).to(memory_format=torch.channels_last).train()  # faster on CPU and CUDA alike
        amp = cuda if amp is None else amp
        try:
            optimizer = create_optimizer_v2(
                model, recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
            )
        except ValueError as error:
            raise InputError(
                f"recipe: optimizer = {recipe.optimizer!r}: {error}; timm.optim.list_optimizers() lists them"
            ) from error
        scheduler, _ = create_scheduler_v2(
            optimizer,
            recipe.schedule,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.lr / 100,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
        assert scheduler is not None

        # The run's folder, and where to go on
        description = describe(card, recipe, store, folder, pretrained, initial_weights)
        state = begin(run, description, resume, group)
        step, seen = 0, torch.zeros(3, dtype=torch.float64, device=group.device)  # of this epoch: images, loss, top-1
        if state is not None:
            model.load_state_dict(state["state_dict"])
            optimizer.load_state_dict(state["optimizer"])
            checkpoint.set_rng_state(state["rng"], group.device)
            step = state["step"]
            if group.is_first:  # the others' share is in it
                seen = state["seen"].to(group.device)
            say(group, f"resuming {run} at step {step} of {steps_per_epoch * recipe.epochs}")
        if group.is_first:
            for leftover in run.glob(".*.tmp"):  # of a run that was killed
                leftover.unlink()
            keep_metrics(run, step // steps_per_epoch)
        if group.world > 1:
            torch.manual_seed(seed_of(recipe.seed, step, group.rank))  # dropout of its own in every process
            model = DistributedDataParallel(model, device_ids=[group.device.index] if cuda else None)

        # Label maps move to the device once, and targets are made there
        targets = None
        if store is not None and row_of_image is not None:
            targets = LabelMapTargets(store.to(group.device), row_of_image.to(group.device), recipe)

        decoders = group.decoding_workers(workers)
        loader = DataLoader(
            RandomCrops(folder, recipe),
            batch_sampler=TrainingBatches(len(folder), recipe, step, group.rank, group.world),
            num_workers=decoders,
            collate_fn=collate,
            pin_memory=cuda,
            worker_init_fn=leave_signals_to_the_main_process,
            generator=torch.Generator(),  # its own, so that a resumed run's model draws the numbers it would have drawn
        )

        def save_state() -> None:
            """All that resuming needs, as of now: every process takes part, the first one writes."""
            together = group.sum(seen.clone())
            if group.is_first:
                state = {
                    "state_dict": bare(model).state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rng": checkpoint.rng_state(group.device),
                    "step": step,
                    "seen": together,
                    "card": card.to_dict(),
                }
                checkpoint.save(run / LAST, state)

        with stop_signals() as stopped:
            bar = progress(step, steps_per_epoch, recipe, group)
            began = time.perf_counter()
            images_before = float(group.sum(seen[:1].clone()))
            for crops in batches_of(loader):
                # One step
                scheduler.step_update(step)
                crops = crops.to(group.device)
                target = crops.targets if targets is None else targets(crops)
                batch = normalise(crops.images, view.mean, view.std).contiguous(memory_format=torch.channels_last)
                with torch.autocast(group.device.type, torch.bfloat16, enabled=amp):
                    logits = model(batch)
                logits = logits.float()
                loss = loss_of(logits, target, recipe)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1

                # Keep count, and look at it now and then
                with torch.no_grad():
                    right = (logits.argmax(1) == crops.targets).sum()
                    seen += torch.stack([torch.full_like(loss, len(batch)), loss * len(batch), right]).double()
                bar.update(recipe.batch_size)
                epoch, in_epoch = divmod(step, steps_per_epoch)
                look = step % LOOK_EVERY == 0 or in_epoch == 0
                stop = stopped() if group.world == 1 else look and group.any(stopped())  # all stop at the same step
                if look or stop:
                    count, loss_sum, right_sum = seen.tolist()
                    bar.set_postfix(loss=f"{loss_sum / count:.3f}", top1=f"{100 * right_sum / count:.1f}", refresh=False)
                    if not torch.isfinite(seen[1]):
                        lr = optimizer.param_groups[0]["lr"]
                        raise InputError(
                            f"the loss is not finite by step {step} (epoch {epoch + (in_epoch > 0)}, lr {lr:.3g});"
                            f" {run / LAST} holds the last good state. A smaller lr or amp off may help"
                        )
                if stop and in_epoch:
                    save_state()
                    bar.close()
                    raise Interrupted(f"stopped at step {step}; the same command with --resume goes on from {run / LAST}")
                if in_epoch:
                    continue

                # End of an epoch: evaluate, record, save
                bar.close()
                wall_s = time.perf_counter() - began
                count, loss_sum, right_sum = group.sum(seen).tolist()
                metrics: dict[str, Any] = {
                    "epoch": epoch,
                    "step": step,
                    "loss": loss_sum / count,
                    "top1": 100 * right_sum / count,
                    "lr": optimizer.param_groups[0]["lr"],
                    "images_per_s": (count - images_before) / wall_s,
                }
                seen.zero_()
                unreadable = None
                if val_folder is not None and (epoch % recipe.eval_epochs == 0 or epoch == recipe.epochs):
                    group.same_buffers(bare(model))
                    try:
                        metrics["val"] = evaluate(
                            bare(model), val_folder, view, group, multilabels=shown, workers=decoders, amp=amp
                        )
                    except UnreadableImage as error:
                        if group.world > 1:  # the others are still evaluating
                            raise
                        unreadable = error  # what was learnt is saved first
                metrics["wall_s"] = time.perf_counter() - began
                if group.is_first:
                    append_metrics(run, metrics)
                save_state()
                if unreadable is not None:
                    raise unreadable
                if group.is_first and ("val" in metrics or epoch == recipe.epochs):
                    draw_curves(run)
                say(group, summary(metrics, recipe))
                if stop and epoch < recipe.epochs:
                    raise Interrupted(f"stopped after epoch {epoch}; the same command with --resume goes on")
                bar = progress(step, steps_per_epoch, recipe, group)
                began, images_before = time.perf_counter(), 0.0
            bar.close()

        if group.is_first:
            weights = {"state_dict": bare(model).state_dict(), "card": card.to_dict()}
            checkpoint.save(run / WEIGHTS, weights)
            say(group, f"weights: {run / WEIGHTS}")
        group.barrier()


def open_labels(labels: Path | None, recipe: Recipe) -> LabelStore | None:
    if labels is None:
        if not recipe.needs_labels:
            return None
        raise InputError(f"target {recipe.target!r} reads label maps; name their folder with --labels")
    return LabelStore.open(labels)


def describe(
    card: ModelCard, recipe: Recipe, store: LabelStore | None, folder: ImageSet, pretrained: bool, initial: Path | None
) -> dict[str, Any]:
    """What made these weights, for run.json: the recipe as run, the model, the labels and the versions."""
    return {
        "arch": card.arch,
        "model_kwargs": card.model_kwargs,
        "initial_weights": str(initial) if initial else "pretrained" if pretrained else "random",
        "recipe": dataclasses.asdict(recipe),
        "images": folder.source,
        "image_count": len(folder),
        "image_digest": digest_of(folder.keys),
        "classes": len(card.classes),
        "labels": dataclasses.asdict(store.manifest) if store is not None and recipe.needs_labels else None,
        "timm_version": timm.__version__,
        "torch_version": torch.__version__,
    }


def begin(run: Path, description: dict[str, Any], resume: bool, group: Processes) -> dict[str, Any] | None:
    """Make the run's folder, or go on in it. Returns the state to resume from, or None.

    Raises:
        InputError: the folder holds a run already and `resume` was not asked for, or one of other settings.
    """
    said = json.loads(json.dumps(description))  # as it reads back: lists for tuples
    path = run / RUN_FILE
    last = run / LAST
    if path.exists():
        try:
            earlier = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is damaged; delete the folder and train again") from error
        ignored = {"timm_version", "torch_version", "images"}
        other = [key for key in said if key not in ignored and earlier.get(key) != said[key]]
        if other:
            changes = "; ".join(change_of(key, earlier.get(key), said[key]) for key in other)
            raise InputError(f"{run} holds a run of other settings ({changes}); use another --run-dir, or delete it")
        if last.exists() and not resume:
            raise InputError(f"{run} holds a run already; go on with it by --resume, use another --run-dir, or delete it")
    elif last.exists():
        raise InputError(f"{run} holds {LAST} but no {RUN_FILE}, so what made it is not known; use another --run-dir")
    state = checkpoint.load(last) if last.exists() else None
    if state is not None and "step" not in state:
        raise InputError(f"{last} is no checkpoint of a run of ours; delete it to start anew")
    group.barrier()
    if group.is_first and not path.exists():
        try:
            run.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(said, indent=2) + "\n").encode())
        except OSError as error:
            raise InputError(f"cannot write {run}: {error}") from error
    return state


def change_of(key: str, before: Any, now: Any) -> str:
    """One differing setting, or those within a table that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = [f"{key}.{k} {before.get(k)!r}, now {now.get(k)!r}" for k in now if before.get(k) != now.get(k)]
        return ", ".join(inner)
    return f"{key} {before!r}, now {now!r}"


def progress(step: int, steps_per_epoch: int, recipe: Recipe, group: Processes) -> tqdm:
    epoch, in_epoch = divmod(step, steps_per_epoch)
    return tqdm(
        total=steps_per_epoch * recipe.batch_size,
        initial=in_epoch * recipe.batch_size,
        desc=f"epoch {epoch + 1}/{recipe.epochs}",
        unit="img",
        leave=False,
        disable=None if group.is_first and epoch < recipe.epochs else True,
    )


def summary(metrics: dict[str, Any], recipe: Recipe) -> str:
    line = (
        f"epoch {metrics['epoch']:>{len(str(recipe.epochs))}}/{recipe.epochs}  loss {metrics['loss']:.3f}"
        f"  top-1 {metrics['top1']:.1f}  {metrics['images_per_s']:.0f} img/s"
    )
    for name, value in metrics.get("val", {}).items():
        if name != "images":
            line += f"  val {name} {value:.2f}"
    return line


def say(group: Processes, message: str) -> None:
    if group.is_first:
        tqdm.write(message)


@contextmanager
def stop_signals() -> Iterator[Any]:
    """Within, Ctrl-C and SIGTERM only raise a flag, so that a step is never left half done. A second one acts at once."""
    received: list[int] = []

    def remember(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
