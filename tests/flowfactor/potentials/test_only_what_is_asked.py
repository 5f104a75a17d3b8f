"""A field that is not asked for costs nothing: the operations of an evaluation are counted."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from flowfactor import MLPPotential, RidgePotential

BATCH, DIM, COUNT = 6, 9, 48
PRODUCTS = ("bmm", "baddbmm")


class Operations(TorchDispatchMode):
    """Counts the operations that run, and keeps the shapes of their results."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.counts[func.overloadpacket.__name__] += 1
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
        return result


def operations(kind, *fields, k=2, width=32, **options):
    bank = kind([f"k{i}" for i in range(COUNT)], DIM, width, **options)
    u = bank.select(k)
    z = torch.randn(BATCH, DIM)
    with torch.no_grad(), Operations() as seen:
        u.evaluate(z, 1.0, fields, z if "hvp" in fields else None)
    return seen


@pytest.mark.parametrize(
    ("kind", "field", "products"),
    [
        (RidgePotential, "value", 1),
        (RidgePotential, "gradient", 2),
        (RidgePotential, "laplacian", 2),
        (RidgePotential, "hvp", 3),
        (MLPPotential, "value", 2),
        (MLPPotential, "gradient", 4),
        # There, back to the first layer, the lengths of the directions, and the unit vectors.
        (MLPPotential, "laplacian", 5),
        (MLPPotential, "hvp", 7),
    ],
)
def test_products_of_a_field(kind, field, products):
    # The coefficients at the time are one more.
    for autonomous, more in ((True, 0), (False, 1)):
        seen = operations(kind, field, autonomous=autonomous)
        assert sum(seen.counts[name] for name in PRODUCTS) == products + more


def test_fields_share_what_they_have_in_common():
    together = operations(MLPPotential, "value", "time", "gradient", "laplacian", autonomous=True)
    assert sum(together.counts[name] for name in PRODUCTS) == 4 + 2
    assert together.counts["tanh"] == 2
    ridge = operations(RidgePotential, "value", "time", "gradient", "laplacian", autonomous=True)
    assert sum(ridge.counts[name] for name in PRODUCTS) == 3
    assert (ridge.counts["tanh"], ridge.counts["softplus"]) == (1, 1)


def test_a_gradient_alone_has_no_log_cosh_and_a_value_no_tanh():
    gradient = operations(RidgePotential, "gradient")
    assert (gradient.counts["tanh"], gradient.counts["softplus"]) == (1, 0)
    value = operations(RidgePotential, "value")
    assert (value.counts["tanh"], value.counts["softplus"]) == (0, 1)
    # Nor a second layer twice, nor anything of the size of a Laplacian's.
    mlp = operations(MLPPotential, "gradient")
    assert mlp.counts["tanh"] == 2
    assert not any(len(shape) > 3 for shape in mlp.shapes)


def test_rates_of_time_are_made_for_the_time_derivative_only():
    assert operations(RidgePotential, "gradient").counts["sin"] == 1
    assert operations(RidgePotential, "gradient", "time").counts["sin"] == 2
    still = operations(RidgePotential, "gradient", "time", autonomous=True)
    assert still.counts["sin"] == still.counts["softplus"] == 0


@pytest.mark.parametrize("kind", [RidgePotential, MLPPotential])
@pytest.mark.parametrize("width", [4, 32])
def test_a_laplacian_needs_no_hessian(kind, width):
    shapes = operations(kind, "laplacian", width=width, rank=2).shapes
    assert not any(shape[-2:] == (DIM, DIM) for shape in shapes)


@pytest.mark.parametrize("kind", [RidgePotential, MLPPotential])
def test_a_member_touches_its_slice_only(kind):
    for seen in (
        operations(kind, "value", "time", "gradient", "laplacian", "hessian", "hvp", rank=2),
        operations(kind, "gradient", k=torch.tensor([5, 5, 7, 7, 9, 9])),
    ):
        # Whole parameters of all potentials appear in no result; slices of them are views.
        assert not any(shape[:1] == (COUNT,) for shape in seen.shapes)


@pytest.mark.parametrize("kind", [RidgePotential, MLPPotential])
def test_the_determinant_is_taken_of_the_smaller_matrix(kind):
    def largest(width, rank):
        bank = kind(("only",), DIM, width, rank=rank)
        with torch.no_grad(), Operations() as seen:
            bank[0].log_det(torch.randn(BATCH, DIM), 1.0, 0.1)
        return next(s[-1] for s in seen.shapes if s[:2] == (1, BATCH) and s[2:3] == s[3:4] != ())

    assert largest(4, 0) == 4
    assert largest(4, 2) == 6
    assert largest(32, 2) == DIM


def test_products_of_a_gradient_have_the_size_they_need():
    """The multiplications of a gradient are those of the network, there and back."""
    width = 32
    with FlopCounterMode(display=False) as counter:
        operations(MLPPotential, "gradient", width=width, autonomous=True)
    assert counter.get_total_flops() == 2 * BATCH * 2 * (DIM * width + width * width)
