"""Files of a run: read without executing code, written whole or not at all."""

import pickle

import pytest
import torch

import flowfactor
from flowfactor.checkpoints import MODEL_FILE, atomic_file, read, save_model, write
from flowfactor.errors import RunError


def test_a_loaded_model_is_the_saved_one(model, tmp_path):
    save_model(model, tmp_path)
    for path in (tmp_path, tmp_path / MODEL_FILE, str(tmp_path)):
        again = flowfactor.load(path)
        assert not again.training
        assert again.names == model.names
        z = torch.randn(2, model.latent_dim)
        assert torch.equal(again.decode(again.flow(z, 1, 2.0)), model.decode(model.flow(z, 1, 2.0)))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code was executed",))


def test_code_is_not_executed(tmp_path):
    for file, save in (
        ("a.pt", lambda path: torch.save({"format": 1, "x": Trap()}, path)),
        ("b.pt", lambda path: path.write_bytes(pickle.dumps(Trap()))),
    ):
        save(tmp_path / file)
        with pytest.raises(RunError, match=file):
            read(tmp_path / file)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other"])
def test_damaged_files(model, tmp_path, damage):
    save_model(model, tmp_path)
    path = tmp_path / MODEL_FILE
    content = path.read_bytes()
    if damage == "other":
        torch.save([1, 2], path)
    else:
        new = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}
        path.write_bytes(new[damage])
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"model\.pt"):
        flowfactor.load(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("key", ["spec", "weights"])
def test_files_that_describe_no_model(model, tmp_path, key):
    save_model(model, tmp_path)
    saved = read(tmp_path / MODEL_FILE)
    del saved[key], saved["format"]
    write(saved, tmp_path / MODEL_FILE)
    with pytest.raises(RunError, match=r"model\.pt"):
        flowfactor.load(tmp_path)


def test_weights_of_another_model(model, tmp_path):
    save_model(model, tmp_path)
    with pytest.raises(RunError, match="directions"):
        flowfactor.load(tmp_path, model=flowfactor.FlowVAE.build(model.names, latent_dim=3))


def test_missing_run(tmp_path):
    with pytest.raises(RunError, match="nothing"):
        flowfactor.load(tmp_path / "nothing")


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with atomic_file(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "blocked").write_text("a file, not a folder")
    with pytest.raises(RunError, match=r"x\.pt"):
        write({}, tmp_path / "blocked" / "x.pt")
