"""The trained models that ship with the package, each a run folder in this one.

``flowfactor.load(name)`` opens them, without a network. Their weights are stored in half precision.

Example:
    >>> import flowfactor
    >>> "sprites" in flowfactor.pretrained.names()
    True
    >>> flowfactor.load("sprites").names
    ('scaling', 'rotation', 'x', 'y', 'hue')
"""

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Return the names of the models that ship."""
    return tuple(sorted(path.parent.name for path in _FOLDER.glob("*/model.safetensors")))


def folder(name: str) -> Path:
    """Return the run folder of a model that ships, which is not to be written into.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in names():
        raise KeyError(name)
    return _FOLDER / name
