"""The page of `relabel report` in a real browser: the targets of boxes, the view, keys, names, paper, and no network."""

import base64
import json
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.store import LabelStore
from tests.conftest import Relabel
from tests.label_sets import write_label_set
from tests.pipeline.report.report_sets import random_maps, random_regions, write_maps, write_pictures

webdriver = pytest.importorskip("selenium.webdriver", reason="needs the dev extra")
CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Debian's chromium and chromium-driver"),
]

HOSTILE = (
    "</script><script>document.title='run'</script>",
    "‮right\" to 'left",
    "x" * 240,
    "<img src=x onerror=alert(1)>",
    "猫 é",
)
PLAIN = ("ant", "bee")
CLASSES = tuple(sorted(PLAIN + tuple(name.replace("/", "⁄") for name in HOSTILE)))
KEYS = sorted(f"{name}/{number}.JPEG" for name in CLASSES for number in range(3))
NOWHERE = {number: CLASSES.index(key.split("/")[0]) for number, key in enumerate(KEYS) if "0.JPEG" in key}
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update")
MORE_FLAGS = ("disable-sync", "no-first-run", "window-size=1100,900")

Browser = Any


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, *MORE_FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, relabel_here: Relabel) -> Path:
    """labels (6 x 9 cells) and other (the same images, 32 x 32 cells), images, and page.html of both."""
    folder = tmp_path_factory.mktemp("report")
    write_maps(folder, KEYS, random_maps(len(KEYS), len(CLASSES), 3, (6, 9), absent=NOWHERE), CLASSES)
    write_label_set(
        folder / "other", KEYS, random_maps(len(KEYS), len(CLASSES), 2, (32, 32), 1), len(CLASSES), classes=CLASSES
    )
    arguments = ["report", folder / "labels", "--images", folder / "images", "--and", folder / "other"]
    done = relabel_here(*arguments, "--output", folder / "page.html")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Browser]:
    """The page, opened anew; no test may leave an error in the console."""
    browser.get("about:blank")
    browser.get(address(folder))
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def address(folder: Path, **state: str) -> str:
    return f"file://{folder / 'page.html'}" + (f"#{urllib.parse.urlencode(state)}" if state else "")


def visible(page: Browser) -> list[str]:
    """The keys of the cards that are shown, in their order."""
    script = "return [...document.querySelectorAll('.card:not([hidden]) .key')].map((key) => key.textContent)"
    return list(page.execute_script(script))


def said_targets(page: Browser) -> list[dict[int, float]]:
    """The bars of each label set, as a reader sees them: class and probability."""
    script = """return [...document.querySelectorAll('#said .bars')].map((bars) => [...bars.children].map(
        (row) => [Number(row.dataset.class), Number(row.querySelector('b').textContent)]))"""
    return [{int(number): prob for number, prob in bars} for bars in page.execute_script(script)]


def drawn_box(page: Browser) -> list[float]:
    return [float(v) for v in page.execute_script("return edges.map(({value}) => value)")]


def check_targets(page: Browser, folder: Path, key: str) -> None:
    """The bars on the page are those of label_pool for the box in the fields."""
    said = said_targets(page)
    assert len(said) == 2
    for name, bars in zip(("labels", "other"), said, strict=True):
        target = pooled(folder / name, key, [drawn_box(page)])[0]
        assert len(bars) >= 6
        for number, prob in bars.items():
            assert prob == pytest.approx(float(target[number]), abs=1.5e-4)  # written with four digits


def pooled(labels: Path, key: str, boxes: list[list[float]]) -> torch.Tensor:
    store = LabelStore.open(labels, LabelMaps)
    maps = store.gather(store.rows([key] * len(boxes)))
    return label_pool(maps, torch.tensor(boxes), store.manifest.num_classes).softmax(1)


