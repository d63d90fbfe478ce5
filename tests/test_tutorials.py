"""Every tutorial runs at reduced size, and leaves what its text says that it leaves."""

import inspect
import os
import pickle
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.helpers import ROOT, on_torch

SCRIPTS = sorted((ROOT / "docs/tutorials").glob("[0-9]*.py"))
BACKEND = keras.backend.backend()

# Runs tutorials one after another, since importing a backend takes as long as one of them, and keeps the variables that
# are asked for, or what went wrong.
RUN = """
import pickle, runpy, sys, traceback
import keras
import matplotlib.pyplot as plt

results = {}
for argument in sys.argv[2:]:
    script, *names = argument.split(",")
    figures = []

    def show():
        figures.append(len(plt.get_fignums()))
        plt.close("all")

    plt.show = show
    try:
        left = runpy.run_path(script, run_name="__main__")
        results[script] = {"figures": figures, **{name: left[name] for name in names}}
    except BaseException:
        results[script] = traceback.format_exc()
    keras.backend.clear_session()
with open(sys.argv[1], "wb") as file:
    pickle.dump(results, file)
"""


def first_network(plain_found, plain_constant, found, constant, accuracy, certified, plain_certified):
    assert 1.5 < plain_found <= plain_constant
    assert 0.98 < found <= constant * (1 + 1e-5)
    assert constant <= 1.001
    assert accuracy >= 0.9
    assert certified[0] == accuracy
    assert certified[30] >= 0.6
    assert certified[30] > plain_certified[30]
    assert np.all(np.diff(certified) <= 0)


def wasserstein(circles, constant, truth, estimate):
    assert 0.9 <= circles <= 1.0 + 2 * 0.05  # as samples of two classes that are not paired
    assert constant <= 1.001
    assert 0.7 * truth <= estimate <= truth * (1 + 1e-5)


def two_moons(accuracies, estimates, constant, plain_constant, answers, broken):
    assert accuracies["hinge-KR"] >= 0.95
    assert accuracies["KR alone"] < accuracies["hinge-KR"]
    assert estimates["KR alone"] > estimates["hinge-KR"]
    assert constant <= 1.001 < plain_constant
    assert answers.size > 1000
    assert broken == 0


def mnist_0_8(certified, plain_certified, lengths, crossed):
    assert certified[0] >= 0.9
    assert certified[2] > plain_certified[2]
    assert np.all(np.diff(certified) <= 0)
    assert np.max(lengths) <= 1 + 1e-4
    assert np.median(lengths) >= 0.9
    assert crossed >= 0.8


def multiclass(by_margin, by_alpha, by_tau, margins):
    curves = {**by_margin, **by_alpha, **by_tau}
    for name, shares in curves.items():
        assert shares[0] >= 0.7, name
        assert np.all(np.diff(shares) <= 0), name
    small, large = (by_margin[f"min_margin={margin}"] for margin in (margins[0], margins[-1]))
    assert small[0] > large[0]
    assert large[100] > small[100]


def attack(distances, radii, below, certified, under_attack, networks):
    assert below == dict.fromkeys(networks, 0)
    for name in networks:
        assert np.all(distances[name] >= radii[name])
        assert np.all(certified[name] <= under_attack[name])
    assert np.median(distances["1-Lipschitz"] / radii["1-Lipschitz"]) < 1.1  # the attack is worth its name
    assert under_attack["ordinary"][60] < 0.5
    assert certified["1-Lipschitz"][30] > certified["ordinary"][30]


def serve(difference, accuracy, served, logits, radii, exact_radii, refused):
    assert difference <= 1e-5
    assert accuracy >= 0.8
    assert np.all(radii <= exact_radii)
    assert set(served) == {"tensorflow", "onnxruntime"}
    for results in served.values():
        np.testing.assert_allclose(results["logits"], logits, atol=1e-5)
        np.testing.assert_array_equal(results["answers"], np.argmax(logits, axis=1))
        assert np.all(results["radii"] <= radii)
        assert np.median(results["radii"]) >= 0.99 * np.median(radii)
    assert refused == 2


