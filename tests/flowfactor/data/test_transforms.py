import dataclasses

import pytest
import torch

from flowfactor.data import Hue, Rotation, Scaling, Transformation
from flowfactor.errors import DataError


@pytest.mark.parametrize(
    ("transformation", "name", "parameter", "first", "final"),
    [
        (Scaling(), "scaling", "scale", 1.0, 1.8),
        (Rotation(), "rotation", "angle", 0.0, 80.0),
        (Hue(), "hue", "hue", 0.0, 160.0),
    ],
)
def test_default_ranges(transformation, name, parameter, first, final):
    assert isinstance(transformation, Transformation)
    assert (transformation.name, transformation.parameter) == (name, parameter)
    values = transformation.value(torch.arange(9))
    torch.testing.assert_close(values, torch.linspace(first, final, 9))
    assert transformation.value(8) == pytest.approx(final)


def test_start_of_each_sample():
    times = torch.arange(3).expand(2, 3)
    values = Rotation(step=5).value(times, start=torch.tensor([[10.0], [-20.0]]))
    assert values.tolist() == [[10, 15, 20], [-20, -15, -10]]


def test_options_are_kept_and_frozen():
    shrinking = Scaling(start=2, step=-0.125, name="shrinking")
    assert (shrinking.value(8), shrinking.name) == (1.0, "shrinking")
    with pytest.raises(dataclasses.FrozenInstanceError):
        shrinking.step = 0


@pytest.mark.parametrize("kind", [Scaling, Rotation, Hue])
@pytest.mark.parametrize("field", ["start", "step"])
def test_numbers_must_be_finite(kind, field):
    with pytest.raises(DataError, match=rf"The {field} of transformation '{kind().name}' .* nan"):
        kind(**{field: float("nan")})
