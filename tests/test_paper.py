"""The paper's experiments run, go on where they were stopped, and fail where a certificate does not hold."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.helpers import ROOT

needs_art = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="the adversarial-robustness-toolbox wraps models of TensorFlow and torch"
)


def run(module, folder, *arguments):
    command = [sys.executable, "-m", f"examples.paper.{module}", "--size", "tiny", "--output", str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_toy_figures(tmp_path):
    result = run("toy", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"kr_and_hkr.png", "parameters.png", "w1.md", "toy.json"}
    figures = json.loads((tmp_path / "toy.json").read_text(encoding="utf-8"))
    assert len(figures["classifiers"]) == 10
    for one in figures["w1"]:  # of a 1-Lipschitz function: never far above, even of a net that has hardly trained
        assert 0 < one["estimate"] < 1.1 * one["truth"]


@needs_art
def test_comparison_goes_on_and_notices_a_broken_certificate(tmp_path):
    pytest.importorskip("art", reason="needs the adversarial-robustness-toolbox")
    folder = tmp_path / "digits"
    first = run("compare", tmp_path, "--data", "digits")
    assert first.returncode == 0, first.stderr + first.stdout
    arms = ["Adv", "LIP_log", "GNP_log", "GNP_hin", "hKR_50_0.4", "hKR_50_0.8"]
    findings = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(findings["arms"]) == arms
    for arm in findings["arms"].values():
        assert arm["broken"] == {}
        assert arm["smallest_ratio"] > 1
        worst = arm["attacked"]["worst"]
        assert worst == np.min(list(arm["attacked"].values()), axis=0).tolist() or min(worst) >= 0
        for shares in arm["attacked"].values():
            assert shares == sorted(shares, reverse=True)
            assert all(one >= lowest for one, lowest in zip(shares, worst, strict=True))
    assert findings["arms"]["hKR_50_0.4"]["clean"] > 0.5
    assert findings["arms"]["hKR_50_0.4"]["tested"] == {"FGSM": 60, "PGD": 30, "DeepFool": 60, "CW": 30, "within": 60}
    for name in ("curves.png", "noise.png", "transport.png", "table.csv", "table.md"):
        assert (folder / name).stat().st_size > 0
    assert not list(folder.rglob("part-*"))

    # Stopped before the last attack of one arm, and during the certificate of another, which will be wrong.
    (folder / "Adv" / "CW.npz").unlink()
    (folder / "Adv" / "part-CW.npz").write_bytes(b"half")
    certificate = folder / "hKR_50_0.4" / "certificate.npz"
    with np.load(certificate) as file:
        doctored = {**file, "radii": 5 * file["radii"]}
    np.savez(certificate, **doctored)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    second = run("compare", tmp_path, "--data", "digits")
    assert second.returncode == 1, second.stderr + second.stdout
    assert "CERTIFICATES WERE BROKEN" in second.stdout
    assert "epoch" not in second.stdout
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    assert set(after) - set(before) == {folder / "Adv" / "CW.npz"}
    assert all(after[path] == time for path, time in before.items() if path.name != "part-CW.npz")
    again = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(again["broken"]) == ["hKR_50_0.4"]
    assert again["arms"]["Adv"]["attacked"] == findings["arms"]["Adv"]["attacked"]

    other = run("compare", tmp_path, "--data", "digits", "--seed", "1")
    assert other.returncode == 1
    assert "holds results of another seed" in other.stderr


@needs_art
def test_datasets_that_are_not_there_are_named(tmp_path):
    environment = {"TFDS_DATA_DIR": str(tmp_path / "none")}
    command = [sys.executable, "-m", "examples.paper.compare", "--data", "celeb_a", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path / "none")}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "tensorflow-datasets has no celeb_a" in result.stderr
    assert "--download" in result.stderr
