"""Models that learn their flows before anybody knows which transformations these are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from flowfactor.models.base import PotentialModel


def flow_names(count: int) -> tuple[str, ...]:
    """Return the names of flows of which nobody knows which transformations they are."""
    return tuple(f"flow {i + 1}" for i in range(count))


class UnnamedFlows(PotentialModel):
    """A model whose flows get their names from the data when training has ended.

    Attributes:
        transformations: of the data, as far as their names are known.
    """

    transformations: tuple[str, ...]

    @property
    def known_labels(self) -> int:
        """How many transformations the labels of sequences may name, be there flows or not."""
        return max(len(self.names), len(self.transformations))

    def spec(self) -> dict[str, Any] | None:
        """Return plain data from which :meth:`from_spec` makes the same model, untrained."""
        spec = super().spec()
        return spec and spec | {"names": list(self.transformations), "flows": list(self.names)}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Return an untrained model from what :meth:`spec` returned."""
        model = super().from_spec(spec)
        model.potentials.names = tuple(spec["flows"])
        return model

    def inherit(
        self, weights: Mapping[str, Tensor], names: tuple[str, ...] | None
    ) -> dict[str, Tensor]:
        """Return the weights that fit; as many flows keep their names."""
        if names is not None and len(names) == len(self.names):
            self.potentials.names = names
        return self._fitting(weights)

    def matched_names(self) -> tuple[str, ...]:
        """Return the names of flows in the order of the transformations, the others being spare."""
        spare = len(self.names) - len(self.transformations)
        return (*self.transformations, *(f"spare {i + 1}" for i in range(spare)))
