"""Training on a GPU, checked without one: each recipe's step. Gradients are given, because backward needs a driver."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

import train.step
from benchmarks.training_step import resident_crops
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from relabel.models.preprocessing import Preprocessing
from tests.fake_gpu import NUMBER_IS_FETCHED, WRONG_DEVICE, fake_gpu
from tests.label_sets import write_label_set
from tests.train.runs import THIN
from train.crops import Crops
from train.cutmix import Paste, draw_paste
from train.optimizer import create_optimizer
from train.recipe import Recipe, load_recipe, recipe_names
from train.step import TrainingStep
from train.supervision import LabelMapTargets, Supervision
from train.teacher import Teacher
from train.tokens import WithTokens, token_grid

pytestmark = pytest.mark.slow

BATCH, CLASSES, SIDE, IMAGES = 4, 5, 48, 8
VIT: dict[str, Any] = {"img_size": SIDE, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
STATISTICS = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)  # mean and standard deviation of pixels
CUTMIX = ["cutmix=1", "cutmix_off_epochs=1", "optimizer=sgd"]


class GivenGradients:
    """In the place of a GradScaler: checks the loss and gives each parameter a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def scale(self, loss: Tensor) -> "GivenGradients":
        assert (loss.shape, loss.dtype, loss.device.type, loss.requires_grad) == ((), torch.float32, "cuda", True)
        return self

    def backward(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.SGD):  # torch cannot run its fused kernel on fake tensors
            for group in optimizer.param_groups:
                assert group["fused"]
                group["fused"] = False
        optimizer.step()

    def update(self) -> None:
        pass


class Run:
    """What a step needs, made on the host. `step` moves it to a device and builds the step there, as the loop does."""

    def __init__(self, recipe: Recipe, store: LabelStore) -> None:
        self.recipe, self.store = recipe, store
        arch, options = ("vit_tiny_patch16_224", VIT) if recipe.token_weight else ("resnet10t", THIN)
        self.student = timm.create_model(arch, num_classes=CLASSES, **options).train()
        self.teacher = timm.create_model("resnet10t", num_classes=CLASSES, **THIN).eval().requires_grad_(False)
        self.crops = resident_crops(BATCH, SIDE, IMAGES, CLASSES, torch.device("cpu"))

    def step(self, device: torch.device) -> TrainingStep:
        maps = teacher = grid = None
        model: nn.Module = self.student.to(device)
        if self.recipe.reads_labels:
            rows = torch.arange(IMAGES, device=device)
            maps = LabelMapTargets(self.store.to(device, resident=True), rows, self.recipe)
        if self.recipe.target == "teacher":
            teacher = Teacher(self.teacher.to(device), (32, 56), "bicubic", *STATISTICS, torch.bfloat16)
        if self.recipe.token_weight:
            grid, model = token_grid(self.student, "vit"), WithTokens(self.student)
        return TrainingStep(
            model,
            create_optimizer(self.student, self.recipe, device),
            cast(torch.amp.GradScaler, GivenGradients(self.student)),
            Supervision(self.recipe, CLASSES, maps, teacher, grid),
            Preprocessing(SIDE, 1.0, "bilinear", *STATISTICS),
            self.recipe,
            torch.bfloat16,
        )


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """Label maps of 6 x 9 cells with three of five classes each."""
    logits = torch.randn(IMAGES, CLASSES, 6, 9)
    keys = [f"cat/{number}.JPEG" for number in range(IMAGES)]
    write_label_set(tmp_path / "labels", keys, LabelMaps(*logits.topk(3, dim=1), logits.mean(1)), CLASSES)
    return LabelStore.open(tmp_path / "labels")


@pytest.fixture(autouse=True)
def host_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """CutMix draws its rectangle on the host, where reading random numbers waits for nothing; so they are real ones."""

    def drawn(*arguments: Any) -> Paste | None:
        with unset_fake_temporarily():
            return draw_paste(*arguments)

    monkeypatch.setattr(train.step, "draw_paste", drawn)


