"""What the self-check of `certify` costs: the same nets with and without it, in turns.

    KERAS_BACKEND=torch python benchmarks/self_check.py             # some minutes
    KERAS_BACKEND=torch python benchmarks/self_check.py --turns 5   # medians of more

The first turn of each is left out of medians and printed by itself: backends compile and load things then.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `examples`

import keras

import deel_like_lip as lip
from examples import quickstart

NETS = {
    "the quickstart's net, digits": lambda: quickstart.build((8, 8, 1), 10),
    "the quickstart's net, MNIST": lambda: quickstart.build((28, 28, 1), 10),
    "hkr_vgg": lambda: lip.models.hkr_vgg((32, 32, 3), 10),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="of each, after the first (default: %(default)s)")
    options = parser.parse_args()
    print(f"Keras {keras.__version__} on {keras.backend.backend()}; seconds, and the ratio of medians")
    for name, build in NETS.items():
        model = build()
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.turns + 1):
            for check, own in seconds.items():
                start = time.perf_counter()
                lip.certify(model, check=check)
                own.append(time.perf_counter() - start)
        without, with_ = (statistics.median(own[1:]) for own in (seconds[False], seconds[True]))
        first = ", ".join(f"{own[0]:.2f}" for own in seconds.values())
        print(
            f"{name}: without {without:.3f}, with {with_:.3f}, ratio {with_ / without:.2f}; first turns {first}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
