"""What blocks around one kernel share. Each is 1-Lipschitz by its own theorem, unlike the sum of its parts."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_count
from deel_like_lip.bounds.activations import known_activation
from deel_like_lip.layers.base import ConstrainedKernel, LipschitzLayer, built, fold_activation, fold_scale, scaled
from deel_like_lip.layers.convolution_base import with_weights
from deel_like_lip.parametrizations import gram_row_sums
from deel_like_lip.parametrizations.base import in_float32
from deel_like_lip.parametrizations.operator_norm import BoundedOperatorNorm


class Block(LipschitzLayer):
    """`k_coef_lip (x - W diag(t) activation(W^T x + b))`, with 2 for t where a subclass does not differ.

    The slopes of the activation lie in [0, 1]. With a diagonal D of them, `I - W diag(t) D W^T` is symmetric with
    eigenvalues between `1 - |diag(sqrt t) W^T|^2` and 1.
    """

    def __init__(
        self,
        units: int | None,
        activation: Any,
        use_bias: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        bias_regularizer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if units is not None:
            checked_count(units, self._size_name, type(self).__name__)
        self.activation = keras.activations.get(activation)
        known = known_activation(self.activation)
        if known is None or not known.monotone or known.constant > 1:
            raise ValueError(
                f"Invalid value for argument `activation` of {type(self).__name__}. Expected a function of one "
                "variable whose slopes are known to lie in [0, 1], such as 'relu' or 'tanh': the theorem of the layer "
                f"is for these. Received: activation={activation}"
            )
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias: Any = None

    # What the number of hidden units is called.
    _size_name = "units"

    @property
    def kernel(self) -> Tensor:
        return self.stored_kernel

    def build(self, input_shape: Shape) -> None:
        shape = self._shape_of_kernel(self._features(input_shape))
        self.stored_kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self._initial_kernel(), regularizer=self.kernel_regularizer
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=shape[-1:],
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
            )

    def _initial_kernel(self) -> Any:
        """Returns the initializer of the kernel."""
        return self.kernel_initializer

    def call(self, inputs: Tensor) -> Tensor:
        kernel = ops.cast(self.kernel, self.compute_dtype)
        hidden = self._forward(inputs, kernel)
        if self.bias is not None:
            hidden = hidden + self._per_channel(self.bias)
        hidden = self.activation(hidden) * self._per_channel(ops.cast(self._steps(), self.compute_dtype))
        return scaled(inputs - self._forward(hidden, self._transposed(kernel)), self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        hidden = self._folded_hidden(built(self).kernel)
        back_kernel = self._transposed(-self._steps() * in_float32(self.kernel))
        back = self._folded(back_kernel, None, f"{self.name}_back")
        add, scale = keras.layers.Add(name=self.name, dtype=self.dtype_policy), fold_scale(self.k_coef_lip)
        return lambda inputs: scale(add([inputs, back(hidden(inputs))]))

    def _steps(self) -> Tensor:
        """Returns t, in the kernel's dtype, at least float32: one number, or one for each hidden unit."""
        return ops.convert_to_tensor(2.0, dtype=in_float32(self.kernel).dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._features(input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
        }

    def _features(self, input_shape: Shape) -> int:
        """Returns the number of features, or channels, of an input, and raises where that is not one for the layer."""
        raise NotImplementedError

    def _shape_of_kernel(self, features: int) -> Shape:
        raise NotImplementedError

    def _forward(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Applies a kernel: the operator `W^T`."""
        raise NotImplementedError

    def _transposed(self, kernel: Tensor) -> Tensor:
        """Returns the kernel of the operator W."""
        raise NotImplementedError

    def _folded(self, kernel: Tensor, bias: Tensor | None, name: str) -> Callable[[Tensor], Tensor]:
        """Returns `_forward` with that kernel, and a bias, as a built-in layer."""
        raise NotImplementedError

    def _per_channel(self, values: Tensor) -> Tensor:
        """Shapes one value for each channel such that they fit an image."""
        return values

    def _folded_hidden(self, kernel: Tensor) -> Callable[[Tensor], Tensor]:
        forward = self._folded(kernel, self.bias, f"{self.name}_hidden")
        activation = fold_activation(self.activation)
        return lambda inputs: activation(forward(inputs))


class SLL(Block):
    """Mixed in before `_DenseMaps` or `_ConvMaps`."""

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.q = self.add_weight(name="q", shape=self.kernel.shape[-1:], initializer="zeros", autocast=False)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("name") == "kernel":
            kwargs["autocast"] = False  # T is computed in the kernel's own precision
        return super().add_weight(*args, **kwargs)

    def _steps(self) -> Tensor:
        return 2.0 / gram_row_sums(self.kernel, self.q)


class CPL(ConstrainedKernel, Block):
    """Mixed in before `_DenseMaps` or `_ConvMaps`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parametrization = BoundedOperatorNorm(1.0)

    def fold(self) -> Callable[[Tensor], Tensor]:
        return Block.fold(self)


def with_tensors(plain: Any, *tensors: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Returns a plain layer as a function that builds it with these weights."""
    return with_weights(plain, [ops.convert_to_numpy(tensor) for tensor in tensors if tensor is not None])
