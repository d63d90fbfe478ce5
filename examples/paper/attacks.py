"""Attacks in l2 by the adversarial-robustness-toolbox (ART), which has wrappers for models of TensorFlow and torch.

Each looks for an input near an image that the model answers differently. Inputs may leave the range of pixels, [0, 1]:
certificates hold there too, and the attacker has an easier game. Carlini and Wagner's attack needs a box; it gets one
of three times the range.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from examples.paper.data import Images, Labels

Distances = npt.NDArray[np.float64]

BOX = (-1.0, 2.0)
BATCH_SIZE = 500
FGSM_STEP = 0.1  # The l2 distances that FGSM tries are multiples of this.
# Attacks with a radius go for this much of it, so that float32 does not carry them outside.
INSIDE = 1 - 1e-5


class Effort(NamedTuple):
    """How hard attacks try.

    Attributes:
        pgd_steps: Steps of PGD.
        deepfool_steps: The most steps of DeepFool.
        carlini_wagner_searches: Weights of the margin that Carlini and Wagner's attack tries.
        carlini_wagner_steps: Its steps for each.
    """

    pgd_steps: int
    deepfool_steps: int
    carlini_wagner_searches: int
    carlini_wagner_steps: int


class Victim:
    """A model to attack, wrapped for ART."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        outputs = model.output_shape[1]
        self.free = wrap(model, outputs)
        self.boxed = wrap(model, outputs, BOX)

    def answers(self, images: Images) -> Labels:
        """Returns the classes that the model answers."""
        return answers(self.model.predict(images, batch_size=BATCH_SIZE, verbose=0))

    def distances(self, images: Images, classes: Labels, moved: Images) -> Distances:
        """Returns how far images were moved, infinity where the answer is still `classes`."""
        away = moved.astype(np.float64) - images
        lengths = np.sqrt(np.sum(away**2, axis=(1, 2, 3)))
        return np.where(self.answers(moved) != classes, lengths, np.inf)


def answers(logits: npt.NDArray[Any]) -> Labels:
    """Returns the classes by logits: the largest, or for one output whether it is positive."""
    classes = logits[:, 0] > 0 if logits.shape[1] == 1 else np.argmax(logits, axis=1)
    return classes.astype(np.int64)


def wrap(model: keras.Model, outputs: int, box: tuple[float, float] | None = None) -> Any:
    """Returns ART's classifier of a model. A single output f becomes the two logits -f / 2 and f / 2.

    Raises:
        SystemExit: If ART is not installed, or the backend is JAX.
    """
    try:
        import art  # noqa: F401
    except ModuleNotFoundError as error:
        raise SystemExit("The attacks need ART: pip install 'deel-like-lip[attacks]'") from error
    logging.getLogger("art").setLevel(logging.ERROR)  # It warns that there is no box.

    def logits(inputs: Any) -> Any:
        values = model(inputs, training=False)
        return keras.ops.concatenate([-values / 2, values / 2], axis=1) if outputs == 1 else values

    shape, classes = model.input_shape[1:], max(outputs, 2)
    backend = keras.backend.backend()
    if backend == "torch":
        import torch
        from art.estimators.classification import PyTorchClassifier

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, inputs: Any) -> Any:
                return logits(inputs)

        loss = torch.nn.CrossEntropyLoss(reduction="sum")
        return PyTorchClassifier(Module(), loss, shape, classes, clip_values=box, device_type="cpu")
    if backend == "tensorflow":
        import tensorflow as tf
        from art.estimators.classification import TensorFlowV2Classifier

        compiled = tf.function(logits)
        return TensorFlowV2Classifier(
            model=lambda inputs, training=False: compiled(tf.cast(inputs, "float32")),
            nb_classes=classes,
            input_shape=shape,
            loss_object=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
            clip_values=box,
        )
    raise SystemExit(f"ART wraps models of TensorFlow and torch: set KERAS_BACKEND to one of them, not to {backend}.")


