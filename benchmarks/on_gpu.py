"""All that a GPU is needed for, in one command: `python3 -m benchmarks.on_gpu --minutes 8 --output DIR`.

The tests that need a GPU run first, then the measurements, the most valuable first. Each part is a process of its own with
its share of the time. What it prints and measures is in DIR as soon as it is known: NAME.txt and NAME.json of each part, and
report.md of all parts, to be pasted into docs/benchmarks.md. A part that fails or runs out of time is reported as such; the
others go on, and have the time that earlier ones left.

    tests     the tests marked as `gpu`
    pooling   label pooling and softmax: time, bytes, share of the bandwidth of a copy
    step      a training step with label maps against ground-truth labels, not compiled and compiled
    annotate  annotate against its forward pass, with the fastest batch size, not compiled and compiled
    loop      the training loop against its halves and timm's loop
    labels    a label set of ImageNet's size into the GPU's memory

It needs neither make nor an installed relabel: run it from the repository's root with any Python 3.11 or newer that has
torch, torchvision, timm, h5py, typer, tqdm and pytest. The models have random weights, so nothing is downloaded. Without a
GPU, `--smoke` runs all of it on small inputs, which shows that it works; its figures mean nothing.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from annotate.config import AnnotateConfig
from benchmarks import annotate, full_label_set, interleaved, training_loop, training_step
from benchmarks.generated_maps import generated_maps, imagenet_keys
from benchmarks.hardware import hardware
from benchmarks.interleaved import median_seconds
from benchmarks.kernels import kernels_of, what_binds
from relabel.runtime.distributed import processes
from relabel.runtime.errors import out_of_memory
from relabel.runtime.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
IMAGENET = 1_281_167  # training images


@dataclass(frozen=True)
class Setting:
    """What a measurement runs on, and where its figures go."""

    device: torch.device
    smoke: bool
    scratch: Path  # deleted at the end
    json: Path

    def record(self, name: str, **figures: object) -> None:
        """Add figures to the part's JSON file, at once."""
        known = json.loads(self.json.read_text()) if self.json.exists() else {}
        known[name] = known.get(name, {}) | figures
        atomic_write(self.json, (json.dumps(known, indent=2) + "\n").encode())

    def record_limit(self, name: str, limit: str) -> None:
        print(f"  limited by {limit}", flush=True)
        self.record(name, limited_by=limit)

    def profile(self, name: str, wall_s: float, work: Callable[[], object], starved_by: str = "host") -> None:
        """Find what limits work that was measured to take `wall_s`, and print where the GPU's time goes."""
        kernels = kernels_of(self.device, work)
        self.record(name, kernels_ms=1000 * kernels.seconds)
        self.record_limit(name, what_binds(self.device, wall_s, kernels, starved_by))
        for kernel, seconds in kernels.longest():
            print(f"    {1000 * seconds:9.3f} ms  {kernel[:90]}", flush=True)


# --- the measurements -------------------------------------------------------------------------------------------------


def step_workload(setting: Setting) -> training_step.Workload:
    if setting.smoke:
        return training_step.Workload("resnet10t", 32, 4, steps=1, rounds=2, autocast_dtype=None, pooled=16, copied=2**20)
    return replace(training_step.workload_for(setting.device), steps=8, rounds=9)


def measure_pooling(setting: Setting) -> None:
    times = training_step.pool(step_workload(setting), setting.device)
    share = times.moved / times.bandwidth / times.pool_s
    print(f"  {'share of the copy bandwidth':<32}{100 * share:9.1f} %; goal: below 1 ms on an H200")
    milliseconds, rate = 1000 * times.pool_s, times.bandwidth / 1e9
    setting.record("pooling", ms=milliseconds, bytes=times.moved, copy_gb_per_s=rate, share_of_copy_bandwidth=share)
    setting.profile("pooling", times.pool_s, times.work)


def measure_step(setting: Setting) -> None:
    torch.backends.cudnn.benchmark = True
    images = 64 if setting.smoke else training_step.IMAGES
    store = training_step.generated_store(setting.scratch / "labels", images).to(setting.device)
    for name, compile in (("step", False), ("compiled step", True)):
        times = training_step.compare_steps(step_workload(setting), store, setting.device, compile)
        milliseconds = [1000 * seconds for seconds in (times.single_s, times.relabel_s, times.labels_s)]
        setting.record(
            name,
            **dict(zip(("single_ms", "relabel_ms", "labels_ms"), milliseconds, strict=True)),
            overhead=times.relabel_s / times.single_s - 1,
        )
        print("  goal: at most +0.5 %")
        setting.profile(name, times.relabel_s, times.step)


