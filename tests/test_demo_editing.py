"""Boxes moved, sized, named, drawn and taken away in a real browser: by mouse, by keys and by fingers; and outlined."""

import json
from pathlib import Path

import pytest
from picture_files import encode, noise

pytest.importorskip("playwright.sync_api")

from demo_pages import NEEDS_BROWSER, fill, opened, set_slider, until, upload

pytestmark = NEEDS_BROWSER
WIDTH, HEIGHT = 180, 120


@pytest.fixture(scope="module")
def page(browser, masked_detector, tmp_path_factory):
    photo = tmp_path_factory.mktemp("photos") / "blocks.png"
    photo.write_bytes(encode(noise(HEIGHT, WIDTH, 0)))
    with opened(browser, masked_detector) as page:
        upload(page, "name-upload", photo)
        page.wait_for_selector("#name-stage .owl-there")
        fill(page, "name-text", "a cat")
        page.keyboard.press("Enter")
        page.wait_for_selector("#name-chips .owl-chip")
        page.get_by_role("button", name="Edit boxes").locator("visible=true").click()
        yield page


@pytest.fixture(autouse=True)
def nothing_edited(page):
    """Each test begins with no box at all, and none that is edited, though one before it ended in its middle."""
    set_slider(page, "name-threshold", 1)
    if button(page, "Edit boxes").get_attribute("aria-pressed") != "true":
        button(page, "Edit boxes").click()
    if page.locator("#name-stage").get_by_role("button", name="As found").is_enabled():
        page.locator("#name-stage").get_by_role("button", name="As found").click()
    has(page)


def button(page, name: str):
    return page.locator("#name-stage").get_by_role("button", name=name, exact=True)


