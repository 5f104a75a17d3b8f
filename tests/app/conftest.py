"""A browser, and what it takes to have one."""

import importlib.util
import shutil

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LACKING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("app") and (CHROMIUM is None or LACKING):
            what = ", ".join(LACKING) or "Chromium"
            item.add_marker(pytest.mark.skip(reason=f"{what} is not installed"))


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