def measure_annotate(setting: Setting) -> None:
    if setting.smoke:
        thin = {"stem_width": 8, "channels": (8, 8, 8, 16), "output_stride": 8}
        config = AnnotateConfig("resnet10t", thin, input_size=(32, 48), topk=3)
        sizes, round_s, most = [2, 4], 0.1, 16
    else:
        config = replace(annotate.workload_for(setting.device).config, workers=None)
        sizes, round_s, most = [32, 64, 128, 256], 10.0, 8192
    with processes(str(setting.device)) as group:
        annotator, squash = annotate.random_annotator(config, setting.device)
        rates = {}
        for size in sizes:
            try:
                once = annotate.forward_pass(annotator, squash, replace(config, batch_size=size))
                once()
                [seconds] = median_seconds(setting.device, 3, once)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                print(f"  forward pass of {size} images: not enough memory")
                continue
            rates[size] = size / seconds
            print(f"  forward pass of {size:4} images: {rates[size]:9.1f} images/s", flush=True)
            setting.record("batch sizes", **{str(size): rate for size, rate in rates.items()})
        best = max(rates, key=rates.__getitem__)
        images = min(most, max(1, int(rates[best] * round_s / best)) * best)
        for name, compile in (("annotate", False), ("compiled annotate", True)):
            workload = annotate.Workload(replace(config, batch_size=best, compile=compile), images, rounds=2)
            found = annotate.compare(workload, annotator, squash, group, setting.scratch)
            hours = IMAGENET / found.annotate / 3600
            print(f"  {'hours for ImageNet':<25}{hours:9.2f}   goals: ratio 0.97, and below 3 hours on an H200")
            setting.record(name, batch_size=best, images_per_s=found.annotate, forward_images_per_s=found.forward)
            setting.record(name, rest_images_per_s=found.rest, ratio=found.annotate / found.forward, hours=hours)
            once = annotate.forward_pass(annotator, squash, workload.config)
            setting.profile(name, best / found.annotate, once, "loader" if found.rest < found.forward else "host")


def measure_loop(setting: Setting) -> None:
    torch.backends.cudnn.benchmark = True
    if setting.smoke:
        workload = training_loop.Workload("resnet10t", 32, 4, 3, workers=1, autocast_dtype=None, rounds=1)
    else:
        workload = replace(training_loop.workload_for(setting.device), steps=30, rounds=2)
    rates = training_loop.compare(workload, setting.scratch, setting.device)
    setting.record("loop", images_per_s=rates.of_arm, limit=rates.limit, share_of_limit=rates.share)
    wall_s = workload.batch / rates.of_arm["the loop"]
    setting.profile("loop", wall_s, rates.step, "loader" if rates.limit == "loader" else "host")


def measure_labels(setting: Setting) -> None:
    device, images = setting.device, 5000 if setting.smoke else IMAGENET
    maps = generated_maps(64 if setting.smoke else full_label_set.DISTINCT, torch.Generator().manual_seed(0))
    loaded = full_label_set.load(setting.scratch / "labels", imagenet_keys(images), maps, device)
    seconds, size = loaded.loading.seconds, loaded.store.nbytes
    on_device = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    figures = {"gb": size / 1e9, "seconds": seconds, "gb_per_s": size / seconds / 1e9, "rows_per_s": loaded.rows_per_s}
    setting.record("labels", **figures, device_gb=on_device / 1e9, host_peak_gb=loaded.loading.memory / 1e9)
    if device.type != "cuda":
        setting.record_limit("labels", "the CPU")
        return
    print(f"  {size / 1e9:.1f} GB at {size / seconds / 1e9:.2f} GB/s; {on_device / 1e9:.1f} GB of the GPU's memory in use")
    pinned = torch.zeros(2**30, dtype=torch.uint8).pin_memory()
    [copy_s] = median_seconds(device, 5, lambda: pinned.to(device, non_blocking=True))
    share = size / seconds / (pinned.nbytes / copy_s)
    side = "bandwidth" if share > 0.6 else "host"
    setting.record("labels", pinned_copy_gb_per_s=pinned.nbytes / copy_s / 1e9)
    setting.record_limit("labels", f"{side}: {100 * share:.0f} % of the speed of copies from pinned memory to the GPU")


