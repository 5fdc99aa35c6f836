"""Stage two: train any timm model on random crops whose target is the label map pooled over the crop.

`train` is meant to be read from top to bottom; what a step does is in train/step.py.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from relabel.images.decoding import UnreadableImage
from relabel.models.card import ModelCard
from relabel.models.classifier import check_image_size, create_classifier
from relabel.models.preprocessing import Preprocessing
from relabel.runtime.defaults import EVAL_BATCH_SIZE, SAVE_MINUTES
from relabel.runtime.distributed import processes
from relabel.runtime.errors import InputError
from relabel.runtime.precision import autocast_dtype_of, dtype_name
from relabel.runtime.workers import batches_of, decoding_workers, init_worker
from train.crops import RandomCrops, TrainingBatches, collate, prefetch
from train.divergence import check_losses, check_weights
from train.evaluation.evaluate import evaluate
from train.progress import progress, summary
from train.recipe import Recipe
from train.run_dir import checkpoint
from train.run_dir.checkpoint import LAST, SAFETENSORS, WEIGHTS, unwrap
from train.run_dir.metrics import append_metrics, draw_curves, read_metrics, truncate_metrics
from train.run_dir.provenance import run_settings, start_run
from train.run_dir.tensorboard import open_writer, require_tensorboard, write_epoch
from train.schedule import create_schedule
from train.seeds import DROPOUT_STREAM, seed_of
from train.step import TrainingStep, compiled, create_optimizer, load_optimizer
from train.stop_signals import Interrupted, stop_signals
from train.supervision import LabelMapTargets, Supervision
from train.teacher import TeacherChoice, load_teacher
from train.tokens import WithTokens, token_grid
from train.training_set import open_training_set

logger = logging.getLogger(__name__)

CHECK_EVERY = 20  # steps between two looks at the loss and at the clock; each look waits for the device


def train(
    images: Path | str,
    run: Path,
    arch: str,
    recipe: Recipe,
    *,
    labels: Path | None = None,
    val: Path | str | None = None,
    multilabels: Path | None = None,
    teacher: TeacherChoice | None = None,
    model_kwargs: dict[str, Any] | None = None,
    initial_weights: Path | None = None,
    pretrained: bool = False,
    workers: int | None = None,
    amp: bool | None = None,
    amp_dtype: str | None = None,
    compile: bool = False,
    sync_bn: bool = False,
    device: str | None = None,
    save_every: float = SAVE_MINUTES,
    resume: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train, and leave weights.safetensors, weights.pth, run.json, metrics.jsonl and curves.png in `run`.

    Args:
        images: training images, as relabel/images/sources.py reads them.
        labels: the label set that the recipe's target reads, if it reads one.
        val: validation images of the same classes, evaluated as the recipe says.
        multilabels: JSON of all the classes that each validation image shows.
        teacher: the classifier that the recipe's target asks about every crop, if it asks one.
        initial_weights, pretrained: start from these weights instead of random ones; a head of other classes is made anew.
        amp: half precision, on CUDA if None; amp_dtype: bfloat16 if None, or float16 with the loss scaled.
        compile: by torch.compile; takes minutes at the start.
        sync_bn: batch norm's statistics over all processes' images instead of each one's own.
        save_every: minutes after which last.pt is written within an epoch; it always is after one, before evaluation.
        resume: go on from last.pt if there is one; on a CPU the weights come out as if never interrupted.
        tensorboard: write the metrics to RUN/tensorboard too.
    Raises:
        InputError: images without labels, other classes, a run of other settings in the folder, a loss that is not
            finite, a full disk.
        Interrupted: stopped by a signal, state saved.
    """
    if multilabels is not None and val is None:
        raise InputError("--multilabels are of validation images; name these with --val")
    if pretrained and initial_weights is not None:
        raise InputError("--pretrained and --initial-weights are two sets of weights to start from; leave one out")
    if save_every <= 0:
        raise InputError(f"--save-every {save_every}: expected a positive number of minutes")
    if tensorboard:
        require_tensorboard()
    with processes(device) as group:
        # Data: which images, and their label maps
        data = open_training_set(images, recipe, labels, val, multilabels, group)
        image_set, store, val_set = data.images, data.store, data.val
        steps_per_epoch = len(image_set) // recipe.batch_size
        cuda = group.device.type == "cuda"
        autocast_dtype = autocast_dtype_of(amp, amp_dtype, group.device)
        if sync_bn and not cuda:
            raise InputError("--sync-bn needs CUDA: torch's SyncBatchNorm has no CPU form")

        # Model, optimiser, schedule
        torch.manual_seed(seed_of(recipe.seed))
        classes = len(image_set.classes)
        kwargs = model_kwargs or {}
        if recipe.start == "pretrained" and not pretrained and initial_weights is None:
            raise InputError(
                "this recipe starts from weights that were trained before (start = 'pretrained'); give --pretrained with an"
                " --arch that has such, as resnetv2_50x1_bit.goog_in21k, or --initial-weights FILE"
            )
        model: nn.Module = create_classifier(
            arch,
            pretrained=pretrained,
            checkpoint=initial_weights,
            num_classes=classes,
            model_kwargs=kwargs,
            new_head=True,
            weights_option="--initial-weights",
        )
        for setting in ("image_size", "eval_size"):
            check_image_size(model, arch, getattr(recipe, setting), setting)
        grid = token_grid(model, arch) if recipe.token_weight else None
        settings = resolve_model_data_config(model)
        view = Preprocessing(recipe.eval_size, recipe.eval_crop, "bilinear", settings["mean"], settings["std"])
        card = ModelCard(arch, kwargs, image_set.classes, view, recipe.loss)
        asked = load_teacher(teacher, recipe, image_set, group.device, autocast_dtype)
        if sync_bn:
            model = convert_sync_batchnorm(model)
        torch.backends.cudnn.benchmark = True  # batches have one size: worth looking for the fastest kernels
        model = model.to(group.device).to(memory_format=torch.channels_last).train()  # as tensor cores want it
        optimizer = create_optimizer(model, recipe, group.device)
        scaler = torch.amp.GradScaler(group.device.type, enabled=autocast_dtype == torch.float16)
        scheduler = create_schedule(optimizer, recipe, steps_per_epoch)
        ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None

        # The run's folder, and where to go on
        description = run_settings(card, recipe, store, image_set, pretrained, initial_weights, teacher, val_set)
        how = {"precision": dtype_name(autocast_dtype), "sync_bn": sync_bn, "compile": compile, "processes": group.world}
        state = start_run(run, description, how, resume, group)
        step, seen = 0, torch.zeros(3, dtype=torch.float64, device=group.device)  # of this epoch: images, loss, top-1
        if state is not None:
            model.load_state_dict(state["state_dict"])
            if ema is not None:
                ema.module.load_state_dict(state["state_dict_ema"])
            load_optimizer(optimizer, state["optimizer"])
            scaler.load_state_dict(state["scaler"] or scaler.state_dict())  # empty if it was not enabled
            step = state["step"]
            if group.is_first:  # the others' share is in it
                seen = state["seen"].to(group.device)
            logger.info(f"resuming {run} at step {step} of {steps_per_epoch * recipe.epochs}")
        if group.is_first:
            for leftover in run.glob(".*.tmp"):  # of a run that was killed
                leftover.unlink()
            truncate_metrics(run, step // steps_per_epoch)
        recorded = [metrics["epoch"] for metrics in read_metrics(run)]
        writer = open_writer(run, max(recorded, default=0)) if tensorboard and group.is_first else None
        judged = unwrap(model) if ema is None else ema.module  # what is evaluated and kept
        if grid is not None:
            model = WithTokens(model)
        if group.world > 1:
            model = DistributedDataParallel(model, device_ids=[group.device.index] if cuda else None)

        # Label maps move to the device once, or are read by the loader's workers; targets are made on the device
        maps = None
        row_of_image = data.row_of_image
        if store is not None and row_of_image is not None:
            size = f"{store.nbytes / 1e9:.1f} GB" if store.nbytes >= 1e8 else f"{store.nbytes / 1e6:.1f} MB"
            if store.to(group.device).resident:
                row_of_image = row_of_image.to(group.device)
                logger.info(f"label maps: {size} in the memory of {group.device}")
            else:
                logger.info(f"label maps: {size}, read from their files through the page cache")
            maps = LabelMapTargets(store, row_of_image, recipe)
        targets = Supervision(recipe, classes, maps, asked, grid)
        forward = compiled(model) if compile else model
        train_on = TrainingStep(forward, optimizer, scaler, targets, view, recipe, autocast_dtype)

        decoders = decoding_workers(workers)
        loader = DataLoader(
            RandomCrops(image_set, recipe, maps.read if maps is not None and not maps.store.resident else None),
            batch_sampler=TrainingBatches(len(image_set), recipe, step, group.rank, group.world),
            num_workers=decoders,
            collate_fn=collate,
            pin_memory=cuda,
            worker_init_fn=init_worker,
        )

        def save_state(metrics: dict[str, Any] | None = None) -> None:
            """All that resuming needs, as of now: every process takes part, the first one writes.

            Args:
                metrics: of an epoch that has just ended, which is still to be evaluated and recorded.
            """
            together = group.sum(seen.clone())
            if group.is_first:
                state = {
                    "state_dict": unwrap(model).state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "step": step,
                    "seen": together,
                    "metrics": json.dumps(metrics),
                    "card": card.to_json(),
                }
                if ema is not None:  # the key by which timm, and so eval and export, takes them instead of the others
                    state["state_dict_ema"] = ema.module.state_dict()
                checkpoint.save_checkpoint(run / LAST, state)

        def record(metrics: dict[str, Any]) -> None:
            """Evaluate after an epoch, where the recipe says so, and record it; its state is saved by then."""
            began, epoch = time.perf_counter(), metrics["epoch"]
            if val_set is not None and (epoch % recipe.eval_epochs == 0 or epoch == recipe.epochs):
                group.sync_buffers(judged)
                try:
                    evaluation = evaluate(
                        judged,
                        val_set,
                        view,
                        group,
                        multilabels=data.multilabels,
                        batch_size=min(recipe.batch_size // group.world, EVAL_BATCH_SIZE),  # what fits in training fits here
                        workers=decoders,
                        autocast_dtype=autocast_dtype,
                    )
                except UnreadableImage as error:
                    raise UnreadableImage(f"{error}. Epoch {epoch} is saved; mend it and run again with --resume") from None
                metrics["val"] = evaluation.summary()
            metrics["wall_s"] += time.perf_counter() - began
            if writer is not None:
                write_epoch(writer, metrics)
            if group.is_first:
                append_metrics(run, metrics)
                if "val" in metrics or epoch == recipe.epochs:
                    draw_curves(run)
            logger.info(summary(metrics, recipe))

        with stop_signals() as stopped:
            ended = json.loads(state.get("metrics", "null")) if state is not None else None
            if ended is not None:
                if group.from_first(ended["epoch"] not in recorded):
                    record(ended)
                elif group.is_first:
                    draw_curves(run)  # it may have ended between the two
            bar = progress(step, steps_per_epoch, recipe, group)
            began = saved = time.perf_counter()
            images_before = float(group.sum(seen[:1].clone()))
            losses: list[tuple[torch.Tensor, float]] = []  # since the last look, with their learning rates
            for crops in prefetch(batches_of(loader), group.device):
                scheduler.step_update(step)
                torch.manual_seed(
                    seed_of(recipe.seed, step, group.rank, DROPOUT_STREAM)
                )  # as crops: where it is says it all
                counted = train_on(crops, step, step // steps_per_epoch)
                seen += counted
                step += 1
                if ema is not None:
                    ema.update(unwrap(model), step)

                # Look at it now and then
                bar.update(recipe.batch_size)
                epoch, in_epoch = divmod(step, steps_per_epoch)
                losses.append((counted[1], optimizer.param_groups[0]["lr"]))
                look = step % CHECK_EVERY == 0 or in_epoch == 0
                stop = stopped() if group.world == 1 else look and group.any(stopped())  # all stop at the same step
                save = stop or (look and group.any(time.perf_counter() - saved > 60 * save_every))
                if look or stop:
                    check_losses(losses, step, image_set, recipe, run, group)
                    losses.clear()
                    count, loss_sum, right_sum = seen.tolist()
                    bar.set_postfix(loss=f"{loss_sum / count:.3f}", top1=f"{100 * right_sum / count:.1f}", refresh=False)
                if save or in_epoch == 0:
                    check_weights(model, step, optimizer.param_groups[0]["lr"], run)

                # End of an epoch, or time to save
                metrics = None
                if in_epoch == 0:
                    bar.close()
                    wall_s = time.perf_counter() - began
                    count, loss_sum, right_sum = group.sum(seen).tolist()
                    metrics = {
                        "epoch": epoch,
                        "step": step,
                        "loss": loss_sum / count,
                        "top1": 100 * right_sum / count,
                        "lr": optimizer.param_groups[0]["lr"],
                        "images_per_s": (count - images_before) / wall_s,
                        "wall_s": wall_s,
                    }
                    seen.zero_()
                if save or metrics is not None:
                    save_state(metrics)
                    saved = time.perf_counter()
                if stop:
                    bar.close()
                    raise Interrupted(f"stopped at step {step}; the same command with --resume goes on from {run / LAST}")
                if metrics is not None:
                    record(metrics)
                    bar = progress(step, steps_per_epoch, recipe, group)
                    began, images_before = time.perf_counter(), 0.0
            bar.close()

        if writer is not None:
            writer.close()
        if group.is_first:
            for name in (SAFETENSORS, WEIGHTS):  # the second says to make that the run is done
                checkpoint.save_weights(run / name, judged.state_dict(), card)
            logger.info(f"weights: {run / SAFETENSORS} and {run / WEIGHTS}")
        group.barrier()
