"""What people add from outside: data, models, metrics and terms of one file each."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_line import call
from torch import nn

import flowfactor
from experiments import sweep
from experiments.runs import open_run, read_evaluation
from flowfactor import plugins
from flowfactor.errors import ConfigError, RunError
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.models import FlowVAE
from flowfactor.registries import DATA
from flowfactor.training import TrainingOptions, fit, read_metrics

HERE = Path(__file__).parent

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Train, evaluate and draw the configuration of the plug-ins, by one command."""
    run = tmp_path_factory.mktemp("runs") / "squares"
    code, output = call("run", HERE / "squares.yaml", "--out", run)
    assert code == 0, output
    assert "Distance travelled" in output
    return run


def test_data_model_and_metric_of_ones_own(squares):
    stored = yaml.safe_load((squares / "config.yaml").read_text())
    assert stored["plugins"] == [
        str(HERE / f"my_{name}.py") for name in ("data", "model", "metric")
    ]
    assert stored["data"]["source"] == "moving_squares"
    assert type(flowfactor.load(squares)).__name__ == "ShiftVAE"
    evaluation = read_evaluation(squares)
    assert evaluation.metrics["travel"].distance > 0
    assert evaluation.transformations == ("right", "down")
    assert "Distance travelled" in (squares / "report.html").read_text()


def test_without_plug_ins_it_is_said_what_is_missing_and_a_run_finds_its_own(
    squares, forget_plugins
):
    """A model's file never imports code; the configuration of a run does."""
    forget_plugins()
    with pytest.raises(RunError, match=r"my_model\.py"):
        flowfactor.load(squares)
    code, output = call("evaluate", squares, "--images", 5)
    assert code == 0, output
    assert "Distance travelled" in output


def test_a_table_of_ones_own(tmp_path):
    """Both models by any executor; a term of one's own; a column for the metric of one's own."""
    table = sweep.plan(str(HERE / "squares_table.yaml"), out=tmp_path / "out")
    sweep.run_cells(table, table.cells, ThreadPoolExecutor(1))
    assert all(cell.finished for cell in table.cells)
    code, output = call("table", HERE / "squares_table.yaml", "--out", table.out)
    assert code == 0, output
    assert "distance" in (table.out / "table.md").read_text()
    assert (table.out / "table.csv").read_text().startswith("method,mean_error,")
    run = table.cells[1].run
    terms = read_metrics(run)[0]
    assert {"small_latents", "reconstruction"} <= set(terms)
    assert yaml.safe_load((run / "config.yaml").read_text())["plugins"][-1].endswith("my_term.py")


def test_a_subclass_of_a_shipped_model_is_saved_by_its_own_name(tmp_path):
    plugins.load(str(HERE / "my_model.py"))
    model = flowfactor.registries.MODELS["quiet_flow_vae"].build(
        ("a", "b"), (1, 8, 8), horizon=2, latent_dim=4, width=8, encoder={"channels": [4]}
    )
    flowfactor.checkpoints.save_model(model, tmp_path)
    assert type(flowfactor.load(tmp_path)) is type(model)


class Encoder(nn.Linear):
    def __init__(self):
        super().__init__(256, 8)

    def forward(self, x):
        return super().forward(x.flatten(1))


class Decoder(nn.Linear):
    def __init__(self):
        super().__init__(4, 256)

    def forward(self, z):
        return super().forward(z).unflatten(1, (1, 16, 16))


def test_networks_of_ones_own_from_python(tmp_path):
    plugins.load(str(HERE / "my_data.py"))
    options = DATA["moving_squares"](count=12)
    train, test = options.load("train", 0), options.load("test", 0)

    def make():
        return FlowVAE.build(
            train.names, (1, 16, 16), horizon=4, latent_dim=4, width=8,
            encoder=Encoder(), decoder=Decoder(),
        )  # fmt: skip

    short = TrainingOptions(
        steps=2, batch_size=6, validation_sequences=6, accelerator="cpu",
        precision="32-true", threads=1,
    )  # fmt: skip
    fit(make(), train, test, short, tmp_path)
    model = flowfactor.load(tmp_path, model=make())
    few = EvaluationOptions(images=6, metrics={"log_likelihood": {"sequences": 2, "samples": 2}})
    assert "equivariance" in evaluate(model, test, few).metrics
    with pytest.raises(RunError, match="model="):
        flowfactor.load(tmp_path)