def boxes_to_try(count: int, grid: tuple[int, int]) -> list[list[float]]:
    """The whole image, its edges and corners, boxes smaller than a cell, along cells' borders, and random ones."""
    rows, columns = grid
    boxes = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.001, 0.001], [0.999, 0.999, 1.0, 1.0], [0.0, 0.3, 1.0, 0.301]]
    boxes += [[0.5, 0.0, 0.5001, 1.0], [1 / columns, 1 / rows, 2 / columns, 3 / rows], [0.0, 1 - 1 / rows, 1 / columns, 1.0]]
    generator = torch.Generator().manual_seed(0)
    while len(boxes) < count:
        x0, x1, y0, y1 = torch.rand(4, generator=generator).tolist()
        boxes.append([min(x0, x1), min(y0, y1), max(x0, x1) + 1e-4, max(y0, y1) + 1e-4])
    return [[min(max(edge, 0.0), 1.0) for edge in box] for box in boxes]


@pytest.mark.parametrize(("name", "place", "grid"), [("labels", 0, (6, 9)), ("other", 1, (32, 32))])
def test_target_of_a_hundred_boxes_is_that_of_label_pool(
    page: Browser, folder: Path, name: str, place: int, grid: tuple[int, int]
) -> None:
    boxes = boxes_to_try(100, grid)
    found = page.execute_script(
        """const image = data.images[0];
        return [image.key, arguments[0].map((box) => [...boxTarget(image.sets[arguments[1]], box)])]""",
        boxes,
        place,
    )
    expected = pooled(folder / name, found[0], boxes)
    torch.testing.assert_close(torch.tensor(found[1], dtype=torch.float32), expected, atol=1e-4, rtol=0)
    assert (expected.amax(0) - expected.amin(0)).max() > 0.3, "else every target is alike"


