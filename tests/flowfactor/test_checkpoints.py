"""Files of a run: read without executing code, written whole or not at all."""

import hashlib
import json
import os
import pickle
import resource
import socket
import time
import zipfile

import pytest
import safetensors
import torch

import flowfactor
from flowfactor import tensor_files
from flowfactor.checkpoints import (
    ARCHIVE_FILE,
    MODEL_FILE,
    atomic_file,
    check_tensors,
    digest,
    lock_run,
    model_file,
    read,
    save_model,
    write,
    write_file,
)
from flowfactor.errors import RunError, explain


def test_a_loaded_model_is_the_saved_one(model, tmp_path):
    save_model(model, tmp_path)
    for path in (tmp_path, tmp_path / MODEL_FILE, str(tmp_path)):
        again = flowfactor.load(path)
        assert not again.training
        assert again.names == model.names
        z = torch.randn(2, model.latent_dim)
        assert torch.equal(again.decode(again.flow(z, 1, 2.0)), model.decode(model.flow(z, 1, 2.0)))


def test_other_weights_have_another_digest(model, tmp_path):
    save_model(model, tmp_path)
    first = digest(tmp_path)
    save_model(model, tmp_path)
    assert digest(tmp_path / MODEL_FILE) == first
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    save_model(model, tmp_path)
    assert digest(tmp_path) != first
    for content in (b"", b"torn", b"x" * 200):
        (tmp_path / MODEL_FILE).write_bytes(content)
        with pytest.raises(RunError, match=MODEL_FILE):
            digest(tmp_path)


def save_archive(model, folder):
    """Save a model as earlier versions did."""
    save_model(model, folder)
    saved = read(folder / MODEL_FILE)
    del saved["format"], saved["half"]
    write(saved, folder / ARCHIVE_FILE)
    (folder / MODEL_FILE).unlink()


def test_models_of_earlier_versions_open(model, tmp_path):
    save_archive(model, tmp_path)
    assert digest(tmp_path) == (tmp_path / ARCHIVE_FILE).read_bytes()[-64:].decode()
    for path in (tmp_path, tmp_path / ARCHIVE_FILE):
        again = flowfactor.load(path).state_dict()
        assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    save_model(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_FILE]


def test_half_of_the_bytes(model, tmp_path):
    for half, folder in ((False, tmp_path / "whole"), (True, tmp_path / "half")):
        save_model(model, folder, half=half)
    sizes = [(tmp_path / name / MODEL_FILE).stat().st_size for name in ("whole", "half")]
    weights = sum(value.numel() for value in model.state_dict().values())
    assert sizes[0] - sizes[1] == pytest.approx(2 * weights, abs=32)
    again = flowfactor.load(tmp_path / "half").state_dict()
    for name, value in model.state_dict().items():
        assert again[name].dtype == value.dtype
        assert torch.allclose(again[name], value, rtol=1e-3, atol=1e-6)


def test_weights_that_share_memory(tmp_path):
    whole = torch.arange(6.0)
    packed = tensor_files.pack({"a": whole, "b": whole[1:3], "c": whole.expand(2, 6)}, {})
    again, content = tensor_files.unpack(packed)
    assert content == {}
    assert again["b"].tolist() == [1, 2]
    assert again["c"].shape == (2, 6)


def test_other_programs_can_read_the_weights(model, tmp_path):
    save_model(model, tmp_path)
    with safetensors.safe_open(tmp_path / MODEL_FILE, "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert json.loads(file.metadata()["flowfactor"])["spec"] == model.spec()


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
    with pytest.raises(RunError, match=MODEL_FILE):
        flowfactor.load(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("save", "name"), [(save_model, MODEL_FILE), (save_archive, ARCHIVE_FILE)])
def test_every_flipped_bit_is_noticed(model, tmp_path, save, name):
    save(model, tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(8 * len(content), (200,), generator=generator).tolist()
    for place in [*places, 0, 8 * len(content) - 1]:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=name):
            read(path)
    path.write_bytes(content + b"more")
    with pytest.raises(RunError, match=name):
        read(path)
    path.write_bytes(content)
    read(path)


def change(folder, **changes):
    """Change what a model file says, its checksum too; keys below ``spec`` have two words."""
    path = model_file(folder)
    saved = read(path)
    for key, value in changes.items():
        if key in saved:
            saved[key] = value
        elif key in saved["spec"]:
            saved["spec"][key] = value
        else:
            saved["spec"]["options"][key] = value
    saved = {key: value for key, value in saved.items() if value is not MISSING}
    if path.name == ARCHIVE_FILE:
        del saved["format"]
        write(saved, path)
    else:
        path.write_bytes(tensor_files.pack(saved.pop("weights"), saved))


MISSING = object()


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": MISSING},
        {"spec": [1]},
        {"spec": {}},
        {"weights": {}},
        {"format": 3},
        {"format": 10**9},
        {"model": "flow_vea"},
        {"model": [1]},
        {"plugins": None, "field": "of nobody"},
        {"names": "abc"},
        {"names": ["x"] * 20_000},
        {"names": ["x" * 10**6]},
        {"names": [1, 2, 3]},
        {"image_shape": [3, 10**9, 10**9]},
        {"image_shape": [3, 4096, 4096]},
        {"image_shape": [3, 28]},
        {"horizon": 10**12},
        {"horizon": "x" * 10**6},
        {"latent_dim": 10**9},
        {"latent_dim": -1},
        {"width": 10**12},
        {"encoder": {"kind": "conv", "channels": [4, 8], "hidden": 10**9}},
        {"encoder": {"kind": "conv", "channels": [4, 8], "blocks": 10**9}},
        {"decoder": {"kind": "mlp", "hidden": [16] * 10**5}},
        {"frequencies": 10**9},
        {"rank": 10**8},
        {"solver": {"name": "rk4", "steps": "x" * 10**6}},
    ],
    ids=lambda changes: next(
        f"{key}-{'missing' if value is MISSING else str(value)[:30]}"
        for key, value in changes.items()
    ),
)
def test_files_of_strangers(model, tmp_path, changes):
    """They are refused at once, in a sentence, and nothing large is made."""
    save_model(model, tmp_path)
    change(tmp_path, **changes)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(RunError, match=MODEL_FILE) as caught:
        flowfactor.load(tmp_path)
    assert len(str(caught.value)) < 700
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(()).expand(10**6, 10**6),
        torch.zeros(16, 6, dtype=torch.float64),
        torch.zeros(16, 6, dtype=torch.float16),
        torch.zeros(16, 7),
        torch.zeros(16, 6, device="meta"),
        "text",
    ],
)
def test_weights_of_another_form(model, tmp_path, weight):
    plain = isinstance(weight, torch.Tensor) and weight.numel() < 200 and not weight.is_meta
    for save in (save_archive, save_model) if plain else (save_archive,):
        save(model, tmp_path)
        weights = read(model_file(tmp_path))["weights"]
        assert weights["decoder.network.0.weight"].shape == (16, 6)
        change(tmp_path, weights=weights | {"decoder.network.0.weight": weight})
        for into in (None, model):
            with pytest.raises(RunError, match=model_file(tmp_path).name):
                flowfactor.load(tmp_path, model=into)


