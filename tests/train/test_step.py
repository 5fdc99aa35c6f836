"""Parts of a step: optimizers, fused where torch can, and compiled models, with an error if there is no compiler."""

import dataclasses

import pytest
import timm
import torch
import torch._inductor.config
from torch import nn

from relabel.runtime.errors import InputError
from train.optimizer import create_optimizer, load_optimizer
from train.recipe import load_recipe
from train.step import compiled

RECIPE = load_recipe("single")


@pytest.mark.parametrize(("name", "fused"), [("sgd", True), ("adamw", True), ("adamp", False), ("lamb", False)])
def test_optimizers_are_fused_on_cuda_where_torch_can(name: str, fused: bool) -> None:
    model = timm.create_model("resnet10t", stem_width=8, channels=(8, 8, 8, 16))
    recipe = dataclasses.replace(RECIPE, optimizer=name)
    assert bool(create_optimizer(model, recipe, torch.device("cuda")).defaults.get("fused")) == fused
    assert not create_optimizer(model, recipe, torch.device("cpu")).defaults.get("fused")  # the bits stay the same


def test_state_saved_on_a_cpu_is_fused_after_loading_on_cuda() -> None:
    model = nn.Linear(3, 2)
    for name in ("sgd", "adamp"):
        recipe = dataclasses.replace(RECIPE, optimizer=name)
        on_cpu = create_optimizer(model, recipe, torch.device("cpu"))
        on_cuda = create_optimizer(model, recipe, torch.device("cuda"))
        load_optimizer(on_cuda, dict(on_cpu.state_dict()))
        assert [group.get("fused") for group in on_cuda.param_groups] == [True if name == "sgd" else None]


@pytest.mark.parametrize(("decay_all", "decays"), [(False, [(0.0, 3), (1e-4, 1)]), (True, [(1e-4, 4)])])
def test_norms_and_biases_decay_only_with_decay_all(decay_all: bool, decays: list[tuple[float, int]]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    recipe = dataclasses.replace(RECIPE, decay_all=decay_all)
    groups = create_optimizer(model, recipe, torch.device("cuda")).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == decays


def test_published_recipes_have_the_references_optimizers() -> None:
    """github.com/naver-ai/relabel_imagenet, utils/optimizers.py: all weights decay, and AdamP has its authors' defaults."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    (sgd,) = create_optimizer(model, load_recipe("relabel"), torch.device("cpu")).param_groups
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.1, 0.9, True, 1e-4)
    for name in ("adamp", "AdamP"):
        recipe = load_recipe("relabel-cutmix", [f"optimizer={name}"])
        (adamp,) = create_optimizer(model, recipe, torch.device("cpu")).param_groups
        assert (adamp["lr"], adamp["betas"], adamp["nesterov"], adamp["weight_decay"]) == (2e-3, (0.9, 0.999), True, 1e-2)
        assert (adamp["wd_ratio"], adamp["delta"], adamp["eps"]) == (0.1, 0.1, 1e-8)


@pytest.mark.slow
def test_compiled_model_gives_the_models_logits_and_gradients() -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Linear(5, 3), nn.GELU()), torch.randn(4, 5)
    expected = model(images)
    logits = compiled(model)(images)
    assert isinstance(logits, torch.Tensor)
    torch.testing.assert_close(logits, expected)
    gradients = [torch.autograd.grad(output.square().sum(), list(model.parameters())) for output in (logits, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_error_without_a_compiler_says_to_leave_compile_out() -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",), "force_disable_caches": True}),
        pytest.raises(InputError, match=r"--compile: torch cannot compile the model here .*; leave it out"),
    ):
        compiled(nn.Sequential(nn.Linear(5, 3), nn.Tanh()))(torch.randn(4, 5))


@pytest.mark.parametrize("name", ["fusedsgd", "adahessian", "nosuch"])
def test_unavailable_optimizer_is_named(name: str) -> None:
    if torch.cuda.is_available() and name == "fusedsgd":
        pytest.skip("it depends on a package")
    with pytest.raises(InputError, match=rf"recipe: optimizer = '{name}'"):
        create_optimizer(torch.nn.Linear(2, 2), load_recipe("single", [f"optimizer={name}"]), torch.device("cpu"))
