"""What every layer of this library has: a constant, a constrained kernel where it has a kernel, and a fold."""

import contextvars
from collections.abc import Callable
from typing import Any, TypeVar

import keras
from keras import ops

from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_positive
from deel_like_lip.bounds.activations import activation_constant
from deel_like_lip.parametrizations import Parametrization, with_tangent_gradient

# Whether the current code runs inside the `call` of a constrained layer, and if so whether that call is one of
# training. A context variable, since replicas of a distributed step may run in threads of one process.
_CALL_IS_TRAINING: contextvars.ContextVar[bool | None] = contextvars.ContextVar("_CALL_IS_TRAINING", default=None)


class LipschitzLayer(keras.layers.Layer):
    """A layer that promises a Lipschitz constant for the l2 norm.

    Mixed in before the Keras layer that it specialises.

    Args:
        k_coef_lip: The constant that the layer promises, a positive finite number.
        **kwargs: Arguments of the Keras layer.

    Input shape:
        That of the subclass.

    Output shape:
        That of the subclass.

    Raises:
        ValueError: If `k_coef_lip` is not a positive finite number.

    Example:
        >>> class Negative(LipschitzLayer):
        ...     def call(self, inputs):
        ...         return -self.k_coef_lip * inputs
        ...     def fold(self):
        ...         return keras.layers.Rescaling(-self.k_coef_lip)
        >>> certify(keras.Sequential([keras.Input((4,)), Negative(k_coef_lip=0.5)])).lipschitz_constant
        0.5
    """

    def __init__(self, *args: Any, k_coef_lip: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.k_coef_lip = checked_positive(k_coef_lip, "k_coef_lip")

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer. Integers, such as the pixels of images, are computed with as floating-point numbers."""
        one = getattr(inputs, "dtype", None) is not None
        inputs = self._as_float(inputs) if one else keras.tree.map_structure(self._as_float, inputs)
        return super().__call__(inputs, *args, **kwargs)

    def _as_float(self, inputs: Any) -> Any:
        dtype = getattr(inputs, "dtype", None)
        if dtype is None or keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype)):
            return inputs
        return ops.cast(inputs, self.compute_dtype)

    def fold(self) -> Callable[[Tensor], Tensor]:
        """Returns a function that does the same with built-in Keras layers and ops only.

        The layers are created once, with the weights that this layer has now: calling the function several times shares
        them. It is called on `KerasTensor`s, so that its calls become part of a functional model.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `fold`.")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}


class ConstrainedKernel(LipschitzLayer):
    """A layer with a `kernel` that stays in a set of allowed kernels, and not one weight more than its Keras layer.

    One weight is stored, by default the kernel as it is used. It is allowed from `build` on, through the initializer;
    its gradient in training is tangent; and it is projected back, as the variable's constraint, right after each update
    of any Keras optimizer. At inference it is read and nothing else, unless the parametrization computes the kernel
    from it. Subclasses set `parametrization`, bound to what they do, in their `__init__`.
    """

    parametrization: Parametrization
    stored_kernel: Tensor
    activation: Any

    # Arguments of the Keras layers that would undo or double what this class does.
    _REFUSED: tuple[str, ...] = ("kernel_constraint", "lora_rank", "lora_alpha", "quantization_config")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in self._REFUSED:
            value = kwargs.pop(name, None)
            if value is not None:
                raise ValueError(
                    f"Argument `{name}` is not accepted by {type(self).__name__}: the layer constrains its kernel "
                    f"itself. Use the plain Keras layer instead, which `certify` also bounds. Received: {name}={value}"
                )
        super().__init__(*args, **kwargs)
        self.activation = checked_activation(self.activation, type(self).__name__)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Creates a weight. The one named `kernel` is created constrained."""
        if kwargs.get("name") == "kernel":
            initializer = keras.initializers.get(kwargs["initializer"])
            parametrization = self.parametrization
            self._kernel_shape = tuple(kwargs["shape"])
            kwargs["shape"] = parametrization.weight_shape(self._kernel_shape)
            kwargs["initializer"] = lambda *a, **k: parametrization.start(initializer, *a, **k)
            kwargs["constraint"] = parametrization.constraint
            kwargs["autocast"] = False  # the tangent gradient is taken in the variable's own precision
            self.stored_kernel = super().add_weight(*args, **kwargs)
            return self.stored_kernel
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if isinstance(self.activation, keras.layers.Layer):
            # Refuses now what it would refuse at the first call, such as a number of channels that it cannot sort, and
            # creates its weights while that is allowed.
            outputs = self.compute_output_shape(input_shape)
            self.activation.compute_output_shape(outputs)
            if not self.activation.built:
                self.activation.build(outputs)

    @property
    def kernel(self) -> Tensor:
        """The kernel: the variable itself or what is computed from it, inside `call` in the dtype to compute with."""
        if not self.built:
            raise AttributeError(f"The {type(self).__name__} layer '{self.name}' is not built, so it has no `kernel`.")
        weight = self.stored_kernel
        training = _CALL_IS_TRAINING.get()
        if training:
            weight = with_tangent_gradient(self.parametrization, weight)
        kernel = self.parametrization.kernel(weight, self._kernel_shape)
        return kernel if training is None else ops.cast(kernel, self.compute_dtype)

    @kernel.setter
    def kernel(self, variable: Tensor) -> None:
        """Takes the variable that some Keras layers assign in `build`; `add_weight` has kept it already."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self._call_in_training(inputs) if training else self._call_as_keras(inputs, training=False)

    def _call_in_training(self, inputs: Tensor) -> Tensor:
        """Calls the layer such that the gradient of the kernel is tangent."""
        return self._call_as_keras(inputs, training=True)

    def _call_as_keras(self, inputs: Tensor, training: bool) -> Tensor:
        token = _CALL_IS_TRAINING.set(training)
        try:
            return super().call(inputs)
        finally:
            _CALL_IS_TRAINING.reset(token)

    def renormalize(self) -> None:
        """Projects the stored kernel onto the allowed ones, once."""
        self.stored_kernel.assign(self.parametrization.project(self.stored_kernel))

    def save_own_variables(self, store: Any) -> None:
        keras.layers.Layer.save_own_variables(self, store)  # that of Dense and Conv saves what `kernel` returns

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            f"LoRA is not available on the {type(self).__name__} layer '{self.name}': a kernel plus an update of low "
            "rank is not constrained. Fold the model with `vanilla_model` first, then certify the result."
        )

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            f"The {type(self).__name__} layer '{self.name}' cannot be quantized: rounded kernels are not constrained. "
            "Fold the model with `vanilla_model` first, then certify the result."
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in self._REFUSED:
            config.pop(name, None)
        return config

    def fold(self) -> Callable[[Tensor], Tensor]:
        plain = built(self)._plain_layer()
        activation = fold_activation(self.activation)
        used = [self.kernel if weight is self.stored_kernel else weight for weight in own_weights(self)]
        weights = [keras.ops.convert_to_numpy(weight) for weight in used]

        def folded(inputs: Tensor) -> Tensor:
            inputs = self._prepare_inputs(inputs)
            if not plain.built:
                plain.build(inputs.shape)
                plain.set_weights(weights)
            return activation(self._finish_outputs(plain(inputs)))

        return folded

    def _plain_layer(self) -> Any:
        """Returns an unbuilt built-in layer with this layer's arguments and without an activation."""
        raise NotImplementedError

    def _plain_config(self) -> dict[str, Any]:
        """Returns the arguments of the Keras layer that this layer specialises, as far as they matter at inference."""
        of_training = ("_initializer", "_regularizer", "_constraint")
        config = self.get_config()
        del config["k_coef_lip"], config["activation"]
        config.pop("parametrization", None)
        return {name: value for name, value in config.items() if not name.endswith(of_training)}

    def _prepare_inputs(self, inputs: Tensor) -> Tensor:
        """Applies what comes before the plain layer, such as padding."""
        return inputs

    def _finish_outputs(self, outputs: Tensor) -> Tensor:
        """Applies what comes between the plain layer and the activation, such as cropping."""
        return outputs


