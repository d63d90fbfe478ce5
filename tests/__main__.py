"""Runs everything that CI runs: linters, types, and all tests on each backend. `python -m tests [pytest arguments]`."""

import os
import pathlib
import subprocess
import sys
import time

BACKENDS = ("tensorflow", "jax", "torch")
# JAX compiles most tests longer than it runs them: with less optimization they take a third less time.
ENVIRONMENTS = {
    "jax": {"XLA_FLAGS": "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"},
}
CHECKS = (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"])


def main() -> int:
    os.chdir(pathlib.Path(__file__).parents[1])
    failed = [" ".join(check) for check in CHECKS if run(f"{' '.join(check)}", [sys.executable, "-m", *check])]
    for backend in BACKENDS:
        # A process a core; with more threads than cores torch slows down tenfold.
        options = ["-q", "-n", "auto", "--dist", "worksteal", "--durations", "12", *sys.argv[1:]]
        command = [sys.executable, "-m", "pytest", *options]
        own = ENVIRONMENTS.get(backend, {})
        if run(f"pytest on {backend}", command, KERAS_BACKEND=backend, OMP_NUM_THREADS="1", **own):
            failed.append(f"pytest on {backend}")
    print(f"\nFailed: {', '.join(failed)}" if failed else "\nAll passed.", flush=True)
    return len(failed)


def run(title: str, command: list[str], **environment: str) -> int:
    print(f"\n=== {title}", flush=True)
    start = time.monotonic()
    code = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    print(
        f"=== {title}: {'ok' if code == 0 else f'exit code {code}'} after {time.monotonic() - start:.0f} s", flush=True
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