# --- the parts, each in a process of its own --------------------------------------------------------------------------

MEASUREMENTS: dict[str, Callable[[Setting], None]] = {
    "pooling": measure_pooling,
    "step": measure_step,
    "annotate": measure_annotate,
    "loop": measure_loop,
    "labels": measure_labels,
}
# In order, with the seconds that each may take of eight minutes
SHARES = {"tests": 55, "pooling": 30, "step": 100, "annotate": 150, "loop": 75, "labels": 70}
LOGGED = 15  # lines of a failed part's log in the report
LABELS_BYTES = 9e9  # free space that `labels` needs


def command_of(part: str, output: Path, smoke: bool) -> list[str]:
    if part == "tests":
        marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
        files = [str(path.relative_to(ROOT)) for path in marked]
        return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    return [
        sys.executable,
        "-m",
        "benchmarks.on_gpu",
        "--part",
        part,
        "--output",
        str(output),
        *(["--smoke"] if smoke else []),
    ]


def measure(part: str, output: Path, smoke: bool) -> None:
    """Run one measurement in this process."""
    device = torch.device("cpu" if smoke else "cuda")
    if smoke:
        interleaved.SETTLE_S = 0.0
    folder = None
    if part == "labels" and not smoke and shutil.disk_usage(tempfile.gettempdir()).free < LABELS_BYTES:
        folder = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        MEASUREMENTS[part](Setting(device, smoke, Path(scratch), output / f"{part}.json"))


def run_part(
    part: str, command: list[str], limit_s: float, output: Path, environment: dict[str, str]
) -> tuple[bool, list[str]]:
    """Run a part in a process of its own, which is killed with all that it has started at the end of its time.

    Returns:
        whether it is done; and the lines of its section of the report: how it ended, and what it has printed.
    """
    start = time.monotonic()
    (output / f"{part}.json").unlink(missing_ok=True)  # of an earlier run
    printed, log = output / f"{part}.txt", output / f"{part}.log"
    with printed.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
            ending = "done" if code == 0 else f"FAILED with exit code {code}"
        except subprocess.TimeoutExpired:
            ending = f"STOPPED at the end of its {limit_s:.0f} s, with what it had measured by then"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # decoding processes too, if any are left
            process.wait()
    lines = [f"{part}: {ending} ({time.monotonic() - start:.0f} s)", *printed.read_text().splitlines()]
    if ending != "done":
        lines += ["  the end of its log:", *(f"    {line}" for line in log.read_text().splitlines()[-LOGGED:])]
    return ending == "done", lines


def main(arguments: list[str] | None = None) -> int:
    """Run all parts. Returns the number of those that failed or ran out of time."""
    options = parsed(arguments)
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if options.part is not None:
        measure(options.part, output, options.smoke)
        return 0
    if not options.smoke and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no GPU; on a machine without one, --smoke shows whether this works")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by a signal"))  # not at once: the running part ends too
    deadline = time.monotonic() + 60 * options.minutes
    # Compiling takes minutes on a CPU, and several threads, where other processes run too, wait for one another
    environment = {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"} if options.smoke else {}
    report = [hardware(torch.device("cpu" if options.smoke else "cuda"))]
    failed = 0
    for number, part in enumerate(SHARES):
        left_s = max(0.0, deadline - time.monotonic())
        limit_s = left_s * SHARES[part] / sum(list(SHARES.values())[number:])
        done, section = run_part(part, command_of(part, output, options.smoke), limit_s, output, environment)
        failed += not done
        report += section
        print("\n".join(section), flush=True)
        if part == "tests":
            atomic_write(output / "tests.json", (json.dumps({"tests": {"result": section[-1]}}) + "\n").encode())
        atomic_write(output / "report.md", "".join(f"    {line}".rstrip() + "\n" for line in report).encode())
    print(f"{output / 'report.md'} can be pasted into docs/benchmarks.md")
    return failed


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python3 -m benchmarks.on_gpu", description="Measure all that needs a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together; default: 8")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures and the report")
    parser.add_argument("--smoke", action="store_true", help="small inputs on the CPU, to see that all of it works")
    parser.add_argument(
        "--part", choices=MEASUREMENTS, help="only this measurement, in this process and without a time limit"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