_Layer = TypeVar("_Layer", bound=keras.layers.Layer)


def built(layer: _Layer) -> _Layer:
    """Returns a layer that is to be folded, and raises if it has no weights yet."""
    if not layer.built:
        raise ValueError(
            f"The {type(layer).__name__} layer '{layer.name}' is not built, so it has no weights to fold. Call the "
            "model on data or give it an `Input` first."
        )
    return layer


def checked_activation(activation: Any, owner: str) -> Any:
    """Returns `activation` if it is known to be 1-Lipschitz, and raises otherwise."""
    own = isinstance(activation, LipschitzLayer)
    constant = activation.k_coef_lip if own else activation_constant(activation)
    if constant is not None and constant <= 1:
        return activation
    name = getattr(activation, "__name__", None) or type(activation).__name__
    reason = "has no known Lipschitz constant" if constant is None else f"has the Lipschitz constant {constant:g}"
    raise ValueError(
        f"Invalid value for argument `activation` of {owner}. Expected an activation whose Lipschitz constant is at "
        f"most 1, such as GroupSort2() or 'relu', but '{name}' {reason}. Apply it as a layer of its own if that is "
        f"what you want; `certify` then counts its constant where it knows it. Received: activation={activation}"
    )


def own_weights(layer: Any) -> list[Any]:
    """Returns the weights of a layer without those of its activation."""
    activation = getattr(layer, "activation", None)
    others = {id(weight) for weight in getattr(activation, "weights", ())}
    return [weight for weight in layer.weights if id(weight) not in others]


def fold_activation(activation: Any) -> Callable[[Tensor], Tensor]:
    """Returns a function that applies `activation` by built-in Keras layers and ops only."""
    if isinstance(activation, LipschitzLayer):
        return activation.fold()
    if activation is None or activation is keras.activations.linear:
        return lambda inputs: inputs
    if isinstance(activation, keras.layers.Layer):
        return type(activation).from_config(activation.get_config())
    return keras.layers.Activation(activation)


def scaled(outputs: Tensor, factor: float) -> Tensor:
    """Returns `factor * outputs` and spends nothing on a factor of 1."""
    return outputs if factor == 1 else outputs * factor


def fold_scale(factor: float) -> Callable[[Tensor], Tensor]:
    """Returns a function that multiplies by `factor` with a built-in layer, or not at all where the factor is 1."""
    return keras.layers.Rescaling(factor) if factor != 1 else lambda inputs: inputs


def with_zero_channels(inputs: Tensor, axis: int, count: int) -> Tensor:
    """Returns the inputs with channels of zeros behind theirs, also symbolically.

    TensorFlow on CPUs makes one operation of a padding and a convolution that follows, and forgets its channels: so the
    padded axis is moved to another place and back, where there are others.
    """
    if not count:
        return inputs
    rank = len(inputs.shape)
    pads = [(0, 0), (0, count), *[(0, 0)] * (rank - 2)]
    return ops.moveaxis(ops.pad(ops.moveaxis(inputs, axis, 1), pads), 1, axis) if axis > 1 else ops.pad(inputs, pads)


def channel_axis(data_format: str, shape: Shape) -> int:
    """Returns the axis of the channels in a tensor of that shape; tensors without spatial axes have them last."""
    return 1 if data_format == "channels_first" and len(shape) > 2 else len(shape) - 1
