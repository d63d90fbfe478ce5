"""Time, memory and tightness of certificates of deep convolutional networks.

    OMP_NUM_THREADS=2 python benchmarks/certify_large.py --json results.json
    python benchmarks/certify_large.py --nets tiny --variants lipschitz    # a few seconds

Certifies networks of 25 convolutions on images of 32 x 32 x 3, of plain Keras layers and of LipConv2D, each in a
process of its own. Every convolution's bound is held against a long power iteration on images of the size that it meets
there, which finds its norm from below: the truth is between the two. Exits with 1 if a limit is missed, or a bound is
below what was found.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import numpy.typing as npt

import deel_like_lip as lip

Array = npt.NDArray[np.float64]


class Net(NamedTuple):
    """Convolutions in stages, each of which begins with a stride of 2, but for the first."""

    stages: tuple[tuple[int, int], ...]  # channels and convolutions
    seconds: float  # the limit
    size: int = 32


NETS = {
    "tiny": Net(((8, 2), (16, 2)), 60, size=8),
    "small": Net(((16, 6), (32, 6), (64, 8), (128, 3), (256, 2)), 60),  # 1.6 million parameters
    "large": Net(((64, 4), (128, 4), (256, 8), (512, 9)), 900),  # 25 million
}
VARIANTS = ("plain", "lipschitz")
MEMORY_LIMIT = 8.0  # GiB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["small", "large"], help="(default: small large)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="(default: both)")
    parser.add_argument("--iterations", type=int, default=300, help="of the power iteration (default: %(default)s)")
    parser.add_argument("--verbose", type=int, default=1, help="1 for the bar of `certify` (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    parser.add_argument("--alone", action="store_true", help="measure one net in this process, and write it to --json")
    options = parser.parse_args()
    if options.alone:
        (net,), (variant,) = options.nets, options.variants
        options.json.write_text(json.dumps(measure(net, variant, options.iterations, options.verbose)))
        return 0
    results = []
    for net in options.nets:
        for variant in options.variants:
            print(f"\n{net}, {variant}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "result.json")
                command = [sys.executable, __file__, "--alone", "--nets", net, "--variants", variant]
                command += ["--iterations", str(options.iterations), "--verbose", str(options.verbose)]
                subprocess.run([*command, "--json", str(path)], check=True)
                results.append(json.loads(path.read_text()))
            print_result(results[-1])
    print_summary(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")
    return 0 if all(result["in_limits"] and result["sound"] for result in results) else 1


def measure(name: str, variant: str, iterations: int, verbose: int) -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    model = build(NETS[name], variant)
    plain = lip.vanilla_model(model)
    before = peak_memory()
    start = time.perf_counter()
    certificate = lip.certify(model, verbose=verbose)
    seconds = time.perf_counter() - start
    memory = peak_memory()
    bounds = {line.name: line.constant for line in certificate.layers}
    layers = []
    for layer in plain.layers:
        if isinstance(layer, keras.layers.Conv2D):
            found = power_iteration(layer, iterations)
            bound = bounds.get(layer.name)
            layers.append(
                {
                    "name": layer.name,
                    "kernel": list(layer.kernel.shape),
                    "input": list(layer.input.shape[1:]),
                    "stride": layer.strides[0],
                    "found": found,
                    "bound": bound,
                    "ratio": None if bound is None else bound / found,
                }
            )
    return {
        "net": name,
        "variant": variant,
        "backend": keras.backend.backend(),
        "parameters": model.count_params(),
        "convolutions": len(layers),
        "constant": certificate.lipschitz_constant,
        "seconds": seconds,
        "seconds_limit": NETS[name].seconds,
        "memory_gib": memory,
        "memory_before_gib": before,
        "memory_limit_gib": MEMORY_LIMIT,
        "in_limits": seconds <= NETS[name].seconds and memory <= MEMORY_LIMIT,
        "sound": all(layer["bound"] is None or layer["bound"] >= layer["found"] * (1 - 1e-12) for layer in layers),
        "layers": layers,
    }


def build(net: Net, variant: str) -> keras.Model:
    stack: list[Any] = [keras.Input((net.size, net.size, 3))]
    for stage, (channels, convolutions) in enumerate(net.stages):
        for index in range(convolutions):
            strides = 2 if stage and not index else 1
            if variant == "plain":
                stack += [
                    keras.layers.Conv2D(
                        channels, 3, strides, padding="same", activation="relu", kernel_initializer="he_normal"
                    )
                ]
            else:
                stack += [
                    lip.layers.LipConv2D(
                        channels, 3, strides=strides, padding="same", activation=lip.layers.GroupSort2()
                    )
                ]
    stack += [keras.layers.Flatten()]
    stack += [keras.layers.Dense(10) if variant == "plain" else lip.layers.SpectralDense(10)]
    return keras.Sequential(stack)


def peak_memory() -> float:
    """Returns the largest memory that this process has had so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def power_iteration(layer: Any, iterations: int) -> float:
    """Returns a lower bound of the norm of a convolution with "same" padding, on images of its input's size."""
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype(np.float64)
    height, width, channels = layer.input.shape[1:]
    (stride, _), (taps, _) = layer.strides, layer.kernel_size
    counts = -(-height // stride), -(-width // stride)
    extra = [max((count - 1) * stride + taps - size, 0) for count, size in zip(counts, (height, width), strict=True)]
    top, left = extra[0] // 2, extra[1] // 2
    padded = np.zeros((height + extra[0], width + extra[1], channels))
    inner = (slice(top, top + height), slice(left, left + width))
    # For each tap the positions of the padded image that the outputs meet.
    windows = {
        (row, column): (
            slice(row, row + stride * (counts[0] - 1) + 1, stride),
            slice(column, column + stride * (counts[1] - 1) + 1, stride),
        )
        for row in range(taps)
        for column in range(taps)
    }
    vector = np.random.default_rng(0).normal(size=(height, width, channels))
    norm = 0.0
    for _ in range(iterations):
        padded[...] = 0
        padded[inner] = vector / np.linalg.norm(vector)
        outputs = np.zeros((*counts, kernel.shape[3]))
        for tap, window in windows.items():
            outputs += padded[window] @ kernel[tap]
        norm = max(norm, float(np.linalg.norm(outputs)))
        padded[...] = 0
        for tap, window in windows.items():
            padded[window] += outputs @ kernel[tap].T
        vector = padded[inner].copy()
    return norm


def print_result(result: dict[str, Any]) -> None:
    print("bound / power iteration, layer by layer")
    for layer in result["layers"]:
        kernel = "x".join(map(str, layer["kernel"]))
        image = "x".join(map(str, layer["input"]))
        ratio = "no line of its own" if layer["ratio"] is None else f"{layer['ratio']:.5f}"
        print(f"  {layer['name']:14s} {kernel:14s} on {image:11s} stride {layer['stride']}  {ratio}", flush=True)


def print_summary(results: list[dict[str, Any]]) -> None:
    print(
        f"\n{'net':7s}{'variant':11s}{'parameters':>11s}{'seconds':>9s}{'limit':>7s}{'GiB':>7s}{'limit':>7s}"
        f"{'smallest':>10s}{'median':>9s}{'largest':>9s}  ratio to the power iteration"
    )
    for result in results:
        ratios = [layer["ratio"] for layer in result["layers"] if layer["ratio"] is not None]
        spread = min(ratios), statistics.median(ratios), max(ratios)
        print(
            f"{result['net']:7s}{result['variant']:11s}{result['parameters']:11,d}{result['seconds']:9.1f}"
            f"{result['seconds_limit']:7.0f}{result['memory_gib']:7.2f}{result['memory_limit_gib']:7.1f}"
            f"{spread[0]:10.5f}{spread[1]:9.5f}{spread[2]:9.5f}"
            f"{'' if result['in_limits'] else '  LIMIT MISSED'}{'' if result['sound'] else '  UNSOUND'}"
        )


if __name__ == "__main__":
    sys.exit(main())
