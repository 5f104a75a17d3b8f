"""A browser, and what it takes to have one."""

import importlib.util

import pytest

from experiments.explorer.browser import find_chromium, open_browser

CHROMIUM = find_chromium()
LACKING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("app") and (CHROMIUM is None or LACKING):
            what = ", ".join(LACKING) or "Chromium"
            item.add_marker(pytest.mark.skip(reason=f"{what} is not installed"))


@pytest.fixture(scope="session")
def browser():
    with open_browser() as browser:
        yield browser
