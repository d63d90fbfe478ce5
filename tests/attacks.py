"""Attacks in l2, to break certificates with: how far an input must move before the answer changes, from above.

PGD, DeepFool, and Carlini and Wagner's attack, in NumPy on top of the library's products with the Jacobian. They attack
the answer that the model gives, right or wrong, and move inputs freely, not only within the range of images. Models
return logits: the answer is the largest, or for a single output its sign.
"""

import dataclasses
import functools
import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._autodiff import RowMap

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Attacked:
    """What an attack found.

    Attributes:
        distances: For each sample the l2 distance of the nearest input that has another answer, inf if none was found.
            In float64, from the inputs as they are fed.
        inputs: Those inputs, in float32; the sample itself if none was found.
    """

    distances: npt.NDArray[np.float64]
    inputs: npt.NDArray[np.float32]


class Target:
    """A model with samples to attack. Several attacks share what it has compiled."""

    def __init__(self, model: keras.Model, samples: Array, batch_size: int = 500) -> None:
        self.model = model
        self.samples = np.asarray(samples, dtype=np.float32)
        self.origin = self.samples.reshape(len(samples), -1).astype(np.float64)
        self._rows = RowMap(model, [self.samples.shape[1:]], batch_size=min(batch_size, len(samples)))
        self._batch_size = batch_size
        self.clean = self.logits(self.origin)
        self.answers = np.argmax(self.clean, axis=1)
        self.everyone = np.arange(len(self.samples))

    def logits(self, points: Array) -> Array:
        """Returns logits of at least two classes: a single output f becomes the two logits 0 and f."""
        outputs = self._rows.forward(points)
        return np.concatenate([np.zeros_like(outputs), outputs], axis=1) if outputs.shape[1] == 1 else outputs

    def gradient(self, points: Array, weights: Array) -> Array:
        """Returns the gradients of `sum(logits * weights)`."""
        single = self.model.output_shape[1] == 1
        return self._rows.vjp(points, weights[:, 1:] if single else weights)

    def margins(self, logits: Array, who: Array) -> Array:
        """Returns by how much the answer is ahead of each class, inf for itself."""
        answers = self.answers[who, None]
        margins = np.take_along_axis(logits, answers, axis=1) - logits
        np.put_along_axis(margins, answers, np.inf, axis=1)
        return margins

    def margin_gradient(self, points: Array, rivals: Array, who: Array) -> Array:
        """Returns the gradients of the margin ahead of one class."""
        weights = np.zeros((len(who), self.clean.shape[1]))
        rows = np.arange(len(who))
        weights[rows, self.answers[who]] = 1
        weights[rows, rivals] -= 1
        return self.gradient(points, weights)

    def linear_distances(self, points: Array, margins: Array, who: Array) -> tuple[Array, Array]:
        """Returns how far each class would be if the model were linear, and the gradients of the margins."""
        classes = self.clean.shape[1]
        gradients = np.stack(
            [self.margin_gradient(points, np.full(len(who), rival), who) for rival in range(classes)], axis=1
        )
        norms = np.linalg.norm(gradients, axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(norms > 0, np.maximum(margins, 0) / norms, np.inf), gradients

    @functools.cached_property
    def first_distances(self) -> Array:
        """`linear_distances` from the samples, shape (samples, classes)."""
        return self.linear_distances(self.origin, self.margins(self.clean, self.everyone), self.everyone)[0]

    def predict(self, inputs: Array) -> Array:
        """Returns the answers to inputs by the way that users take."""
        outputs = self.model.predict(inputs, batch_size=self._batch_size, verbose=0)
        return (outputs[:, 0] > 0).astype(int) if outputs.shape[1] == 1 else np.argmax(outputs, axis=1)


class _Found:
    """The nearest inputs of another answer so far."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.distances = np.full(len(target.samples), np.inf)
        self.inputs = target.origin.copy()  # values of float32

    def offer(self, points: Array, logits: Array, who: Array) -> Array:
        """Keeps what is nearer than before, and returns which of the points have another answer."""
        fed = points.astype(np.float32)
        changed: Array = np.argmax(logits, axis=1) != self.target.answers[who]
        distances = np.linalg.norm(fed.astype(np.float64) - self.target.origin[who], axis=1)
        nearer = changed & (distances < self.distances[who])
        self.distances[who[nearer]] = distances[nearer]
        self.inputs[who[nearer]] = fed[nearer]
        return changed

    def result(self, bisections: int = 12) -> Attacked:
        """Goes back towards the samples as far as the answer stays another one, and has `predict` confirm it."""
        target = self.target
        who = np.flatnonzero(np.isfinite(self.distances))
        if len(who):
            origin = target.origin[who]
            away = self.inputs[who] - origin
            same, other = np.zeros((len(who), 1)), np.ones((len(who), 1))
            for _ in range(bisections):
                share = (same + other) / 2
                points = origin + share * away
                changed = self.offer(points, target.logits(points), who)[:, None]
                same, other = np.where(changed, same, share), np.where(changed, share, other)
        confirmed = np.zeros(len(self.distances), dtype=bool)
        for push in (0.0, 1e-6, 1e-5, 1e-4, 1e-3):  # `predict` may round otherwise, right at the boundary
            inputs = (self.inputs + push * (self.inputs - target.origin)).astype(np.float32)
            changed = target.predict(inputs.reshape(target.samples.shape)) != target.answers
            now = np.isfinite(self.distances) & changed & ~confirmed
            self.inputs[now] = inputs[now]
            confirmed |= now
            if np.array_equal(confirmed, np.isfinite(self.distances)):
                break
        self.inputs[~confirmed] = target.origin[~confirmed]
        distances = np.linalg.norm(self.inputs - target.origin, axis=1)
        return Attacked(
            np.where(confirmed, distances, np.inf), self.inputs.astype(np.float32).reshape(target.samples.shape)
        )


def deepfool(target: Target, steps: int = 30, overshoot: float = 0.02) -> Attacked:
    """DeepFool: to the nearest boundary as the linear model sees it, again and again.

    Reference:
        Moosavi-Dezfooli, Fawzi and Frossard, 2016, [DeepFool](https://arxiv.org/abs/1511.04599)
    """
    found = _Found(target)
    who, moved = target.everyone, np.zeros_like(target.origin)
    for _ in range(steps):
        points = target.origin[who] + (1 + overshoot) * moved[who]
        logits = target.logits(points)
        changed = found.offer(points, logits, who)
        who, points, logits = who[~changed], points[~changed], logits[~changed]
        if not len(who):
            break
        distances, gradients = target.linear_distances(points, target.margins(logits, who), who)
        rivals, rows = np.argmin(distances, axis=1), np.arange(len(who))
        gradient, distance = gradients[rows, rivals], distances[rows, rivals]
        # A little is added, as the authors do, so that steps do not end right on a boundary.
        step = np.where(np.isfinite(distance), distance * (1 + 1e-4) + 1e-6, 0)
        moved[who] -= step[:, None] * _directions(gradient)
    return found.result()


def pgd(target: Target, radii: Array | None = None, restarts: int = 10, steps: int = 30, seed: int = 0) -> Attacked:
    """Projected gradient steps on the margin, along directions of length 1, from several starts.

    The first restarts go for one class each, those first that a linear model has nearest; half of them for whichever
    class is ahead, from random starts. With radii the inputs stay within them. Without, the radius shrinks while the
    answer is another one and grows while it is not, as in the reference, and begins at the nearest found so far.

    Args:
        target: Model and samples.
        radii: How far each sample may be moved; None looks for the least.
        restarts: Number of starts.
        steps: Gradient steps of a start.
        seed: Of the random starts.

    Reference:
        - Madry et al., 2018, [Towards deep learning models resistant to adversarial
          attacks](https://arxiv.org/abs/1706.06083)
        - Rony et al., 2019, [Decoupling direction and norm](https://arxiv.org/abs/1811.09600)
    """
    found, rng, who = _Found(target), np.random.default_rng(seed), target.everyone
    order = np.argsort(target.first_distances, axis=1, kind="stable")
    linear = np.take_along_axis(target.first_distances, order[:, :1], axis=1)[:, 0]
    guess = np.where(np.isfinite(linear), linear, 1.0)
    classes = order.shape[1]
    for restart in range(restarts):
        aimed = restart % 2 == 0 and restart // 2 < classes - 1
        radius = radii if radii is not None else np.where(np.isfinite(found.distances), 0.99 * found.distances, guess)
        noise = _directions(rng.normal(size=target.origin.shape)) * rng.uniform(size=(len(who), 1))
        moved = np.zeros_like(noise) if restart == 0 else 0.5 * radius[:, None] * noise
        for step in range(steps + 1):
            points = target.origin + moved
            logits = target.logits(points)
            changed = found.offer(points, logits, who)
            if step == steps:
                break
            left = 0.5 * (1 + math.cos(math.pi * step / steps))
            rivals = order[:, restart // 2] if aimed else np.argmin(target.margins(logits, who), axis=1)
            direction = -_directions(target.margin_gradient(points, rivals, who))
            if radii is None:
                change = 0.01 + 0.1 * left
                shrunk = np.minimum(radius, np.linalg.norm(moved, axis=1)) * (1 - change)
                radius = np.where(changed, shrunk, radius * (1 + change))
            moved = moved + (0.02 + 0.5 * left) * radius[:, None] * direction
            length = np.linalg.norm(moved, axis=1)
            if radii is None:
                moved = radius[:, None] * _directions(moved)
            else:
                moved = moved * np.minimum(1, radius / np.where(length > 0, length, 1))[:, None]
    return found.result()


def carlini_wagner(target: Target, searches: int = 5, steps: int = 50) -> Attacked:
    """Carlini and Wagner's: Adam on the squared distance plus a multiple of the margin, and a search for the multiple.

    Reference:
        Carlini and Wagner, 2017, [Towards evaluating the robustness of neural networks](
        https://arxiv.org/abs/1608.04644)
    """
    found, who = _Found(target), target.everyone
    first = np.min(target.first_distances, axis=1)
    guess = np.where(np.isfinite(first), first, 1.0)[:, None]
    margin = np.min(target.margins(target.clean, who), axis=1)[:, None]
    # Where the two gradients balance, if the model is linear: 2 |moved| = multiple * |gradient of the margin|.
    multiple = 3 * guess**2 / np.maximum(margin, 1e-12)
    low, high = np.zeros_like(multiple), np.full_like(multiple, np.inf)
    rate = 0.2 * guess / math.sqrt(target.origin.shape[1])
    for _ in range(searches):
        moved, mean, square = (np.zeros_like(target.origin) for _ in range(3))
        ever = np.zeros(len(who), dtype=bool)
        for step in range(steps + 1):
            points = target.origin + moved
            logits = target.logits(points)
            margins = target.margins(logits, who)
            ever |= found.offer(points, logits, who)
            if step == steps:
                break
            rivals = np.argmin(margins, axis=1)
            ahead = (np.min(margins, axis=1) >= 0)[:, None]
            gradient = 2 * moved + multiple * ahead * target.margin_gradient(points, rivals, who)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
            corrected = np.sqrt(square / (1 - 0.99 ** (step + 1)))
            left = 0.5 * (1 + math.cos(math.pi * step / steps))
            moved = moved - rate * (0.02 + left) * mean / (1 - 0.9 ** (step + 1)) / (corrected + 1e-12)
        high = np.where(ever[:, None], np.minimum(high, multiple), high)
        low = np.where(ever[:, None], low, np.maximum(low, multiple))
        multiple = np.where(np.isfinite(high), (low + np.minimum(high, 1e300)) / 2, 4 * multiple)
    return found.result()


def nearest(*attacks: Attacked) -> Attacked:
    """Returns for each sample the nearest that any of the attacks found."""
    best = np.argmin([attack.distances for attack in attacks], axis=0)
    rows = np.arange(len(best))
    distances, inputs = (np.stack([getattr(attack, name) for attack in attacks]) for name in ("distances", "inputs"))
    return Attacked(distances[best, rows], inputs[best, rows])


def _directions(vectors: Array) -> Array:
    norms: Array = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
