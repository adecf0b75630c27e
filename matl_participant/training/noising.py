"""A clipped sum becomes a release: noise, then a public grid.

Everything computed from the result is post-processing. The noise comes from
``matl_common.privacy.noise`` and from nowhere else.
"""

from matl_common.privacy.noise import Float64Array, gaussian_noise, public_grid, round_to_grid


def noised_sum(
    clipped_sum: Float64Array, *, noise_multiplier: float, max_grad_norm: float
) -> Float64Array:
    """One release of a Gaussian mechanism with noise ``noise_multiplier * max_grad_norm``.

    Args:
        clipped_sum: float64 vector; one patient moves it by at most ``max_grad_norm``.
        noise_multiplier: 0 adds nothing and promises nothing.
        max_grad_norm: C.
    """
    if noise_multiplier == 0.0:
        return clipped_sum
    stddev = noise_multiplier * max_grad_norm
    noised = clipped_sum + gaussian_noise(clipped_sum.size, stddev=stddev)
    return round_to_grid(noised, grid=public_grid(stddev))
