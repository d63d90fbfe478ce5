"""`Sequential` and `Model` with the methods of deel-lip's."""

import warnings
from collections.abc import Iterable
from typing import Any

import keras
from keras.src.models.functional import (
    Functional,
)  # the class of `keras.Model(inputs, outputs)`, which has no other name

from deel_like_lip._registration import register
from deel_like_lip._validation import checked_positive
from deel_like_lip.bounds.activations import activation_constant
from deel_like_lip.folding import vanilla_model
from deel_like_lip.layers.base import LipschitzLayer
from deel_like_lip.renormalization import renormalize

# Layers of Keras without a constant of their own that do not enlarge that of a model.
_NOT_ABOVE_ONE = (
    keras.layers.InputLayer,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.Identity,
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianNoise,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
)
_MAX_POOLING = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)


class _Container:
    """What models of deel-lip can do besides those of Keras."""

    def vanilla_export(self) -> keras.Model:
        """Returns a plain Keras model that predicts the same: `vanilla_model` of this one."""
        return vanilla_model(self)

    def condense(self) -> None:
        """Projects the constrained kernels onto the allowed ones: `renormalize` of this model."""
        renormalize(self)


@register
class Sequential(_Container, keras.Sequential):
    """A `keras.Sequential` whose layers together are `k_coef_lip`-Lipschitz.

    Each of the n layers of this library gets the constant `k_coef_lip ** (1 / n)`, activations, pooling and nested
    `Sequential`s included, whatever constant it was made with: a layer that was made with another one is replaced by a
    copy with this one, which is then found in `layers`. Layers of Keras keep what they compute; there is a warning for
    those that may have a constant above 1. What a layer means by its constant holds here as well: that of a
    `FrobeniusDense` is by default the constant of each output by itself.

    Args:
        layers: Layers, which may begin with a `keras.Input`.
        trainable: Whether the variables are trainable.
        name: Name of the model.
        k_coef_lip: The Lipschitz constant of the whole, positive. Unless it is 1, all layers must be given here, and
            none be added later.

    Example:
        >>> model = Sequential([keras.Input((784,)), SpectralDense(64), GroupSort2(), SpectralDense(1)], k_coef_lip=2.0)
        >>> certify(model).lipschitz_constant
        2.0

    Raises:
        ValueError: If `k_coef_lip` is not positive and finite, or a layer has weights already that were made for
            another constant.
    """

    def __init__(
        self,
        layers: Iterable[Any] | None = None,
        trainable: bool = True,
        name: str | None = None,
        *,
        k_coef_lip: float = 1.0,
    ) -> None:
        layers = list(layers or ())
        self.k_coef_lip = checked_positive(k_coef_lip, "k_coef_lip")
        count = sum(isinstance(layer, (LipschitzLayer, Sequential)) for layer in layers)
        self._constant_of_each = self.k_coef_lip ** (1 / max(count, 1))
        self._complete = False
        super().__init__(layers, trainable=trainable, name=name)
        self._complete = True

    def add(self, layer: Any, rebuild: bool = True) -> None:
        """Adds a layer at the end. With a `k_coef_lip` other than 1, layers can only be given to the constructor."""
        if self._complete and self.k_coef_lip != 1:
            raise ValueError(
                f"The model '{self.name}' divides k_coef_lip={self.k_coef_lip} among the layers that it was made of. "
                f"Give all of them to `Sequential(layers, k_coef_lip=...)`. Received: {layer}"
            )
        super().add(_with_constant(layer, self._constant_of_each), rebuild=rebuild)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Sequential":
        layers = [keras.saving.deserialize_keras_object(layer, custom_objects) for layer in config["layers"]]
        model = cls(
            layers,
            trainable=config.get("trainable", True),
            name=config["name"],
            k_coef_lip=config["k_coef_lip"],
        )
        shape = config.get("build_input_shape")
        if shape and not model.built:
            model.build(tuple(shape))
        return model


@register
class Model(_Container, keras.Model):
    """A `keras.Model`, functional or to derive from, with the methods of deel-lip's.

    Branches have no order in which to share a constant, so there is no `k_coef_lip`: give it to the layers. `certify`
    bounds the whole.

    Args:
        *args: Arguments of `keras.Model`, such as inputs and outputs.
        **kwargs: Likewise.

    Example:
        >>> inputs = keras.Input((784,))
        >>> model = Model(inputs, SpectralDense(10)(inputs))
        >>> plain = model.vanilla_export()
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Keras would put `Functional` among the bases of this class instead, for good, and then of those derived.
        functional = cls is Model and (len(args) >= 2 or "outputs" in kwargs)
        return super().__new__(FunctionalModel if functional else cls)


@register
class FunctionalModel(Model, Functional):
    """The class of `Model(inputs, outputs)`."""


def _with_constant(layer: Any, constant: float) -> Any:
    """Returns the layer, or a copy with the constant where it has another one."""
    if not isinstance(layer, (LipschitzLayer, Sequential)):
        _warn_unless_known(layer)
        return layer
    if layer.k_coef_lip == constant:
        return layer
    if layer.weights:
        raise ValueError(
            f"The layer '{layer.name}' of class {type(layer).__name__} has weights already, that were made for "
            f"k_coef_lip={layer.k_coef_lip}. Expected a layer that is not built, or one with the constant that is its "
            f"share of the model's: {constant}"
        )
    return type(layer).from_config({**layer.get_config(), "k_coef_lip": constant})


def _warn_unless_known(layer: Any) -> None:
    """Warns of a layer that may enlarge the constant of a model."""
    constant = activation_constant(layer)
    if constant is not None:
        known = constant <= 1
    elif isinstance(layer, _MAX_POOLING):
        known = all(stride >= size for stride, size in zip(layer.strides, layer.pool_size, strict=True))
    else:
        known = isinstance(layer, _NOT_ABOVE_ONE) or hasattr(layer, "_keras_history")
    if not known:
        warnings.warn(
            f"The layer '{getattr(layer, 'name', layer)}' of class {type(layer).__name__} has no constant that is set, "
            "so the model may exceed its `k_coef_lip`. Use a layer of `deel_like_lip.layers`, or see what `certify` "
            "says.",
            stacklevel=5,
        )
