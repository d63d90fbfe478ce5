"""The quickstart and the README's example run as they stand."""

import os
import re
import subprocess
import sys

import keras
import pytest

from tests.helpers import ROOT, needs_mnist

README = (ROOT / "README.md").read_text(encoding="utf-8")


def run_script(arguments, folder):
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def quickstart(folder, *arguments):
    printed = run_script([str(ROOT / "examples/quickstart.py"), "--output", "results", *arguments], folder)
    found = {path.name for path in (folder / "results").iterdir()}
    assert found == {"plain.keras", "served", "certified_accuracy.png"}
    table = re.findall(r"^ +(\d\.\d\d) +(\d+\.\d\d)% +(clean|certified)$", printed, re.MULTILINE)
    assert "Lipschitz constant: L <= " in printed
    assert "loaded by TensorFlow alone" in printed
    assert f"on the {keras.backend.backend()} backend" in printed
    return {float(radius): float(share) for radius, share, _ in table}


def test_quickstart_on_digits(tmp_path):
    accuracy = quickstart(tmp_path)
    assert accuracy[0.0] >= 95
    assert accuracy[0.3] >= 75
    assert list(accuracy.values()) == sorted(accuracy.values(), reverse=True)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="is tested on TensorFlow, where it takes least")
@needs_mnist
def test_quickstart_on_mnist(tmp_path):
    accuracy = quickstart(tmp_path, "--dataset", "mnist")
    print(f"\nMNIST by radius, {keras.backend.backend()}: {accuracy}")
    assert accuracy[0.0] >= 97
    assert accuracy[1.0] >= 75


def test_quickstart_refuses_what_it_does_not_know(tmp_path):
    command = [sys.executable, str(ROOT / "examples/quickstart.py"), "--dataset", "imagenet"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "invalid choice: 'imagenet'" in result.stderr


def test_the_example_of_the_readme_works_when_pasted(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed = run_script(["-c", example], tmp_path)
    assert "Lipschitz constant: L <= " in printed
    assert os.path.isfile(tmp_path / "served" / "saved_model.pb")


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(commands) == 2
    (test_command,) = [command for command in commands if command.endswith("-m tests")]
    assert test_command in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "name", ["docs/design.md", "docs/migrating.md", "docs/images/certified_accuracy.png", "CONTRIBUTING.md"]
)
def test_files_that_the_readme_names_exist(name):
    assert name in README
    assert (ROOT / name).is_file()
