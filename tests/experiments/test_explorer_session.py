"""The explorer without its page: what is asked and answered, and what is let through."""

import asyncio
import base64
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowfactor
from experiments.explorer import page
from experiments.explorer.page import Guard, listen
from experiments.explorer.runs import open_runs
from experiments.explorer.session import Samples, Session
from experiments.publish import find_run
from experiments.runs import open_run
from experiments.samples import first_frames
from flowfactor.diagnostics.explorer import Explorer
from flowfactor.errors import DataError, RunError


def small(names, seed):
    torch.manual_seed(seed)
    model = flowfactor.FlowVAE.build(names, (3, 8, 8), horizon=4, latent_dim=4, width=8)
    with torch.no_grad():
        model.potentials.coefficients[:, 0].mul_(3)
    return Explorer(model)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def samples(images):
    return Samples([0, 2], images[[0, 2]], 3, lambda number: images[number], "")


@pytest.fixture(scope="module")
def explorer():
    return small(("rotation", "hue"), 0)


@pytest.fixture
def session(explorer, samples):
    return Session({"runs/a": explorer}, samples)


def pixels(uri):
    kind, content = uri.split(",")
    assert kind.startswith("data:image/")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))), dtype=float) / 255


def decoded(session, weights, t, name="runs/a"):
    explorer = session.explorers[name]
    return explorer.decode(explorer.at(session.states[name].z, weights, t))[0].permute(1, 2, 0)


def test_an_answer_shows_what_the_library_decodes(session):
    weights = {"rotation": 1.0, "hue": -0.5}
    (view,) = session.answer({"weights": weights, "t": 2.5})["models"]
    np.testing.assert_allclose(pixels(view["image"]), decoded(session, weights, 2.5), atol=0.003)
    assert pixels(view["strip"]).shape == (8, 5 * 8, 3)
    assert not view["outside"]
    assert session.answer({"weights": weights, "t": 5})["models"][0]["outside"]


def test_a_sample_is_encoded(session, images):
    answer = session.answer({"start": {"sample": 1}})
    explorer = session.explorers["runs/a"]
    torch.testing.assert_close(session.states["runs/a"].z, explorer.encode(images[1]))
    assert answer["note"]


def test_a_picture_is_encoded_and_what_was_done_is_said(session):
    file = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    answer = session.answer({"start": {"picture": picture}})
    assert "40 x 20" in answer["note"]
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8)
    explorer = session.explorers["runs/a"]
    torch.testing.assert_close(session.states["runs/a"].z, explorer.encode(red))


def test_a_place_is_decoded_and_the_path_starts_there(session):
    (view,) = session.answer({"start": {"model": 0, "x": 0.3, "y": 0.8}, "t": 0})["models"]
    np.testing.assert_allclose(view["path"][0], [0.3, 0.8], atol=1e-3)
    np.testing.assert_allclose(pixels(view["image"]), decoded(session, {}, 0.0), atol=0.003)


def test_two_models_are_side_by_side(explorer, samples):
    explorers = {"runs/a": explorer, "runs/b": small(("hue", "x"), 1)}
    session = Session(explorers, samples)
    assert session.names == ("rotation", "hue", "x")
    request = {"weights": {"rotation": 1.0, "x": 2.0}, "t": 3.0, "plane": ["rotation", "hue"]}
    views = session.answer(request)["models"]
    for name, view, own in zip(explorers, views, ({"rotation": 1.0}, {"x": 2.0}), strict=True):
        expected = decoded(session, own, 3.0, name)
        np.testing.assert_allclose(pixels(view["image"]), expected, atol=0.003)
    # What is placed in the plane of one model is encoded by the other.
    session.answer({"start": {"model": 0, "x": 0.5, "y": 0.5}})
    image = explorers["runs/a"].decode(session.states["runs/a"].z)[0]
    torch.testing.assert_close(session.states["runs/b"].z, explorers["runs/b"].encode(image))


def test_tests_and_records_come_with_the_views(session):
    moving = {"weights": {"rotation": 1.0, "hue": 0.5}, "t": 2.0}
    (test,) = session.answer({**moving, "test": "there_and_back"})["test"]
    assert [pixels(frame["image"]).shape for frame in test["frames"]] == [(8, 8, 3)] * 3
    (test,) = session.answer({**moving, "test": "either_order"})["test"]
    assert "%" in test["text"]
    (gif,) = session.answer({**moving, "record": "gif"})["record"]
    content = base64.b64decode(gif["content"].split(",")[1])
    assert Image.open(io.BytesIO(content)).n_frames == 48
    (python,) = session.answer({**moving, "record": "python"})["record"]
    compile(python["content"], "snippet", "exec")
    assert "runs/a" in python["content"]


def test_what_cannot_be_answered_gets_a_sentence(session):
    for request in (
        None,
        [],
        {"weights": {"shear": 1.0}},
        {"weights": {"hue": "1"}},
        {"weights": {"hue": float("nan")}},
        {"weights": {"hue": 1e9}},
        {"weights": [1.0]},
        {"t": "now"},
        {"t": 1e6},
        {"start": {"sample": 3}},
        {"start": {"sample": -1}},
        {"start": {"sample": True}},
        {"start": "/etc/passwd"},
        {"start": {"picture": "/etc/passwd"}},
        {"start": {"picture": {"path": "/etc/passwd"}}},
        {"start": {"path": "/etc/passwd"}},
        {"start": {"model": 1, "x": 0, "y": 0}},
        {"start": {"model": 0, "x": 7, "y": 0}},
        {"plane": ["hue", "shear"]},
        {"plane": "hue"},
        {"test": "all"},
        {"weights": {"hue": 1.0}, "t": 1.0, "test": "either_order"},
        {"record": "exe"},
        {"t": 0, "record": "gif"},
    ):
        with pytest.raises(DataError) as caught:
            session.answer(request)
        assert str(caught.value).endswith("."), request


