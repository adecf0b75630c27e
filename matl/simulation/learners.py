"""Local training of many hospitals at once, and what the coordinator computes of a model.

Two models: a small network trained by local steps without noise, and the head recipe's
linear model under its mechanism. Noise comes from a seeded generator here, so that every
rule meets the same noise; a participant draws it from the system's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from matl.simulation.cohort import Cohort, Indices
from matl.simulation.datasets import Float32Array, Labels
from matl.simulation.study import Study
from matl_common.privacy.budget import calibrate_noise
from matl_common.protocol import PrivacyTerms, Recipe, StudyPlan, TrainingPlan
from matl_common.tensors import TensorSpec, parse_schema
from matl_common.vision.linear_head import (
    Float64Array,
    clipped_gradient_sum,
    fit_projection,
    head_logits,
    project,
    residuals,
)

HIDDEN: Final = 32
CLASS_SAMPLE: Final = 500
Drawn: TypeAlias = NDArray[np.generic]
"""Of a round, shape ``(steps, n, ...)``: rows of images, or noise."""
Layers = tuple[Float32Array, Float32Array, Float32Array, Float32Array]
Descents = Callable[[Float32Array], Float32Array]
"""Of parameters, one row a class."""


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class LocalUpdates:
    """What training gave, a row a hospital; shape ``(m, d)`` each."""

    sent: Float32Array
    """With the privacy noise of the recipe."""
    clean: Float32Array
    """The same less the noise: what only the hospital itself knows."""


class Learner(Protocol):
    """Trains and judges one kind of model on one split."""

    plan: StudyPlan

    def initial(self) -> Float32Array:
        """The parameters that every run of this split starts from."""
        ...

    def draw(self, *, round_number: int) -> Drawn:
        """What a round draws at all hospitals.

        It depends neither on the model nor on who trains.
        """
        ...

    def train(self, base: Float32Array, drawn: Drawn, hospitals: Sequence[int]) -> LocalUpdates:
        """One round at these hospitals, with what was drawn at all."""
        ...

    def descent(self, base: Float32Array, root_rows: Indices) -> Float32Array:
        """Minus the gradient of the mean loss over these images of the root set."""
        ...

    def class_descents(self, hospitals: Sequence[int]) -> Descents:
        """``descent`` on these hospitals' patients, for each class that they have, by true label.

        Their images are gathered once, for as many bases as are asked about.
        """
        ...

    def pooled_update(self, base: Float32Array, *, round_number: int) -> Float32Array:
        """What all hospitals' images in one place give, with their true labels and no noise."""
        ...

    def root_update(self, base: Float32Array, *, round_number: int) -> Float32Array:
        """What the root set's images give as a hospital's would, without noise."""
        ...

    def root_losses(
        self, base: Float32Array, updates: Float32Array, root_rows: Indices
    ) -> Float64Array:
        """Loss of each of these images after each update alone, at most 1e6.

        Shape ``(len(updates), len(root_rows))``.
        """
        ...

    def predict(self, base: Float32Array, values: Float32Array) -> Labels:
        """The likeliest class of each image."""
        ...


def make_learner(cohort: Cohort, study: Study, *, seed: int) -> Learner:
    """The learner that a study's recipe names."""
    kind = HeadLearner if study.training.recipe == "head" else NetworkLearner
    return kind(cohort, study, seed=seed)