def test_box_drawn_with_the_mouse_shows_its_target_at_once(page: Browser, folder: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    page.get(address(folder, image=KEYS[4]))
    stage = page.find_element(By.ID, "stage")
    width, height = stage.rect["width"], stage.rect["height"]
    whole = said_targets(page)
    actions = ActionChains(page, duration=20).move_to_element_with_offset(stage, round(0.3 * width), round(0.3 * height))
    actions.click_and_hold().move_by_offset(-round(0.6 * width), -round(0.5 * height)).perform()
    x0, y0, x1, y1 = drawn_box(page)
    assert (x0, y0, x1, y1) == pytest.approx((0.2, 0.3, 0.8, 0.8), abs=0.02)
    assert said_targets(page) != whole, "shown while the button is down"
    check_targets(page, folder, KEYS[4])
    ActionChains(page).release().perform()
    past_the_edge = ActionChains(page, duration=20).move_to_element_with_offset(stage, 0, 0).click_and_hold()
    past_the_edge.move_by_offset(-round(width / 2 + stage.rect["x"]) + 3, round(0.2 * height)).release().perform()
    assert drawn_box(page)[0] == 0 and "box=0%2C" in page.current_url
    check_targets(page, folder, KEYS[4])


def test_box_drawn_with_a_finger_shows_its_target_and_does_not_scroll(page: Browser, folder: Path) -> None:
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        page.get(address(folder, image=KEYS[7]))
        left, top, width, height = page.execute_script(
            "const r = stage.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]"
        )

        def touch(kind: str, x: float = 0, y: float = 0) -> None:
            points = [] if kind == "touchEnd" else [{"x": left + x * width, "y": top + y * height}]
            page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", 0.1, 0.2)
        for share in (0.5, 1):
            touch("touchMove", 0.1 + 0.5 * share, 0.2 + 0.6 * share)
        touch("touchEnd")
        assert drawn_box(page) == pytest.approx([0.1, 0.2, 0.6, 0.8], abs=0.02)
        check_targets(page, folder, KEYS[7])
        assert page.execute_script("return stage.getBoundingClientRect().top") == top
    finally:
        page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_page_is_used_with_keys_alone(page: Browser, folder: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page, duration=0).send_keys(*keys).perform()

    first, second, third = visible(page)[:3]
    press("j", "j", "k")
    focused = "return document.activeElement.closest('.card')?.querySelector('.key').textContent"
    assert page.execute_script(focused) == first
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.execute_script(outline) == "solid", "the focus is visible"
    press(Keys.ARROW_RIGHT, Keys.ENTER)
    key = "return [viewer.open, document.getElementById('viewer-key').textContent]"
    assert page.execute_script(key) == [True, second]
    press("j")
    assert page.execute_script(key) == [True, third]
    press("k")
    page.execute_script("edges[0].focus()")
    for edge in ("0.25", "0.5", "0.75", "0.875"):
        press(Keys.END, *[Keys.BACKSPACE] * 8, edge, Keys.TAB)
    assert drawn_box(page) == [0.25, 0.5, 0.75, 0.875]
    check_targets(page, folder, second)
    page.execute_script("edges[2].focus()")
    press(Keys.END, *[Keys.BACKSPACE] * 8, "0.1")
    assert "expected x0 < x1" in page.execute_script("return document.getElementById('box-note').textContent")
    press(Keys.ESCAPE)
    assert page.execute_script(key)[0] is False and page.execute_script(focused) == second


def test_training_crop_is_drawn_within_the_picture(page: Browser, folder: Path) -> None:
    page.get(address(folder, image=KEYS[0]))
    seen = set()
    for _ in range(20):
        page.execute_script("document.getElementById('crop').click()")
        x0, y0, x1, y1 = drawn_box(page)
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and 0.07 < (x1 - x0) * (y1 - y0) <= 1
        seen.add((x0, y0, x1, y1))
    assert len(seen) > 10
    check_targets(page, folder, KEYS[0])
    narrow = page.execute_script("return randomCrop([10, 1000], [0.5, 1], [0.75, 1.25])")
    assert narrow == [0, 0.493, 1, 0.506], "the centre, 10 x 13 pixels, as torchvision falls back to"


def test_sort_filter_and_search_show_what_they_say(page: Browser) -> None:
    def choose(**fields: str) -> list[str]:
        page.execute_script(
            """Object.entries(arguments[0]).forEach(([name, value]) => (controls[name].value = value));
            controls.dispatchEvent(new Event('input'))""",
            fields,
        )
        return visible(page)

    images = page.execute_script("return data.images")
    of = {image["key"]: image for image in images}
    assert sorted(visible(page)) == KEYS
    values = [of[key]["numbers"]["difference"] for key in visible(page)]
    assert values == sorted(values, reverse=True), "what differs most comes first"
    for name, ascending in (("label_score", True), ("margin", True), ("entropy", False), ("shown", False), ("area", True)):
        values = [of[key]["numbers"][name] for key in choose(sort=name)]
        assert values == sorted(values, reverse=not ascending) and len(set(values)) > 1, name
    values = [of[key]["numbers"]["difference"] for key in choose(sort="difference")]
    assert values == sorted(values, reverse=True)
    assert choose(sort="key") == sorted(KEYS)
    bee = CLASSES.index("bee")
    suggestion = next(image["suggestion"] for image in images if image["given"] == bee)
    expected = [k for k in sorted(KEYS) if of[k]["given"] == bee and of[k]["suggestion"] == suggestion]
    assert choose(**{"class": str(bee), "suggestion": str(suggestion)}) == expected != []
    assert choose(**{"class": "", "suggestion": "", "search": "NT/1"}) == ["ant/1.JPEG"]
    assert "1 of 21 images on this page" in page.execute_script("return document.getElementById('found').textContent")


def test_a_second_tab_shows_the_view_of_the_address(page: Browser, folder: Path) -> None:
    page.get(address(folder, list="random", sort="key", search="2.JPEG", image=KEYS[5], box="0.1,0.2,0.5,0.9"))
    first, keys, url = said_targets(page), visible(page), page.current_url
    assert len(keys) == 7 and drawn_box(page) == [0.1, 0.2, 0.5, 0.9]
    page.switch_to.new_window("tab")
    try:
        page.get(url)
        assert (said_targets(page), visible(page), drawn_box(page)) == (first, keys, [0.1, 0.2, 0.5, 0.9])
    finally:
        page.close()
        page.switch_to.window(page.window_handles[0])


def test_confused_pair_opens_its_images(page: Browser) -> None:
    said = page.execute_script("const link = document.querySelector('#pairs a'); link.click(); return link.textContent")
    page.execute_async_script("setTimeout(arguments[0], 50)")
    keys = visible(page)
    assert said == f"{len(keys)} image" and "list=worst&class=" in page.current_url
    assert keys[0] in {KEYS[number] for number in NOWHERE}


def test_names_are_text(page: Browser) -> None:
    text = page.execute_script("return document.body.textContent")
    for name in CLASSES:
        assert name[:79] in text, name
    assert (
        page.title.startswith("Labels of")
        and page.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    )
    assert page.execute_script("return document.scripts.length") == 2
    isolated = (
        "return [...document.querySelectorAll('.name, .key')].every((e) => getComputedStyle(e).unicodeBidi === 'isolate')"
    )
    assert page.execute_script(isolated)


def test_nothing_is_loaded_from_a_network(page: Browser, folder: Path) -> None:
    page.get("about:blank")
    page.get_log("performance")
    page.get(address(folder, image=KEYS[0]))
    page.execute_script("fetch('https://example.org/').catch(() => {}); document.body.append(new Image())")
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requested = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert requested, "else nothing was recorded"
    assert {urllib.parse.urlsplit(url).scheme for url in requested} <= {"file", "data"}
    refused = [entry for entry in page.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert refused, "the page's own policy forbids it"


@pytest.mark.parametrize("state", [{}, {"image": KEYS[0]}], ids=["list", "viewer"])
def test_page_of_a_phone_does_not_scroll_sideways(page: Browser, folder: Path, state: dict[str, str]) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.get(address(folder, **state))
        widths = "return [document.documentElement.scrollWidth, viewer.scrollWidth - viewer.clientWidth, innerWidth]"
        assert page.execute_script(widths) == [360, 0, 360]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_prints(page: Browser) -> None:
    assert base64.b64decode(page.print_page()).startswith(b"%PDF")


def test_tables_and_pictures_are_there_without_javascript(browser: Browser, folder: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get("about:blank")
        browser.get(address(folder))
        from selenium.webdriver.common.by import By

        text = browser.find_element(By.TAG_NAME, "body").text
        assert "Without JavaScript this page shows its tables and pictures" in text
        assert "whole-image top-1 is the ground-truth label" in text and "ant/1.JPEG" in text
        assert len(browser.find_elements(By.CSS_SELECTOR, ".card img")) == len(KEYS)
        assert not browser.find_element(By.ID, "controls").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_regions_answer_for_the_nearest_box(browser: Browser, tmp_path: Path, relabel_here: Relabel) -> None:
    keys, classes = ["ant/a.JPEG", "bee/b.JPEG"], ("ant", "bee", "cat")
    regions = random_regions(2, 3, 2, 4)
    write_label_set(tmp_path / "labels", keys, regions, 3, classes=classes)
    write_pictures(tmp_path / "images", keys)
    (tmp_path / "images" / "cat").mkdir()
    done = relabel_here("report", tmp_path / "labels", "--images", tmp_path / "images", "--output", tmp_path / "page.html")
    assert done.returncode == 0, done.stdout + done.stderr
    box = [round(edge, 3) for edge in regions.boxes[1, 2].tolist()]
    browser.get(address(tmp_path, image="bee/b.JPEG", box=",".join(map(str, box))))
    [bars] = said_targets(browser)
    expected = regions.dense(3).softmax(2)[1, 2]
    assert bars == pytest.approx({number: float(expected[number]) for number in range(3)}, abs=1e-3)  # float16
    said = browser.execute_script("return document.getElementById('said').textContent")
    assert "Region 3 of 4" in said and "Regions answer for their own boxes only" in said
    assert browser.execute_script("return document.querySelectorAll('#stage .region').length") == 4