def check_step(run: Run, **changed: Any) -> None:
    """One step on the fake GPU: the forward pass in bfloat16, the loss in float32, and nothing fetched."""
    outputs: list[Any] = []
    with fake_gpu() as device:
        step = run.step(device)
        cast(nn.Module, step.forward).register_forward_hook(lambda _model, _args, output: outputs.append(output))
        crops = dataclasses.replace(run.crops.to(device), **changed)
        counted = step(crops, 0, 0)
        assert (counted.shape, counted.dtype, counted.device.type) == ((3,), torch.float64, "cuda")
        assert all(parameter.device.type == "cuda" for parameter in run.student.parameters())
    logits = [part for output in outputs for part in (output if isinstance(output, tuple) else (output,))]
    assert {part.dtype for part in logits} == {torch.bfloat16}


@pytest.mark.parametrize("name", recipe_names())
def test_step_of_every_recipe_runs_on_the_gpu_without_fetching_a_number(name: str, store: LabelStore) -> None:
    adamp = "adamp" in load_recipe(name).optimizer  # it does fetch numbers; see below
    check_step(Run(load_recipe(name, ["optimizer=sgd"] if adamp else []), store))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("single", [*CUTMIX]),
        ("relabel", [*CUTMIX, "cutmix_target=area"]),
        ("relabel", [*CUTMIX, "cutmix_target=regions", "folder_share=0.2"]),
        ("ablation-localized-single", [*CUTMIX, "cutmix_target=regions"]),
        ("ablation-global-multi", [*CUTMIX, "temperature=2.0"]),
        ("distillation", [*CUTMIX, "folder_share=0.5"]),
        ("relabel", ["token_weight=0.5"]),
        ("relabel", [*CUTMIX, "token_weight=0.5", "cutmix_target=regions"]),
        ("ablation-localized-single", [*CUTMIX, "token_weight=0.5"]),
        ("relabel", ["loss=bce", "label_smoothing=0.1"]),
        ("single", ["loss=bce", "label_smoothing=0.1"]),
    ],
)
def test_step_with_mixed_images_tokens_and_losses_runs_on_the_gpu_without_fetching_a_number(
    name: str, settings: list[str], store: LabelStore
) -> None:
    check_step(Run(load_recipe(name, settings), store))


def test_step_reads_maps_that_came_with_the_crops(store: LabelStore) -> None:
    run = Run(load_recipe("relabel"), store)
    run.crops = dataclasses.replace(run.crops, maps=store.read(run.crops.indices))
    check_step(run)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "rmsproptf", "lion"])
def test_optimizers_step_without_fetching_a_number(name: str, store: LabelStore) -> None:
    check_step(Run(load_recipe("single", [f"optimizer={name}"]), store))


def test_adamp_fetches_numbers_as_its_recipe_says(store: LabelStore) -> None:
    with pytest.raises(NUMBER_IS_FETCHED):
        check_step(Run(load_recipe("relabel-cutmix"), store))


def test_moving_average_is_updated_without_fetching_a_number(store: LabelStore) -> None:
    run = Run(load_recipe("single"), store)
    average = ModelEmaV3(run.student, decay=0.9, use_warmup=True)
    with fake_gpu() as device:
        run.step(device)
        average.module.to(device)
        for number in range(2):
            average.update(run.student, number + 1)


# --- what the checks above would catch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images", "mirrored", "targets", "draws"])
def test_part_of_a_batch_left_on_the_host_is_caught(name: str, store: LabelStore) -> None:
    run = Run(load_recipe("relabel"), store)
    with pytest.raises(RuntimeError, match=WRONG_DEVICE):
        check_step(run, **{name: getattr(run.crops, name)})


def test_forward_pass_that_fetches_a_number_is_caught(store: LabelStore) -> None:
    run = Run(load_recipe("relabel"), store)
    run.student.conv1.register_forward_pre_hook(lambda _model, args: args if args[0].mean() > 0 else None)
    with pytest.raises(NUMBER_IS_FETCHED):
        check_step(run)


def test_student_left_on_the_host_is_caught(store: LabelStore) -> None:
    run = Run(load_recipe("single"), store)
    run.student.to = lambda device: run.student
    with pytest.raises(RuntimeError, match=WRONG_DEVICE):
        check_step(run)


def test_batch_on_the_device_as_the_loop_moves_it(store: LabelStore) -> None:
    crops = Run(load_recipe("single"), store).crops
    with fake_gpu() as device:
        moved: Crops = crops.to(device)
        assert {part.device.type for part in moved.tensors() if part is not moved.indices} == {"cuda"}
        assert moved.indices.device.type == "cpu"
