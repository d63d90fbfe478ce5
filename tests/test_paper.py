"""The paper's experiments run, go on where they were stopped, and fail where a certificate does not hold."""

import contextlib
import io
import json
import sys
from typing import get_args

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import deel_like_lip as lip
from examples.paper import compare, toy
from examples.paper.arms import SETTINGS, Kind, network
from examples.paper.data import load
from tests.helpers import on_torch

# Shapes of images, and numbers of outputs.
SHAPES = {
    "digits": ((8, 8, 1), 10),
    "digits-0-8": ((8, 8, 1), 1),
    "mnist": ((28, 28, 1), 10),
    "mnist-0-8": ((28, 28, 1), 1),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "celeb_a": ((64, 64, 3), 1),
}


def run(monkeypatch, module, folder, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--size", "tiny", "--output", str(folder), *arguments])
    return module.main()


@on_torch
def test_toy_figures(tmp_path, monkeypatch):
    run(monkeypatch, toy, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kr_and_hkr.png", "parameters.png", "w1.md", "toy.json"}
    figures = json.loads((tmp_path / "toy.json").read_text(encoding="utf-8"))
    assert [one["title"] for one in figures["classifiers"]] == ["KR", "alpha 10, margin 0.1", "alpha 10, margin 0.3"]
    for one in figures["w1"]:  # of a 1-Lipschitz function: never far above, even of a net that has hardly trained
        assert 0 < one["estimate"] < 1.1 * one["truth"]


@pytest.mark.parametrize("problem", toy.PROBLEMS, ids=lambda problem: problem.name)
def test_the_w1_of_toy_problems_is_what_they_say(problem, rng):
    """Optimal transport between equal numbers of samples is an assignment."""
    count = 500 if len(problem.shape) == 3 else 1500
    first, second = (part.reshape(count, -1).astype("float64") for part in problem.sample(rng, count))
    costs = cdist(first, second)
    exact = costs[linear_sum_assignment(costs)].mean()
    assert exact > 0.95 * problem.truth
    if first.shape[1] == 1 or len(problem.shape) == 3:  # in more dimensions so few samples are far apart
        assert exact < 1.05 * problem.truth


@on_torch
def test_comparison_goes_on_and_notices_a_broken_certificate(tmp_path, monkeypatch):
    pytest.importorskip("art", reason="needs the adversarial-robustness-toolbox")
    folder, arms = tmp_path / "digits", ["Adv", "GNP_log", "hKR_50_0.4"]
    choice = ["--data", "digits", "--arms", *arms]
    assert run(monkeypatch, compare, tmp_path, *choice) == 0
    first = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(first["arms"]) == arms
    for arm in first["arms"].values():
        assert arm["broken"] == {}
        assert arm["smallest_ratio"] > 1
        assert arm["clean"] > 0.5
        # Of the images that all attacks were tried on, which the clean accuracy and certificates are not limited to.
        assert np.all(np.array(arm["attacked"]["worst"]) <= np.array(list(arm["attacked"].values())))
        for shares in [*arm["attacked"].values(), arm["certified"]]:
            assert shares == sorted(shares, reverse=True)
    assert first["arms"]["hKR_50_0.4"]["tested"] == {"FGSM": 60, "PGD": 30, "DeepFool": 60, "CW": 30, "within": 60}
    for name in ("curves.png", "noise.png", "transport.png", "table.csv", "table.md"):
        assert (folder / name).stat().st_size > 0

    # Stopped during the last attack of one arm; the radii of another are wrong.
    (folder / "Adv" / "CW.npz").unlink()
    (folder / "Adv" / "part-CW.npz").write_bytes(b"half")
    certificate = folder / "hKR_50_0.4" / "certificate.npz"
    with np.load(certificate) as file:
        doctored = {**file, "radii": 5 * file["radii"]}
    np.savez(certificate, **doctored)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert run(monkeypatch, compare, tmp_path, *choice) == 1
    printed = text.getvalue()
    assert "CERTIFICATES WERE BROKEN" in printed
    assert "epoch" not in printed
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    assert {path for path in after if after[path] != before.get(path)} == {folder / "Adv" / "CW.npz"}
    again = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(again["broken"]) == ["hKR_50_0.4"]
    assert again["arms"]["Adv"]["attacked"] == first["arms"]["Adv"]["attacked"]

    with pytest.raises(SystemExit, match="holds results of another seed"):
        run(monkeypatch, compare, tmp_path, *choice, "--seed", "1")


@on_torch
def test_nets_have_the_same_widths_and_the_constant_that_they_promise():
    for name, setting in SETTINGS.items():
        shape, outputs = SHAPES[name]
        nets = [network(kind, setting.widths, shape, outputs) for kind in get_args(Kind)]
        assert len({tuple(tuple(weight.shape) for weight in net.weights) for net in nets}) == 1
        for net in nets[1:]:
            assert lip.certify(net).lipschitz_constant < 1.03


@pytest.mark.parametrize("missing", ["celeb_a", "cifar10"])
def test_datasets_that_are_not_there_are_named(missing, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")  # which keeps the folder that is set when it is imported
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=f"has no {missing} that could be read from .*--download"):
        load(missing, None)
