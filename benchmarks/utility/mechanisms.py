"""Private ways to train a head, each with the code that a hospital runs.

A mechanism maps features to inputs once (``Mapped``) and can then train at any ε, as often as
noise is to be drawn. The noise is the participant's own: from the operating system, not from
a seed. What the coordinator does is the weighted mean of what hospitals release.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.utility.extraction import Images
from benchmarks.utility.kernel import similarities
from matl_common.errors import InvalidInputError
from matl_common.privacy.budget import Budget, calibrate_noise, would_exceed
from matl_common.privacy.mechanisms import GaussianEvent
from matl_common.vision.hidden_layer import hidden_inputs, hidden_layer_of
from matl_common.vision.linear_head import (
    Float64Array,
    Labels,
    PublicSpectrum,
    head_logits,
    project,
    project_onto,
    public_descent,
    public_spectrum,
)
from matl_common.vision.moments import augmented, solve_ridge, unpack_moments
from matl_coordinator.core.robust.sizes import size_cap
from matl_participant.training.head import HeadTraining, noisy_descent
from matl_participant.training.moments import moments_event, release_moments

DELTA: Final = 1e-5
HIDDEN_WIDTH: Final = 512
_HIDDEN_SEED: Final = 5
_DIRECTIONS: Final = 512
"""As many as the widest candidate has."""

Head = Float64Array
"""Weight and bias side by side, ``(classes, k + 1)``."""


class Weighting(StrEnum):
    """What a hospital's mean counts for, given how many patients it has."""

    PATIENTS = "n"
    SQUARES = "n²"
    """The inverse of the variance of its noise."""
    CAPPED = "min(n, cap)"
    """With the cap under which two of five hospitals never have more than half."""
    CAPPED_SQUARES = "n · min(n, cap)"
    EQUAL = "equal"


