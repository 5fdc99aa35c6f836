"""`relabel eval`: one model, or two to be compared, on an image folder and on every other data set that is found."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relabel.images.classes import ClassNames
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.runtime.defaults import EVAL_BATCH_SIZE
from relabel.runtime.distributed import Processes, processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write
from relabel.runtime.precision import autocast_dtype_of, dtype_name
from relabel.runtime.workers import decoding_workers
from train.evaluation.bootstrap import paired_bootstrap
from train.evaluation.corruption_error import corruption_error, mean_corruption_error, mean_error
from train.evaluation.eval_model import EvalModel, load_eval_model
from train.evaluation.evaluate import Evaluation, accuracies, evaluate
from train.evaluation.measures import Measure, class_accuracies, multilabel_accuracy, top_k
from train.evaluation.multilabels import MultiLabels, read_multilabels, real_labels
from train.evaluation.predictions import predict
from train.evaluation.suite import Benchmark, CorruptedImages, find_benchmarks

IMAGES, FGSM = "images", "fgsm"  # names of the two evaluations that are no benchmark's
MAX_NAMED = 5  # classes named at each end


@dataclass(frozen=True)
class Questions:
    """What every model is asked.

    Attributes:
        image_set: the images, whose classes are the models'.
        shown: all that each of them shows, if known; real: by ReaL.
        fgsm_epsilon: the attack's step, if there is to be one.
        benchmarks: further data sets.
        autocast_dtype: what the models compute in; float32 if None.
    """

    image_set: ImageSet
    shown: MultiLabels | None
    real: MultiLabels | None
    fgsm_epsilon: float | None
    benchmarks: list[Benchmark | CorruptedImages]
    batch_size: int
    workers: int
    autocast_dtype: torch.dtype | None


def evaluate_checkpoint(
    images: Path | str,
    *,
    checkpoint: Path | None = None,
    arch: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    compare: Path | None = None,
    compare_arch: str | None = None,
    suite: Path | None = None,
    fgsm_epsilon: float | None = None,
    multilabels: Path | None = None,
    class_names: Path | None = None,
    eval_size: int | None = None,
    eval_crop: float | None = None,
    output: Path | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    workers: int | None = None,
    device: str | None = None,
    amp: bool | None = None,
    amp_dtype: str | None = None,
) -> dict[str, Any] | None:
    """Evaluate, write the JSON if asked for, and return the result on the first process.

    Args:
        compare: another checkpoint, to be told apart from the first by a paired bootstrap.
        compare_arch: that one's model, if not `arch`.
        suite: folder of further data sets, see train/evaluation/suite.py.
        fgsm_epsilon: attack the images too, by this step of pixels in [0, 1].
        eval_size, eval_crop: show images otherwise than the model's own settings say.
        amp: half precision, on CUDA if None; amp_dtype: bfloat16 if None, or float16.
    Returns:
        arch, checkpoint, precision, data, images, top1 and the other measures of the images; where they apply fgsm,
        suite: {name: ...} and absent; lowest_top1 and highest_top1, the classes. With another model, compared_with holds the
        same of it, and differences stands beside the measures of each data set.
    Raises:
        InputError: no model, other classes than the folder's, labels of other images, a suite without data sets.
    """
    if compare_arch is not None and compare is None:
        raise InputError(f"--compare-arch {compare_arch}: there is no --compare whose model it names")
    check_options(batch_size, eval_size, eval_crop, fgsm_epsilon)
    names = ClassNames(class_names)
    image_set = find_images(images)
    shown = read_multilabels(multilabels, image_set) if multilabels is not None else None
    with processes(device) as group:
        autocast_dtype = autocast_dtype_of(amp, amp_dtype, group.device)
        models = [(checkpoint, arch)]
        if compare is not None:
            models.append((compare, compare_arch or arch))
        subjects = [
            load_eval_model(weights, of, model_kwargs, image_set, size=eval_size, crop=eval_crop) for weights, of in models
        ]
        first = subjects[0]
        benchmarks, absent = ([], []) if suite is None else find_benchmarks(suite, first.classes, first.weights)
        workers = decoding_workers(workers)
        questions = Questions(
            image_set, shown, real_labels(image_set), fgsm_epsilon, benchmarks, batch_size, workers, autocast_dtype
        )
        evaluations = [evaluate_model(subject, questions, group) for subject in subjects]
        if not group.is_first:
            return None
    results = [model_result(*pair, questions) for pair in zip(subjects, evaluations, strict=True)]
    result = results[0]
    if suite is not None:
        result["absent"] = absent
    result |= best_and_worst_classes(
        evaluations[0][IMAGES].measures["top1"], image_set.targets, [names(name) for name in first.classes]
    )
    if compare is not None:
        result["compared_with"] = results[1]
        for name, evaluation in evaluations[0].items():
            summary_in(result, name)["differences"] = differences(evaluation, evaluations[1][name])
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, (json.dumps(result, indent=2) + "\n").encode())
    return result


def check_options(batch_size: int, size: int | None, crop: float | None, epsilon: float | None) -> None:
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: expected at least 1")
    if size is not None and size < 1:
        raise InputError(f"--eval-size {size}: expected at least 1")
    if crop is not None and not 0 < crop <= 1:
        raise InputError(f"--eval-crop {crop}: expected a share within (0, 1]")
    if epsilon is not None and not 0 < epsilon <= 1:
        raise InputError(f"--fgsm-epsilon {epsilon:.4g}: expected a share of a pixel's range, within (0, 1], such as 8/255")


def evaluate_model(subject: EvalModel, questions: Questions, group: Processes) -> dict[str, Evaluation]:
    """All evaluations of one model, by name."""
    subject.classifier.to(group.device)
    if group.device.type == "cuda":
        subject.classifier.to(memory_format=torch.channels_last)
    options: dict[str, Any] = {
        "batch_size": questions.batch_size,
        "workers": questions.workers,
        "autocast_dtype": questions.autocast_dtype,
    }
    of_images = {"multilabels": questions.shown, "average_precision_of": subject.loss, **options}
    images = subject.classifier, questions.image_set, subject.view, group
    evaluations = {IMAGES: evaluate(*images, real=questions.real, **of_images)}
    if questions.fgsm_epsilon is not None:
        evaluations[FGSM] = evaluate(*images, attack_epsilon=questions.fgsm_epsilon, title=FGSM, **of_images)
    for benchmark in questions.benchmarks:
        if isinstance(benchmark, Benchmark):
            evaluations[benchmark.name] = evaluate_benchmark(subject, benchmark, group, options)
        else:
            evaluations[benchmark.name] = under_corruption(subject, benchmark, questions, group, options)
    subject.classifier.cpu()  # room for the other model
    return evaluations


def evaluate_benchmark(subject: EvalModel, benchmark: Benchmark, group: Processes, options: dict[str, Any]) -> Evaluation:
    predictions = predict(
        subject.classifier,
        benchmark.image_set,
        subject.view,
        group,
        len(subject.classes),
        among=torch.from_numpy(benchmark.numbers) if benchmark.subset else None,
        title=benchmark.name,
        **options,
    )
    measures = accuracies(predictions, benchmark.targets, len(benchmark.image_set.classes))
    return Evaluation(len(benchmark.image_set), measures, notes={"data": benchmark.image_set.source})


def under_corruption(
    subject: EvalModel, corrupted: CorruptedImages, questions: Questions, group: Processes, options: dict[str, Any]
) -> Evaluation:
    """corruption_error, the plain mean, and its parts error_NAME; multilabel_corruption_error where the images have labels;
    mce where all of ImageNet-C is there."""
    view = dataclasses.replace(subject.view, crop=1.0) if corrupted.published else subject.view
    shown = questions.shown if corrupted.images.keys == questions.image_set.keys else None
    targets = torch.from_numpy(corrupted.targets)
    top1: dict[str, list[Measure]] = {}
    multilabel: dict[str, list[Measure]] = {}
    for corruption, folders in corrupted.folders.items():
        top1[corruption], multilabel[corruption] = [], []
        for image_set in folders:
            title = f"{corruption} {Path(image_set.source).name}"
            best = predict(subject.classifier, image_set, view, group, len(subject.classes), title=title, **options).best
            top1[corruption].append(top_k(best, targets, 1))
            if shown is not None:
                multilabel[corruption].append(multilabel_accuracy(best, shown, targets))
    measures = {"corruption_error": mean_error(top1)}
    if shown is not None:
        measures["multilabel_corruption_error"] = mean_error(multilabel)
    if corrupted.published and not corrupted.missing:
        measures["mce"] = mean_corruption_error(top1)
    measures |= {f"error_{corruption}": corruption_error(accuracies) for corruption, accuracies in top1.items()}
    return Evaluation(len(corrupted.images), measures, notes={"data": str(corrupted.root), "missing": corrupted.missing})


def model_result(subject: EvalModel, evaluations: dict[str, Evaluation], questions: Questions) -> dict[str, Any]:
    """The evaluations of one model as they stand in the JSON."""
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    result: dict[str, Any] = {"arch": subject.arch, "checkpoint": subject.weights}
    result |= {"precision": dtype_name(questions.autocast_dtype), "data": questions.image_set.source}
    result |= summaries.pop(IMAGES)
    if FGSM in summaries:
        result[FGSM] = {"epsilon": questions.fgsm_epsilon, **summaries.pop(FGSM)}
    if summaries:
        result["suite"] = summaries
    return result


def summary_in(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The place of an evaluation's figures in a model's result."""
    if name == IMAGES:
        return result
    place: dict[str, Any] = result[FGSM] if name == FGSM else result["suite"][name]
    return place


def differences(first: Evaluation, second: Evaluation) -> dict[str, dict[str, Any]]:
    """First minus second, for every measure that is a mean over images."""
    found = {}
    for name, measure in first.measures.items():
        difference = paired_bootstrap(measure, second.measures[name])
        rounded = {key: round(value, 4) for key, value in dataclasses.asdict(difference).items()}
        found[name] = {**rounded, "excludes_zero": difference.excludes_zero}
    return found


def best_and_worst_classes(top1: Measure, targets: np.ndarray, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The classes with the lowest and the highest top-1, of those with images; none are named where there is but one."""
    accuracy = class_accuracies(top1, targets, len(names))
    order = np.argsort(accuracy, kind="stable")[: np.isfinite(accuracy).sum()]  # those without images, NaN, come last
    named = min(MAX_NAMED, len(order) // 2)

    def entries(classes: np.ndarray) -> list[dict[str, Any]]:
        return [{"name": names[c], "top1": round(float(accuracy[c]), 4)} for c in classes]

    return {"lowest_top1": entries(order[:named]), "highest_top1": entries(order[::-1][:named])}
