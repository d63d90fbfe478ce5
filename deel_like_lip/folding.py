"""Folding: the same predictions with built-in Keras layers and ops only."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from deel_like_lip._keras import functional_class
from deel_like_lip._registration import PACKAGE
from deel_like_lip._typing import Tensor
from deel_like_lip.bounds.admission import check_inherited, check_methods, check_state, config_of, difference_from
from deel_like_lip.bounds.rules import Call, CannotBoundError
from deel_like_lip.layers.base import LipschitzLayer, fold_activation, own_weights


def vanilla_model(model: keras.Model, *, dtype: str | None = None) -> keras.Model:
    """Returns a plain Keras model that predicts the same, and loads where this library is not installed.

    Every layer of this library becomes built-in layers and ops with the weights that it has now. Other layers are
    copied with their weights. Layers that are shared stay shared, and nested models stay nested models. The result
    shares no variable with `model` and is not compiled.

    Args:
        model: A built model: `Sequential`, functional, or a subclass of `keras.Model` whose `call` only calls Keras
            layers, models and ops on its inputs.
        dtype: "float32" or "float64": what the result computes in, and has its weights in, whatever `model` does. By
            default each layer computes as the one that it comes from.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: If the model is not built, a layer cannot be folded, which the message names, or `dtype` is wrong.

    Example:
        >>> plain = vanilla_model(model)
        >>> plain.save("plain.keras")
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`vanilla_model` expects a `keras.Model`. Received: model={model!r}")
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f'Expected `dtype` to be "float32", "float64" or None. Received: dtype={dtype!r}')
    plain = _Folder().fold_model(model)
    if dtype is not None:
        plain = _Folder(dtype).fold_model(plain)
    for layer in plain._flatten_layers(include_self=False):
        if not isinstance(layer, keras.Model):
            _check_plain(layer)
    return plain


vanillaModel = vanilla_model  # noqa: N816 (the name in deel-lip)


class _Folder:
    """Folds each layer once, so that layers which are called several times stay shared."""

    def __init__(self, dtype: str | None = None) -> None:
        self._folded: dict[int, Callable[..., Any]] = {}
        self._dtype = dtype  # for inputs and plain layers

    def fold_model(self, model: Any) -> keras.Model:
        inputs, run = _graph(model)
        new_inputs = _new_inputs(inputs, self._dtype)
        return keras.Model(new_inputs, run(new_inputs, self._fold), name=model.name)

    def _fold(self, operation: Any) -> Callable[..., Any]:
        folded = self._folded.get(id(operation))
        if folded is None:
            folded = self._folded[id(operation)] = self._fold_once(operation)
        return folded

    def _fold_once(self, operation: Any) -> Callable[..., Any]:
        check_methods(operation)
        if isinstance(operation, LipschitzLayer):
            return _fold_own(operation)
        if isinstance(operation, keras.Model):
            return self.fold_model(operation)
        if isinstance(operation, keras.layers.Layer):
            return _copy(operation, self._dtype)
        stateless_op: Callable[..., Any] = operation
        return stateless_op


