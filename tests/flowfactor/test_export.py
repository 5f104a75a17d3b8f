"""Exported models compute what the library computes, to rounding."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import flowfactor
from flowfactor.errors import RunError
from flowfactor.export import PARTS, export
from solvers import RK4, Dopri5, Euler

pytestmark = [
    pytest.mark.traced,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("onnxscript", "onnxruntime")),
        reason="the extra export is not installed",
    ),
]
NAMES = ("rotation", "hue")
KINDS = {
    "in time": {"rank": 1},  # all parts; of the others the flow
    "with turns": {
        "parts": "both",
        "autonomous": True,
        "objective": {"hamilton_jacobi": 0},
        "solver": {"name": "euler", "steps": 3},
    },
}


def build(**options):
    torch.manual_seed(0)
    networks = {"encoder": {"channels": [2], "hidden": 8}, "decoder": {"hidden": [8]}}
    shape = (1, 8, 8)
    return flowfactor.FlowVAE.build(
        NAMES, shape, latent_dim=4, width=8, **networks, **options
    ).eval()


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    model = build(**KINDS[request.param])
    folder = tmp_path_factory.mktemp("exported")
    parts = PARTS if request.param == "in time" else ("flow",)
    files = export(model, folder, parts=parts)
    assert [path.name for path in files] == [*(f"{part}.onnx" for part in parts), "model.json"]
    return model, folder


def onnx_part(folder, part):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / f"{part}.onnx", options)

    def run(**inputs):
        arrays = {name: np.asarray(each, np.float32) for name, each in inputs.items()}
        return [torch.from_numpy(each) for each in session.run(None, arrays)]

    return run


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_parity_by_onnx_runtime(exported):
    model, folder = exported
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    flow = onnx_part(folder, "flow")
    weights = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0.5], [0, 0]])
    for start, end in ((0.0, 8.0), (0.0, 2.5), (5.0, 0.0), (1.0, 1.0), (0.0, -0.3)):
        (moved,) = flow(latents=z, weights=weights, start=start, end=end)
        expected = model.flow(z, weights, [start, end])[-1] if start != end else z
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    if not (folder / "encoder.onnx").exists():
        return
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    posterior = model.encode(images)
    mean, scale = onnx_part(folder, "encoder")(images=images)
    torch.testing.assert_close(mean, posterior.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(scale, posterior.stddev, rtol=0, atol=1e-5)
    (frames,) = onnx_part(folder, "decoder")(latents=moved)
    torch.testing.assert_close(frames, model.decode(moved), rtol=0, atol=1e-5)


def test_the_format_of_torch(tmp_path):
    """Of a field that is a network."""
    model = build(field="mlp")
    files = export(model, tmp_path, "torch", method=RK4(steps=1), parts=("flow",))
    flow = torch.export.load(files[0]).module()
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.eye(2)[[0, 1, 1]]
    moved = flow(z, weights, torch.tensor(0.0), torch.tensor(3.0))
    expected = model.flow(z, torch.tensor([0, 1, 1]), 3.0, method=RK4(steps=1))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["names"] == list(NAMES)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(TypeError, match="potentials"):
        export(torch.nn.Linear(1, 1), tmp_path)
    for method in (Dopri5(), Euler(steps=(1, 2))):
        with pytest.raises(RunError, match="fixed steps"):
            export(build(), tmp_path, "torch", method=method)
    function = flowfactor.AutogradPotential(lambda z, t: z.square().sum(-1), dim=4)
    bank = flowfactor.IndependentPotentials({"rotation": function, "hue": function})
    with pytest.raises(RunError, match="flow"):
        export(build(field=bank), tmp_path, "torch", parts=("flow",))


@pytest.mark.filterwarnings("ignore")
def test_the_example_needs_no_flowfactor(exported, capsys):
    model, folder = exported
    if not (folder / "encoder.onnx").exists():
        return
    file = Path(__file__).parents[2] / "examples" / "run_onnx.py"
    assert "import flowfactor" not in file.read_text()
    assert "import torch" not in file.read_text()
    spec = importlib.util.spec_from_file_location("run_onnx", file)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    films = example.main(folder)
    assert films.shape == (2, model.horizon + 1, 1, 8, 8)
    assert capsys.readouterr().out.count("misses by") == 2
