"""The page and its server: Gradio's components, one route for what they ask, nothing else open."""

from __future__ import annotations

import html
import ipaddress
import json
import os
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from experiments.explorer.session import MOST_WEIGHT, Session, image_uri
from flowfactor.errors import DataError, FlowFactorError, RunError
from flowfactor.extras import import_extra
from flowfactor.names import one_line

# What Gradio asks of the network when it is imported or started, it asks no more.
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

# All that the page needs of Gradio: its HTML, scripts, styles and fonts, and the sign of life.
_OPEN = re.compile(
    r"/(config|theme\.css|favicon\.ico|(assets|static)/[\w./@-]+"
    r"|gradio_api/(info|startup-events|theme\.css|heartbeat/\w+))?"
)
_MOST_BYTES = 30_000_000
_MOST_PAGES = 32

# The browser loads nothing from elsewhere, and no other site may frame the page.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
        "form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def import_gradio() -> Any:
    """Return Gradio, which is told to ask nothing of the network.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.update(_QUIET)
    return import_extra("gradio", "app")


def make_app(new_session: Callable[[], Session], *, local: bool = True) -> Any:
    """Return the page as an ASGI application.

    Args:
        new_session: makes what a page that is opened works with.
        local: whether only names of this machine may be asked for, so that no other site can
            reach the server through the reader's browser.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    gradio = import_gradio()
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    pages = _Pages(new_session)

    async def explore(request: Request) -> JSONResponse:
        try:
            content = json.loads(await request.body())
            answer = await run_in_threadpool(pages.answer, content)
        except (FlowFactorError, ValueError) as error:
            text = str(error) if isinstance(error, FlowFactorError) else "This is no JSON."
            return JSONResponse({"error": text}, 400)
        return JSONResponse(answer)

    app = Starlette(routes=[Route("/explore", explore, methods=["POST"])])
    folder = Path(__file__).parent
    script = (folder / "page.js").read_text(encoding="utf-8")
    gradio.mount_gradio_app(
        app,
        _blocks(gradio, new_session()),
        "/",
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=(folder / "page.css").read_text(encoding="utf-8"),
        head=f"<script>\n{script}</script>",
    )
    return Guard(app, local=local)


def serve(app: Any, sock: socket.socket) -> None:
    """Answer requests on a socket until Ctrl-C."""
    # Small tensors: more threads would wait for each other.
    torch.set_num_threads(1)
    make_server(app).run(sockets=[sock])


def make_server(app: Any) -> Any:
    """Return a server of uvicorn for the page."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1, access_log=False
    )
    return uvicorn.Server(config)


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: name or address.
        port: None takes 7860, or the next one that is free.

    Raises:
        RunError: it cannot be listened on.
    """
    error: OSError | None = None
    for each in [port] if port is not None else range(7860, 7880):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, each, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, kind, protocol)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            return sock
        except OSError as reason:
            error = reason
    raise RunError(
        f"Nothing can listen on {host}, port {port or '7860 to 7879'}: "
        f"{error.strerror if error else ''}. Choose another one with --host or --port."
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host.

    Example:
        >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Pages:
    """The session of every open page, the latest ones; each is asked by one request at a time."""

    def __init__(self, new_session: Callable[[], Session]) -> None:
        self.new_session = new_session
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self.lock = threading.Lock()

    def answer(self, request: Any) -> dict[str, Any]:
        name = request.get("page") if isinstance(request, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise DataError("A request must be a JSON object with the name of its page.")
        with self.lock:
            session = self.sessions.pop(name, None) or self.new_session()
            self.sessions[name] = session
            while len(self.sessions) > _MOST_PAGES:
                self.sessions.popitem(last=False)
            return session.answer(request)


class Guard:
    """Lets through what the page needs, from this site only, and nothing that names a file."""

    def __init__(self, app: Any, *, local: bool) -> None:
        self.app = app
        self.local = local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        status = self._refuse(scope)
        if status:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *ours]}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refuse(self, scope: Any) -> int:
        """Return the status of a refusal, 0 if a request may pass."""
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        host = headers.get("host", "")
        if self.local and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return 403
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403
        path, method = scope["path"], scope["method"]
        if path == "/explore":
            size = headers.get("content-length", "")
            if method != "POST" or not size.isdecimal():
                return 405
            return 413 if int(size) > _MOST_BYTES else 0
        allowed = method in ("GET", "HEAD") and ".." not in path and _OPEN.fullmatch(path)
        return 0 if allowed else 404


# ---- the page

_BUTTONS = {
    "play": "Play",
    "rest": "Reset",
    "back": "There and back",
    "order": "Either order",
    "gif": "Record a GIF",
    "python": "Record as Python",
}


