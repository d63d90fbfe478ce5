"""Dense layers with a constrained kernel."""

from typing import Any

import keras
from keras import ops

from deel_like_lip import parametrizations
from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.base import ConstrainedKernel
from deel_like_lip.parametrizations import Frobenius


class _ConstrainedDense(ConstrainedKernel, keras.layers.Dense):
    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        bias_constraint: Any = None,
        k_coef_lip: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            bias_constraint=bias_constraint,
            k_coef_lip=k_coef_lip,
            **kwargs,
        )

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects an input of rank at least 2 whose last axis is "
                f"known. Received: input_shape={tuple(input_shape)}"
            )
        super().build(input_shape)

    def _call_in_training(self, inputs: Tensor) -> Tensor:
        if self.parametrization.computes_kernel:
            return super()._call_in_training(inputs)
        outputs = self.parametrization.tangent_matmul(inputs, self.kernel)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def _plain_layer(self) -> keras.layers.Dense:
        config = self._plain_config()
        config.pop("disjoint_neurons", None)
        return keras.layers.Dense(**config)


@register
class SpectralDense(_ConstrainedDense):
    """Dense layer with an orthogonal kernel, or one that another parametrization allows.

    All singular values of the kernel are `k_coef_lip`: the layer is `k_coef_lip`-Lipschitz for the l2 norm, and where
    it has no more outputs than inputs the gradient keeps its norm on the way back. The kernel is orthogonal from
    `build` on. After every update of any Keras optimizer singular values are, by an estimate, between 0.88 and 1 times
    the constant (0.85 and 1.005 are the extremes that were seen); `RenormalizeCallback` makes them 1 before validation
    and at the end of each epoch. At inference the layer costs what `keras.layers.Dense` costs.

    Args:
        units: Positive integer, the number of outputs.
        activation: Activation with a Lipschitz constant of at most 1, by name or as an object, such as `GroupSort2()`.
        parametrization: How the kernel is constrained, by name or as an object:

            - `"polar"`: orthogonal, as above.
            - `"bro"`, `"cayley"`, `"cholesky"`, `"exponential"`: orthogonal, and computed from a weight that may be
              anything, in inference as well: fold the model before you serve it.
            - `"aol"`: computed likewise, of norm at most `k_coef_lip`.
            - `"spectral"`: only the largest singular value is `k_coef_lip`. A step costs about what a plain one does,
              and gradients may fade. During training that norm is an estimate that the true one exceeds by up to a
              fifth; `RenormalizeCallback` makes it hold before validation and at the end of each epoch, and `certify`
              never relies on it.
        use_bias: Whether the layer adds a bias.
        kernel_initializer: Initializer of the stored kernel, or of the weight that the kernel is computed from; what
            it returns is made orthogonal.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the stored kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        bias_constraint: Constraint of the bias.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, ..., features)`. With more than two axes the kernel acts on the last one.

    Output shape:
        `(batch, ..., units)`.

    Example:
        >>> layer = SpectralDense(64, activation=GroupSort2())
        >>> layer(np.zeros((32, 784))).shape
        (32, 64)

    Raises:
        ValueError: If `units` is not a positive integer, `k_coef_lip` is not positive and finite, the parametrization
            is unknown or not one of dense layers, or the activation's constant is above 1 or unknown.

    Reference:
        - Anil, Lucas and Grosse, 2019, [Sorting out Lipschitz function approximation](https://arxiv.org/abs/1811.05381)
        - Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
          regularization](https://arxiv.org/abs/2006.06520)
    """

    def __init__(self, units: int, activation: Any = None, *, parametrization: Any = "polar", **kwargs: Any) -> None:
        super().__init__(units, activation, **kwargs)
        self.parametrization = parametrizations.get(parametrization).bind(self.k_coef_lip)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "parametrization": parametrizations.serialize(self.parametrization)}


@register
class FrobeniusDense(_ConstrainedDense):
    """Dense layer whose kernel has a given Frobenius norm, cheaper than `SpectralDense` and as good for one output.

    With `disjoint_neurons=True` each output by itself is `k_coef_lip`-Lipschitz: every column of the kernel has l2 norm
    `k_coef_lip`. The layer as a whole is then `sqrt(units) * k_coef_lip`-Lipschitz at worst, so this is meant for the
    last layer; `certify` computes what holds. With `disjoint_neurons=False` the whole kernel has Frobenius norm
    `k_coef_lip`, and the layer is `k_coef_lip`-Lipschitz.

    Takes the arguments of `SpectralDense`, with the same meaning, and one more.

    Args:
        units: Positive integer, the number of outputs.
        activation: As in `SpectralDense`.
        disjoint_neurons: Whether the constant holds for each output by itself rather than for the layer.
        k_coef_lip: The Lipschitz constant of each output or of the layer, positive.
        **kwargs: The other arguments of `SpectralDense`.

    Input shape:
        `(batch, ..., features)`. With more than two axes the kernel acts on the last one.

    Output shape:
        `(batch, ..., units)`.

    Example:
        >>> layer = FrobeniusDense(1)
        >>> layer(np.zeros((32, 64))).shape
        (32, 1)

    Raises:
        ValueError: If `units` is not a positive integer, `k_coef_lip` is not positive and finite, or the activation's
            constant is above 1 or unknown.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """

    def __init__(self, units: int, activation: Any = None, *, disjoint_neurons: bool = True, **kwargs: Any) -> None:
        super().__init__(units, activation, **kwargs)
        self.disjoint_neurons = bool(disjoint_neurons)
        self.parametrization = Frobenius(self.k_coef_lip, self.disjoint_neurons)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "disjoint_neurons": self.disjoint_neurons}
