"""Blocks around one matrix: SDP-based and convex potential layers, and the sandwich layer."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.base import ConstrainedKernel, built
from deel_like_lip.layers.block_base import CPL, SLL, Block, with_tensors
from deel_like_lip.parametrizations import Orthogonal


class _DenseMaps(Block):
    """The kernel as a matrix on the last axis."""

    def __init__(
        self,
        units: int | None = None,
        activation: Any = "relu",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_normal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
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
            **kwargs,
        )
        self.units = units
        self.supports_masking = True

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}

    def _features(self, input_shape: Shape) -> int:
        features = input_shape[-1] if len(input_shape) > 1 else None
        if features is None:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects an input of rank at least 2 whose last axis is "
                f"known. Received: input_shape={tuple(input_shape)}"
            )
        return features

    def _shape_of_kernel(self, features: int) -> Shape:
        return features, self.units or features

    def _forward(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.matmul(inputs, kernel)

    def _transposed(self, kernel: Tensor) -> Tensor:
        return ops.transpose(kernel)

    def _folded(self, kernel: Tensor, bias: Tensor | None, name: str) -> Callable[[Tensor], Tensor]:
        plain = keras.layers.Dense(
            kernel.shape[-1],
            use_bias=bias is not None,
            kernel_initializer="zeros",
            name=name,
            dtype=self.dtype_policy,
        )
        return with_tensors(plain, kernel, bias)


@register
class SLLDense(SLL, _DenseMaps):
    """SDP-based Lipschitz layer, dense: `x - 2 W T^-1 relu(W^T x + b)`, 1-Lipschitz times `k_coef_lip`.

    T is diagonal, `T_i = sum_j |W^T W|_ij q_j / q_i`, with q positive and learned. The constant holds for all weights.
    T is computed from W in each call, which costs as much as half a batch of as many samples as there are units; the
    folded layer holds it.

    Args:
        units: Positive integer, the number of hidden units, by default that of the features.
        activation: Activation of one variable whose slopes lie in [0, 1], by name or as a Keras layer.
        use_bias: Whether b is added.
        kernel_initializer: Initializer of W.
        bias_initializer: Initializer of b.
        kernel_regularizer: Regularizer of W.
        bias_regularizer: Regularizer of b.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, ..., features)`. With more than two axes the layer acts on the last one.

    Output shape:
        The input's.

    Example:
        >>> layer = SLLDense(128)
        >>> layer(np.zeros((32, 64))).shape
        (32, 64)

    Raises:
        ValueError: If `units` is not a positive integer, `k_coef_lip` is not positive and finite, or slopes of the
            activation are not known to lie in [0, 1].

    Reference:
        Araujo et al., 2023, [A unified algebraic perspective on Lipschitz neural
        networks](https://arxiv.org/abs/2303.03169)
    """


@register
class CPLDense(CPL, _DenseMaps):
    """Convex potential layer, dense: `x - 2 W relu(W^T x + b)` with `|W| = 1`, 1-Lipschitz times `k_coef_lip`.

    A step of gradient descent on a convex function of x, which is what its derivation calls `x - 2 / |W|^2 W
    relu(W^T x + b)`. W is stored as it is used: divided by an upper bound of its norm, from `build` on and after every
    update of any Keras optimizer. The norm is never above 1, and below by a few per cent.

    Takes the arguments of `SLLDense`, with the same meaning.

    Input shape:
        `(batch, ..., features)`. With more than two axes the layer acts on the last one.

    Output shape:
        The input's.

    Example:
        >>> layer = CPLDense(128)
        >>> layer(np.zeros((32, 64))).shape
        (32, 64)

    Raises:
        ValueError: As `SLLDense`.

    Reference:
        Meunier et al., 2022, [A dynamical system perspective for Lipschitz neural
        networks](https://arxiv.org/abs/2110.12690)
    """


class _Sandwich(_DenseMaps):
    """`A^T activation(B x + b)`, where the kernel is `[A B]^T`."""

    def call(self, inputs: Tensor) -> Tensor:
        kernel = self.kernel
        units = kernel.shape[-1]
        hidden = self._forward(inputs, kernel[units:])
        if self.bias is not None:
            hidden = hidden + self.bias
        return self._forward(self.activation(hidden), self._transposed(kernel[:units]))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.units or self._features(input_shape))

    def _shape_of_kernel(self, features: int) -> Shape:
        units = self.units or features
        return units + features, units


@register
class SandwichDense(ConstrainedKernel, _Sandwich):
    """Sandwich layer: `A^T relu(B x + b)` with `A A^T + B B^T = 2 k_coef_lip I`, `k_coef_lip`-Lipschitz.

    For a diagonal D of slopes in [0, 1], `2 <D A u, B v>` is at most half of `|A u + B v|^2`, so `A^T D B` has at most
    half the norm of `A A^T + B B^T`. The kernel `[A B]^T` is stored as it is used, with orthogonal columns: from
    `build` on and after every update of any Keras optimizer, by the projection of `SpectralDense` instead of the Cayley
    transform. The diagonal matrix that the paper puts around the activation would only scale b if that is relu, and is
    left out.

    Takes the arguments of `SLLDense`, with the same meaning but for one.

    Args:
        units: Positive integer, the number of outputs and of hidden units, by default that of the features.
        **kwargs: The other arguments of `SLLDense`.

    Input shape:
        `(batch, ..., features)`. With more than two axes the layer acts on the last one.

    Output shape:
        `(batch, ..., units)`.

    Example:
        >>> layer = SandwichDense(128)
        >>> layer(np.zeros((32, 64))).shape
        (32, 128)

    Raises:
        ValueError: As `SLLDense`.

    Reference:
        Wang and Manchester, 2023, [Direct parameterization of Lipschitz-bounded deep
        networks](https://arxiv.org/abs/2301.11526)
    """

    def __init__(self, units: int | None = None, activation: Any = "relu", **kwargs: Any) -> None:
        super().__init__(units, activation, **{"kernel_initializer": "orthogonal", **kwargs})
        self.parametrization = Orthogonal((2 * self.k_coef_lip) ** 0.5)

    def fold(self) -> Callable[[Tensor], Tensor]:
        kernel = ops.convert_to_tensor(built(self).kernel)
        units = kernel.shape[-1]
        hidden = self._folded_hidden(kernel[units:])
        back = self._folded(self._transposed(kernel[:units]), None, self.name)
        return lambda inputs: back(hidden(inputs))