def _blocks(gradio: Any, session: Session) -> Any:
    names, models = session.names, [each.model for each in session.explorers.values()]
    horizon = max(model.horizon for model in models)
    title = " and ".join(Path(name).name for name in session.explorers)
    with gradio.Blocks(
        title=f"flowfactor: {one_line(title)}", analytics_enabled=False, fill_width=True
    ) as blocks:
        gradio.HTML(
            f"<h1>{_escape(title)}</h1><p class='ff-note'>Mix the flows with the sliders, run them "
            f"in time, drag the start of the path over the landscape.</p>"
            f"<div id='ff-page' data-names='{_escape(json.dumps(names))}' "
            f"data-sample='{session.samples.numbers[0]}'></div>"
        )
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                gradio.HTML(_start_html(session), elem_id="ff-start")
                for k, name in enumerate(names):
                    gradio.Slider(
                        -MOST_WEIGHT,
                        MOST_WEIGHT,
                        0.0 if k else 1.0,
                        step=0.05,
                        label=one_line(name, 40),
                        elem_id=f"ff-weight-{k}",
                        elem_classes="ff-slider",
                        interactive=True,
                    )
            with gradio.Column(scale=3, min_width=320, elem_id="ff-views"):
                several = len(session.explorers) > 1
                views = [
                    _model_html(i, name, explorer.strip_times.int().tolist(), headed=several)
                    for i, (name, explorer) in enumerate(session.explorers.items())
                ]
                gradio.HTML(f"<div class='ff-models'>{''.join(views)}</div>")
                gradio.Slider(
                    -horizon / 2,
                    1.5 * horizon,
                    0.0,
                    step=0.1,
                    label=f"time in frames (trained on 0 to {horizon})",
                    elem_id="ff-time",
                    elem_classes="ff-slider",
                    interactive=True,
                )
                with gradio.Row():
                    for name, label in _BUTTONS.items():
                        gradio.Button(label, elem_id=f"ff-{name}", size="sm", min_width=120)
                gradio.HTML("<div id='ff-result' class='ff-result' aria-live='polite'></div>")
    return blocks


def _start_html(session: Session) -> str:
    samples = session.samples
    buttons = "".join(
        f"<li><button type='button' data-sample='{number}' aria-pressed='false' "
        f"aria-label='Sample {number}'><img src='{image_uri(image)}' alt=''></button></li>"
        for number, image in zip(samples.numbers, samples.images, strict=True)
    )
    options = "".join(f"<option>{_escape(name)}</option>" for name in session.names)
    second = options
    if len(session.names) > 1:
        chosen = f"<option>{_escape(session.names[1])}</option>"
        second = options.replace(chosen, chosen.replace("<option>", "<option selected>"), 1)
    return (
        f"<ul class='ff-samples' aria-label='Images to start from'>{buttons}</ul>"
        f"<div class='ff-row'><label>Sample <input id='ff-number' type='number' min='0' "
        f"max='{samples.count - 1}' value='{samples.numbers[0]}'></label>"
        f"<label>A picture of yours <input id='ff-file' type='file' accept='image/*'></label></div>"
        f"<p id='ff-note' class='ff-note' role='status'></p>"
        f"<div class='ff-row'><label>Plane of <select id='ff-first'>{options}</select></label>"
        f"<label>and <select id='ff-second'>{second}</select></label></div>"
    )


def _model_html(i: int, name: str, times: list[int], *, headed: bool) -> str:
    title = _escape(Path(name).name)
    heading = f"<h2>{title}</h2>" if headed else ""
    ticks = "".join(f"<span data-t='{t}'>{t}</span>" for t in times)
    return (
        f"<section class='ff-model' aria-label='{title}'>{heading}<div class='ff-pair'>"
        f"<figure><img id='ff-image-{i}' class='ff-image' alt='Decoded image'>"
        f"<figcaption id='ff-text-{i}' class='ff-text'></figcaption></figure>"
        f"<figure><div class='ff-plane' tabindex='0' role='application' aria-label='Landscape of "
        f"the potential with the path over it. Arrow keys move the start of the path, with Shift "
        f"further.'><img id='ff-landscape-{i}' alt=''>"
        f"<svg viewBox='0 0 1000 1000' aria-hidden='true'>"
        f"<polyline id='ff-halo-{i}' class='ff-halo'/><polyline id='ff-line-{i}' class='ff-line'/>"
        f"<g id='ff-frames-{i}'></g><circle id='ff-start-{i}' class='ff-start' r='14'/>"
        f"<circle id='ff-now-{i}' class='ff-now' r='17'/></svg></div>"
        f"<figcaption class='ff-text'>White: the start. Orange: now. Click or drag to start "
        f"elsewhere.</figcaption></figure></div>"
        f"<img id='ff-strip-{i}' class='ff-strip' alt='Film strip, frames at t = "
        f"{', '.join(map(str, times))}'>"
        f"<div id='ff-ticks-{i}' class='ff-ticks' aria-hidden='true'>{ticks}</div></section>"
    )


def _escape(text: str) -> str:
    return html.escape(one_line(text), quote=True)
