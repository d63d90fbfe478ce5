"""The gate in front of all bound rules: what is let through is known to be what runs.

Rules are right about the operation that they were written for. Whether it is that operation which a model computes with
is decided here, for each call of its graph: by the exact class, the class's own methods, every entry of the config and
every attribute, every argument, every dtype, the shapes of this call, and weights that are finite. Rules rely on it.
What is not known for certain is refused, by the name of the layer.
"""

import dataclasses
import functools
import inspect
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from deel_like_lip._geometry import entries
from deel_like_lip._keras import functional_class, functional_graph, kept_randomness, nodes
from deel_like_lip.bounds.activations import known_activation
from deel_like_lip.bounds.rules import Call, CannotBoundError, Rule, is_op, rule_of

_FLOATS = ("float32", "float64")
_WAY_OUT = "Make a new layer with the arguments that you mean, and give it this one's weights."

# Entries of a config that matter in training only, or are looked at elsewhere.
_OF_TRAINING = {
    *("name", "trainable", "dtype", "activity_regularizer", "seed", "rate", "stddev", "noise_shape", "l1", "l2"),
    *("momentum", "synchronized", "renorm", "renorm_clipping", "renorm_momentum"),
}
_SUFFIXES_OF_TRAINING = ("_initializer", "_regularizer", "_constraint")
# Attributes that differ between a layer and a new one of the same config, or play no part in what is computed: Keras's
# bookkeeping, and that of the backend's module which a layer also is.
_BOOKKEEPING = {
    *("name", "built", "build", "quantize", "_auto_config", "_build_shapes_dict", "_called", "_inbound_nodes"),
    *("_input_spec", "input_spec", "_layers", "_lock", "_loss_ids", "_losses", "_losses_override", "_metrics"),
    *("_outbound_nodes", "_parent_path", "_path", "_remat_mode", "_trainable", "_tracked", "_tracker", "backend"),
    *("_non_trainable_variables", "_trainable_variables", "_seed_generators", "seed_generator", "seed", "training"),
    *("_modules", "_parameters", "_buffers", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
    *(
        "supports_jit",
        "_build_input_shape",
        "_self_unconditional_checkpoint_dependencies",
        "_self_unconditional_dependency_names",
    ),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # that torch runs around a call
_MODELS = (functional_class(), keras.Sequential)
# Methods of a model that take part when it is called.
_OF_MODELS = (
    *("call", "symbolic_call", "quantized_call", "rematerialized_call", "_run_through_graph", "_standardize_inputs"),
    *("_convert_inputs_to_tensors", "_adjust_input_rank", "_maybe_warn_inputs_struct_mismatch"),
)
_PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), np.ndarray, np.generic, type, types.FunctionType),
    *(types.BuiltinFunctionType, inspect.Signature, keras.DTypePolicy),
)


def admit_graph(model: Any) -> list[Call]:
    """Returns the calls of a functional model in an order of computation, each of which has passed the gate.

    Raises:
        CannotBoundError: If one has not, or the model computes something else than its graph.
    """
    check_model(model)
    for tensor in functional_graph(model).inputs:
        if not tensor.dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
            raise CannotBoundError(
                f"The input '{tensor.name}' of the model '{model.name}' is of type {tensor.dtype}. Bounded are models "
                "of real numbers: start from the tensor that holds them, `keras.Model(numbers, outputs)`."
            )
        if entries(tuple(tensor.shape[1:])) == 0:
            raise CannotBoundError(f"The input '{tensor.name}' of the model '{model.name}' is without any value.")
        if keras.backend.is_float_dtype(tensor.dtype) and tensor.dtype not in _FLOATS:
            raise CannotBoundError(
                f"The input '{tensor.name}' of the model '{model.name}' is of type {tensor.dtype}, to which Keras "
                'rounds what it is given: inputs that differ by less jump. Make it `keras.Input(..., dtype="float32")`.'
            )
    return [_admit(node) for node in nodes(model)]


def check_model(model: Any) -> None:
    """Raises if a model may compute something else than its graph."""
    if type(model) not in _MODELS:
        raise CannotBoundError(
            f"The model '{model.name}' of class {type(model).__name__} may compute something else than its graph. "
            "Fold it with `vanilla_model` first, which follows its `call`."
        )
    check_methods(model)
    check_methods(functional_graph(model))


