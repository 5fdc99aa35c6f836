"""Targets of a batch against values by hand, and errors for label sets that do not fit the images."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from relabel.models.preprocessing import normalise
from relabel.runtime.errors import InputError
from tests.label_sets import named_images, write_label_set
from train.augment import DRAWS, augment
from train.crops import Crops
from train.cutmix import Paste, draw_paste
from train.loss import loss_with_tokens, target_loss
from train.recipe import load_recipe
from train.supervision import LabelMapTargets, Supervision
from train.teacher import Teacher
from train.training_set import label_rows, unconfirmed_images

KEYS = ("cat/a.JPEG", "cat/b.JPEG", "dog/c.JPEG")


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """1x2 cells, 3 classes, top-1, tail 0. Image a: class 0 left, 1 right; b: 2 twice; c: 1 left, 2 right; logits 4, 2."""
    scores = torch.tensor([4.0, 2.0]).view(1, 1, 1, 2).expand(3, 1, 1, 2)
    classes = torch.tensor([[0, 1], [2, 2], [1, 2]]).view(3, 1, 1, 2)
    write_label_set(tmp_path / "labels", KEYS, LabelMaps(scores, classes, torch.zeros(3, 1, 2)), num_classes=3)
    return LabelStore.open(tmp_path / "labels").to("cpu")


def batch(indices: list[int], boxes: list[list[float]]) -> Crops:
    count = len(indices)
    targets, draws = torch.zeros(count, dtype=torch.int64), torch.full((count, DRAWS), 0.5)
    mirrored = torch.zeros(count, dtype=torch.bool)
    return Crops(torch.empty(0), torch.tensor(boxes), mirrored, torch.tensor(indices), targets, draws)


def crop_targets(targets: LabelMapTargets, crops: Crops, paste: Paste | None = None) -> Tensor:
    return targets.of_crops(crops, targets.maps(crops), paste)


def token_targets(targets: LabelMapTargets, crops: Crops, paste: Paste | None = None) -> Tensor:
    return targets.of_tokens(crops, targets.maps(crops), (1, 2), paste)


LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("target", "logits"),
    [
        ("localized-multi", [[4.0, 0.0, 0.0], [0.0, 0.0, 2.0]]),  # the cell under the crop
        ("global-multi", [[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]]),  # the mean of both cells
    ],
)
def test_multi_targets_are_the_softmax_of_the_pooled_logits(
    store: LabelStore, target: str, logits: list[list[float]]
) -> None:
    targets = LabelMapTargets(store, torch.tensor([0, 1, 2]), load_recipe("relabel", [f"target={target}"]))
    torch.testing.assert_close(crop_targets(targets, batch([0, 2], [LEFT, RIGHT])), torch.tensor(logits).softmax(1))


@pytest.mark.parametrize(("target", "classes"), [("localized-single", [1, 2]), ("global-single", [0, 1])])
def test_single_targets_are_the_top1_class_of_the_pooled_logits(store: LabelStore, target: str, classes: list[int]) -> None:
    targets = LabelMapTargets(store, torch.tensor([0, 1, 2]), load_recipe("relabel", [f"target={target}"]))
    assert crop_targets(targets, batch([0, 2], [RIGHT, RIGHT])).tolist() == classes


def test_images_in_another_order_find_their_own_maps(store: LabelStore) -> None:
    folder = named_images(("cat", "dog", "eel"), KEYS[::-1], [1, 0, 0])
    rows = label_rows(store, folder)
    assert rows.tolist() == [2, 1, 0]
    targets = LabelMapTargets(store, rows, load_recipe("relabel", ["target=global-single"]))
    assert crop_targets(targets, batch([1], [LEFT])).tolist() == [2]  # image 1 of this folder is b


def test_images_without_a_map_are_counted_and_named(store: LabelStore) -> None:
    folder = named_images(("cat", "dog", "eel"), (*KEYS, "eel/x.JPEG", "eel/y.JPEG"), [0, 0, 1, 2, 2])
    with pytest.raises(InputError, match=r"2 of 5 images .* have no label map .*first: eel/x\.JPEG, eel/y\.JPEG"):
        label_rows(store, folder)


def test_label_set_of_another_class_count_is_rejected(store: LabelStore) -> None:
    with pytest.raises(InputError, match="expected 3 classes, found 2"):
        label_rows(store, named_images(("cat", "dog"), KEYS, [0, 0, 1]))


def test_losses_equal_sums_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    softmax = load_recipe("single")
    by_hand = -(probabilities * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(target_loss(logits, probabilities, softmax), by_hand)
    torch.testing.assert_close(
        target_loss(logits, torch.tensor([1, 2]), softmax), -logits.log_softmax(1)[[0, 1], [1, 2]].mean()
    )

    sigmoid = load_recipe("single", ["loss=bce"])
    each = -(probabilities * F.logsigmoid(logits) + (1 - probabilities) * F.logsigmoid(-logits))
    torch.testing.assert_close(target_loss(logits, probabilities, sigmoid), each.sum(1).mean())
    one_hot = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(target_loss(logits, torch.tensor([1, 2]), sigmoid), target_loss(logits, one_hot, sigmoid))

    smooth, spread = load_recipe("label-smoothing", ["loss=bce"]), 0.9 * one_hot + 0.1 / 3
    torch.testing.assert_close(target_loss(logits, torch.tensor([1, 2]), smooth), target_loss(logits, spread, sigmoid))
    torch.testing.assert_close(
        target_loss(logits, torch.tensor([1, 2]), load_recipe("label-smoothing")),
        -(spread * logits.log_softmax(1)).sum(1).mean(),
    )


ROWS = torch.tensor([0, 1, 2])


def test_temperature_flattens_the_target(store: LabelStore) -> None:
    targets = LabelMapTargets(store, ROWS, load_recipe("relabel", ["temperature=4"]))
    torch.testing.assert_close(crop_targets(targets, batch([0], [LEFT])), torch.tensor([[1.0, 0.0, 0.0]]).softmax(1))


def test_maps_are_gathered_once_for_crops_and_tokens(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, gather = [], store.gather

    def counted(rows: Tensor) -> LabelMaps:
        gathered.append(rows)
        return gather(rows)

    monkeypatch.setattr(store, "gather", counted)
    recipe = load_recipe("relabel", ["token_weight=0.5"])
    crops = batch([0, 2], [LEFT, RIGHT])
    supervision = Supervision(recipe, 3, LabelMapTargets(store, ROWS, recipe), token_grid=(1, 2))
    expected = supervision(crops, torch.empty(0), None)
    assert len(gathered) == 1
    crops_with_maps = dataclasses.replace(crops, maps=store.read(torch.tensor([0, 2])))
    torch.testing.assert_close(supervision(crops_with_maps, torch.empty(0), None), expected, rtol=0, atol=0)
    assert len(gathered) == 1


def test_ground_truth_label_has_folder_share_of_the_target(store: LabelStore) -> None:
    recipe = load_recipe("relabel", ["folder_share=0.25"])
    crops = dataclasses.replace(batch([0, 2], [LEFT, RIGHT]), targets=torch.tensor([0, 1]))
    target, tokens = Supervision(recipe, 3, LabelMapTargets(store, ROWS, recipe))(crops, torch.empty(0), None)
    map_target = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 2.0]]).softmax(1)
    torch.testing.assert_close(target, 0.75 * map_target + 0.25 * torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert tokens is None


PASTE = Paste(left=0, top=0, right=2, bottom=4, size=4)  # the left half of the crop


@pytest.mark.parametrize("name", ["single", "relabel-cutmix", "ablation-localized-single"])
def test_targets_of_mixed_images_are_both_crops_targets_weighted_by_area(store: LabelStore, name: str) -> None:
    recipe = load_recipe(name)
    maps = LabelMapTargets(store, ROWS, recipe) if recipe.reads_labels else None
    crops = dataclasses.replace(batch([0, 2], [LEFT, RIGHT]), targets=torch.tensor([0, 1]))
    supervision = Supervision(recipe, 3, maps)
    plain, _ = supervision(crops, torch.empty(0), None)
    dense = plain if plain.is_floating_point() else F.one_hot(plain, 3).float()
    mixed, _ = supervision(crops, torch.empty(0), Paste(0, 0, 1, 4, 4))
    torch.testing.assert_close(mixed, 0.75 * dense + 0.25 * dense.flip(0))


def test_region_targets_pool_only_the_visible_part_of_each_image(store: LabelStore) -> None:
    recipe = load_recipe("relabel-cutmix", ["cutmix_target=regions"])
    whole = [0.0, 0.0, 1.0, 1.0]
    crops = dataclasses.replace(batch([0, 2], [whole, whole]), mirrored=torch.tensor([True, True]))
    mixed = crop_targets(LabelMapTargets(store, ROWS, recipe), crops, PASTE)
    # A mirrored crop shows the image's right half on its left, where the paste is; the image's left half stays visible.
    # In a half, the logit of its own cell has a weight of 7/8, and that of the other cell 1/8
    left_of_a, right_of_c = torch.tensor([3.5, 0.25, 0.0]), torch.tensor([0.0, 0.5, 1.75])
    expected = (left_of_a.softmax(0) + right_of_c.softmax(0)) / 2
    torch.testing.assert_close(mixed[0], expected)


@pytest.mark.slow
def test_region_targets_equal_a_slow_loop_over_the_mixed_images_pixels(tmp_path: Path) -> None:
    size, classes, rows, columns = 48, 5, 4, 6
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, classes, rows, columns, generator=generator).sort(1, descending=True).values.half().float() * 3
    order = torch.rand(4, classes, rows, columns, generator=generator).argsort(1)
    maps, keys = LabelMaps(scores, order, torch.zeros(4, rows, columns)), [f"c/{i}.JPEG" for i in range(4)]
    write_label_set(tmp_path / "labels", keys, maps, classes)
    store = LabelStore.open(tmp_path / "labels").to("cpu")
    recipe = load_recipe("relabel-cutmix", ["cutmix_target=regions"])
    boxes = [[0.1, 0.2, 0.8, 0.9], [0.0, 0.0, 1.0, 0.5], [0.5, 0.3, 0.7, 0.9], [0.2, 0.1, 0.9, 1.0]]
    crops = dataclasses.replace(batch([0, 1, 2, 3], boxes), mirrored=torch.tensor([True, False, False, True]))
    paste = Paste(left=30, top=5, right=48, bottom=40, size=size)
    mixed = crop_targets(LabelMapTargets(store, torch.arange(4), recipe), crops, paste)

    def sampled(i: int, row: int, column: int) -> Tensor:
        x0, y0, x1, y1 = boxes[i]
        column = size - 1 - column if i in (0, 3) else column
        x, y = x0 + (column + 0.5) / size * (x1 - x0), y0 + (row + 0.5) / size * (y1 - y0)
        at = torch.tensor([[[[2 * x - 1, 2 * y - 1]]]])  # in grid_sample's coordinates the image's edges are -1 and 1
        dense = store.gather(torch.tensor([i])).dense(classes)
        return F.grid_sample(dense, at, padding_mode="border", align_corners=False)[0, :, 0, 0]

    for i in range(4):
        own, pasted = [], []
        for row in range(size):
            for column in range(size):
                if row in range(5, 40) and column in range(30, 48):
                    pasted.append(sampled((i + 2) % 4, row, column))
                else:
                    own.append(sampled(i, row, column))
        own_target, pasted_target = (torch.stack(part).mean(0).softmax(0) for part in (own, pasted))
        slow = (1 - paste.share) * own_target + paste.share * pasted_target
        torch.testing.assert_close(mixed[i], slow, atol=0.01, rtol=0)


def test_region_targets_are_finite_if_all_or_nothing_is_pasted(store: LabelStore) -> None:
    targets = LabelMapTargets(store, ROWS, load_recipe("relabel-cutmix", ["cutmix_target=regions"]))
    crops, exact = batch([0, 2], [LEFT, RIGHT]), torch.tensor([[3.5, 0.25, 0.0], [0.0, 0.5, 1.75]]).softmax(1)
    torch.testing.assert_close(crop_targets(targets, crops, Paste(0, 0, 4, 4, 4)), exact.flip(0))
    torch.testing.assert_close(crop_targets(targets, crops, Paste(2, 2, 2, 2, 4)), exact)


def test_token_targets_are_mirrored_with_the_image(store: LabelStore) -> None:
    recipe = load_recipe("relabel", ["token_weight=0.5"])
    crops = dataclasses.replace(batch([0, 0], [[0.0, 0.0, 1.0, 1.0]] * 2), mirrored=torch.tensor([False, True]))
    tokens = token_targets(LabelMapTargets(store, ROWS, recipe), crops)
    left, right = torch.tensor([4.0, 0.0, 0.0]).softmax(0), torch.tensor([0.0, 2.0, 0.0]).softmax(0)
    torch.testing.assert_close(tokens, torch.stack([torch.stack([left, right]), torch.stack([right, left])]))


def test_targets_of_pasted_tokens_are_the_partners(store: LabelStore) -> None:
    recipe = load_recipe("relabel-cutmix", ["token_weight=0.5", "hflip=0"])
    crops = batch([0, 1], [[0.0, 0.0, 1.0, 1.0]] * 2)
    targets = LabelMapTargets(store, ROWS, recipe)
    plain, mixed = token_targets(targets, crops), token_targets(targets, crops, PASTE)
    torch.testing.assert_close(mixed[:, 0], plain.flip(0)[:, 0])
    torch.testing.assert_close(mixed[:, 1], plain[:, 1])


def test_loss_with_tokens_adds_the_weighted_mean_over_tokens() -> None:
    logits, target = torch.randn(2, 3), torch.tensor([0, 2])
    token_logits, token_target = torch.randn(2, 4, 3), torch.rand(2, 4, 3).softmax(2)
    recipe = load_recipe("relabel", ["token_weight=0.5"])
    loss, image_logits = loss_with_tokens((logits, token_logits), target, token_target, recipe)
    each = [target_loss(token_logits[:, t], token_target[:, t], recipe) for t in range(4)]
    torch.testing.assert_close(loss, target_loss(logits, target, recipe) + 0.5 * torch.stack(each).mean())
    assert torch.equal(image_logits, logits)


class MeanOfChannels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_teacher_predicts_the_images_that_the_student_sees() -> None:
    teacher = Teacher(MeanOfChannels(), (2, 2), "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), autocast_dtype=None)
    images = torch.randint(0, 256, (2, 3, 2, 2), dtype=torch.uint8)
    logits = (images.float() / 255).mean((2, 3))
    supervision = Supervision(load_recipe("distillation", ["cutmix=1", "temperature=2"]), 3, teacher=teacher)
    target, _ = supervision(batch([0, 1], [LEFT, LEFT]), images, PASTE)
    torch.testing.assert_close(target, (logits / 2).softmax(1))


def test_images_whose_label_is_not_the_whole_images_top1_are_unconfirmed(store: LabelStore) -> None:
    # whole-image logits: a 2, 1, 0; b 0, 0, 3 (the mean of 4 and 2 for class 2); c 0, 2, 1
    folder = named_images(("cat", "dog", "eel"), KEYS, [0, 0, 1])
    assert unconfirmed_images(store, folder) == {"cat/b.JPEG"}
    assert unconfirmed_images(store, folder, batch_size=2) == {"cat/b.JPEG"}


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["cutmix=1", "folder_share=0.1"],
        ["cutmix=1", "cutmix_target=regions", "token_weight=1"],
        ["target=global-single"],
    ],
)
def test_step_reads_nothing_back_from_the_device(store: LabelStore, settings: list[str]) -> None:
    # Tensors on "meta" have no data, so code that would wait for a value or a shape from the device raises
    meta, recipe = torch.device("meta"), load_recipe("relabel", settings)
    crops = batch([0, 2], [LEFT, RIGHT])
    crops = dataclasses.replace(crops, images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).to(meta)
    images = augment(crops.images, crops.mirrored, crops.draws, recipe)
    paste = draw_paste(0, 0, images, recipe)
    assert (paste is not None) == bool(recipe.cutmix)
    if paste is not None:
        paste.paste_into(images)
    targets = Supervision(
        recipe, 3, LabelMapTargets(store.to("meta", resident=True), ROWS.to(meta), recipe), token_grid=(2, 2)
    )
    target, tokens = targets(crops, images, paste)
    logits = torch.randn(2, 3, device=meta, requires_grad=True)
    loss, _ = loss_with_tokens((logits, torch.randn(2, 4, 3, device=meta)), target, tokens, recipe)
    torch.autograd.backward(loss)
    assert normalise(images, (0.5,) * 3, (0.2,) * 3).shape == (2, 3, 8, 8)