def at(page, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the photo is on the screen."""
    frame = page.locator("#name-stage .owl-frame")
    frame.scroll_into_view_if_needed()
    place = frame.bounding_box()
    return place["x"] + place["width"] * x / WIDTH, place["y"] + place["height"] * y / HEIGHT


def drag(page, start, *ends) -> None:
    page.mouse.move(*at(page, *start))
    page.mouse.down()
    for end in ends:
        page.mouse.move(*at(page, *end), steps=3)
    page.mouse.up()


BOXES = """() => [...document.querySelectorAll('#name-stage rect.owl-box')].map((rect, i) =>
  [document.querySelectorAll('#name-stage .owl-tag')[i].textContent,
   ...['x', 'y', 'width', 'height'].map((name) => Number(rect.getAttribute(name)))]).reverse()"""


def has(page, *boxes) -> None:
    """Waits until these boxes (name, x0, y0, x1, y1) are on the photo, and in the server's answer, to two pixels."""
    until(
        page,
        f"""wanted => {{
          const there = ({BOXES})();
          const near = (one, [name, x0, y0, x1, y1]) => one[0] === name
            && [x0, y0, x1 - x0, y1 - y0].every((value, i) => Math.abs(value - one[i + 1]) < 2);
          if (document.querySelector('#name-stage .owl-frame').ariaBusy === 'true') return false;
          return there.length === wanted.length && there.every((one, i) => near(one, wanted[i]));
        }}""",
        [list(box) for box in boxes],
    )


def annotations(page) -> list[tuple]:
    """What the COCO download holds."""
    with page.expect_download() as download:
        page.locator("#name-files").get_by_role("link", name="COCO").click()
    coco = json.loads(Path(download.value.path()).read_text())
    names = {one["id"]: one["name"] for one in coco["categories"]}
    boxes = [(names[one["category_id"]], *one["bbox"], one.get("score")) for one in coco["annotations"]]
    return [(name, round(x), round(y), round(x + w), round(y + h), score) for name, x, y, w, h, score in boxes]


def assert_annotated(page, expected: list, of=lambda row: row) -> None:
    """What the download holds, or a part ``of`` its rows, which come a moment after the page shows them."""
    for _ in range(50):
        if (there := [of(row) for row in annotations(page)]) == expected:
            return
        page.wait_for_timeout(100)
    assert there == expected


def test_a_mouse_draws_names_moves_sizes_and_takes_away(page):
    page.fill("#name-stage .owl-edit-name", "a bird")
    drag(page, (20, 20), (60, 70), (80, 60))
    has(page, ("a bird", 20, 20, 80, 60))
    drag(page, (50, 40), (70, 50))
    has(page, ("a bird", 40, 30, 100, 70))
    drag(page, (100, 70), (120, 90))  # its right lower handle
    has(page, ("a bird", 40, 30, 120, 90))
    drag(page, (40, 60), (30, 60))  # its left side
    has(page, ("a bird", 30, 30, 120, 90))
    button(page, "New box").click()
    drag(page, (40, 40), (60, 60))  # inside the other
    has(page, ("a bird", 30, 30, 120, 90), ("a bird", 40, 40, 60, 60))
    page.fill("#name-stage .owl-edit-name", "a beak")
    page.keyboard.press("Enter")
    has(page, ("a bird", 30, 30, 120, 90), ("a beak", 40, 40, 60, 60))
    assert_annotated(page, [("a bird", 30, 30, 120, 90, None), ("a beak", 40, 40, 60, 60, None)])
    odd = "<b>\u05e9\u05dc\u05d5\u05dd</b> \U0001f989" + "\u05e9" * 180
    page.fill("#name-stage .owl-edit-name", odd)
    page.keyboard.press("Enter")
    has(page, ("a bird", 30, 30, 120, 90), (odd, 40, 40, 60, 60))
    tag, frame = (page.locator(f"#name-stage {one}").first.bounding_box() for one in (".owl-tag", ".owl-frame"))
    assert tag["x"] + tag["width"] <= frame["x"] + frame["width"] + 1  # a long name stays on the photo
    page.fill("#name-stage .owl-edit-name", "a beak")
    page.keyboard.press("Enter")
    has(page, ("a bird", 30, 30, 120, 90), ("a beak", 40, 40, 60, 60))
    page.mouse.click(*at(page, 110, 80))  # chooses the bird
    button(page, "Delete").click()
    has(page, ("a beak", 40, 40, 60, 60))
    button(page, "Undo").click()
    has(page, ("a bird", 30, 30, 120, 90), ("a beak", 40, 40, 60, 60))
    button(page, "As found").click()
    has(page)


def test_a_found_box_that_is_edited_stays_so_whatever_the_threshold(page):
    set_slider(page, "name-threshold", 0.02)
    page.wait_for_selector("#name-stage .owl-box")
    before = page.evaluate(BOXES)
    page.locator("#name-stage tbody tr").first.click()
    until(page, "document.querySelectorAll('#name-stage .owl-lit').length === 1")  # or again, a moment after
    _, x, y, width, height = before[0]
    drag(page, (x + width / 2, y + height / 2), (x + width / 2 + 12, y + height / 2 + 6))  # one that was found
    until(page, "document.querySelector('#name-stage tbody').textContent.includes('by hand')")
    assert len(page.evaluate(BOXES)) == len(before)
    button(page, "Undo").click()
    until(page, "before => JSON.stringify((" + BOXES + ")()) === JSON.stringify(before)", before)
    page.locator("#name-stage tbody tr").first.click()
    button(page, "Delete").click()
    until(page, "n => document.querySelectorAll('#name-stage .owl-box').length === n", len(before) - 1)
    page.locator("#name-stage tbody tr").first.press("Enter")
    page.fill("#name-stage .owl-edit-name", "a lynx")
    page.keyboard.press("Enter")
    _, x, y, width, height = before[1]
    lynx = ("a lynx", x, y, x + width, y + height)
    set_slider(page, "name-threshold", 1)
    has(page, lynx)
    fill(page, "name-text", "a tree")  # another name
    page.keyboard.press("Enter")
    page.get_by_text("a tree", exact=True).wait_for()
    has(page, lynx)
    set_slider(page, "name-threshold", 0.02)
    until(page, "n => document.querySelectorAll('#name-stage .owl-box').length >= n", len(before) - 1)
    assert before[0] not in page.evaluate(BOXES)
    page.get_by_label("Remove a tree").click()
    page.wait_for_selector("#name-chips .owl-chip:nth-child(2)", state="detached")


def test_keys_alone_do_all_of_it(page):
    page.fill("#name-stage .owl-edit-name", "a key")
    page.focus("#name-stage .owl-frame")
    page.keyboard.press("Enter")
    quarter = (WIDTH * 3 / 8, HEIGHT * 3 / 8, WIDTH * 5 / 8, HEIGHT * 5 / 8)
    has(page, ("a key", *quarter))
    page.keyboard.press("Control+ArrowRight")  # the browser's own
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    x0, y0, x1, y1 = quarter
    has(page, ("a key", x0 + 9, y0, x1 + 9, y1))
    for _ in range(5):
        page.keyboard.press("Shift+ArrowDown")
    moved = ("a key", x0 + 9, y0, x1 + 9, y1 + 9)
    has(page, moved)
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    has(page, moved, ("a key", *quarter))
    page.keyboard.press("PageUp")
    page.keyboard.press("Enter")  # to its name
    page.keyboard.type("a lock")
    page.keyboard.press("Enter")
    has(page, ("a lock", *moved[1:]), ("a key", *quarter))
    page.keyboard.press("Delete")
    has(page, ("a key", *quarter))
    page.keyboard.press("Control+z")
    has(page, ("a lock", *moved[1:]), ("a key", *quarter))
    assert_annotated(page, ["a lock", "a key"], lambda row: row[0])


@pytest.mark.parametrize("pressed", ["#name-files button:text-is('Picture')", "#name-files a:text-is('CSV')"])
def test_what_is_pressed_is_clicked_though_an_answer_comes_before_the_button_is_let_go(page, pressed):
    set_slider(page, "name-threshold", 0.02)
    page.wait_for_selector("#name-stage .owl-box")
    page.locator(pressed).hover()
    page.mouse.down()
    set_slider(page, "name-threshold", 1)
    has(page)
    with page.expect_download():
        page.mouse.up()
    assert_annotated(page, [])  # and then the files are those of what is there


PRESS = """ctrlKey => document.querySelector('#name-files a')
  .dispatchEvent(new PointerEvent('pointerdown', { bubbles: true, ctrlKey }))"""


@pytest.mark.parametrize("menu", [True, False])
def test_a_press_whose_end_nobody_tells_keeps_nothing_from_being_drawn(page, menu):
    page.mouse.move(5, 5)
    page.evaluate("window.link = document.querySelector('#name-files a')")
    page.evaluate(PRESS, menu)  # opens a menu, which takes the end; or ends where the page does not see it
    set_slider(page, "name-threshold", 0.02)
    page.wait_for_selector("#name-stage .owl-box")
    if not menu:
        page.mouse.move(20, 20)
    until(page, "() => !window.link.isConnected")


PATHS = "document.querySelectorAll('#name-stage path.owl-outline').length"


def fetched(page, kind: str, label: str) -> Path:
    """The file that one of the downloads gives."""
    with page.expect_download() as download:
        page.locator("#name-files").get_by_role(kind, name=label, exact=True).first.click()
    return Path(download.value.path())


def test_outlines_follow_the_switch_the_mouse_and_what_is_edited(page, masked_detector, monkeypatch):
    if button(page, "Edit boxes").get_attribute("aria-pressed") == "true":
        button(page, "Edit boxes").click()
    set_slider(page, "name-threshold", 0.02)
    page.wait_for_selector("#name-stage .owl-box")
    plain = fetched(page, "button", "Picture").read_bytes()
    switch = page.get_by_label("Outlines").locator("visible=true")
    switch.click()
    until(page, f"{PATHS} > 0")
    many, boxes = page.evaluate(PATHS), page.evaluate(BOXES)
    monkeypatch.setattr(masked_detector.model, "encode_image", None)
    monkeypatch.setattr(masked_detector.model, "encode_with_masks", None)  # the photo is encoded already
    assert fetched(page, "button", "Picture").read_bytes() != plain
    rows = json.loads(fetched(page, "button", "JSON").read_text())["detections"]
    assert len(rows) == len(boxes) and all(row["segmentation"]["size"] == [HEIGHT, WIDTH] for row in rows)
    assert page.locator("#name-files").get_by_role("link", name="JSON", exact=True).count() == 1  # it is there now
    page.locator("#name-stage").get_by_label("Larger").click()
    one = page.locator("#name-stage path.owl-outline").last  # the smallest
    for _ in range(50):  # the page may still lay the larger photo out
        frame, place = page.locator("#name-stage .owl-frame").bounding_box(), one.bounding_box()
        page.mouse.move(*one.evaluate(INSIDE))
        if page.evaluate("!document.querySelector('#name-stage .owl-tip').hidden"):
            break
        page.wait_for_timeout(100)
    until(page, "() => !document.querySelector('#name-stage .owl-tip').hidden")
    assert frame["x"] - 4 <= place["x"] and place["x"] + place["width"] <= frame["x"] + frame["width"] + 4
    assert page.inner_text("#name-stage .owl-tip") in {name for name, *_ in boxes}
    assert page.locator("#name-stage path.owl-outline.owl-active").count() == 1
    page.locator("#name-stage").get_by_label("Smaller").click()
    switch.focus()
    page.keyboard.press("Space")
    until(page, f"{PATHS} === 0 && document.querySelectorAll('#name-stage .owl-box').length === {len(boxes)}")
    page.set_viewport_size({"width": 390, "height": 844})
    switch.click()
    until(page, f"{PATHS} === {many}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("#name-chips .owl-chip-name").first.click()  # hides the cats
    until(page, f"{PATHS} === 0")
    page.locator("#name-chips .owl-chip-name").first.click()
    until(page, f"{PATHS} === {many}")
    button(page, "Edit boxes").click()
    outlined = page.locator("#name-stage path.owl-outline").last.get_attribute("data-box")
    page.locator(f"#name-stage tbody tr[data-box='{outlined}']").click()
    page.focus("#name-stage .owl-frame")
    page.keyboard.press("ArrowRight")
    until(page, f"{PATHS} === {many - 1}")  # what was moved has none
    until(page, "() => !document.querySelector('#name-stage .owl-edits button:nth-last-of-type(2)').disabled")
    page.keyboard.press("Control+z")
    until(page, f"{PATHS} === {many}")
    switch.click()
    until(page, f"{PATHS} === 0")


def test_an_undo_that_overtakes_what_it_undoes_on_its_way_to_the_server_is_done_after_it(page):
    drag(page, (20, 20), (80, 60))
    there = ("a cat", 20, 20, 80, 60)
    page.fill("#name-stage .owl-edit-name", there[0])
    page.keyboard.press("Enter")
    has(page, there)
    held, told = [], []

    def late(route):
        data = route.request.post_data or ""
        told.extend([data] if '"undo"' in data else [])
        if len(told) == 1 and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/queue/join*", late)
    page.focus("#name-stage .owl-frame")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Control+z")  # tells what the arrow did, and then this
    has(page, there)
    assert len(told) == 2 and len(held) == 1
    with page.expect_response("**/queue/join*"):
        held[0].continue_()
    page.unroute("**/queue/join*")
    set_slider(page, "name-threshold", 0.99)  # whose answer comes after that to what was late
    set_slider(page, "name-threshold", 1)
    has(page, there)
    assert_annotated(page, [(*there, None)])


# A point of the screen that lies in a path, and in none that lies over it.
INSIDE = """path => {
  const matrix = path.getScreenCTM(), box = path.getBBox();
  for (let i = 0; i < 900; i += 1) {
    const [x, y] = [(i % 30 + 0.5) / 30, (Math.floor(i / 30) + 0.5) / 30];
    const there = new DOMPoint(box.x + box.width * x, box.y + box.height * y).matrixTransform(matrix);
    if (document.elementFromPoint(there.x, there.y) === path) return [there.x, there.y];
  }
}"""


def test_fingers_draw_on_a_small_screen_and_two_of_them_move_the_photo(page):
    page.set_viewport_size({"width": 390, "height": 844})
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points) -> None:
        touches = [dict(zip("xy", at_now(*point), strict=True), id=i) for i, point in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    origin = at(page, 0, 0)
    far = at(page, WIDTH, HEIGHT)

    def at_now(x, y):  # of the photo as it lay
        return origin[0] + (far[0] - origin[0]) * x / WIDTH, origin[1] + (far[1] - origin[1]) * y / HEIGHT

    page.fill("#name-stage .owl-edit-name", "a toe")
    origin, far = at(page, 0, 0), at(page, WIDTH, HEIGHT)
    touch("touchStart", (30, 30))
    touch("touchMove", (60, 60))
    touch("touchMove", (90, 90))
    touch("touchEnd")
    has(page, ("a toe", 30, 30, 90, 90))
    touch("touchStart", (60, 60), (70, 60))
    touch("touchMove", (40, 60), (90, 60))
    touch("touchMove", (20, 60), (110, 60))
    touch("touchEnd")
    until(page, "document.querySelector('#name-stage .owl-scroll').classList.contains('owl-zoomed')")
    has(page, ("a toe", 30, 30, 90, 90))  # two fingers edit nothing
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 900})
    frame = page.locator("#name-stage .owl-frame").bounding_box()
    scroll = page.locator("#name-stage .owl-scroll").bounding_box()
    assert frame["width"] > 1.2 * scroll["width"]
    on_screen = (scroll["x"] + 0.3 * scroll["width"], scroll["y"] + 0.3 * scroll["height"])
    x, y = ((on_screen[i] - frame["xy"[i]]) / frame[("width", "height")[i]] * (WIDTH, HEIGHT)[i] for i in (0, 1))
    button(page, "New box").click()
    page.mouse.move(*on_screen)
    page.mouse.down()
    page.mouse.move(on_screen[0] + 30, on_screen[1] + 60, steps=3)
    page.mouse.up()
    scale = frame["width"] / WIDTH
    has(page, ("a toe", 30, 30, 90, 90), ("a toe", x, y, x + 30 / scale, y + 60 / scale))
