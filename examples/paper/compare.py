"""The paper's comparison: methods of training that promise robustness, under the same attacks.

    TFDS_DATA_DIR=... python -m examples.paper.compare --data mnist-0-8 mnist
    python -m examples.paper.compare --data digits --size tiny    # scikit-learn's digits: no download, seconds

Run it in a clone with ART and one of the backends that it wraps, torch or TensorFlow: pip install -e
".[torch,examples,attacks]" (scikit-learn's and tensorflow-datasets's images are in `examples`). What is done is kept in
the output folder, and the same command goes on from there. Exit status 1 if an attack changed an answer within its
certified radius.

For each dataset the folder has results.json, table.md, table.csv, pictures, and for each arm its model (plain Keras)
and what each attack found.
"""

import argparse
import concurrent.futures
import itertools
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings

import keras
import numpy as np

import deel_like_lip as lip
from examples.paper import figures, report
from examples.paper.arms import SETTINGS, Arm, Setting, arms, optimizer, train
from examples.paper.attacks import ATTACKS, BATCH_SIZE, Effort, Victim, answers, within
from examples.paper.data import DATASETS, Data, Images, Labels, load
from examples.paper.store import Arrays, check_settings, kept_arrays, kept_model


class Size(NamedTuple):
    """How much is done.

    Attributes:
        times_epochs: How many times the epochs of the dataset's setting nets train.
        train_images: The largest number of images to train on; None for all.
        attacked_images: Test images that all attacks are tried on, for the curves.
        all_images: Test images that nets with the hinge-KR loss are attacked on by FGSM, by DeepFool and within their
            radii; None for all.
        effort: How hard attacks try.
    """

    times_epochs: int
    train_images: int | None
    attacked_images: int
    all_images: int | None
    effort: Effort


SIZES = {
    "tiny": Size(1, None, 30, 60, Effort(5, 5, 2, 3)),
    "default": Size(1, None, 1000, None, Effort(20, 30, 5, 15)),
    "full": Size(4, None, 10000, None, Effort(50, 50, 9, 50)),
}
# What an attack makes of some images, given the classes to get away from and where in the test set they are.
Trial = Callable[[Images, Labels, slice], Images]
# Images of which the attacked version is kept, for pictures.
KEPT = 20


def main() -> int:
    options = parse_arguments()
    intact = True
    for name in options.data:
        intact = experiment(name, options) and intact
    return 0 if intact else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATASETS, default=["mnist-0-8", "mnist"], help="what to train on")
    parser.add_argument("--size", choices=SIZES, default="default", help="how much is done (default: %(default)s)")
    parser.add_argument("--output", default="paper-output", help="folder for the results (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of kernels, batches and attacks (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--no-report", action="store_true", help="only train and attack")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="let tensorflow-datasets download images")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs must be positive, not {options.jobs}")
    return options


def experiment(name: str, options: argparse.Namespace) -> bool:
    """Runs all arms on a dataset and reports. Returns whether all certificates held."""
    size, setting, folder = SIZES[options.size], SETTINGS[name], pathlib.Path(options.output) / name
    data = load(name, size.train_images, options.download)
    methods = arms(setting, data.outputs)
    check_settings(folder / "settings.json", {"size": size, "seed": options.seed, "backend": keras.backend.backend()})
    print(
        f"{name}: {len(data.train[0])} images to train on, {len(data.test[0])} to test, {len(methods)} arms", flush=True
    )

    if options.arms:
        unknown = set(options.arms) - {arm.name for arm in methods}
        if unknown:
            raise SystemExit(
                f"Of {name} the arms are {', '.join(arm.name for arm in methods)}, not {', '.join(unknown)}."
            )
        methods = [arm for arm in methods if arm.name in options.arms]
    if options.jobs > 1:
        run_in_processes(name, methods, options)
    results = {arm.name: run_arm(arm, setting, data, size, folder / arm.name, options.seed) for arm in methods}
    if options.no_report:
        return True
    findings = report.findings(name, setting, results, data.test[1])
    report.write(folder, findings)
    figures.draw(folder, name, setting, results, data)
    print(report.summary(findings), flush=True)
    return not findings["broken"]


def run_in_processes(name: str, methods: list[Arm], options: argparse.Namespace) -> None:
    """Trains and attacks several arms at a time, each in a process of its own with one thread."""
    shared = ["--data", name, "--size", options.size, "--output", options.output, "--seed", str(options.seed)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}

    def run(arm: Arm) -> int:
        command = [sys.executable, "-m", "examples.paper.compare", *shared, "--no-report", "--arms", arm.name]
        return subprocess.run(command, env=environment, check=False).returncode

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        if any(pool.map(run, methods)):
            raise SystemExit("An arm failed, as it says above. The same command goes on from what is done.")


