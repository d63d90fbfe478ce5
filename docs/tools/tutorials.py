"""Tutorials in percent format: run them cell by cell, and make pages and notebooks of them.

    python docs/tools/tutorials.py docs/tutorials/01_first_network.py results    # run one, and keep what it printed

A cell begins with a line `# %%`, one of text with `# %% [markdown]`.
"""

import base64
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[2]


class Cell(NamedTuple):
    """One cell of a script.

    Attributes:
        markdown: Whether it is text.
        source: The text without its comment signs, or the code.
        line: The line of the script that the code begins with, counted from 0.
    """

    markdown: bool
    source: str
    line: int


def cells(path: pathlib.Path) -> list[Cell]:
    """Returns the cells of a script."""
    found = []
    for block in re.finditer(
        r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", text := path.read_text(encoding="utf-8"), re.MULTILINE
    ):
        markdown, source = "[markdown]" in block[1], block[2]
        line = text.count("\n", 0, block.start(2))
        if markdown:
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        else:
            line += len(source) - len(source.lstrip("\n"))
        if source.strip():
            found.append(Cell(markdown, source.strip("\n"), line))
    if not found:
        raise ValueError(f"Expected cells that begin with a line '# %%'. Received: {path}")
    return found


def title(path: pathlib.Path) -> str:
    """Returns the first heading of a script."""
    return next(re.findall(r"^# (.+)$", cell.source, re.MULTILINE)[0] for cell in cells(path) if cell.markdown)


# --- running ---------------------------------------------------------------------------------------------------------


def results(path: pathlib.Path, cache: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what each code cell prints and draws: from the cache, if the script and the package are as they were."""
    digest = hashlib.sha256(os.environ.get("TUTORIAL_SIZE", "").encode())
    for file in sorted([path, pathlib.Path(__file__), *ROOT.glob("deel_like_lip/**/*.py")]):
        digest.update(file.read_bytes())
    kept = cache / f"{path.stem}-{digest.hexdigest()[:16]}.json"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "MPLBACKEND": "agg", "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, str(path), str(kept)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"The tutorial {path.name} fails:\n{done.stdout}\n{done.stderr}")
    found: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def run(path: pathlib.Path, output: pathlib.Path) -> None:
    """Runs a script in a folder that is deleted again, and writes what its cells printed and drew."""
    code = [cell for cell in cells(path) if not cell.markdown]
    path, output = path.resolve(), output.resolve()
    names = {"__name__": "__main__", "__file__": str(path)}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for cell in code:
            # With the lines of the file, so that errors and `inspect` point to them.
            compiled = compile("\n" * cell.line + cell.source, str(path), "exec")
            with tempfile.TemporaryFile() as file:  # what other processes print, too
                kept = os.dup(1)
                os.dup2(file.fileno(), 1)
                try:
                    exec(compiled, names)
                finally:
                    sys.stdout.flush()
                    os.dup2(kept, 1)
                    os.close(kept)
                file.seek(0)
                printed = file.read().decode("utf-8")
            found.append({"text": _as_on_a_screen(printed), "figures": _figures()})
        os.chdir(ROOT)
    output.write_text(json.dumps(found), encoding="utf-8")


def _as_on_a_screen(printed: str) -> str:
    """Returns the text that is left where backspaces, carriage returns and colours did their work."""
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).replace("\r\n", "\n")
    while "\b" in printed:
        printed = re.sub(r"[^\b\n]\b|^\b+", "", printed, flags=re.MULTILINE)
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in printed.split("\n")).strip("\n")


def _figures() -> list[str]:
    """Returns the open figures as PNG in base64, and closes them."""
    if "matplotlib.pyplot" not in sys.modules:
        return []
    plt = sys.modules["matplotlib.pyplot"]
    found = []
    for number in plt.get_fignums():
        with tempfile.TemporaryFile() as file:
            plt.figure(number).savefig(file, dpi=120, format="png")
            file.seek(0)
            found.append(base64.b64encode(file.read()).decode("ascii"))
    plt.close("all")
    return found


# --- pages and notebooks ---------------------------------------------------------------------------------------------


def page(path: pathlib.Path, outcome: list[dict[str, Any]] | None) -> tuple[str, dict[str, bytes]]:
    """Returns a page in Markdown, and the files of its figures by name."""
    parts, figures = [], {}
    rest = iter(outcome or [])
    for cell in cells(path):
        if cell.markdown:
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        outputs = next(rest, None)
        if outputs and outputs["text"]:
            parts.append('```text { .output title="prints" }\n' + outputs["text"] + "\n```")
        for figure in outputs["figures"] if outputs else []:
            name = f"{path.stem}-{len(figures) + 1}.png"
            figures[name] = base64.b64decode(figure)
            parts.append(f"![What the code above draws]({name}){{ loading=lazy }}")
    heading, _, text = "\n\n".join(parts).partition("\n")
    links = f"*Download: [notebook]({path.stem}.ipynb), [script]({path.name})*"
    return f"{heading}\n\n{links}\n{text}\n", figures


def notebook(path: pathlib.Path, outcome: list[dict[str, Any]] | None) -> str:
    """Returns a Jupyter notebook, as JSON."""
    content = []
    rest = iter(outcome or [])
    for index, cell in enumerate(cells(path)):
        entry: dict[str, Any] = {
            "cell_type": "markdown" if cell.markdown else "code",
            "id": f"cell-{index}",
            "metadata": {},
            "source": cell.source,
        }
        if not cell.markdown:
            outputs = next(rest, {"text": "", "figures": []})
            entry |= {"execution_count": None, "outputs": []}
            if outputs["text"]:
                entry["outputs"].append({"output_type": "stream", "name": "stdout", "text": outputs["text"] + "\n"})
            entry["outputs"] += [
                {"output_type": "display_data", "metadata": {}, "data": {"image/png": figure}}
                for figure in outputs["figures"]
            ]
        content.append(entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": content, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