def as_call(node: Any) -> Call:
    """Makes a `Call` of a node of Keras's graph.

    Raises:
        CannotBoundError: If it is not certain which argument is which.
    """
    call = Call(node.operation, node.input_tensors, node.outputs)
    if isinstance(node.operation, keras.Model):
        return _call_of_model(call, node.arguments.args, node.arguments.kwargs)
    return dataclasses.replace(call, arguments=_bound_arguments(call, node.arguments))


def _admit(node: Any) -> Call:
    """Returns a call of the graph, if the gate lets it through."""
    call, rule = Call(node.operation, node.input_tensors, node.outputs), rule_of(node.operation)
    if isinstance(node.operation, keras.Model):
        check_model(node.operation)
    elif rule is None:
        raise call.refuse(_no_rule(node.operation))
    call = as_call(node)
    if rule is not None:
        _check_call(call, rule)
    return call


def _no_rule(operation: Any) -> str:
    if isinstance(operation, keras.layers.Lambda):
        return "it runs a Python function that no rule can look into. Write it with `keras.ops` in the model's graph."
    return (
        "there is no bound rule for it. Replace it by a layer that has one, or tell its constant with "
        "`deel_like_lip.bounds.register_bound_rule`."
    )


def _check_call(call: Call, rule: Rule) -> None:
    if isinstance(call.operation, keras.layers.Layer):
        check_layer(call.operation, call)
    else:
        check_op(call, rule)
    check_arguments(call, rule)
    check_dtypes(call, rule)
    check_shapes(call)


# --- the operation ---------------------------------------------------------------------------------------------------


def check_layer(layer: Any, call: Call | None = None) -> None:
    """Raises if a layer may compute something else than a new layer of its class and config, or holds NaN.

    Args:
        layer: A layer of a class with a rule.
        call: The call to name in errors; by default the layer is named by itself.
    """
    call = call or Call(layer, (), ())
    rule = rule_of(layer)
    if rule is None:
        raise call.refuse(_no_rule(layer))
    check_methods(layer, call)
    if type(layer).call is not rule.call:
        raise call.refuse(f"the method `call` of {type(layer).__name__} is another one than when its rule was made.")
    check_activation(call)
    for variable in layer.variables:
        values = np.asarray(keras.ops.convert_to_numpy(variable))
        # (Numbers of eight bits and less are what quantized kernels are made of.)
        if values.dtype.kind == "f" and not is_float32(values):
            raise call.refuse(f"its weight '{variable.name}' holds NaN or infinite entries, in float32.")
    if rule.config is not None:
        check_config(call, rule)
        check_state(call)
        for part in _sub_layers(layer):
            if part.compute_dtype not in _FLOATS:
                raise call.refuse(f"the layer '{part.name}' inside of it computes in {part.compute_dtype}.")
            check_layer(part)


def check_methods(operation: Any, call: Call | None = None) -> None:
    """Raises if an instance has methods of its own in place of those of its class."""
    # (Of a model, `compile` replaces what belongs to training. Keras itself wraps two in every layer.)
    kind: Any = type(operation)
    own = vars(operation).keys() & _methods(kind)
    own = own & {*_OF_MODELS} if isinstance(operation, keras.Model) else own - {"build", "quantize"}
    own |= {name for name in _HOOKS if vars(operation).get(name)}
    for name in sorted(own):
        raise (call or Call(operation, (), ())).refuse(f"its method `{name}` was replaced on this instance. {_WAY_OUT}")


@functools.lru_cache(maxsize=1024)
def _methods(kind: Any) -> frozenset[str]:
    return frozenset(name for base in kind.__mro__ for name, value in vars(base).items() if callable(value))


def check_inherited(model: Any) -> None:
    """Raises if the class of a model replaces one of Keras's methods around its `call`."""
    for name in ("__call__", "predict_step", *_OF_MODELS[1:]):
        own = getattr(type(model), name, None)
        if own is not None and own not in [getattr(kind, name, None) for kind in _MODELS]:
            raise Call(model, (), ()).refuse(
                f"its class overrides `{name}`, which is not followed. Override `call`, or write a functional model."
            )


def check_activation(call: Call) -> None:
    """Raises if the activation of a layer is a function that Keras does not name, or one named like that of Keras."""
    activation = getattr(call.operation, "activation", None)
    if callable(activation) and not isinstance(activation, keras.layers.Layer) and known_activation(activation) is None:
        name = getattr(activation, "__name__", type(activation).__name__)
        raise call.refuse(
            f"the activation '{name}' has no known Lipschitz constant: it is not one of those functions of "
            "`keras.activations` that have one. Apply it as a layer with a bound rule of its own."
        )