def run_arm(arm: Arm, setting: Setting, data: Data, size: Size, folder: pathlib.Path, seed: int) -> dict[str, Arrays]:
    """Trains, certifies and attacks, as far as that is not done yet. Returns what was found by the names of files."""
    start, curve = time.monotonic(), radii_of_curves(setting)
    own = {"loss": arm.loss().get_config(), "widths": setting.widths, "batch_size": setting.batch_size, "eps": curve}
    own |= {"optimizer": type(optimizer(arm.kind, steps=1)).__name__}
    if arm.adversarial:
        own |= {"epochs": setting.adversarial_epochs, "adversarial_eps": setting.adversarial_eps}
    else:
        own |= {"epochs": setting.epochs}
    check_settings(folder / "settings.json", own)

    def say(text: str) -> None:
        print(f"  {folder.parent.name} {arm.name} {time.monotonic() - start:4.0f} s: {text}", flush=True)

    model, seconds = kept_model(folder / "model.keras", lambda: train(arm, setting, data, size.times_epochs, seed, say))
    images, labels = data.test
    found = {
        "training": {key: np.array(value) for key, value in seconds.items()},
        "certificate": kept_arrays(folder / "certificate.npz", lambda: certify(model, images)),
    }
    logits, radii = found["certificate"]["logits"], found["certificate"]["radii"]
    classes = answers(logits)
    right = classes == labels
    shares = lip.accuracy_under_attack(np.where(right, radii, 0), setting.eps)
    certified = ", ".join(f"{share:.1%} at {eps:.3g}" for share, eps in zip(shares, setting.eps, strict=True))
    say(f"clean {np.mean(right):.1%}, certified {certified}")

    victim = Victim(model)
    trials: dict[str, Trial] = {
        name: lambda part, own, _, attack=attack: attack(victim, part, own, curve, size.effort)  # type: ignore[misc]
        for name, attack in ATTACKS.items()
    }
    trials["within"] = lambda part, own, where: within(
        victim, part, own, radii[where][: len(part)], size.effort.pgd_steps
    )
    for name, trial in trials.items():
        count = size.all_images if is_hkr(arm) and name in ("FGSM", "DeepFool", "within") else size.attacked_images

        def run(name: str = name, trial: Trial = trial, count: int | None = count) -> Arrays:
            keras.utils.set_random_seed(seed)
            return in_chunks(victim, images[:count], classes[:count], trial, lambda done: say(f"{name} on {done}"))

        found[name] = kept_arrays(folder / f"{name}.npz", run)
    return found


def is_hkr(arm: Arm) -> bool:
    return arm.name.startswith("hKR")


def radii_of_curves(setting: Setting) -> tuple[float, ...]:
    """Returns the radii of the tables and those half way between."""
    points = [0.0, *setting.eps]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(points)]
    return tuple(sorted({*middles, *setting.eps}))


def certify(model: keras.Model, images: Images) -> Arrays:
    """Returns what the model answers, and within which l2 distance that stays so, rounding of float32 included."""
    logits = model.predict(images, batch_size=BATCH_SIZE, verbose=0)
    certificate = lip.certify(model, rounding="sound")
    radii = certificate.radius(logits, inputs=images)
    return {"logits": logits, "radii": radii, "constant": np.array(certificate.lipschitz_constant)}


def in_chunks(
    victim: Victim,
    images: Images,
    classes: Labels,
    trial: Trial,
    progress: Callable[[str], None],
) -> Arrays:
    """Attacks some images at a time, and says so. Returns distances, and the first images as they were moved."""
    distances, kept = [], []
    said = time.monotonic()
    for start in range(0, len(images), BATCH_SIZE):
        where = slice(start, start + BATCH_SIZE)
        moved = trial(images[where], classes[where], where)
        distances.append(victim.distances(images[where], classes[where], moved))
        if start == 0:
            kept.append(moved[:KEPT])
        done = min(start + BATCH_SIZE, len(images))
        if done == len(images) or time.monotonic() - said > 10:
            said = time.monotonic()
            median = np.median(np.concatenate(distances))
            progress(f"{done}/{len(images)} images, median distance {median:.3f}")
    return {"distances": np.concatenate(distances), "moved": np.concatenate(kept)}


if __name__ == "__main__":
    sys.exit(main())
