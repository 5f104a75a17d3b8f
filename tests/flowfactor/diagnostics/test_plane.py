import pytest
import torch

from flowfactor.diagnostics import Plane


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_axes_are_orthonormal_and_explain_at_most_everything():
    points = random(9, 4, 7)
    plane = Plane.through(points)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2).double(), atol=1e-12)
    first, second = plane.explained(points)
    assert 1 > first >= second > 0
    assert first + second < 1


def test_axes_are_the_leading_eigenvectors_of_the_covariance():
    points = random(50, 5)
    values, vectors = torch.linalg.eigh(points.T.cov())
    plane = Plane.through(points)
    leading = vectors[:, [-1, -2]].T
    assert torch.allclose((plane.axes * leading).sum(1).abs(), torch.ones(2).double(), atol=1e-9)
    assert plane.explained(points) == pytest.approx((values[-2:] / values.sum()).flip(0).tolist())


def test_planar_points_are_explained_and_recovered_entirely():
    basis = torch.linalg.qr(random(6, 2)).Q.T
    points = random(30, 2, seed=1) @ basis + random(6, seed=2)
    plane = Plane.through(points)
    assert sum(plane.explained(points)) == pytest.approx(1.0)
    assert torch.allclose(plane.lift(plane.project(points)), points)


def test_points_on_a_line_leave_nothing_for_the_second_axis():
    points = torch.outer(torch.linspace(0, 1, 5), torch.tensor([1.0, 2.0, -1.0]))
    plane = Plane.through(points)
    assert plane.explained(points) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-6)


def test_projection_undoes_lifting_and_is_the_nearest_point():
    plane = Plane.through(random(20, 5))
    coordinates = random(3, 4, 2, seed=3)
    assert torch.allclose(plane.project(plane.lift(coordinates)), coordinates)
    z = random(5, seed=4)
    rest = z - plane.lift(plane.project(z))
    assert torch.allclose(plane.axes @ rest, torch.zeros(2).double(), atol=1e-12)


def test_orientation_does_not_depend_on_the_order_of_points():
    points = random(20, 4)
    assert torch.allclose(Plane.through(points).axes, Plane.through(points.flip(0)).axes)


def test_spanned_plane_keeps_the_first_direction_and_contains_the_second():
    first, second, origin = random(3, 6)
    plane = Plane.spanned_by(first, second, origin)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2).double(), atol=1e-12)
    assert torch.allclose(plane.axes[0], first / first.norm())
    assert torch.allclose(plane.lift(plane.project(origin + second)), origin + second)
    assert torch.equal(plane.project(origin), torch.zeros(2).double())


@pytest.mark.parametrize("second", [[2.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
def test_parallel_or_zero_directions_are_refused(second):
    with pytest.raises(ValueError, match="directions"):
        Plane.spanned_by(torch.tensor([1.0, 2.0, 0.0]), torch.tensor(second), torch.zeros(3))


@pytest.mark.parametrize("shape", [(1, 4), (5, 1)])
def test_too_few_points_or_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match="points"):
        Plane.through(torch.zeros(shape))