# ---- what can be wrong with a plug-in


def write_plugin(path: Path, text: str) -> Path:
    path.write_text(f"from pathlib import Path\nPath(__file__).with_name('ran').touch()\n{text}\n")
    return path


def config_with(run: Path, *names: str) -> Path:
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["plugins"] = list(names)
    (run / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return run


def test_a_plug_in_that_is_missing_is_named(squares, tmp_path):
    run = config_with(shutil.copytree(squares, tmp_path / "run"), "/elsewhere/my_data.py", "my_pkg")
    for command in ("evaluate", "plot"):
        code, output = call(command, run)
        assert code == 2
        assert "/elsewhere/my_data.py" in output
        assert "my_pkg" in output
    # It has moved: the command line says where it is now.
    config_with(
        run, "/elsewhere/my_data.py", *(str(HERE / f"my_{n}.py") for n in ("model", "metric"))
    )
    assert open_run(run, [str(HERE / "my_data.py")]).config.source == "moving_squares"


def test_code_in_a_run_folder_is_not_executed_unless_it_is_named(squares, tmp_path, monkeypatch):
    run = shutil.copytree(squares, tmp_path / "run")
    inside = write_plugin(run / "inside.py", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("inside.py", str(inside), "../run/inside.py", "run.inside"):
        config_with(run, *(str(HERE / f"my_{n}.py") for n in ("data", "model", "metric")), name)
        with pytest.raises(ConfigError, match="--plugin"):
            open_run(run)
        code, output = call("train", run / "config.yaml", "--out", tmp_path / "again")
        assert code == 2, output
        assert not (run / "ran").exists()
    config_with(run, *(str(HERE / f"my_{n}.py") for n in ("data", "model", "metric")), "inside.py")
    open_run(run, [str(inside)])
    assert (run / "ran").exists()


def test_loading_twice_is_harmless_and_a_broken_plug_in_is_one_message(tmp_path):
    good = write_plugin(tmp_path / "good.py", "from flowfactor.registries import LOGGERS")
    assert plugins.load("good.py", tmp_path) == plugins.load(str(good)) == str(good)
    broken = write_plugin(tmp_path / "broken.py", "1 / 0")
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"plugins": ["broken.py"], "data": {"source": "not_yet_known"}}))
    code, output = call("show", path)
    assert code == 2
    assert f"{broken}, line 3: ZeroDivisionError: division by zero" in output
    assert "not_yet_known" not in output
    code, output = call("show", "demo", "--plugin", "no.such.module")
    assert code == 2
    assert "no.such.module" in output


def test_installed_plug_ins_are_named_in_the_run(monkeypatch, tmp_path):
    """An entry point of a distribution makes its kinds known; the run stores where they are."""
    (tmp_path / "my_distribution.py").write_text(
        "from flowfactor.data import DataOptions\n"
        "from flowfactor.options import options\n"
        "from flowfactor.registries import DATA\n"
        "@DATA.register('installed_data')\n"
        "@options\n"
        "class InstalledOptions(DataOptions):\n"
        "    '''Data.'''\n"
    )
    info = tmp_path / "my_distribution-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-distribution\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[flowfactor.plugins]\nmine = my_distribution\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(metadata, "entry_points", metadata.entry_points.__wrapped__)
    monkeypatch.setattr(plugins, "_installed_are_loaded", False)
    code, output = call("show", "demo", "--set", "data={source: installed_data}")
    assert code == 0, output
    assert "plugins: - my_distribution" in output


def test_plug_ins_that_need_what_is_not_there_are_named(monkeypatch, tmp_path, caplog):
    """One that is named is an error, one that is installed a warning."""
    lacking = write_plugin(tmp_path / "lacking.py", "import no_such_package")
    with pytest.raises(ConfigError, match="no_such_package"):
        plugins.load(str(lacking))
    entry = SimpleNamespace(module="no_such_distribution")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    monkeypatch.setattr(plugins, "_installed_are_loaded", False)
    plugins.load_installed()
    assert "no_such_distribution" in caplog.text
    plugins.check_outside(["json", "json.no.module", "no.such.module"], tmp_path)
