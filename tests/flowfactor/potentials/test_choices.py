"""What is refused when a potential is chosen or evaluated."""

import pytest
import torch

from flowfactor import AutogradPotential, IndependentPotentials, MLPPotential, RidgePotential

BANK = RidgePotential(("scaling", "rotation"), 3, 4)
Z = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        ("spin", KeyError, "scaling, rotation"),
        (2, IndexError, "0 to 1"),
        (-3, IndexError, "out of range"),
        (torch.tensor([0, 2]), IndexError, "index 2"),
        (torch.tensor([-1, 0]), IndexError, "index -1"),
        (torch.tensor([[0, 1]]), ValueError, "one index per sample"),
        (torch.zeros(2, 3), ValueError, r"\(B, 2\)"),
        (torch.tensor([True, False]), TypeError, "indices are integers"),
        (True, TypeError, "give an index"),
        (None, TypeError, "give an index"),
        (1.5, TypeError, "give an index"),
    ],
)
@pytest.mark.wrong_types
def test_bad_choices(k, error, message):
    with pytest.raises(error, match=message):
        BANK.select(k)


@pytest.mark.parametrize(
    ("z", "t", "error", "message"),
    [
        (torch.zeros(2, 4), 0.0, ValueError, r"\(B, 3\)"),
        (Z, torch.zeros(3), ValueError, "one per latent"),
    ],
)
@pytest.mark.wrong_types
def test_bad_arguments_of_a_potential(z, t, error, message):
    with pytest.raises(error, match=message):
        BANK["rotation"].derivatives(z, t)


def test_a_choice_per_sample_fits_its_batch_only():
    with pytest.raises(ValueError, match=r"2 latents.*3 samples"):
        BANK.select(torch.tensor([0, 1, 1])).gradient(Z, 0.0)


@pytest.mark.parametrize(
    "potential", [BANK["rotation"], BANK.select(torch.tensor([0, 1])), 2 * BANK[0] + BANK[1]]
)
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.wrong_types
def test_bad_arguments_of_second_derivatives(potential, wrap):
    u = AutogradPotential(potential, 3) if wrap else potential
    evaluate = u.evaluate
    with pytest.raises(ValueError, match="vector"):
        evaluate(Z, 0.0, ("hvp",))
    with pytest.raises(ValueError, match="vector"):
        evaluate(Z, 0.0, ("hvp",), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="curl"):
        evaluate(Z, 0.0, ("curl",))
    with pytest.raises(ValueError, match="h"):
        u.log_det(Z, 0.0, torch.ones(2))


@pytest.mark.parametrize("kind", [RidgePotential, MLPPotential])
@pytest.mark.parametrize(
    ("names", "dim", "width", "rank"),
    [
        ((), 3, 4, 0),
        (("a", "a"), 3, 4, 0),
        (("a",), 0, 4, 0),
        (("a",), 3, 0, 0),
        (("a",), 3, 4, -1),
    ],
)
def test_bad_banks(kind, names, dim, width, rank):
    with pytest.raises(ValueError, match=r"must|needs"):
        kind(names, dim, width, rank=rank)


def test_a_bank_of_nothing():
    with pytest.raises(ValueError, match="bank"):
        IndependentPotentials({})


def test_names_and_indices_agree():
    assert [BANK.index(name) for name in BANK.names] == [0, 1]
    assert len(BANK) == 2
    z = torch.randn(4, 3)
    torch.testing.assert_close(BANK["rotation"](z, 1.0), BANK[-1](z, 1.0))


def test_a_member_follows_the_bank():
    """A potential taken out once sees later optimiser steps."""
    bank = RidgePotential(("a",), 3, 4)
    u, z = bank["a"], torch.randn(2, 3)
    before = u(z, 0.0)
    with torch.no_grad():
        bank.directions.mul_(2)
    assert not torch.equal(before, u(z, 0.0))
