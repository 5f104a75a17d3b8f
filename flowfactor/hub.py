"""Sharing models: folders with a model card, and repositories of the Hugging Face Hub."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import flowfactor.metrics  # noqa: F401 (whose tables the card has)
from flowfactor import pretrained
from flowfactor.checkpoints import MODEL_FILE, load, save_model, write_file
from flowfactor.checks import check_type
from flowfactor.errors import RunError
from flowfactor.extras import import_extra
from flowfactor.metrics import Equivariance
from flowfactor.models import SequenceModel
from flowfactor.names import one_line
from flowfactor.records import Evaluation

CARD_FILE = "README.md"
_TABLES = ("properties", "errors", "inferred", "log_likelihood")
"""The tables of an evaluation that a card shows, where they are."""


def save_pretrained(
    model: SequenceModel,
    folder: str | os.PathLike[str],
    *,
    evaluation: Evaluation | None = None,
    training: Mapping[str, Any] | None = None,
    title: str | None = None,
    half: bool = False,
) -> Path:
    """Write a model and its card into a folder, for :func:`from_pretrained`.

    Args:
        model: of any registered class, without networks of your own.
        folder: where to; it is made if it is not there.
        evaluation: what was measured of it, for the card.
        training: facts of its training, for the card; by default those in the evaluation.
        title: of the card; by default the name of the folder.
        half: store its weights in half precision.

    Returns:
        The folder.

    Raises:
        RunError: plain data does not describe the model, or a file cannot be written.

    Example:
        >>> import tempfile, flowfactor
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=4, width=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = flowfactor.save_pretrained(model, f"{folder}/digits")
        ...     print((path / "README.md").read_text().splitlines()[5])
        ...     flowfactor.from_pretrained(path).names
        # digits
        ('rotation', 'hue')
    """
    check_type("model", model, SequenceModel)
    if model.spec() is None:
        raise RunError(
            f"Others cannot open this {type(model).__name__}: plain data does not describe its "
            f"networks. Register options for them, see docs/extending.md."
        )
    path = Path(folder)
    save_model(model, path, half=half)
    card = model_card(model, title or path.resolve().name, evaluation, training)
    write_file(path / CARD_FILE, card)
    return path


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> SequenceModel:
    """Return a shared model: of a folder, of the Hugging Face Hub, or one that ships.

    Args:
        source: a folder, the name of a model that ships, or ``owner/repository`` on the Hub.
        revision: a branch, tag or commit of the repository.
        device: where to put the model.
        options: others of ``huggingface_hub.hf_hub_download``: ``token``, ``cache_dir``,
            ``local_files_only``.

    Raises:
        RunError: there is none, or its file is damaged.
        MissingExtraError: the Hub needs the extra ``hub``.

    Only the model file is fetched, and no code in it is executed.
    """
    if Path(source).exists() or os.fspath(source) in pretrained.names():
        return load(source, device=device)
    if len(parts := os.fspath(source).split("/")) != 2 or not all(parts):
        return load(source, device=device)  # which says that there is none
    hub = import_extra("huggingface_hub", "hub")
    try:
        file = hub.hf_hub_download(os.fspath(source), MODEL_FILE, revision=revision, **options)
    except (OSError, ValueError) as error:  # of the network, and of the Hub's own
        raise RunError(
            f"{source} is no folder, and its {MODEL_FILE} cannot be fetched from the Hub: "
            f"{one_line(str(error), 300)}"
        ) from error
    return load(file, device=device)


def push_to_hub(
    folder: str | os.PathLike[str], repo_id: str, *, private: bool | None = None, **options: Any
) -> str:
    """Upload a folder that :func:`save_pretrained` wrote to the Hugging Face Hub.

    Args:
        folder: with a model file.
        repo_id: ``owner/repository``, which is made if it is not there.
        private: whether a new repository is.
        options: others of ``huggingface_hub.HfApi.upload_folder``: ``revision``,
            ``commit_message``, ``create_pr``.

    Returns:
        The address of the commit.

    Raises:
        RunError: the folder has no model, or the Hub refuses it.
        MissingExtraError: the extra ``hub`` is missing.

    Log in first, by ``hf auth login``.
    """
    path = Path(folder)
    if not (path / MODEL_FILE).is_file():
        raise RunError(f"{path} has no {MODEL_FILE}; save_pretrained writes one.")
    hub = import_extra("huggingface_hub", "hub").HfApi()
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=path, **options))
    except (OSError, ValueError) as error:
        raise RunError(f"The Hub refuses {repo_id}: {one_line(str(error), 300)}") from error


def model_card(
    model: SequenceModel,
    title: str,
    evaluation: Evaluation | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Return a model card in Markdown: what the model is, how it was made and how good it is."""
    facts = dict(training if training is not None else evaluation.training if evaluation else {})
    parts = [
        _front_matter(),
        f"# {one_line(title, 100)}",
        _description(model),
        _use(title),
        "" if evaluation is None else _results(evaluation),
        _limits(model, evaluation),
        _origin(facts, evaluation),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front_matter() -> str:
    return "---\nlibrary_name: flowfactor\ntags: [flowfactor, latent-flow]\n---\n"


def _description(model: SequenceModel) -> str:
    summary = (inspect.getdoc(type(model)) or type(model).__name__).partition("\n\n")[0]
    summary = summary.replace("``", "`").replace(":class:", "")
    weights = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"\n{summary}\n\n"
        f"| | |\n|---|---|\n"
        f"| transformations | {one_line(', '.join(model.names), 500)} |\n"
        f"| images (C, H, W) | {model.image_shape} |\n"
        f"| trained on frames | 0 to {model.horizon} |\n"
        f"| latent size | {model.latent_dim} |\n"
        f"| weights | {weights:,} |\n"
    )