@pytest.mark.parametrize("weights", ["missing", 3, {}])
def test_an_archive_without_weights(model, tmp_path, weights):
    save_archive(model, tmp_path)
    change(tmp_path, weights=MISSING if weights == "missing" else weights)
    with pytest.raises(RunError, match=ARCHIVE_FILE):
        flowfactor.load(tmp_path)


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [10**6, 10**6]},
        {"shape": [2**62, 4]},
        {"data_offsets": [0, 10**12]},
        {"data_offsets": [64, 0]},
        {"dtype": "F9"},
        {"shape": "x" * 10**6},
    ],
)
def test_a_header_that_announces_other_tensors(tmp_path, tensor):
    """With a checksum of its own."""
    content = tensor_files.pack({"weight": torch.zeros(16)}, {"format": 4})
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["weight"] |= tensor
    header["__metadata__"]["flowfactor"] = json.dumps(
        {"sha256": "0" * 64, "format": 4}, separators=(",", ":")
    )
    text = json.dumps(header, separators=(",", ":")).encode()
    content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    sealed = content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1)
    (tmp_path / MODEL_FILE).write_bytes(sealed)
    with pytest.raises(RunError, match=MODEL_FILE) as caught:
        read(tmp_path / MODEL_FILE)
    assert "checksum" not in str(caught.value)


def test_an_archive_that_unpacks_to_more(tmp_path):
    """With a checksum of its own."""
    path, packed = tmp_path / "model.pt", tmp_path / "packed.pt"
    torch.save({"format": 3, "weights": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    content = packed.read_bytes()[:-2] + (71).to_bytes(2, "little")
    path.write_bytes(content + b"sha256:" + hashlib.sha256(content).hexdigest().encode())
    with pytest.raises(RunError, match="unpacks"):
        read(path)


def test_weights_of_another_model(model, tmp_path):
    save_model(model, tmp_path)
    with pytest.raises(RunError, match=r"decoder\.network"):
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


def test_what_killed_writes_have_left_is_removed(tmp_path):
    """By the next write if the process is gone, by the next training from any machine."""
    host, child = socket.gethostname(), os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    left = [f".{host}-{child}-00000000.part", f".{host}-{os.getpid()}-00000000.part"]
    left += [".elsewhere-1-00000000.part", ".part", "my.part"]
    for name in left:
        (tmp_path / name).touch()
    with atomic_file(tmp_path / "file") as file:
        file.write(b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"file", *left[1:]}
    with lock_run(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} >= {"file", left[1], *left[3:]}
        assert not (tmp_path / left[2]).exists()


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "blocked").write_text("a file, not a folder")
    with pytest.raises(RunError, match=r"x\.pt"):
        write({}, tmp_path / "blocked" / "x.pt")
    with pytest.raises(RunError, match="blocked"), lock_run(tmp_path / "blocked" / "run"):
        pass


def test_tensors_that_the_model_does_not_have(model, tmp_path):
    weights = model.state_dict() | {"surplus": torch.zeros(1)}
    with pytest.raises(ValueError, match="surplus"):
        check_tensors(model.state_dict(), weights)
    damaged = bytearray(tensor_files.pack(weights, {}))
    damaged[8:40] = bytes(32)
    with pytest.raises(tensor_files.DamageError, match="checksum"):
        tensor_files.unpack(bytes(damaged))


def test_files_of_a_process_of_another_user_stay(tmp_path, monkeypatch):
    def deny(process, signal):
        raise PermissionError

    left = tmp_path / f".{socket.gethostname()}-1-00000000.part"
    left.touch()
    monkeypatch.setattr(os, "kill", deny)
    assert write_file(tmp_path / "file", "new").read_text() == "new"
    assert left.exists()


def test_a_working_folder_that_is_gone_is_named(monkeypatch):
    def fail():
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", fail)
    assert "working folder" in explain(FileNotFoundError(2, "No such file", "runs"))