def deep(stretches, constants, curves, bounds):
    deepest = {name: found[-1] for name, found in stretches.items()}
    assert deepest["orthogonal, sorted pairs"] >= 0.99
    assert max(found for name, found in deepest.items() if name != "orthogonal, sorted pairs") < 0.6
    assert constants["x + f(x)"] > 1.5
    assert max(constant for name, constant in constants.items() if name != "x + f(x)") <= 1.0001
    assert max(bounds.values()) <= 1.01
    for name, shares in curves.items():
        assert shares[0] >= 0.6, name


def many_devices(devices, apart, constants):
    assert devices >= 4
    assert apart["class_proportions"] <= 1e-4
    assert max(bound for bounds in constants.values() for bound in bounds) <= 1.001
    if BACKEND == "jax":
        assert apart["means of the batch"] <= 1e-4


def own_layer(caught, passed, largest, curves, refusal, found, bound):
    assert "bound" in caught
    assert "WrongRotation" in caught
    assert {"bound", "bound_after_training", "fold", "gradient"} <= set(passed)
    assert max(value for values in largest.values() for value in values) <= 1 + 1e-5
    assert curves["polar"][30] > curves["Schur's test"][30]
    assert "Wave" in refusal
    assert "register_bound_rule" in refusal
    assert 0.1 < found <= bound * (1 + 1e-5)


CHECKS = {
    "01_first_network": first_network,
    "02_wasserstein": wasserstein,
    "03_two_moons": two_moons,
    "04_mnist_0_8": mnist_0_8,
    "05_multiclass": multiclass,
    "06_attack": attack,
    "07_serve": serve,
    "08_deep": deep,
    "09_many_devices": many_devices,
    "10_own_layer": own_layer,
}


def run(names, folder):
    """Runs tutorials in a process of their own, and checks what they leave."""
    arguments = [
        ",".join([str(ROOT / f"docs/tutorials/{name}.py"), *inspect.signature(CHECKS[name]).parameters])
        for name in names
    ]
    environment = {**os.environ, "TUTORIAL_SIZE": "small", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, str(folder / "results"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = pickle.loads((folder / "results").read_bytes())
    failed = {script: left for script, left in results.items() if isinstance(left, str)}
    assert not failed, "\n".join(failed.values())
    for name, left in zip(names, results.values(), strict=True):
        assert set(left.pop("figures")) <= {1}, f"{name}: one figure for each plt.show()"
        CHECKS[name](**left)


def test_tutorials_on_every_backend(tmp_path):
    run(["01_first_network", "07_serve"], tmp_path)


@on_torch
def test_other_tutorials(tmp_path):
    run(["02_wasserstein", "03_two_moons", "04_mnist_0_8", "05_multiclass", "08_deep", "10_own_layer"], tmp_path)


@on_torch
def test_the_attack_fails(tmp_path):
    pytest.importorskip("art", reason="needs the adversarial-robustness-toolbox")
    run(["06_attack"], tmp_path)


@pytest.mark.skipif(BACKEND != "jax", reason="torch has no virtual devices, and those of TensorFlow take minutes")
def test_many_devices(tmp_path):
    run(["09_many_devices"], tmp_path)


def test_there_is_a_check_for_every_tutorial():
    assert [script.stem for script in SCRIPTS] == sorted(CHECKS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_tutorials_are_cells_of_text_and_code(script):
    text = script.read_text(encoding="utf-8")
    assert text.startswith(f"# %% [markdown]\n# # {int(script.stem[:2])}. ")
    assert "# ## What to read next\n" in text
    cells = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    for kind, source in zip(cells[::2], cells[1::2], strict=True):
        if kind:
            assert kind == " [markdown]"
            assert all(line.startswith("#") for line in source.strip("\n").split("\n"))
        else:
            assert len(source.strip().split("\n")) <= 45