class NetworkLearner:
    """Pixels, 32 rectified units, classes."""

    def __init__(self, cohort: Cohort, study: Study, *, seed: int) -> None:
        self._cohort = cohort
        self._classes = cohort.classes
        self._seed = seed
        self._recipe = study.training
        self._pixels = cohort.values.shape[1]
        self.plan = _plan(
            study,
            tensors={
                "hidden.weight": (self._pixels, HIDDEN),
                "hidden.bias": (HIDDEN,),
                "head.weight": (HIDDEN, self._classes),
                "head.bias": (self._classes,),
            },
            recipe=Recipe.FULL,
        )

    def initial(self) -> Float32Array:
        """As ``Learner.initial``: He's initialisation, the last layer zero."""
        rng = np.random.default_rng([self._seed, 1])
        hidden = rng.normal(0.0, math.sqrt(2.0 / self._pixels), self._pixels * HIDDEN)
        rest = HIDDEN + HIDDEN * self._classes + self._classes
        return np.concatenate([hidden, np.zeros(rest)]).astype(np.float32)

    def draw(self, *, round_number: int) -> Drawn:
        """As ``Learner.draw``: rows of images, ``(steps, n, batch)``."""
        rng = np.random.default_rng([self._seed, 2, round_number])
        size = self._recipe.steps, self._recipe.batch
        members = self._cohort.members
        return np.stack([rows[rng.integers(len(rows), size=size)] for rows in members], axis=1)

    def train(self, base: Float32Array, drawn: Drawn, hospitals: Sequence[int]) -> LocalUpdates:
        """As ``Learner.train``."""
        start = np.tile(base, (len(hospitals), 1))
        batches = drawn[:, hospitals].astype(np.int64, copy=False)
        moved = self._descended(start, self._cohort.values, self._cohort.labels, batches)
        return LocalUpdates(moved, moved)

    def pooled_update(self, base: Float32Array, *, round_number: int) -> Float32Array:
        """As ``Learner.pooled_update``: as many images a step as all hospitals' together."""
        rng = np.random.default_rng([self._seed, 7, round_number])
        rows = np.concatenate(self._cohort.members)
        shape = (self._recipe.steps, 1, self._recipe.batch * len(self._cohort.members))
        batches = rows[rng.integers(len(rows), size=shape)]
        cohort = self._cohort
        moved = self._descended(base[None], cohort.values, cohort.true_labels, batches)
        update: Float32Array = moved[0]
        return update

    def root_update(self, base: Float32Array, *, round_number: int) -> Float32Array:
        """As ``Learner.root_update``."""
        rng = np.random.default_rng([self._seed, 6, round_number])
        labels = self._cohort.root_labels
        batches = rng.integers(len(labels), size=(self._recipe.steps, 1, self._recipe.batch))
        moved = self._descended(base[None], self._cohort.root_values, labels, batches)
        update: Float32Array = moved[0]
        return update

    def descent(self, base: Float32Array, root_rows: Indices) -> Float32Array:
        """As ``Learner.descent``."""
        values, labels = self._cohort.root_values[root_rows], self._cohort.root_labels[root_rows]
        gradients = self._gradients(self._layers(base[None]), values[None], labels[None])
        return -np.concatenate([gradient.ravel() for gradient in gradients])

    def class_descents(self, hospitals: Sequence[int]) -> Descents:
        """As ``Learner.class_descents``."""
        rows = np.concatenate([self._cohort.members[number] for number in hospitals])
        values, labels = self._cohort.values, self._cohort.true_labels[rows]
        samples = [(values[rows[some]], labels[some]) for some in _by_class(labels)]

        def descents(base: Float32Array) -> Float32Array:
            layers = self._layers(base[None])
            found = [self._gradients(layers, each[None], own[None]) for each, own in samples]
            return -np.stack([np.concatenate([part.ravel() for part in each]) for each in found])

        return descents

    def root_losses(
        self, base: Float32Array, updates: Float32Array, root_rows: Indices
    ) -> Float64Array:
        """As ``Learner.root_losses``."""
        values, labels = self._cohort.root_values[root_rows], self._cohort.root_labels[root_rows]
        logits = _forward(self._layers(base + updates), values[None])[1]
        return _losses(logits.astype(np.float64), labels)

    def predict(self, base: Float32Array, values: Float32Array) -> Labels:
        """As ``Learner.predict``."""
        logits = _forward(self._layers(base[None]), values[None])[1][0]
        classes: Labels = np.argmax(logits, axis=1)
        return classes

    def _descended(
        self, start: Float32Array, values: Float32Array, labels: Labels, batches: Indices
    ) -> Float32Array:
        """How far local steps over these batches ``(steps, m, batch)`` move each row."""
        parameters = start.copy()
        layers, rate = self._layers(parameters), np.float32(self._recipe.learning_rate)
        for rows in batches:
            for layer, gradient in zip(
                layers, self._gradients(layers, values[rows], labels[rows]), strict=True
            ):
                np.subtract(layer, rate * gradient, out=layer)
        moved: Float32Array = parameters - start
        return moved

    def _layers(self, parameters: Float32Array) -> Layers:
        """Weights and biases as views of rows of parameters, shape ``(m, d)``."""
        m, first = len(parameters), self._pixels * HIDDEN
        second = first + HIDDEN
        third = second + HIDDEN * self._classes
        return (
            parameters[:, :first].reshape(m, self._pixels, HIDDEN),
            parameters[:, None, first:second],
            parameters[:, second:third].reshape(m, HIDDEN, self._classes),
            parameters[:, None, third:],
        )

    def _gradients(self, layers: Layers, values: Float32Array, labels: Labels) -> Layers:
        """Gradients of the mean cross-entropy, row by row; labels of shape ``(m, b)``."""
        hidden, logits = _forward(layers, values)
        m, b = labels.shape
        flat = residuals(logits.reshape(m * b, self._classes).astype(np.float64), labels.ravel())
        error = (flat / b).astype(np.float32).reshape(m, b, self._classes)
        back = error @ layers[2].transpose(0, 2, 1)
        back[hidden <= 0] = 0
        return (
            values.transpose(0, 2, 1) @ back,
            back.sum(axis=1, keepdims=True),
            hidden.transpose(0, 2, 1) @ error,
            error.sum(axis=1, keepdims=True),
        )