def pgd(classifier: Any, images: Images, classes: Labels, eps: Any, steps: int, random_start: bool = True) -> Images:
    """Returns what projected gradient steps on the log loss within l2 balls make of images.

    Args:
        classifier: What `wrap` returned.
        images: Images.
        classes: The answers to get away from.
        eps: Radius of the balls, a number, or one for each image if `random_start` is false.
        steps: Number of steps, each of 2.5 times the radius divided by their number, as in the reference.
        random_start: Whether to start anywhere in the ball rather than at the image.

    Reference:
        Madry et al., 2018, [Towards deep learning models resistant to adversarial attacks](
        https://arxiv.org/abs/1706.06083)
    """
    from art.attacks.evasion import ProjectedGradientDescent

    eps = eps * INSIDE
    if not np.isscalar(eps):
        eps = np.reshape(eps, (-1, 1, 1, 1)).astype(np.float32)
    attack = ProjectedGradientDescent(
        classifier,
        norm=2,
        eps=eps,
        eps_step=2.5 * eps / steps,
        max_iter=steps,
        num_random_init=int(random_start),
        batch_size=BATCH_SIZE,
        verbose=False,
    )
    moved: Images = attack.generate(images, classes)
    return moved


def fgsm(victim: Victim, images: Images, classes: Labels, eps: tuple[float, ...], effort: Effort) -> Images:
    """The fast gradient method in l2: along the gradient of the log loss, as far as it takes up to the largest `eps`.

    Reference:
        Goodfellow, Shlens and Szegedy, 2015, [Explaining and harnessing adversarial examples](
        https://arxiv.org/abs/1412.6572)
    """
    from art.attacks.evasion import FastGradientMethod

    attack = FastGradientMethod(
        victim.free, norm=2, eps=eps[-1], eps_step=FGSM_STEP * INSIDE, minimal=True, batch_size=BATCH_SIZE
    )
    moved: Images = attack.generate(images.copy(), classes)
    return moved


def pgd_curve(victim: Victim, images: Images, classes: Labels, eps: tuple[float, ...], effort: Effort) -> Images:
    """`pgd` within one radius after the other, each for those images that withstood the smaller ones."""
    moved, left = images.copy(), np.arange(len(images))
    for radius in eps:
        tried = pgd(victim.free, images[left], classes[left], radius, effort.pgd_steps)
        changed = victim.answers(tried) != classes[left]
        moved[left[changed]] = tried[changed]
        left = left[~changed]
        if not len(left):
            break
    return moved


def deepfool(victim: Victim, images: Images, classes: Labels, eps: tuple[float, ...], effort: Effort) -> Images:
    """DeepFool: to the nearest boundary as the linear model sees it, again and again.

    Reference:
        Moosavi-Dezfooli, Fawzi and Frossard, 2016, [DeepFool](https://arxiv.org/abs/1511.04599)
    """
    from art.attacks.evasion import DeepFool

    # It goes on with a whole batch until the last image is done: small ones.
    attack = DeepFool(victim.free, effort.deepfool_steps, epsilon=0.02, batch_size=100, verbose=False)
    moved: Images = attack.generate(images, classes)
    return moved


def carlini_wagner(victim: Victim, images: Images, classes: Labels, eps: tuple[float, ...], effort: Effort) -> Images:
    """Carlini and Wagner's: descent on the squared distance plus a multiple of the margin, which is searched for.

    Reference:
        Carlini and Wagner, 2017, [Towards evaluating the robustness of neural networks](
        https://arxiv.org/abs/1608.04644)
    """
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(
        victim.boxed,
        learning_rate=0.05,
        binary_search_steps=effort.carlini_wagner_searches,
        max_iter=effort.carlini_wagner_steps,
        initial_const=1.0,
        batch_size=BATCH_SIZE,
        verbose=False,
    )
    moved: Images = attack.generate(images, np.eye(victim.boxed.nb_classes)[classes])
    return moved


Attack = Callable[[Victim, Images, Labels, tuple[float, ...], Effort], Images]
ATTACKS: dict[str, Attack] = {"FGSM": fgsm, "PGD": pgd_curve, "DeepFool": deepfool, "CW": carlini_wagner}


def within(victim: Victim, images: Images, classes: Labels, radii: Distances, steps: int) -> Images:
    """PGD within a ball of its own radius around each image; those of radius 0 stay as they are."""
    moved, who = images.copy(), np.flatnonzero(radii > 0)
    if len(who):
        moved[who] = pgd(victim.free, images[who], classes[who], radii[who], steps, random_start=False)
    return moved