def check_config(call: Call, rule: Rule) -> None:
    """Raises if a layer is not what its config says, or the config says what the rule does not know of."""
    layer, known = call.operation, rule.config or frozenset()
    config = config_of(layer)
    for name, value in config.items():
        if not matters(name):
            continue
        if name not in known:
            raise call.refuse(
                f"its argument `{name}` is not known to its bound rule, as that of another version of Keras. Received: "
                f"{name}={value!r}."
            )
        if any(isinstance(number, float) and not is_float32(number) for number in keras.tree.flatten(value)):
            raise call.refuse(f"its argument `{name}` is not finite, in float32.")
    try:
        with kept_randomness():
            fresh = type(layer).from_config(config)
    except Exception as error:
        raise call.refuse(f"no layer can be made of its config: {_first_line(error)}") from error
    difference = difference_from(layer, fresh)
    if difference is not None and not difference.startswith("lora_"):  # which reading the kernel refuses
        raise call.refuse(f"its attribute `{difference}` is not what its config says. {_WAY_OUT}")


def config_of(layer: Any) -> dict[str, Any]:
    """Returns the config of a layer without initializers, regularizers and constraints, which may be any functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of such functions
        config = layer.get_config()
    return {name: value for name, value in config.items() if not name.endswith(_SUFFIXES_OF_TRAINING)}


def is_float32(values: Any) -> bool:
    """Whether all numbers of an array are finite when they are rounded to float32."""
    with np.errstate(over="ignore"):
        return bool(np.all(np.isfinite(np.asarray(values, np.float64).astype(np.float32))))


def matters(name: str) -> bool:
    """Whether an entry of a config may change what a layer computes at inference, its dtype left aside."""
    return name not in _OF_TRAINING and not name.endswith(_SUFFIXES_OF_TRAINING)


def op_arguments(operation: Any) -> dict[str, Any]:
    """Returns the arguments that an op of `keras.ops` was made with."""
    return {name: value for name, value in vars(operation).items() if name not in _BOOKKEEPING}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def difference_from(layer: Any, other: Any) -> str | None:
    """Returns the name of an attribute in which a layer differs from another one of the same config, or None."""
    own = vars(layer)
    if other.built:
        own_places, places = _places_of_weights(layer), _places_of_weights(other)
        moved = [name for name in {**places, **own_places} if places.get(name) != own_places.get(name)]
        if moved:
            return sorted(moved)[0]
    for name, expected in vars(other).items():
        if name in _BOOKKEEPING or name.endswith(_SUFFIXES_OF_TRAINING):
            continue
        value = own.get(name, inspect.Parameter.empty)
        if isinstance(expected, keras.layers.Layer):
            if type(value) is not type(expected):
                return name
        elif _is_plain(expected) and not _equal(value, expected) and not _is_state(name, value, expected):
            return name
    return None


def _places_of_weights(layer: Any) -> dict[str, int]:
    """Returns which of a layer's variables each of its attributes is, -1 for one that the layer does not count."""
    places = {id(variable): place for place, variable in enumerate(layer.variables)}
    attributes = {name: value for name, value in vars(layer).items() if isinstance(value, keras.Variable)}
    return {name: places.get(id(value), -1) for name, value in attributes.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _equal(value: Any, expected: Any) -> bool:
    if value is expected:
        return True
    if isinstance(expected, types.FunctionType):
        return isinstance(value, types.FunctionType) and value.__code__ is expected.__code__
    if isinstance(expected, np.ndarray | list | tuple):
        try:
            return bool(np.shape(value) == np.shape(expected) and np.array_equal(value, expected))
        except (TypeError, ValueError):
            return bool(value == expected)
    try:
        return bool(value == expected)
    except (TypeError, ValueError, RuntimeError):
        return False


def _is_state(name: str, value: Any, expected: Any) -> bool:
    """Whether a value stands where a new layer has nothing yet: a weight, or what `build` has derived."""
    return expected is None and (
        name.startswith("_") or isinstance(value, keras.Variable) or keras.ops.is_tensor(value)
    )


def _sub_layers(layer: Any) -> list[Any]:
    return list(layer._flatten_layers(include_self=False, recursive=False))


def check_state(call: Call) -> None:
    """Raises if a layer computes with something else than the weights that it has."""
    layer = call.operation
    if type(layer) is not keras.layers.Normalization or not layer.built:
        return
    if layer.mean is None or layer.variance is None:
        raise call.refuse("its statistics are not known: call `adapt` first.")
    given = layer.input_mean is not None
    mean, variance = (layer.input_mean, layer.input_variance) if given else (layer.adapt_mean, layer.adapt_variance)
    for used, stored in ((layer.mean, mean), (layer.variance, variance)):
        used, stored = (np.asarray(keras.ops.convert_to_numpy(value), np.float32) for value in (used, stored))
        # (One number that was given is that of all.)
        if not np.array_equal(used.reshape(-1), np.resize(stored, used.size)):
            raise call.refuse(
                "its weights are not the statistics that it computes with, as after `set_weights`. Call "
                "`finalize_state()` on it."
            )


def check_op(call: Call, rule: Rule) -> None:
    """Raises if an op of `keras.ops` has attributes that its rule does not know of."""
    operation = call.operation
    check_methods(operation, call)
    if type(operation).call is not rule.call:
        raise call.refuse(
            f"the method `call` of {type(operation).__name__} is another one than when its rule was made."
        )
    assert rule.config is not None
    for name in set(op_arguments(operation)) - rule.config:
        raise call.refuse(f"its argument `{name}` is not known to its bound rule.")
    try:
        specs = keras.tree.flatten(operation.compute_output_spec(**call.arguments))
    except Exception as error:
        raise call.refuse(f"its arguments have changed since the model was made ({_first_line(error)}).") from error
    if [(spec.shape, spec.dtype) for spec in specs] != [(output.shape, output.dtype) for output in call.outputs]:
        raise call.refuse("its arguments have changed since the model was made.")


# --- the call --------------------------------------------------------------------------------------------------------


def _bound_arguments(call: Call, arguments: Any) -> dict[str, Any]:
    """Returns the arguments of a call by their names."""
    operation, kwargs = call.operation, dict(arguments.kwargs)
    signature = inspect.signature(type(operation).call)
    # Keras takes `training` for every layer, and hands it on to those that know it.
    _refuse_training(call, kwargs.get("training"))
    if "training" not in signature.parameters:
        kwargs.pop("training", None)
    try:
        bound = signature.bind(operation, *arguments.args, **kwargs).arguments
    except TypeError as error:
        raise call.refuse(f"it is called with other arguments than it takes ({error}).") from error
    return dict(list(bound.items())[1:])


def _refuse_training(call: Call, value: Any) -> None:
    """Raises if a layer or nested model is called in training mode, whatever the model is called with."""
    if value is not None and not (isinstance(value, bool | np.bool_) and not value):
        raise call.refuse("the model calls it with `training=True`, and bounds are those of inference.")


def check_arguments(call: Call, rule: Rule) -> None:
    """Raises where a call has an argument that the rule does not know of, such as a mask."""
    first, *_ = call.arguments
    defaults = inspect.signature(type(call.operation).call).parameters
    for name, value in call.arguments.items():
        for leaf in keras.tree.flatten(value):
            if isinstance(leaf, keras.Variable):
                raise call.refuse(f"its argument `{name}` is a variable, which may change. Pass its value.")
        if name == "training":
            _refuse_training(call, value)
        elif (
            name != first and name not in rule.arguments and not (value is defaults[name].default or _is_nothing(value))
        ):
            raise call.refuse(
                f"the model calls it with the argument `{name}`, which its bound rule does not cover. Leave it out."
            )
    if any(not isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(call.arguments[first])):
        _check_constants(call, call.arguments[first])


def _is_nothing(value: Any) -> bool:
    return all(leaf is None for leaf in keras.tree.flatten(value))


def _check_constants(call: Call, values: Any) -> None:
    """Raises if the arrays among the tensors that a call takes are not finite numbers of one sample."""
    for value in keras.tree.flatten(values):
        if isinstance(value, keras.KerasTensor):
            continue
        try:
            array = np.asarray(keras.ops.convert_to_numpy(value), np.float64)
        except (TypeError, ValueError) as error:
            raise call.refuse(f"it takes something that is neither a tensor nor a number: {value!r}.") from error
        if not is_float32(array):
            raise call.refuse("a constant in it is not finite, in float32.")


def check_dtypes(call: Call, rule: Rule) -> None:
    """Raises where a call computes in less than float32, or in integers: it may be far from the map it defines."""
    operation = call.operation
    # (A cast has a rule that refuses what it rounds to.)
    own = [] if is_op(operation) else [str(operation.compute_dtype)]
    taken, given = (
        [keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors] for tensors in (call.inputs, call.outputs)
    )
    if is_op(operation, "Cast"):
        given = []
    low = [dtype for dtype in (*own, *given) if keras.backend.is_float_dtype(dtype) and dtype not in _FLOATS]
    if low:
        raise call.refuse(
            f"it computes in {low[0]}, whose rounding errors are as large as margins are, and certificates are of "
            'float32 and float64. Certify and use `vanilla_model(model, dtype="float32")`, of the same weights.'
        )
    integers = sorted({dtype for dtype in (*own, *taken, *given) if not keras.backend.is_float_dtype(dtype)})
    if integers and not (rule.integers and all(dtype in taken for dtype in (*own, *given) if dtype in integers)):
        raise call.refuse(
            f"it computes with integers, {integers[0]}, which wrap around and are rounded off. Make the numbers "
            "floating-point first, by `keras.layers.Rescaling` or an `Input` of another dtype."
        )
    if own and not keras.backend.is_float_dtype(own[0]) and any(dtype not in own for dtype in taken):
        raise call.refuse(f"it rounds its input to {own[0]}.")
    if "float64" in taken and "float64" not in given and own == ["float64"]:
        raise call.refuse("it takes float64 and returns another type.")


def check_shapes(call: Call) -> None:
    """Raises if a tensor of a call has no batch axis, or holds no values."""
    for tensor in (*call.inputs, *call.outputs):
        if not tensor.shape:
            raise call.refuse("it reduces over samples: it has a tensor without a batch axis.")
        if entries(tuple(tensor.shape[1:])) == 0:
            raise call.refuse(f"it has a tensor without any value, of shape {tuple(tensor.shape)}.")


# --- nested models ---------------------------------------------------------------------------------------------------


def _call_of_model(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Returns the call of a nested model, with its inputs in the order of the model's own."""
    model = functional_graph(call.operation)
    given = dict(zip(("inputs", "training", "mask"), args, strict=False)) | dict(kwargs)
    _refuse_training(call, given.pop("training", None))
    inputs = given.pop("inputs", None)
    # (Of several inputs Keras notes that each has no mask.)
    given = {name: value for name, value in given.items() if not _is_nothing(value)}
    if len(args) > 3 or given:
        raise call.refuse(
            f"the model calls it with {', '.join(given) or 'more arguments'} besides inputs. Leave it out."
        )
    tensors = _in_order(call, inputs, model)
    for tensor, own in zip(tensors, model.inputs, strict=True):
        shape, expected = tuple(tensor.shape), tuple(own.shape)
        if len(shape) != len(expected) or any(
            size != other for size, other in zip(shape[1:], expected[1:], strict=True) if other is not None
        ):
            raise call.refuse(f"its input '{own.name}' has the shape {expected}, and is called with {shape}.")
        dtypes = keras.backend.standardize_dtype(tensor.dtype), keras.backend.standardize_dtype(own.dtype)
        if dtypes[0] != dtypes[1] and dtypes != ("float32", "float64"):
            raise call.refuse(
                f"its input '{own.name}' is of type {dtypes[1]}, to which Keras rounds the {dtypes[0]} that it is "
                "given. Give both the same dtype."
            )
    return Call(call.operation, tensors, call.outputs, {"inputs": inputs})


def _in_order(call: Call, inputs: Any, model: Any) -> list[Any]:
    """Returns the tensors that a nested model is called with, in the order of its inputs."""
    structure = model.input if not isinstance(model.input, keras.KerasTensor) else [model.input]
    given = inputs if not isinstance(inputs, keras.KerasTensor) else [inputs]
    names = [tensor.name for tensor in model.inputs]
    if isinstance(given, dict) and not isinstance(structure, dict) and set(given) == set(names):
        given = [given[name] for name in names]
    same = len(keras.tree.flatten(given)) == len(model.inputs) and _paths(given) == _paths(structure)
    tensors = keras.tree.flatten(given)
    if not same or not all(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        raise call.refuse(
            "it is called with inputs of another structure than its own, and it is not certain which of them is which. "
            f"Call it with {_paths(structure)}, of tensors. Received: {_paths(given)}."
        )
    return tensors


def _paths(structure: Any) -> list[str]:
    return ["/".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(structure)]