def _use(title: str) -> str:
    return (
        "\n## Use\n\n```python\nimport flowfactor\n\n"
        f'model = flowfactor.from_pretrained("{one_line(title, 100)}")'
        "  # or a folder, or owner/repository\n"
        "z = model.represent(images)  # (B, C, H, W), pixels in [0, 1]\n"
        "moved = model.decode(model.flow(z, model.names[0], 5.0))  # five frames later\n```\n"
    )


def _results(evaluation: Evaluation) -> str:
    tables = evaluation.tables()
    shown = [
        f"\n{tables[name].title}:\n\n{tables[name].to_markdown()}"
        for name in _TABLES
        if name in tables
    ]
    return (
        f"\n## Results\n\n"
        f"Data: {one_line(evaluation.source, 100)}, {evaluation.images} sequences of the "
        f"{evaluation.split} split, which the training has not seen. E is the sum of absolute "
        f"pixel errors over all channels and frames 1 to {evaluation.frames}, mean over sequences, "
        f"± its standard error over sequences. *Identity* is a latent that does not move, *pixel "
        f"copy* frame 0 itself, the *floor* {evaluation.frames} times the error of decoding frame "
        f"0.\n" + "".join(shown)
    )


def _limits(model: SequenceModel, evaluation: Evaluation | None) -> str:
    known = (
        f"It knows {len(model.names)} transformations of images like those of its training, "
        f"{model.image_shape} with pixels in [0, 1]; of others it returns what it knows best."
    )
    lines = [
        known,
        f"It was trained on {model.horizon} frames after the first; later ones are extrapolation.",
        "It is one training, of one seed: the standard errors say nothing about other seeds.",
    ]
    errors = None if evaluation is None else evaluation.result(Equivariance)
    if errors is not None:
        name, worst = max(errors.errors.items(), key=lambda item: item[1].error)
        lines.append(
            f"It is worst at {one_line(name, 60)}: E is {worst.error:.1f}, where a perfect flow "
            f"of its latents could have {worst.floor:.1f}."
        )
    else:
        lines.append("How good it is was not measured.")
    return "\n## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _origin(facts: Mapping[str, Any], evaluation: Evaluation | None) -> str:
    commands = [facts.get("command"), evaluation.command if evaluation else None]
    code = "".join(f"{command}\n" for command in commands if command)
    hardware = facts.get("hardware") or {}
    known = {
        "seed": facts.get("seed"),
        "steps": facts.get("steps"),
        "seconds": facts.get("seconds"),
        "training samples": facts.get("training_samples"),
        "processor": hardware.get("processor"),
        "threads": hardware.get("threads"),
        "accelerator": hardware.get("accelerator"),
        "torch": (facts.get("versions") or {}).get("torch"),
        "flowfactor": (facts.get("versions") or {}).get("flowfactor"),
    }
    rows = "".join(f"| {key} | {value} |\n" for key, value in known.items() if value is not None)
    if not code and not rows:
        return ""
    origin = "\n## How it was made\n"
    origin += f"\n```sh\n{code}```\n" if code else ""
    return origin + (f"\n| | |\n|---|---|\n{rows}" if rows else "")