def shares(sizes: Sequence[int], weighting: Weighting) -> Float64Array:
    """Shares in the aggregate, which sum to 1."""
    n = np.array(sizes, dtype=np.float64)
    capped = np.minimum(n, size_cap(sizes, f=(len(sizes) - 1) // 2))
    raw = {
        Weighting.PATIENTS: n,
        Weighting.SQUARES: n**2,
        Weighting.CAPPED: capped,
        Weighting.CAPPED_SQUARES: n * capped,
        Weighting.EQUAL: np.ones_like(n),
    }[weighting]
    whole: Float64Array = raw / raw.sum()
    return whole


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """Who trains.

    Attributes:
        sites: each hospital's patients; a single one is a pooled data set.
        shares: of each site in the aggregate.
        noise_scale: multiplies the noise of every site. 1, except where a few public images
            stand in for more patients than they are.
    """

    sites: tuple[Images, ...]
    shares: tuple[float, ...]
    noise_scale: float = 1.0


def federated(hospitals: Sequence[Images], weighting: Weighting, *, patients: int) -> Federation:
    """Every hospital adds its own noise, for its share of ``patients`` in all.

    With fewer images than patients each counts for several, as if the sums were multiplied.
    """
    sizes = [len(each) for each in hospitals]
    found = tuple(float(share) for share in shares(sizes, weighting))
    return Federation(tuple(hospitals), found, sum(sizes) / patients)


def pooled(hospitals: Sequence[Images], *, patients: int) -> Federation:
    """All patients in one place, with noise once or not at all."""
    together = join(tuple(hospitals))
    return Federation((together,), (1.0,), len(together) / patients)


def distributed(hospitals: Sequence[Images], *, honest: int, patients: int) -> Federation:
    """Simulated secure summation: nobody sees more than the sum, whose noise is shared out.

    Each hospital adds as much as ``honest`` of them need together, so that the promise holds
    if no more add theirs. Nothing of the kind is built.
    """
    whole = pooled(hospitals, patients=patients)
    return Federation(
        whole.sites, whole.shares, whole.noise_scale * math.sqrt(len(hospitals) / honest)
    )


def stand_in(images: Images, sizes: Sequence[int], weighting: Weighting) -> Federation:
    """Public images in place of hospitals of these sizes, with the noise of their mean."""
    found = shares(sizes, weighting)
    per_patient = math.sqrt(float(np.square(found / np.array(sizes)).sum()))
    return Federation((images,), (1.0,), len(images) * per_patient)


@lru_cache(maxsize=4)
def join(parts: tuple[Images, ...]) -> Images:
    """All images of several parts."""
    return Images(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class InputMap:
    """The public map from features to inputs of the head.

    Attributes:
        dimensions: principal directions of public images.
        whitening: power of the public spectrum that they are divided by.
        hidden: a public layer of 512 rectified units on top.
        sharpness: of a kernel; above 0 similarities to public images take the place of features.
    """

    dimensions: int
    whitening: float
    hidden: bool = False
    sharpness: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """Everything a mechanism needs, as inputs of norm s.

    Attributes:
        federation: who trains.
        sites: inputs and labels of each of its sites.
        public: the images the map was fitted on; their labels are used by nothing but a start
            from them.
        public_inputs: their inputs.
        classes: how many there are.
    """

    federation: Federation
    sites: tuple[tuple[Float64Array, Labels], ...]
    public: Images
    public_inputs: Float64Array
    classes: int


def map_inputs(inputs: InputMap, federation: Federation, public: Images, *, classes: int) -> Mapped:
    """Fit the map on public features, and map everybody's."""
    return Mapped(
        federation,
        tuple((inputs_of(site, inputs, public), site.labels) for site in federation.sites),
        public,
        inputs_of(public, inputs, public),
        classes,
    )


@lru_cache(maxsize=16)
def inputs_of(images: Images, inputs: InputMap, public: Images) -> Float64Array:
    """Inputs of the head ``(n, k)`` for images, by the map fitted on ``public``."""
    if inputs.sharpness:
        images, public = (
            similarities(each, public, sharpness=inputs.sharpness) for each in (images, public)
        )
    turned, spectrum = _turned(images, public), _turned_spectrum(public)
    projection = project_onto(spectrum, dimensions=inputs.dimensions, whitening=inputs.whitening)
    if inputs.hidden:
        drawn = np.random.default_rng(_HIDDEN_SEED).normal(size=(HIDDEN_WIDTH, inputs.dimensions))
        layer = hidden_layer_of(_turned(public, public), projection, drawn=drawn)
        return hidden_inputs(turned, layer)
    return project(turned, projection)


@lru_cache(maxsize=16)
def _turned(images: Images, public: Images) -> NDArray[np.float32]:
    """Features along the first principal directions of ``public``, once for every map."""
    spectrum = _spectrum(public)
    mean, directions = spectrum.mean, spectrum.directions[:_DIRECTIONS]
    turned: NDArray[np.float32] = (images.features - mean.astype(np.float32)) @ directions.T.astype(
        np.float32
    )
    return turned


def _turned_spectrum(public: Images) -> PublicSpectrum:
    singular = _spectrum(public).singular[:_DIRECTIONS]
    return PublicSpectrum(np.zeros(len(singular)), singular, np.eye(len(singular)))


@lru_cache(maxsize=8)
def _spectrum(public: Images) -> PublicSpectrum:
    return public_spectrum(public.features)


@dataclass(frozen=True, slots=True)
class Descent:
    """Full-batch noisy gradient descent: the ``head`` recipe, one step a round.

    Attributes:
        steps: rounds, hence releases.
        learning_rate: on the mean gradient.
        max_grad_norm: C. Below 1 the gradients of the worst fitted patients are shortened.
        averaged: the model is the mean of the second half of the iterates, not the last.
        public_steps: on the public images and their labels before the first round, as
            ``[study] public_steps``.
    """

    inputs: InputMap
    steps: int
    learning_rate: float
    max_grad_norm: float = 1.0
    averaged: bool = True
    public_steps: int = 0

    def train(self, mapped: Mapped, *, epsilon: float) -> Head:
        """One study."""
        noise = charged_noise(epsilon, steps=self.steps) * mapped.federation.noise_scale
        head = self.start(mapped)
        iterates: list[Head] = []
        for _ in range(self.steps):
            updates = [self._update(head, *site, noise=noise) for site in mapped.sites]
            head = head + np.tensordot(mapped.federation.shares, np.stack(updates), axes=1)
            iterates.append(head)
        tail = (iterates[self.steps // 2 :] if self.averaged else iterates[-1:]) or [head]
        return np.asarray(np.mean(tail, axis=0), dtype=np.float64)

    def start(self, mapped: Mapped) -> Head:
        """The head before the first round."""
        if not self.public_steps:
            return np.zeros((mapped.classes, mapped.public_inputs.shape[1] + 1))
        return _learn_public(
            mapped.public,
            self.inputs,
            classes=mapped.classes,
            steps=self.public_steps,
            learning_rate=self.learning_rate,
        )

    def _update(
        self, head: Head, inputs: Float64Array, labels: Labels, *, noise: float
    ) -> Float64Array:
        """What one site releases in a round of one step."""
        weight, bias = head[:, :-1].astype(np.float32), head[:, -1].astype(np.float32)
        training = HeadTraining(
            steps=1,
            learning_rate=self.learning_rate,
            noise_multiplier=noise,
            max_grad_norm=self.max_grad_norm,
            declared_patients=len(labels),
        )
        update = noisy_descent(inputs, labels, weight, bias, training=training)
        moved_weight, moved_bias = np.split(update.astype(np.float64), [weight.size])
        return np.concatenate([moved_weight.reshape(weight.shape), moved_bias[:, None]], axis=1)


# Many candidates share a start, and every draw of noise has the same.
@lru_cache(maxsize=64)
def _learn_public(
    public: Images, inputs: InputMap, *, classes: int, steps: int, learning_rate: float
) -> Head:
    rows = inputs_of(public, inputs, public)
    weight, bias = public_descent(
        rows,
        public.labels,
        np.zeros((classes, rows.shape[1]), dtype=np.float32),
        np.zeros(classes, dtype=np.float32),
        steps=steps,
        learning_rate=learning_rate,
    )
    return np.concatenate([weight, bias[:, None]], axis=1).astype(np.float64)


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """One noised release of second moments and class moments, solved with a ridge.

    Attributes:
        gram_share: share of the budget for second moments; with 0 those of public images
            take their place.
        ridge: added to the eigenvalues of the mean of u uᵀ.
    """

    inputs: InputMap
    gram_share: float
    ridge: float

    def train(self, mapped: Mapped, *, epsilon: float) -> Head:
        """One study."""
        noise = charged_noise(epsilon, steps=1) * mapped.federation.noise_scale
        mean = sum(
            share
            / len(labels)
            * release_moments(
                inputs,
                labels,
                classes=mapped.classes,
                gram_share=self.gram_share,
                noise_multiplier=noise,
            )
            for share, (inputs, labels) in zip(mapped.federation.shares, mapped.sites, strict=True)
        )
        moments = unpack_moments(
            np.asarray(mean, dtype=np.float64),
            dimensions=mapped.public_inputs.shape[1],
            classes=mapped.classes,
            gram_share=self.gram_share,
        )
        gram = moments.gram
        if gram is None:
            public = augmented(mapped.public_inputs)
            gram = public.T @ public / len(public)
        weight, bias = solve_ridge(gram, moments.cross, ridge=self.ridge)
        return np.concatenate([weight, bias[:, None]], axis=1)


Mechanism = Descent | LeastSquares


def classify(inputs: Float64Array, head: Head) -> Labels:
    """The likeliest class of each row of inputs."""
    logits = head_logits(inputs, head[:, :-1], head[:, -1])
    classes: Labels = np.argmax(logits, axis=1).astype(np.int64)
    return classes


def charged_noise(epsilon: float, *, steps: int) -> float:
    """The noise multiplier of ``steps`` releases that together cost ε, or 0 for no privacy.

    Raises:
        InvalidInputError: the releases would pass the budget.
    """
    if math.isinf(epsilon):
        return 0.0
    noise = calibrate_noise(epsilon, DELTA, steps=steps)
    event = GaussianEvent(noise, steps) if steps > 1 else moments_event(noise)
    if would_exceed(Budget(epsilon, DELTA), [], event):
        raise InvalidInputError(f"{steps} releases at noise {noise} cost more than ε = {epsilon}")
    return noise
