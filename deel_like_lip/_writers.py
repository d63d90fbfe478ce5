"""Writes folded models in the formats of other runtimes, through the exporters of Keras and of torch.

It runs where the Keras backend is one that can write the format: in the process at hand, or as a script in one of its
own, which needs Keras but not this library.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import keras


def write(kind: str, plain: keras.Model, radius: keras.Model | None, path: str, names: list[str]) -> None:
    """Writes a folded model.

    Args:
        kind: "saved_model", "onnx" or "litert".
        plain: The folded model.
        radius: Model from the list of all inputs and outputs of `plain` to a dict of tensors that go along, or None.
        path: Where to write.
        names: Names of the inputs of `plain`, then of its outputs.
    """
    inputs = [
        keras.InputSpec(shape=(None, *tensor.shape[1:]), dtype=tensor.dtype, name=name)
        for tensor, name in zip(plain.inputs, names, strict=False)
    ]
    signature = [keras.tree.pack_sequence_as(plain._inputs_struct, inputs)]
    if kind == "saved_model":
        _write_saved_model(plain, radius, path, signature)
        return
    model = keras.Model(plain._inputs_struct, _joined(plain, radius, plain._inputs_struct, names[len(inputs) :]))
    if kind == "litert":
        _write_litert(model, path, signature)
    elif keras.backend.backend() == "torch":
        _write_onnx_by_torch(model, path, inputs)
    else:
        _write_onnx_by_tensorflow(model, path, signature)


def _joined(plain: keras.Model, radius: keras.Model | None, inputs: Any, names: list[str]) -> dict[str, Any]:
    outputs = keras.tree.flatten(plain(inputs, training=False))
    more = radius([*keras.tree.flatten(inputs), *outputs]) if radius is not None else {}
    return {**dict(zip(names, outputs, strict=True)), **more}


def _write_saved_model(plain: keras.Model, radius: keras.Model | None, path: str, signature: Any) -> None:
    archive = keras.export.ExportArchive()
    archive.track(plain)
    archive.add_endpoint("serve", lambda inputs: plain(inputs, training=False), signature)
    if radius is not None:
        archive.track(radius)
        outputs = [str(index) for index in range(len(plain.outputs))]
        archive.add_endpoint(
            "certify",
            lambda inputs: {
                name: value for name, value in _joined(plain, radius, inputs, outputs).items() if name not in outputs
            },
            signature,
        )
    archive.write_out(path, verbose=False)


def _write_litert(model: keras.Model, path: str, signature: Any) -> None:
    import tensorflow as tf

    # Operations of TensorFlow itself, which the exporter would allow, need more than the LiteRT interpreter.
    model.export(
        path,
        format="litert",
        verbose=False,
        input_signature=signature,
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
    )


def _write_onnx_by_tensorflow(model: keras.Model, path: str, signature: Any) -> None:
    model(model._inputs_struct)  # the exporter refuses models that were never called
    with _quiet("tf2onnx"):
        model.export(path, format="onnx", verbose=False, input_signature=signature)


def _write_onnx_by_torch(model: keras.Model, path: str, inputs: list[keras.InputSpec]) -> None:
    # Keras asks torch for the older of its exporters where the batch size is open, which knows fewer operations.
    import torch

    names = list(model._outputs_struct)
    unknown = [spec.name for spec in inputs if None in spec.shape[1:]]
    if unknown:
        raise ValueError(f"With torch, inputs must be of a known shape. Received: inputs of unknown size {unknown}")

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            outputs = self.model(keras.tree.pack_sequence_as(model._inputs_struct, tensors), training=False)
            return tuple(outputs[name] for name in names)

    # Torch takes a size of 0 or 1 for one that never changes.
    examples = tuple(keras.ops.ones([2, *spec.shape[1:]], spec.dtype) for spec in inputs)
    batch = torch.export.Dim("batch")
    with _quiet("torch.onnx"):
        program = torch.export.export(
            Flat().eval(), examples, dynamic_shapes={"tensors": tuple({0: batch} for _ in examples)}
        )
        _drop_idle_squeezes(program)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=[spec.name for spec in inputs],
            output_names=names,
        )
    assert exported is not None
    exported.save(path)


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Silences exporters, which warn of each other's insides, and log what they raise as well."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger(logger).setLevel(level)


def _drop_idle_squeezes(program: Any) -> None:
    """Removes squeezes of axes that are not of size 1, which torch leaves alone and ONNX forbids. Keras makes them."""
    for node in list(program.graph.nodes):
        if str(node.target) == "aten.squeeze.dim" and node.args[0].meta["val"].shape[node.args[1]] != 1:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)


def reason(error: Exception) -> str:
    """Returns the text of an error without the program that TensorFlow's converter adds, and without its traces."""
    text = str(error).partition("<unknown>:0: note: see current operation")[0]
    return "\n".join(line for line in text.splitlines() if " loc(" not in line).strip() or repr(error)


def main() -> int:
    """Loads the models that the command line names and writes them: kind, plain, radius or "", path, names."""
    kind, plain, radius, path, *names = sys.argv[1:]
    try:
        write(
            kind,
            keras.models.load_model(plain, compile=False),
            keras.models.load_model(radius, compile=False) if radius else None,
            path,
            names,
        )
    except Exception as error:
        print(reason(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
