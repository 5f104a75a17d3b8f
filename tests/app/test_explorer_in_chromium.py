"""The explorer in a real browser: `make test-app` runs these, the ordinary tests do not."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import flowfactor
from experiments.explorer.browser import serve
from experiments.explorer.session import Samples, Session
from flowfactor.diagnostics.explorer import Explorer

pytestmark = [
    pytest.mark.app,
    pytest.mark.filterwarnings("ignore"),
]

NAMES = ("rotation", "hue")


def small(names, seed):
    torch.manual_seed(seed)
    model = flowfactor.FlowVAE.build(names, (3, 12, 12), horizon=4, latent_dim=6, width=16)
    with torch.no_grad():
        model.potentials.coefficients[:, 0].mul_(3)
    return Explorer(model)


@pytest.fixture(scope="module")
def site():
    """Serve two small models; yield the address, and the sessions of the pages that are opened."""
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    samples = Samples([0, 2, 4], images[::2], 5, lambda number: images[number], "")
    explorers = {"runs/a": small(NAMES, 0), "runs/b": small(NAMES, 1)}
    sessions = []

    def new_session():
        sessions.append(Session(explorers, samples))
        return sessions[-1]

    with serve(new_session) as url:
        yield url, sessions


@pytest.fixture
def page(site, browser):
    """Open the page, and require that nothing was loaded from elsewhere and nothing failed."""
    address, _ = site
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    elsewhere, failures = [], []
    page.on(
        "request",
        lambda r: r.url.startswith(("data:", "blob:", address)) or elsewhere.append(r.url),
    )
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on(
        "console", lambda m: m.type == "error" and "400" not in m.text and failures.append(m.text)
    )
    page.goto(address)
    page.wait_for_function("document.querySelector('#ff-image-1')?.src.startsWith('data:')")
    settle(page)
    yield page
    page.close()
    assert elsewhere == []
    assert failures == []


def shown(page, kind="image", i=0):
    uri = page.get_attribute(f"#ff-{kind}-{i}", "src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) / 255.0


def expected(session, weights, t, name="runs/a"):
    explorer = session.explorers[name]
    return explorer.decode(explorer.at(session.states[name].z, weights, t))[0].permute(1, 2, 0)


def wait(page, text):
    """Wait for a word below the image, and for the rest of the same answer."""
    page.wait_for_function(f"document.querySelector('#ff-text-0').textContent.includes({text!r})")
    settle(page)


def settle(page):
    """Wait until the last request has been answered and shown."""
    page.wait_for_timeout(50)
    page.wait_for_function("document.querySelector('#ff-page').dataset.busy === 'no'")


def drag(page, slider, share):
    """Drag the thumb of a slider to a share of its length, and return its value."""
    track = page.locator(f"#{slider} input[type=range]")
    track.scroll_into_view_if_needed()
    box = track.bounding_box()
    low, high, value = (float(track.evaluate(f"e => e.{key}")) for key in ("min", "max", "value"))
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * (value - low) / (high - low), middle)
    page.mouse.down()
    for part in (0.5, 1):
        start = (value - low) / (high - low)
        page.mouse.move(box["x"] + box["width"] * (start + part * (share - start)), middle)
    page.mouse.up()
    settle(page)
    return float(track.evaluate("e => e.value"))


def test_dragging_sliders_shows_what_the_library_decodes(page, site):
    session = site[1][-1]
    before = shown(page)
    t = drag(page, "ff-time", 0.7)
    assert t > 1
    wait(page, f"t = {t:.1f}")
    assert np.abs(shown(page) - before).max() > 0.01
    np.testing.assert_allclose(shown(page), expected(session, {"rotation": 1.0}, t), atol=0.003)
    w = drag(page, "ff-weight-1", 0.2)
    assert w < 0
    wait(page, "hue")
    weights = {"rotation": 1.0, "hue": w}
    for i, name in enumerate(session.explorers):  # both models
        image = shown(page, i=i)
        np.testing.assert_allclose(image, expected(session, weights, t, name), atol=0.003)
    assert shown(page, "strip").shape == (12, 5 * 12, 3)


def test_a_typed_number_and_an_arrow_key_move_a_slider(page, site):
    page.fill("#ff-time input[type=number]", "2.5")
    wait(page, "t = 2.5")
    page.focus("#ff-time input[type=range]")
    page.keyboard.press("ArrowRight")
    wait(page, "t = 2.6")
    np.testing.assert_allclose(
        shown(page), expected(site[1][-1], {"rotation": 1.0}, 2.6), atol=0.003
    )


def test_a_click_and_an_arrow_key_on_the_landscape_place_the_start(page, site):
    session = site[1][-1]
    plane = page.locator(".ff-plane").first
    box = plane.bounding_box()
    plane.click(position={"x": 0.25 * box["width"], "y": 0.75 * box["height"]})
    page.wait_for_function("document.querySelector('#ff-note').textContent.includes('plane')")
    start = page.locator("#ff-start-0")
    places = [float(start.get_attribute(key)) for key in ("cx", "cy")]
    np.testing.assert_allclose(places, [250, 750], atol=8)
    np.testing.assert_allclose(shown(page), expected(session, {}, 0.0), atol=0.003)
    plane.focus()
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function("+document.querySelector('#ff-start-0').getAttribute('cx') > 320")
    assert page.evaluate("document.activeElement.className") == "ff-plane"


def test_samples_and_planes_are_chosen(page, site):
    session = site[1][-1]
    page.click("[aria-label='Sample 4']")
    page.wait_for_function("document.querySelector('#ff-note').textContent.includes('Sample 4')")
    torch.testing.assert_close(
        session.states["runs/a"].z,
        session.explorers["runs/a"].encode(session.samples.get(4)),
    )
    before = shown(page, "landscape")
    page.select_option("#ff-first", "hue")
    settle(page)
    assert session.plane == ("hue", "hue")
    assert np.abs(shown(page, "landscape") - before).max() > 0.01


def upload(page, name, content):
    page.set_input_files("#ff-file", {"name": name, "mimeType": "image/png", "buffer": content})


def test_uploaded_pictures_of_the_wrong_size_or_kind_get_a_sentence(page, site):
    session = site[1][-1]
    file = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(file, "PNG")
    upload(page, "red.png", file.getvalue())
    page.wait_for_function("document.querySelector('#ff-note').textContent.includes('40 x 20')")
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 12, 12)
    explorer = session.explorers["runs/a"]
    torch.testing.assert_close(session.states["runs/a"].z, explorer.encode(red))
    before = shown(page)
    upload(page, "notes.txt", b"no picture")
    page.wait_for_selector("#ff-note.ff-error")
    text = page.inner_text("#ff-note")
    assert "picture" in text
    assert "Traceback" not in page.inner_text("body")
    np.testing.assert_array_equal(shown(page), before)


def test_buttons_show_errors_and_records(page, site):
    page.fill("#ff-time input[type=number]", "3")
    wait(page, "t = 3.0")
    page.click("#ff-order")  # of one flow: a sentence
    page.wait_for_selector("#ff-note.ff-error")
    page.click("#ff-back")
    page.wait_for_selector("#ff-result figure")
    assert page.locator("#ff-result figure").count() == 6  # three of each model
    assert "%" in page.inner_text("#ff-result")
    page.fill("#ff-weight-1 input[type=number]", "0.5")
    wait(page, "0.5 hue")
    page.click("#ff-order")
    page.wait_for_function("document.querySelectorAll('#ff-result figure').length === 8")
    with page.expect_download() as download:
        page.click("#ff-gif")
        page.click("text=Save path.gif")
    assert Image.open(download.value.path()).n_frames == 48
    with page.expect_download() as download:
        page.click("#ff-python")
        page.click("text=Save path.py")
    space = {"__name__": "snippet"}
    text = download.value.path().read_text()
    loaded = text.replace("flowfactor.load('runs/a')", "MODEL")
    space["MODEL"] = site[1][-1].explorers["runs/a"].model
    exec(loaded, space)
    image = space["image"].permute(1, 2, 0)
    np.testing.assert_allclose(shown(page), image, atol=0.003)


def test_reset_and_play(page):
    page.click("#ff-play")
    page.wait_for_function("+document.querySelector('#ff-time input[type=range]').value > 0.3")
    page.click("#ff-play")
    page.click("#ff-rest")
    wait(page, "t = 0.0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_without_scrolling_sideways(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
