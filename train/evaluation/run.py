"""`relabel eval`: evaluate one model, or compare two, on an image folder and on every other data set that is found."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relabel.images.classes import ClassNames, among_classes, check_recorded_classes, classes_with_images
from relabel.images.image_set import ImageSet
from relabel.images.sources import check_outside, find_images
from relabel.runtime.defaults import EVAL_BATCH_SIZE, MAX_PIXELS, HalfPrecision
from relabel.runtime.distributed import Processes, processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import check_output, write_output
from relabel.runtime.precision import autocast_dtype_of, dtype_name
from relabel.runtime.typed import shown
from relabel.runtime.workers import decoding_workers
from train.evaluation.bootstrap import paired_bootstrap
from train.evaluation.corruption_error import corruption_error, mean_corruption_error, mean_error
from train.evaluation.eval_model import EvalModel, load_eval_model
from train.evaluation.evaluate import Evaluation, accuracies, accuracies_among_folders, evaluate
from train.evaluation.measures import Measure, class_accuracies, multilabel_accuracy, top_k
from train.evaluation.multilabels import MultiLabels, read_multilabels, real_labels
from train.evaluation.predictions import predict
from train.evaluation.suite import Benchmark, CorruptedImages, find_benchmarks

IMAGES, FGSM = "images", "fgsm"  # names of the two evaluations that are not of a benchmark
MAX_NAMED = 5  # classes named at each end
LARGEST_RESULT = 2**24  # bytes; many times what any evaluation writes


@dataclass(frozen=True)
class EvalOptions:
    """What is evaluated, and how.

    Attributes:
        checkpoint, arch: the model: a relabel checkpoint; weights of the timm model `arch`; or its published weights.
        model_kwargs: passed to timm.create_model.
        classes: names of the outputs of models that do not record them: a file, or "timm".
        compare: another checkpoint, to compare with the first by a paired bootstrap; compare_arch: its model, if not `arch`.
        suite: folder of other data sets, see train/evaluation/suite.py.
        fgsm_epsilon: also evaluate under attack, with this step for pixels in [0, 1].
        multilabels: JSON with all the classes that each image shows.
        class_names: lines FOLDER NAME, for the classes that are named.
        eval_size, eval_crop: instead of the model's own settings.
        output: write the result to this JSON file, which may replace an earlier result; with `force` any file.
        workers: decoding processes; this process's share of the cores if None.
        device: cpu, cuda or cuda:N; CUDA if there is one, if None.
        amp: half precision; on CUDA only, if None. amp_dtype: bfloat16 if None, or float16.

    Raises:
        InputError: an option out of range, or one that goes with another.
    """

    checkpoint: Path | None = None
    arch: str | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    classes: str | None = None
    compare: Path | None = None
    compare_arch: str | None = None
    suite: Path | None = None
    fgsm_epsilon: float | None = None
    multilabels: Path | None = None
    class_names: Path | None = None
    eval_size: int | None = None
    eval_crop: float | None = None
    output: Path | None = None
    force: bool = False
    batch_size: int = EVAL_BATCH_SIZE
    workers: int | None = None
    device: str | None = None
    amp: bool | None = None
    amp_dtype: HalfPrecision | None = None

    def __post_init__(self) -> None:
        if self.compare_arch is not None and self.compare is None:
            raise InputError(f"--compare-arch {self.compare_arch} is the model of --compare; give that too")
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: expected at least 1")
        if self.eval_size is not None and not 1 <= self.eval_size <= MAX_PIXELS:
            raise InputError(f"--eval-size {shown(self.eval_size)}: expected 1 to {MAX_PIXELS}")
        if self.output is not None and self.output.is_dir():
            raise InputError(f"--output {self.output} is a folder; name a file in it")
        if self.eval_crop is not None and not 0 < self.eval_crop <= 1:
            raise InputError(f"--eval-crop {self.eval_crop}: expected a share within (0, 1]")
        if self.fgsm_epsilon is not None and not 0 < self.fgsm_epsilon <= 1:
            raise InputError(
                f"--fgsm-epsilon {self.fgsm_epsilon:.4g}: expected a share of a pixel's range, within (0, 1], such as 8/255"
            )


@dataclass(frozen=True)
class EvalData:
    """The images that a model is evaluated on, and how.

    Attributes:
        image_set: the images, with the model's classes, some of which may have no images.
        multilabels: all the classes that each of them shows, if known; real: the same, from ReaL.
        benchmarks: the other data sets.
        attack_epsilon: the step of FGSM; no attack if None.
        loading: keyword arguments of `predict` that are the same for all data sets: batch size, workers, autocast.
    """

    image_set: ImageSet
    multilabels: MultiLabels | None
    real: MultiLabels | None
    benchmarks: list[Benchmark | CorruptedImages]
    attack_epsilon: float | None
    loading: dict[str, Any]


def evaluate_checkpoint(images: Path | str, options: EvalOptions) -> dict[str, Any] | None:
    """Evaluate, write the JSON if `options.output` is given, and return the result in the first process.

    Returns:
        arch, checkpoint, precision, data, images, top1 and the other measures of the images; if they apply fgsm,
        suite: {name: ...} and absent; lowest_top1 and highest_top1, the classes. With a second model, compared_with has its
        results, and differences stands next to the measures of each data set.
    Raises:
        InputError: no model, classes that differ from the images', labels of other images, a suite without data sets.
    """
    workers = decoding_workers(options.workers)
    if options.output is not None:
        check_output(options.output, is_result, options.force)
        if not options.output.parent.is_dir():
            check_outside(options.output.parent, images, "--output in")
    names = ClassNames(options.class_names)
    image_set = find_images(images)
    with processes(options.device) as group:
        autocast_dtype = autocast_dtype_of(options.amp, options.amp_dtype, group.device)
        sources = [(options.checkpoint, options.arch)]
        if options.compare is not None:
            sources.append((options.compare, options.compare_arch or options.arch))
        models = [
            load_eval_model(
                checkpoint,
                arch,
                options.model_kwargs,
                image_set,
                size=options.eval_size,
                crop=options.eval_crop,
                names=options.classes,
            )
            for checkpoint, arch in sources
        ]
        if all(model.recorded for model in models):
            check_recorded_classes(models[0].classes, options.classes, models[0].weights, "--classes")
        first = models[0]
        absent: list[str] = []
        loading = {"batch_size": options.batch_size, "workers": workers, "autocast_dtype": autocast_dtype}
        data_of: dict[tuple[str, ...], EvalData] = {}  # of models with these classes; listing a suite twice takes minutes
        for model in models:
            if model.classes not in data_of:
                images_of_model = among_classes(image_set, model.classes, model.weights)
                multilabels = read_multilabels(options.multilabels, images_of_model) if options.multilabels else None
                benchmarks: list[Benchmark | CorruptedImages] = []
                if options.suite is not None:
                    benchmarks, absent = find_benchmarks(options.suite, model.classes, model.weights)
                real = real_labels(images_of_model)
                data_of[model.classes] = EvalData(
                    images_of_model, multilabels, real, benchmarks, options.fgsm_epsilon, loading
                )
        evaluations = [evaluate_model(model, data_of[model.classes], group) for model in models]
        if not group.is_first:
            return None
    results = [
        model_result(model, evaluation, data_of[model.classes])
        for model, evaluation in zip(models, evaluations, strict=True)
    ]
    result = results[0]
    if options.suite is not None:
        result["absent"] = absent
    class_names = [names(name) for name in first.classes]
    targets = data_of[first.classes].image_set.targets
    result |= best_and_worst_classes(evaluations[0][IMAGES].measures["top1"], targets, class_names)
    if options.compare is not None:
        result["compared_with"] = results[1]
        for name, evaluation in evaluations[0].items():
            summary_in(result, name)["differences"] = differences(evaluation, evaluations[1][name])
    if options.output is not None:
        text = json.dumps(result, indent=2) + "\n"
        try:
            write_output(options.output, text.encode())
        except OSError as error:
            raise InputError(
                f"cannot write {options.output}: {error}. The result, which you may save, is\n{text}"
            ) from error
    return result


def is_result(file: Path) -> bool:
    """Whether a file is the JSON of an earlier evaluation."""
    try:
        result = json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size < LARGEST_RESULT else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(result, dict) and {"arch", "checkpoint", "top1"} <= result.keys()


def evaluate_model(model: EvalModel, data: EvalData, group: Processes) -> dict[str, Evaluation]:
    """All evaluations of one model, by name."""
    model.classifier.to(group.device)
    if group.device.type == "cuda":
        model.classifier.to(memory_format=torch.channels_last)
    arguments = model.classifier, data.image_set, model.preprocessing, group
    labels: dict[str, Any] = {"multilabels": data.multilabels, "average_precision_of": model.loss, **data.loading}
    labels["among_folders"] = classes_with_images(data.image_set.targets, len(model.classes))
    evaluations = {IMAGES: evaluate(*arguments, real=data.real, **labels)}
    if data.attack_epsilon is not None:
        evaluations[FGSM] = evaluate(*arguments, attack_epsilon=data.attack_epsilon, title=FGSM, **labels)
    for benchmark in data.benchmarks:
        if isinstance(benchmark, Benchmark):
            evaluations[benchmark.name] = evaluate_benchmark(model, benchmark, data, group)
        else:
            evaluations[benchmark.name] = evaluate_corruptions(model, benchmark, data, group)
    model.classifier.cpu()  # room for the other model
    return evaluations


def evaluate_benchmark(model: EvalModel, benchmark: Benchmark, data: EvalData, group: Processes) -> Evaluation:
    """top1 and top5 among the classes that the benchmark lets the model choose from, and among those that have images."""
    choices = np.arange(len(model.classes)) if benchmark.choices is None else benchmark.choices
    present = np.unique(benchmark.targets)
    predictions = predict(
        model.classifier,
        benchmark.image_set,
        model.preprocessing,
        group,
        len(model.classes),
        among=[torch.from_numpy(choices), torch.from_numpy(present)],
        title=benchmark.name,
        **data.loading,
    )
    best, best_of_present = predictions.best_among
    measures = accuracies(best, benchmark.targets, len(choices))
    if len(present) < len(choices):
        measures |= accuracies_among_folders(best_of_present, benchmark.targets, len(present))
    return Evaluation(len(benchmark.image_set), measures, notes={"data": benchmark.image_set.source})


def evaluate_corruptions(model: EvalModel, corrupted: CorruptedImages, data: EvalData, group: Processes) -> Evaluation:
    """corruption_error, the plain mean, and error_NAME of each corruption; corruption_error_among_folders if some of the
    model's classes have no images; multilabel_corruption_error if the images have multi-labels; mce for all of ImageNet-C.
    """
    preprocessing = dataclasses.replace(model.preprocessing, crop=1.0) if corrupted.published else model.preprocessing
    multilabels = data.multilabels if corrupted.images.keys == data.image_set.keys else None
    targets = torch.from_numpy(corrupted.targets)
    present = classes_with_images(corrupted.targets, len(model.classes))
    among = [] if present is None else [torch.from_numpy(present)]
    top1: dict[str, list[Measure]] = {}
    top1_among_folders: dict[str, list[Measure]] = {}
    multilabel: dict[str, list[Measure]] = {}
    for corruption, folders in corrupted.folders.items():
        top1[corruption], top1_among_folders[corruption], multilabel[corruption] = [], [], []
        for image_set in folders:
            title = f"{corruption} {Path(image_set.source).name}"
            arguments = model.classifier, image_set, preprocessing, group, len(model.classes)
            predictions = predict(*arguments, among=among, title=title, **data.loading)
            best = predictions.best
            top1[corruption].append(top_k(best, targets, 1))
            top1_among_folders[corruption] += [
                top_k(best_of_present, targets, 1) for best_of_present in predictions.best_among
            ]
            if multilabels is not None:
                multilabel[corruption].append(multilabel_accuracy(best, multilabels, targets))
    measures = {"corruption_error": mean_error(top1)}
    if present is not None:
        measures["corruption_error_among_folders"] = mean_error(top1_among_folders)
    if multilabels is not None:
        measures["multilabel_corruption_error"] = mean_error(multilabel)
    if corrupted.published and not corrupted.missing and present is None:
        measures["mce"] = mean_corruption_error(top1)
    measures |= {f"error_{corruption}": corruption_error(accuracies) for corruption, accuracies in top1.items()}
    return Evaluation(len(corrupted.images), measures, notes={"data": str(corrupted.root), "missing": corrupted.missing})


def model_result(model: EvalModel, evaluations: dict[str, Evaluation], data: EvalData) -> dict[str, Any]:
    """The evaluations of one model as they are in the JSON."""
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    result: dict[str, Any] = {"arch": model.arch, "checkpoint": model.weights}
    result |= {"precision": dtype_name(data.loading["autocast_dtype"]), "data": data.image_set.source}
    result |= summaries.pop(IMAGES)
    if FGSM in summaries:
        result[FGSM] = {"epsilon": data.attack_epsilon, **summaries.pop(FGSM)}
    if summaries:
        result["suite"] = summaries
    return result


def summary_in(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of a model's result that has the figures of an evaluation."""
    if name == IMAGES:
        return result
    summary: dict[str, Any] = result[FGSM] if name == FGSM else result["suite"][name]
    return summary


