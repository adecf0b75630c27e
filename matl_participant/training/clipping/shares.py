"""What one pass leaves behind of one parameter: norms now, a weighted sum later.

A share holds the per-sample gradients of a parameter, either as they are or as the factors
whose products they are. Nothing here knows a network.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Share(Protocol):
    """The gradients of ``n`` samples for one parameter, in one of the forms below."""

    def squared_norms(self) -> Tensor:
        """The squared norm of each sample's gradient, float64 of shape ``(n,)``."""

    def add_weighted_sum(self, total: Tensor, factors: Tensor) -> None:
        """Add Σ factorᵢ · gradientᵢ to ``total``, in place.

        Args:
            total: in the shape of the parameter, contiguous, of the gradients' type.
            factors: ``(n,)``.
        """

    def rows(self, kept: Tensor) -> "Share":
        """The share of the samples that the mask ``kept`` names."""


@dataclass(frozen=True, slots=True)
class Instantiated:
    """The gradients themselves, of shape ``(n, *parameter)``."""

    gradients: Tensor

    def squared_norms(self) -> Tensor:
        # A row of the parameter at a time: torch would copy everything to sum it in float64.
        rows = self.gradients.reshape(*self.gradients.shape[:2], -1)
        norms: Tensor = torch.linalg.vector_norm(rows, dim=2)
        return norms.double().square().sum(dim=1)

    def add_weighted_sum(self, total: Tensor, factors: Tensor) -> None:
        weights = factors.to(total.dtype)
        total.view(-1).addmv_(self.gradients.flatten(1).t(), weights)

    def rows(self, kept: Tensor) -> "Instantiated":
        return Instantiated(self.gradients[kept])


@dataclass(frozen=True, slots=True)
class Products:
    """Gradients Σₜ gₜ ⊗ xₜ of a matrix, as ``inputs`` (n, T, d) and ``output_grads`` (n, T, p).

    ‖Σₜ gₜ ⊗ xₜ‖² = Σₜₛ ⟨xₜ, xₛ⟩⟨gₜ, gₛ⟩ (the ghost norm) costs T² (d + p), not T · d · p.
    """

    inputs: Tensor
    output_grads: Tensor

    def squared_norms(self) -> Tensor:
        return inner_products(gram(self.inputs), gram(self.output_grads))

    def add_weighted_sum(self, total: Tensor, factors: Tensor) -> None:
        weighted = self.output_grads * factors.to(total.dtype)[:, None, None]
        matrix = total.view(weighted.shape[2], -1)
        matrix.addmm_(weighted.flatten(0, 1).t(), self.inputs.flatten(0, 1))

    def rows(self, kept: Tensor) -> "Products":
        return Products(self.inputs[kept], self.output_grads[kept])


def gram(vectors: Tensor) -> Tensor:
    """All inner products of each sample's T vectors: ``(n, T, d)`` to ``(n, T, T)``."""
    return torch.bmm(vectors, vectors.transpose(1, 2))


def inner_products(one: Tensor, other: Tensor) -> Tensor:
    """⟨oneᵢ, otherᵢ⟩ of each sample, summed in float64: shape ``(n,)``.

    Never negative, as the inner product of two Gram matrices is not, but for rounding.
    """
    products = one.flatten(1).double() * other.flatten(1).double()
    return products.sum(dim=1).clamp_min(0.0)


# Measured on processors with 512-bit vectors, rounded up where factors are the smaller form;
# only speed and memory depend on it.
PASSES_COST = 25
"""Of writing, measuring and summing a per-sample gradient, in multiplications an element."""


def share_of_products(inputs: Tensor, output_grads: Tensor) -> Share:
    """The cheaper form of the gradients Σₜ gₜ ⊗ xₜ; arguments as of ``Products``."""
    length, wide, high = inputs.shape[1], inputs.shape[2], output_grads.shape[2]
    if length * length * (wide + high) < PASSES_COST * wide * high:
        return Products(inputs, output_grads)
    return Instantiated(torch.bmm(output_grads.transpose(1, 2), inputs))
