"""The documentation: docstrings are complete and their examples hold, links of pages resolve and their code runs."""

import contextlib
import dataclasses
import doctest
import functools
import importlib
import inspect
import io
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import ROOT, on_torch

MODULES = [lip, *(getattr(lip, name) for name in lip.__all__ if inspect.ismodule(getattr(lip, name)))]
MODULES.append(importlib.import_module("deel_like_lip.testing"))


def public_names(module):
    """Returns the names of a module that a user may rely on."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    names = [name for name in names if inspect.isclass(value := getattr(module, name)) or inspect.isroutine(value)]
    return sorted(names, key=lambda name: getattr(module, name).__name__ != name)  # other names of a thing come last


# Each public object once, by the first of its names.
PUBLIC = {}
for _module in MODULES:
    for _name in public_names(_module):
        _value = getattr(_module, _name)
        if all(_value is not other for other in PUBLIC.values()):
            PUBLIC[f"{_module.__name__}.{_name}"] = _value


# --- docstrings ------------------------------------------------------------------------------------------------------


def sections(value):
    """Returns the sections of a docstring by their titles, and its first line by the title "summary"."""
    text = inspect.cleandoc(value.__doc__ or "")
    found = {"summary": text.split("\n", 1)[0]}
    for title, content in re.findall(r"^([A-Z][a-z]+(?: [a-z]+)?):\n((?:(?:    .*)?(?:\n|$))*)", text, re.MULTILINE):
        found[title] = inspect.cleandoc(content)
    return found


def documented_arguments(value):
    """Returns the arguments that a docstring explains, itself or by reference to another one."""
    content = "\n".join(sections(value).get(title, "") for title in ("Args", "Attributes"))
    found = set(re.findall(r"^(?:\*{0,2})(\w+):", content, re.MULTILINE))
    for name in re.findall(r"(?:As in|as in|arguments of) `(\w+)`", inspect.cleandoc(value.__doc__ or "")):
        others = [other for path, other in PUBLIC.items() if path.endswith(f".{name}") and other is not value]
        found |= set().union(*map(documented_arguments, others))
    return found


def arguments(value):
    """Returns the arguments that a docstring has to explain."""
    if inspect.isclass(value) and issubclass(value, BaseException):
        return set()
    parameters = inspect.signature(value).parameters.values()
    # A builder's constants of a dataclass, which the user does not pass, count as well: they are in the signature.
    return {parameter.name for parameter in parameters if parameter.kind not in (2, 4)}


def missing(path, value):
    """Returns what a docstring lacks."""
    found, lacks = sections(value), []
    if not value.__doc__ or not re.search(r"[.:]$", found["summary"]):
        lacks.append("a first line that is a sentence")
    lacks += [f"the argument `{name}`" for name in sorted(arguments(value) - documented_arguments(value))]
    wanted = {"Example"}
    if inspect.isclass(value):
        if (
            issubclass(value, keras.layers.Layer)
            and not issubclass(value, keras.Model)
            and not inspect.isabstract(value)
        ):
            wanted |= {"Input shape", "Output shape"}
        if issubclass(value, (keras.losses.Loss, keras.metrics.Metric)):
            wanted |= {"Call arguments"}
    elif inspect.signature(value).return_annotation is not None:
        wanted |= {"Returns"}
    if re.search(r"^ +raise (?!NotImplementedError)", inspect.getsource(value), re.MULTILINE):
        wanted |= {"Raises"}
    lacks += [f"the section '{title}'" for title in sorted(wanted - set(found))]
    if "Example" in found and ">>>" not in found["Example"]:
        lacks.append("an example that runs")
    for name, member in vars(value).items() if inspect.isclass(value) else ():
        inherited = any(hasattr(base, name) for base in value.__bases__)
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if not name.startswith("_") and not inherited and inspect.isfunction(function) and not function.__doc__:
            lacks.append(f"a docstring of `{name}`")
    return lacks


@on_torch
@pytest.mark.parametrize("path", PUBLIC)
def test_docstring_is_complete(path):
    assert not missing(path, PUBLIC[path])


@on_torch
def test_each_public_name_is_in_the_reference():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    listed = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(listed) == len(set(listed))
    objects = [_import(path) for path in listed]
    assert [path for path, value in PUBLIC.items() if all(value is not other for other in objects)] == []


def _import(path):
    parts = path.split(".")
    return functools.reduce(getattr, parts[1:], importlib.import_module(parts[0]))


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names():
    """What examples take as given: all public names, and a small model with its data."""
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(7)
    x = rng.normal(size=(64, 4)).astype("float32")
    y = np.argmax(x[:, :3], axis=1)
    model = keras.Sequential(
        [keras.Input((4,)), lip.layers.SpectralDense(8), lip.layers.GroupSort2(), lip.layers.SpectralDense(3)]
    )
    # With a rate of 0, so that a training that stops early does so at once.
    model.compile(keras.optimizers.SGD(0.0), lip.losses.MulticlassHKR(alpha=10.0, min_margin=0.5), metrics=["accuracy"])
    found = {name: getattr(module, name) for module in reversed(MODULES) for name in public_names(module)}
    found |= {module.__name__.rsplit(".", 1)[-1]: module for module in MODULES}
    data = {"x": x, "y": y, "x_val": x, "y_val": y, "x_test": x, "y_test": y, "test_data": (x, y)}
    return {
        **found,
        **data,
        "model": model,
        "logits": model.predict(x, verbose=0),
        "np": np,
        "keras": keras,
        "lip": lip,
        "dataclasses": dataclasses,
    }


def run_examples(text, names):
    """Runs the examples of a docstring, and compares what they print or return with what they say."""
    for example in doctest.DocTestParser().get_examples(text):
        if doctest.SKIP in example.options:
            continue
        printed = io.StringIO()
        value = None
        with contextlib.redirect_stdout(printed):
            try:
                code = compile(example.source.strip(), "<example>", "eval")
            except SyntaxError:
                exec(example.source, names)
            else:
                value = eval(code, names)
        if example.want:
            assert same(printed.getvalue() or value, example.want), (example.source, printed.getvalue() or value)


def same(value, want):
    """Whether a value, or a text that was printed, is the one that an example shows; tensors are shown as lists."""
    if isinstance(value, str):
        return doctest.OutputChecker().check_output(want, value, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    if doctest.OutputChecker().check_output(want, f"{value!r}\n", doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE):
        return True
    try:
        expected = eval(want, {"array": np.array})
        numbers = keras.ops.convert_to_numpy(value)
    except (SyntaxError, NameError, ValueError, TypeError):
        return False
    return np.shape(expected) == np.shape(numbers) and bool(np.allclose(numbers, expected, atol=1e-6))


@on_torch
@pytest.mark.parametrize("path", PUBLIC)
def test_examples_of_docstring(path, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = PUBLIC[path]
    module = importlib.import_module(path.rsplit(".", 1)[0])
    own = {name: getattr(module, name) for name in public_names(module)}
    run_examples(value.__doc__ or "", {**names, **own})


# --- pages -----------------------------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# Pages that the site makes of scripts.
SCRIPTS = {script.with_suffix(".md"): script for script in (ROOT / "docs/tutorials").glob("*.py")}


def text_of(page):
    if page == ROOT / "docs/index.md":  # as docs/tools/hooks.py makes it
        return (ROOT / "README.md").read_text(encoding="utf-8")
    if page in SCRIPTS:
        return re.sub(r"^# ?", "", SCRIPTS[page].read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = page.read_text(encoding="utf-8")
    return re.sub(
        r'^--8<-- "(.*)"$', lambda match: (ROOT / match[1]).read_text(encoding="utf-8"), text, flags=re.MULTILINE
    )


def anchors(page):
    """Returns the anchors of a page: its headings, as Python-Markdown makes them, and the names that it documents."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE)) | set(re.findall(r'id="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\]\(.*?\)|\[", "", heading)
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


@on_torch
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_internal_links_of_page_resolve(page):
    # What a page includes is a page of its own.
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|mailto:", link)]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() or target in SCRIPTS or _made_of_script(target), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: the page has no such heading"


def _made_of_script(target):
    """Whether the site makes a file of a script: a notebook or a figure."""
    return any(target.parent == script.parent and target.name.startswith(script.stem) for script in SCRIPTS.values())


def snippets(page):
    """Returns the Python code of a page that stands by itself: each block goes on where the one before it ended."""
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


WITH_CODE = [page for page in PAGES[3:] if "```python\n" in page.read_text(encoding="utf-8")]


@on_torch
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_of_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippets(page), page.name, "exec"), {"__name__": page.stem})


@on_torch
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "TUTORIALS": "skip", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        resources = re.findall(
            r'(?:<script[^>]* src|<link[^>]* href|<img[^>]* src)="?(https?:[^" >]*)', page.read_text(encoding="utf-8")
        )
        assert not resources, f"{page.name} needs the network: {resources}"
