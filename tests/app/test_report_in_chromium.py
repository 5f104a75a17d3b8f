"""A report in a real browser: `make test-app` runs these, the ordinary tests do not."""

import numpy as np
import pytest
import torch

import flowfactor
from flowfactor.diagnostics import Section, player_data, write_report
from flowfactor.tables import Column, Row, Table

pytestmark = pytest.mark.app


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = flowfactor.FlowVAE.build(
        ("rotation", "hue"), (3, 12, 12), horizon=4, latent_dim=6, width=16
    )
    with torch.no_grad():
        model.potentials.coefficients[:, 0].mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def page(model, images, browser, tmp_path):
    """Open a report, and require that nothing was loaded and nothing failed."""
    rows = [Row("b", (10.0, None)), Row("a", (9.5, 2.0)), Row("c", (-1.0, 3.0))]
    table = Table([Column("E"), Column("floor")], rows, label="name")
    sections = [Section("One", "Text.", [player_data(model, images, blends=2)], [table])]
    path = write_report(tmp_path, "A run", sections)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    loaded, failures = [], []
    page.on("request", lambda r: r.url.startswith("data:") or loaded.append(r.url))
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda m: m.type == "error" and failures.append(m.text))
    page.goto(path.as_uri())
    page.wait_for_selector(".player canvas")
    yield page
    page.close()
    assert loaded == [path.as_uri()]
    assert failures == []


def column(page, number):
    cells = page.locator(f"tbody tr td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def pixels(page):
    data = page.evaluate(
        "(() => { const c = document.querySelector('.now');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] })()"
    )
    return np.array(data).reshape(12, 25, 4)[..., :3] / 255


def test_sliders_show_what_the_library_decodes(page, model, images):
    page.fill(".player input >> nth=0", "1")  # half of each
    page.fill(".player input >> nth=1", "5")  # t = 2.5
    assert page.locator(".player output").all_inner_texts() == [
        "0.5 rotation + 0.5 hue",
        "t = 2.5",
    ]
    both = 0.5 * model.potentials["rotation"] + 0.5 * model.potentials["hue"]
    with torch.no_grad():
        z = model.flow(model.represent(images), both, [t / 2 for t in range(9)])[5]
        expected = model.decode(z).permute(0, 2, 3, 1)
    shown = pixels(page)
    np.testing.assert_allclose(shown[:, :12], expected[0], atol=0.003)
    np.testing.assert_allclose(shown[:, 13:], expected[1], atol=0.003)


def test_the_film_plays_and_pauses_by_the_keyboard(page):
    page.focus(".player button")
    page.keyboard.press("Enter")
    assert page.inner_text(".player button") == "Pause"
    for _ in range(100):  # wait_for_function would need what the report's policy forbids
        if int(page.input_value(".player input >> nth=1")) > 2:
            break
        page.wait_for_timeout(50)
    else:
        pytest.fail("it does not play")
    page.keyboard.press("Enter")
    now = page.input_value(".player input >> nth=1")
    page.wait_for_timeout(500)
    assert page.input_value(".player input >> nth=1") == now
    page.focus(".player input >> nth=1")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    clock = page.locator(".player input >> nth=1")
    assert clock.get_attribute("aria-valuetext") == "t = 0.5"
    assert "t = 0.5" in page.locator(".now").get_attribute("aria-label")


def test_a_click_on_a_heading_sorts_by_numbers_and_what_is_missing_comes_last(page):
    button = page.locator("th button >> nth=1")
    button.click()
    assert column(page, 2) == ["-1.0", "9.5", "10.0"]
    assert page.locator("th").nth(1).get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, 2) == ["10.0", "9.5", "-1.0"]
    for expected in (["2.0", "3.0", ""], ["3.0", "2.0", ""]):
        page.locator("th button", has_text="floor").click()
        assert column(page, 3) == expected
    page.locator("th button", has_text="name").click()
    assert column(page, 1) == ["a", "b", "c"]
    assert page.locator("th[aria-sort]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
