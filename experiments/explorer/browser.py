"""The page without its command: served by a thread, and opened in Chromium by scripts and tests."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from experiments.explorer import page
from experiments.explorer.session import Session


@contextlib.contextmanager
def serve(new_session: Callable[[], Session]) -> Iterator[str]:
    """Serve the page on a free port of this machine, and give its address.

    Args:
        new_session: makes what a page that is opened works with.
    """
    sock = page.listen("127.0.0.1", 0)
    server = page.make_server(page.make_app(new_session))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def find_chromium() -> str | None:
    """Return the path of Chromium, or of Chrome; None if there is neither."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Open Chromium without a window, through Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(url: str) -> Iterator[Any]:
    """Open the page, and give its tab as soon as it shows an image."""
    with open_browser() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(url)
        tab.wait_for_function("document.querySelector('#ff-image-0')?.src.startsWith('data:')")
        yield tab