def _fold_own(layer: Any) -> Callable[..., Any]:
    """Returns what a layer of this library computes, by built-in layers and ops."""
    for method in ("call", "__call__", "quantized_call"):
        if not issubclass(_definer(layer, "fold"), _definer(layer, method)):
            raise CannotBoundError(
                f"The layer '{layer.name}' cannot be folded: its class {type(layer).__name__} "
                f"overrides `{method}` but not `fold`, which would describe what the class it derives from computes."
            )
    for part in layer._flatten_layers():
        check_methods(part)
        _check_activation(part)
        if not isinstance(part, LipschitzLayer) and _is_of_keras(part):
            _check_difference(part, _from_config(part, config_of(part)))
    fold = layer.fold()

    def folded(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # What it folds to takes inputs alone, and is what the layer computes at inference.
        given = {f"argument {place}": value for place, value in enumerate(args, 2)} | kwargs
        for name, value in given.items():
            if value is not None and not (name == "training" and value is False):
                raise CannotBoundError(
                    f"The {type(layer).__name__} layer '{layer.name}' cannot be folded: the model calls it with "
                    f"`{name}`, and its fold is that of a call with inputs alone, at inference. Leave it out. "
                    f"Received: {name}={value!r}"
                )
        with _named(layer):
            outputs = fold(inputs)
        _name_after(layer.name, inputs, outputs)
        return outputs

    return folded


Run = Callable[[Any, Callable[[Any], Callable[..., Any]]], Any]


def _graph(model: Any) -> tuple[Any, Run]:
    """Returns a model's symbolic inputs, and a function that runs other operations through its graph."""
    if not model.built:
        raise ValueError(
            f"The model '{model.name}' is not built, so it has no weights yet. Call it on data or give it an `Input` "
            "first."
        )
    check_methods(model)
    check_inherited(model)
    if _definer(model, "call") not in _OF_KERAS:
        model = _trace(model)  # its own `call` decides what it computes, even if it has a graph as well
    if isinstance(model, keras.Sequential):
        model = model._functional or _trace(model)
    return model._inputs_struct, lambda inputs, fold: model._run_through_graph(inputs, operation_fn=fold)


# The classes of Keras that say how a model computes.
_OF_KERAS = (functional_class(), keras.Sequential, keras.Model, keras.layers.Layer)


def _trace(model: Any) -> keras.Model:
    """Makes a functional model of a subclass of `keras.Model`, by calling it on symbolic inputs."""
    inputs = _symbolic_inputs(model)
    try:
        # (In inference, whatever the default of its own `call` is.)
        known = "training" in inspect.signature(model.call).parameters
        outputs = model.call(inputs, training=False) if known else model.call(inputs)
    except Exception as error:
        raise ValueError(
            f"The model '{model.name}' of class {type(model).__name__} cannot be folded: its `call` does something to "
            "its inputs that is not a Keras layer, model or op. Write it with `keras.ops`, or as a functional model."
        ) from error
    return keras.Model(inputs, outputs, name=model.name)


def _symbolic_inputs(model: Any) -> Any:
    """Returns new inputs of the shapes that a model was built for."""
    if hasattr(model, "_inputs_struct"):
        return _new_inputs(model._inputs_struct)
    shapes = list((model._build_shapes_dict or {}).values())
    shape = shapes[0] if len(shapes) == 1 else None
    if not isinstance(shape, tuple) or any(not isinstance(size, int | None) for size in shape):
        raise ValueError(
            f"The model '{model.name}' of class {type(model).__name__} cannot be folded: it does not have one input of "
            "known shape. Wrap it in a functional model, `keras.Model(inputs, model.call(inputs))`. "
            f"Received: input shapes {shapes}"
        )
    return keras.Input(batch_shape=(None, *shape[1:]))


def _new_inputs(tensors: Any, dtype: str | None = None) -> Any:
    def new(tensor: Any) -> Any:
        own = dtype if dtype and keras.backend.is_float_dtype(tensor.dtype) else tensor.dtype
        return keras.Input(batch_shape=tensor.shape, dtype=own, name=tensor.name)

    return keras.tree.map_structure(new, tensors)


def _name_after(layer: str, inputs: Tensor, outputs: Tensor) -> None:
    """Puts a layer's name before those that Keras gave to what it is folded into, which other layers may have too."""
    seen = set(map(id, keras.tree.flatten(inputs)))
    tensors = keras.tree.flatten(outputs)
    while tensors:
        tensor = tensors.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, node, _ = tensor._keras_history
        if operation.name != layer and not operation.name.startswith(f"{layer}_"):
            operation.name = f"{layer}_{operation.name}"
        tensors += operation._inbound_nodes[node].input_tensors


# Layers whose activation is the last thing that they do, unlike that of a recurrent layer.
_ACTIVATION_COMES_LAST = (
    keras.layers.Activation,
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3D,
    keras.layers.Conv3DTranspose,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def _copy(layer: Any, dtype: str | None = None) -> Callable[..., Any]:
    """Returns a copy of a plain layer, with its weights, with its activation folded, and in a dtype if one is given."""
    for part in layer._flatten_layers():
        if getattr(part, "quantization_mode", None) not in (None, "int8", "int4"):
            raise ValueError(
                f"The {type(part).__name__} layer '{part.name}' cannot be folded: it is quantized by the mode "
                f"'{part.quantization_mode}'. Fold the model first, then quantize its kernels to int8 or int4."
            )
    if isinstance(layer, keras.layers.Lambda):
        raise CannotBoundError(
            f"The Lambda layer '{layer.name}' cannot be folded: it runs a Python function, which no file can hold. "
            "Write it with `keras.ops` in the model's graph, as in `outputs = 2.0 * keras.ops.relu(inputs)`."
        )
    activation = getattr(layer, "activation", None)
    own_activation = isinstance(activation, LipschitzLayer) and type(layer) in _ACTIVATION_COMES_LAST
    for part in layer._flatten_layers():
        check_methods(part)
        check_state(Call(part, (), ()))
        _check_activation(part)
    config = layer.get_config()
    if own_activation:
        config["activation"] = None
    copy = _from_config(layer, _with_dtype(config, dtype) if dtype else config)
    # (A LoRA update has no place in a config; bounds refuse it by its name.)
    lora = getattr(layer, "lora_enabled", False)
    comparable = _is_of_keras(layer) and layer.built and dtype is None and not own_activation and not lora
    if comparable:
        _check_difference(layer, copy)
    weights = [
        keras.ops.convert_to_numpy(weight) for weight in (own_weights(layer) if own_activation else layer.weights)
    ]
    fold = fold_activation(activation) if own_activation else None
    # A layer that is called on several shapes was built for the first of them, which may come later in the graph.
    build = layer.get_build_config() if weights else None
    if build:
        with _named(layer):
            copy.build_from_config(build)
    called = False

    def folded(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal called
        with _named(layer):
            outputs = copy(*args, **kwargs)
        if not called:
            set_weights(copy, weights)
            called = True
            if comparable:  # also in what it has made of its arguments when it was built
                _check_difference(layer, copy)
        return fold(outputs) if fold is not None else outputs

    return folded


@contextlib.contextmanager
def _named(layer: Any) -> Iterator[None]:
    """Makes errors of a backend or of Keras into one that names the layer. A `ValueError` says enough."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise CannotBoundError(
            f"The {type(layer).__name__} layer '{layer.name}' cannot be folded: a copy of it does not run, as where it "
            f"is called on another shape than it was built for. Received: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def _from_config(layer: Any, config: dict[str, Any]) -> Any:
    """Returns a new layer of a layer's class."""
    try:
        return type(layer).from_config(config)
    except Exception as error:
        raise CannotBoundError(
            f"The {type(layer).__name__} layer '{layer.name}' cannot be folded: no layer can be made of its config. "
            f"Received: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def _is_of_keras(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")


def _check_difference(layer: Any, copy: Any) -> None:
    """Raises if a layer may compute something else than a copy of it, which has its config."""
    difference = difference_from(layer, copy)
    if difference is not None:
        raise CannotBoundError(
            f"The {type(layer).__name__} layer '{layer.name}' cannot be folded: its attribute `{difference}` is not "
            "what its config says, so a copy computes something else. Make a new layer with the arguments you mean. "
            f"Received: {difference}={getattr(layer, difference, None)!r}"
        )


def _check_activation(layer: Any) -> None:
    """Raises if the activation of a layer is a function that a copy would not have."""
    function = getattr(layer, "activation", None)
    if not callable(function) or isinstance(function, keras.layers.Layer):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lambdas
        try:
            again = keras.activations.get(keras.activations.serialize(function))
        except Exception:  # each kind of function has its own
            again = None
    if again is not function:
        name = getattr(function, "__name__", type(function).__name__)
        raise CannotBoundError(
            f"The {type(layer).__name__} layer '{layer.name}' cannot be folded: its activation '{name}' is not one "
            "that its config names, such as those of `keras.activations`, so a copy would compute something else. "
            "Apply it as operations of `keras.ops` in the model's graph, or as a layer with a bound rule."
        )


def _with_dtype(config: Any, dtype: str) -> Any:
    """Returns a layer's config with another dtype for it and those inside of it, unless they are quantized."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return dtype
        return {name: _with_dtype(value, dtype) for name, value in config.items()}
    return [_with_dtype(value, dtype) for value in config] if isinstance(config, list) else config


def set_weights(layer: Any, weights: Sequence[Any]) -> None:
    """Sets the weights of a plain layer or model such that it computes with them.

    `Normalization` computes with what it has taken from its weights, which `keras.Model.set_weights` leaves as it was.
    """
    layer.set_weights(weights)
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.Normalization):
            part.finalize_state()


def _definer(thing: Any, method: str) -> type:
    """Returns the class that defines a method of an object."""
    return next(kind for kind in type(thing).__mro__ if method in vars(kind))


def _check_plain(layer: Any) -> None:
    """Raises if a layer of this library is left inside another layer, such as a wrapper."""
    if _mentions_package(keras.saving.serialize_keras_object(layer)):
        raise ValueError(
            f"The {type(layer).__name__} layer '{layer.name}' cannot be folded: it holds a layer of this library "
            "inside. Apply that layer on its own instead, outside of wrappers."
        )


def _mentions_package(config: Any) -> bool:
    if isinstance(config, dict):
        origins = (str(config.get("module")), str(config.get("registered_name")))
        return any(origin.startswith(PACKAGE) for origin in origins) or any(map(_mentions_package, config.values()))
    return isinstance(config, (list, tuple)) and any(map(_mentions_package, config))