# ---- what is let through


def status(path="/", method="GET", local=True, **headers):
    """Return the status of a request to a guarded application that answers everything."""
    replies = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        replies.append(message)

    given = {"host": "127.0.0.1:7860", **{k.replace("_", "-"): v for k, v in headers.items()}}
    raw = [(key.encode(), value.encode()) for key, value in given.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": raw}
    asyncio.run(Guard(app, local=local)(scope, None, send))
    if replies[0]["status"] == 200:
        policy = dict(replies[0]["headers"])[b"content-security-policy"].decode()
        assert policy.startswith("default-src 'self'")
        assert "http" not in policy
    return replies[0]["status"]


def test_the_page_and_its_route_are_open():
    for path in ("/", "/config", "/theme.css", "/assets/index-3.js", "/static/fonts/a/b.woff2"):
        assert status(path) == 200
    assert status("/explore", "POST", content_length="10") == 200
    assert status("/", host="localhost:1") == 200
    assert status("/", host="[::1]:1") == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://example.com/",
        "/gradio_api/run/predict",
        "/gradio_api/queue/join",
        "/gradio_api/component_server",
        "/static/../../etc/passwd",
        "/assets//etc/passwd/..",
    ],
)
def test_what_reads_files_or_other_sites_is_closed(path):
    assert status(path) == status(path, "POST") == 404


def test_other_sites_and_names_are_refused():
    assert status(host="evil.example") == 403  # a name that has been bound to this machine
    assert status(host="evil.example", local=False) == 200
    assert status("/explore", "POST", content_length="1", origin="http://evil.example") == 403
    assert status("/explore", "POST", content_length="1", origin="http://127.0.0.1:7860") == 200


def test_requests_have_a_size_and_a_limit():
    assert status("/explore", "POST", content_length="999999999999") == 413
    assert status("/explore", "POST") == 405
    assert status("/explore", "GET", content_length="1") == 405


def test_only_the_loopback_is_listened_on_and_a_taken_port_is_said():
    with listen("127.0.0.1", 0) as sock:
        address, port = sock.getsockname()
        assert address == "127.0.0.1"
        sock.listen()
        with pytest.raises(RunError, match=str(port)):
            listen("127.0.0.1", port)
    with pytest.raises(RunError, match="invalid"):
        listen("no.such.host.invalid", 1)


# ---- runs and the command


def test_the_samples_of_a_run_are_held_out_data(tiny_run):
    session = open_runs([tiny_run])()
    data = open_run(tiny_run).data("test")
    assert session.samples.count == len(data)
    session.answer({"start": {"sample": 3}})
    (explorer,) = session.explorers.values()
    image = first_frames(data, torch.tensor([3]))[0]
    torch.testing.assert_close(session.states[str(tiny_run)].z, explorer.encode(image))


def test_without_its_data_the_model_makes_images_up(tiny_run, monkeypatch):
    def missing(*_):
        raise DataError("there is no such folder")

    monkeypatch.setattr(type(open_run(tiny_run).config.data), "load", missing)
    session = open_runs([tiny_run])()
    assert "made up" in session.answer({"start": {"sample": 1}})["note"]


def test_runs_side_by_side_must_differ(tiny_run):
    with pytest.raises(RunError, match="twice"):
        open_runs([tiny_run, tiny_run])


def test_bad_runs_and_a_missing_gradio_get_a_sentence(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, output = call("explore", tmp_path)
    assert code == 2
    assert "flowfactor[app]" in output
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    code, output = call("explore", tmp_path / "nothing")
    assert code == 2
    assert "nothing" in output


def test_the_command_serves_the_runs(call, tiny_run, monkeypatch):
    served = []
    monkeypatch.setattr(page, "import_gradio", lambda: None)
    monkeypatch.setattr(page, "make_app", lambda make_session, local: (make_session(), local))
    monkeypatch.setattr(page, "serve", lambda app, sock: served.append((*app, sock)))
    monkeypatch.setattr("webbrowser.open", served.append)
    for host, local in (("127.0.0.1", True), ("0.0.0.0", False)):
        code, output = call("explore", tiny_run, "--host", host, "--port", 0, "--browser")
        assert code == 0, output
        address, (session, shown, sock) = served
        assert address in output
        assert (list(session.explorers), shown) == ([str(tiny_run)], local)
        assert ("can open" in output) != local
        sock.close()
        served.clear()


def test_runs_of_other_shapes_are_not_side_by_side(call, tiny_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="one shape"):
        open_runs([tiny_run, find_run("photos")])


def test_the_documented_times_are_those_that_were_measured():
    root = Path(__file__).parents[2]
    file = root / "experiments" / "benchmarks" / "results" / "explorer_latency.json"
    result = json.loads(file.read_text())
    page = (root / "docs" / "explorer.md").read_text()
    for name, server in result["server"].items():
        times = [*server.items(), *result["browser"].get(name, {}).items()]
        cells = [f"{value:.1f}" for key, value in times if key != "processor"]
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert [cell.strip() for cell in row.split("|")[2:-1] if "-" not in cell] == cells
