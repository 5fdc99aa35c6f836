"""Stage two: train any timm model on random crops whose target is the label map pooled over the crop.

`train` is meant to be read from top to bottom; what happens in a step is in train/step.py.
"""

import contextlib
import functools
import logging
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from relabel.images.sources import check_outside
from relabel.runtime.defaults import EVAL_BATCH_SIZE
from relabel.runtime.distributed import processes
from relabel.runtime.errors import InputError
from relabel.runtime.precision import autocast_dtype_of, dtype_name
from relabel.runtime.workers import batches_of, decoding_workers, init_worker
from train.crops import RandomCrops, TrainingBatches, prefetch
from train.divergence import LossMonitor, check_weights
from train.evaluation.evaluate import evaluate
from train.optimizer import create_optimizer
from train.options import TrainOptions
from train.progress import EpochProgress
from train.recipe import Recipe
from train.recorder import Recorder
from train.run_dir.checkpoint import LAST, SAFETENSORS, WEIGHTS, save_weights
from train.run_dir.provenance import run_settings, start_run, write_lock
from train.run_dir.tensorboard import require_tensorboard
from train.schedule import create_schedule
from train.seeds import DROPOUT_STREAM, seed_of
from train.state import TrainingState
from train.step import TrainingStep, compiled
from train.stop_signals import Interrupted, stop_signals
from train.student import build_student
from train.supervision import Supervision, labels_on_device
from train.teacher import load_teacher
from train.tokens import WithTokens
from train.training_set import open_training_set, stored_crops
from train.watch import Watch

logger = logging.getLogger(__name__)


def train(images: Path | str, run: Path, arch: str, recipe: Recipe, options: TrainOptions) -> None:
    """Train, and leave weights.safetensors, weights.pth, run.json, metrics.jsonl and curves.png in `run`.

    Args:
        images: training images, in any form that relabel/images/sources.py reads.
        arch: a timm model.
    Raises:
        InputError: images without labels or of different classes, a run directory with different settings, a loss that
            is not finite, a full disk.
        Interrupted: stopped by a signal; the state is saved.
    """
    if options.tensorboard:
        require_tensorboard()
    check_outside(run, images, "--run-dir")
    if options.val is not None:
        check_outside(run, options.val, "--run-dir")
    with processes(options.device) as group, contextlib.ExitStack() as held:
        # Data, model, optimizer
        workers = decoding_workers(options.workers)
        data = open_training_set(images, recipe, options, group.world)
        steps_per_epoch = len(data.images) // recipe.batch_size
        autocast_dtype = autocast_dtype_of(options.amp, options.amp_dtype, group.device)
        student = build_student(arch, recipe, data.images.classes, options, group.device)
        teacher = load_teacher(options.teacher, recipe, data.images, group.device, autocast_dtype)
        state = TrainingState(
            student.model,
            create_optimizer(student.model, recipe, group.device),
            torch.amp.GradScaler(group.device.type, enabled=autocast_dtype == torch.float16),
            ModelEmaV3(student.model, decay=recipe.ema, use_warmup=True) if recipe.ema else None,
            group,
        )
        scheduler = create_schedule(state.optimizer, recipe, steps_per_epoch)
        torch.backends.cudnn.benchmark = True  # all batches have one size, so searching for the fastest kernels pays off

        # The run directory, and the state to resume from
        conditions = {
            "precision": dtype_name(autocast_dtype),
            "sync_bn": options.sync_bn,
            "compile": options.compile,
            "processes": group.world,
        }
        held.enter_context(write_lock(run, group))
        saved = start_run(run, run_settings(student.card, recipe, data, options), conditions, options.resume, group)
        unrecorded = None  # metrics of an epoch that was saved before it was recorded
        if saved is not None:
            unrecorded = state.restore(saved, run)
            if state.step > steps_per_epoch * recipe.epochs:
                raise InputError(
                    f"{run / LAST} is at step {state.step} of {steps_per_epoch * recipe.epochs}, so it is not the state of"
                    " this run; restore it, or delete it to start from the beginning"
                )
            logger.info(f"resuming {run} at step {state.step} of {steps_per_epoch * recipe.epochs}")

        # Targets and the step on the device; crops from decoding processes
        maps, regions = labels_on_device(data, recipe, group.device)
        targets = Supervision(recipe, len(data.images.classes), maps, teacher, student.token_grid, regions)
        model: nn.Module = student.model if student.token_grid is None else WithTokens(student.model)
        if group.world > 1:
            cuda_ids = [group.device.index] if group.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=cuda_ids)
        train_step = TrainingStep(
            compiled(model) if options.compile else model,
            state.optimizer,
            state.scaler,
            targets,
            student.card.preprocessing,
            recipe,
            autocast_dtype,
        )
        loader = DataLoader(
            RandomCrops(
                data.images,
                recipe,
                maps.read if maps is not None and not maps.store.resident else None,
                stored_crops(data, recipe),
                with_answers=regions is not None and not regions.store.resident,
                window=maps.store.manifest.window if maps is not None else None,
            ),
            batch_size=None,  # the data set makes batches
            sampler=TrainingBatches(len(data.images), recipe, state.step, group.rank, group.world),
            num_workers=workers,
            pin_memory=group.device.type == "cuda",
            worker_init_fn=init_worker,
        )
        validate = None
        if data.val is not None:
            validate = functools.partial(
                evaluate,
                image_set=data.val,
                preprocessing=student.card.preprocessing,
                group=group,
                multilabels=data.multilabels,
                batch_size=min(recipe.batch_size // group.world, EVAL_BATCH_SIZE),  # what fits in training fits here
                workers=workers,
                autocast_dtype=autocast_dtype,
            )
        recorder = Recorder(run, recipe, group, state.step // steps_per_epoch, validate, options.tensorboard)
        losses = LossMonitor(data, options.initial_weights, recipe, run, group)

        with stop_signals() as stopped:
            if unrecorded is not None:
                recorder.catch_up(unrecorded, state.result)
            watch = Watch(group, stopped, options.save_every)
            progress = EpochProgress(state, steps_per_epoch, recipe)
            for crops in prefetch(batches_of(loader), group.device):
                scheduler.step_update(state.step)
                # Dropout, like crops, depends on the position in training, so a resumed run draws the same
                torch.manual_seed(seed_of(recipe.seed, state.step, group.rank, DROPOUT_STREAM))
                counted = train_step(crops, state.step, state.step // steps_per_epoch)
                losses.add(counted[1], state.lr)
                state.advance(counted)
                progress.update()

                epoch_ends = state.step % steps_per_epoch == 0
                due = watch.after(state.step, epoch_ends)
                if due.check:
                    losses.check(state.step)
                    progress.show()
                metrics = None
                if due.save:
                    check_weights(student.model, state.step, state.lr, run)
                    metrics = progress.finish() if epoch_ends else None
                    state.save(run, student.card, metrics)
                    watch.saved()
                if due.stop:
                    progress.close()
                    raise Interrupted(
                        f"stopped at step {state.step}; the same command with --resume continues from {run / LAST}"
                    )
                if metrics is not None:
                    recorder.record(metrics, state.result)
                    progress = EpochProgress(state, steps_per_epoch, recipe)
            progress.close()

        recorder.close()
        if group.is_first:
            for name in (SAFETENSORS, WEIGHTS):  # the second one tells make that the run is finished
                save_weights(run / name, state.result.state_dict(), student.card)
            logger.info(f"weights: {run / SAFETENSORS} and {run / WEIGHTS}")
        group.barrier()