def differences(first: Evaluation, second: Evaluation) -> dict[str, dict[str, Any]]:
    """First minus second, for every measure that is a mean over images."""
    found = {}
    for name, measure in first.measures.items():
        if name not in second.measures:  # of models with different classes
            continue
        difference = paired_bootstrap(measure, second.measures[name])
        rounded = {key: round(value, 4) for key, value in dataclasses.asdict(difference).items()}
        found[name] = {**rounded, "excludes_zero": difference.excludes_zero}
    return found


def best_and_worst_classes(top1: Measure, targets: np.ndarray, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The classes with the lowest and the highest top-1, out of those with images; none if there is only one.

    A class with the lowest top-1 of all is not among the highest, however few others there are, nor the other way round.
    """
    accuracy = class_accuracies(top1, targets, len(names))
    order = np.argsort(accuracy, kind="stable")[: np.isfinite(accuracy).sum()]  # those without images, NaN, come last
    named = min(MAX_NAMED, len(order) // 2)
    lowest, highest = order[:named], order[::-1][:named]

    def entries(classes: np.ndarray) -> list[dict[str, Any]]:
        return [{"name": names[c], "top1": round(float(accuracy[c]), 4)} for c in classes]

    return {
        "lowest_top1": entries(lowest[accuracy[lowest] < accuracy[order].max(initial=0)]),
        "highest_top1": entries(highest[accuracy[highest] > accuracy[order].min(initial=100)]),
    }