def _forward(layers: Layers, values: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Hidden activations and logits; values of shape ``(m or 1, b, pixels)``."""
    hidden_weight, hidden_bias, head_weight, head_bias = layers
    hidden = np.maximum(values @ hidden_weight + hidden_bias, np.float32(0))
    return hidden, hidden @ head_weight + head_bias


class HeadLearner:
    """A linear head over a public projection, trained with noise for the study's ε."""

    def __init__(self, cohort: Cohort, study: Study, *, seed: int) -> None:
        self._cohort = cohort
        self._classes = cohort.classes
        self._seed = seed
        self._recipe = recipe = study.training
        self._projection = projection = fit_projection(
            cohort.public_values, dimensions=recipe.dimensions, whitening=recipe.whitening
        )
        self._inputs = [project(cohort.values[rows], projection) for rows in cohort.members]
        self._root = project(cohort.root_values, projection)
        # Judged once a run, always on the same images.
        self._judged: tuple[Float32Array, Float64Array] | None = None
        self.plan = _plan(
            study,
            tensors={
                "head.weight": (self._classes, recipe.dimensions),
                "head.bias": (self._classes,),
            },
            recipe=Recipe.HEAD,
        )

    def initial(self) -> Float32Array:
        """As ``Learner.initial``: the recipe starts from zero."""
        return np.zeros(self.plan.schema.update_elements, dtype=np.float32)

    def draw(self, *, round_number: int) -> Drawn:
        """As ``Learner.draw``: noise, ``(steps, n, d)``."""
        rng = np.random.default_rng([self._seed, 3, round_number])
        stddev = self.plan.privacy.noise_multiplier * self.plan.privacy.max_grad_norm
        elements = self.plan.schema.update_elements
        return rng.normal(0.0, stddev, (self._recipe.steps, len(self._cohort.members), elements))

    def train(self, base: Float32Array, drawn: Drawn, hospitals: Sequence[int]) -> LocalUpdates:
        """As ``Learner.train``."""
        noise = drawn.astype(np.float64, copy=False)
        pairs = [self._trained(base, number, noise[:, number]) for number in hospitals]
        return LocalUpdates(
            sent=np.stack([sent for sent, _ in pairs]),
            clean=np.stack([clean for _, clean in pairs]),
        )

    def descent(self, base: Float32Array, root_rows: Indices) -> Float32Array:
        """As ``Learner.descent``."""
        labels = self._cohort.root_labels[root_rows]
        # The coordinator clips nothing, whatever hospitals do.
        total = self._gradient_sum(
            base.astype(np.float64), self._root[root_rows], labels, max_grad_norm=1.0
        )
        return (-total / len(root_rows)).astype(np.float32)

    def pooled_update(self, base: Float32Array, *, round_number: int) -> Float32Array:
        """As ``Learner.pooled_update``: every patient counts once, wherever he went."""
        cohort = self._cohort
        labels = [cohort.true_labels[rows] for rows in cohort.members]
        times = [size / len(rows) for size, rows in zip(cohort.patients, labels, strict=True)]
        moved = base.astype(np.float64)
        for _ in range(self._recipe.steps):
            parts = [
                count * self._gradient_sum(moved, inputs, own)
                for count, inputs, own in zip(times, self._inputs, labels, strict=True)
            ]
            moved = moved - self._recipe.learning_rate / sum(cohort.patients) * np.sum(
                parts, axis=0
            )
        return (moved - base).astype(np.float32)

    def root_update(self, base: Float32Array, *, round_number: int) -> Float32Array:
        """As ``Learner.root_update``: full batches, so every round's draws are the same."""
        moved = base.astype(np.float64)
        labels = self._cohort.root_labels
        for _ in range(self._recipe.steps):
            gradient = self._gradient_sum(moved, self._root, labels) / len(labels)
            moved = moved - self._recipe.learning_rate * gradient
        return (moved - base).astype(np.float32)

    def class_descents(self, hospitals: Sequence[int]) -> Descents:
        """As ``Learner.class_descents``."""
        rows = np.concatenate([self._cohort.members[number] for number in hospitals])
        inputs = np.concatenate([self._inputs[number] for number in hospitals])
        labels = self._cohort.true_labels[rows]
        samples = [(inputs[some], labels[some]) for some in _by_class(labels)]

        def descents(base: Float32Array) -> Float32Array:
            parameters = base.astype(np.float64)
            sums = [
                self._gradient_sum(parameters, each, own, max_grad_norm=1.0) / len(own)
                for each, own in samples
            ]
            return -np.stack(sums).astype(np.float32)

        return descents

    def root_losses(
        self, base: Float32Array, updates: Float32Array, root_rows: Indices
    ) -> Float64Array:
        """As ``Learner.root_losses``."""
        inputs, labels = self._root[root_rows], self._cohort.root_labels[root_rows]
        logits = np.stack([head_logits(inputs, *self._parts(base + each)) for each in updates])
        return _losses(logits, labels)

    def predict(self, base: Float32Array, values: Float32Array) -> Labels:
        """As ``Learner.predict``."""
        if self._judged is None or self._judged[0] is not values:
            self._judged = values, project(values, self._projection)
        inputs = self._judged[1]
        classes: Labels = np.argmax(head_logits(inputs, *self._parts(base)), axis=1)
        return classes

    def _trained(
        self, base: Float32Array, number: int, noise: Float64Array
    ) -> tuple[Float32Array, Float32Array]:
        rows = self._cohort.members[number]
        labels = self._cohort.labels[rows]
        rate = self._recipe.learning_rate
        patients = self._cohort.patients[number]
        # On digits a hospital owns fewer images than it stands for.
        times = patients / len(rows)
        parameters, added = base.astype(np.float64), np.zeros(len(base))
        for step_noise in noise:
            total = times * self._gradient_sum(parameters, self._inputs[number], labels)
            parameters = parameters - rate / patients * (total + step_noise)
            added = added - rate / patients * step_noise
        update = parameters - base
        return update.astype(np.float32), (update - added).astype(np.float32)

    def _gradient_sum(
        self,
        parameters: Float64Array,
        inputs: Float64Array,
        labels: Labels,
        *,
        max_grad_norm: float | None = None,
    ) -> Float64Array:
        weight, bias = self._parts(parameters)
        longest = max_grad_norm or self.plan.privacy.max_grad_norm
        gradients = clipped_gradient_sum(inputs, labels, weight, bias, max_grad_norm=longest)
        return np.concatenate([gradients[0].ravel(), gradients[1]])

    def _parts(self, parameters: NDArray[np.floating]) -> tuple[Float64Array, Float64Array]:
        wide = parameters.astype(np.float64)
        split = len(wide) - self._classes
        return wide[:split].reshape(self._classes, -1), wide[split:]


def _by_class(labels: Labels) -> Iterator[Indices]:
    """The first places of each class that occurs: as many as tell its gradient."""
    for label in np.unique(labels):
        yield np.flatnonzero(labels == label)[:CLASS_SAMPLE]


def _losses(logits: Float64Array, labels: Labels) -> Float64Array:
    """Cross-entropy of each row of logits ``(m, b, classes)``; at most 1e6."""
    with np.errstate(over="ignore", invalid="ignore"):
        shifted = logits - logits.max(axis=2, keepdims=True)
        normaliser = np.log(np.exp(shifted).sum(axis=2))
        losses = normaliser - shifted[:, np.arange(len(labels)), labels]
    bounded: Float64Array = np.minimum(np.nan_to_num(losses, nan=1e6, posinf=1e6), 1e6)
    return bounded


def _plan(study: Study, *, tensors: Mapping[str, tuple[int, ...]], recipe: Recipe) -> StudyPlan:
    """The plan as the coordinator would sign it; its checks read their limits from it."""
    training, privacy = study.training, study.privacy
    steps = training.rounds * training.steps
    noise = (
        calibrate_noise(privacy.epsilon, privacy.delta, steps=steps) if study.is_private else 0.0
    )
    return StudyPlan(
        federation_id="simulation",
        study_id="simulation",
        schema=parse_schema(tuple(TensorSpec(name, shape) for name, shape in tensors.items())),
        training=TrainingPlan(
            recipe=recipe,
            backbone="none",
            backbone_digest=None,
            image_size=28,
            views=1,
            steps_per_round=training.steps,
            learning_rate=training.learning_rate,
            batch_size=training.batch,
        ),
        privacy=PrivacyTerms(
            unit="patient",
            adjacency="add-or-remove-one",
            target_epsilon=privacy.epsilon,
            target_delta=privacy.delta,
            noise_multiplier=noise,
            max_grad_norm=training.longest_gradient,
            sample_rate=1.0,
            max_steps=steps,
        ),
        average_from=training.average_from,
    )
