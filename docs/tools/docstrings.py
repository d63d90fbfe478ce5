"""A griffe extension: the sections of Keras's docstrings, in words that mkdocstrings knows."""

import re
from typing import Any

import griffe

# Sections of prose, which become a bold heading and the text below it.
_PROSE = "Call arguments|Input shape|Output shape|Reference|References"


class KerasDocstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """Returns a docstring with sections of prose as headings and text, and examples under the plural."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(rf"^({_PROSE}):\n((?:(?:    .*)?\n?)*)", _prose, text, flags=re.MULTILINE)


def _prose(match: re.Match[str]) -> str:
    lines = re.sub(r"^    ", "", match[2], flags=re.MULTILINE).strip("\n")
    # Arguments become a list.
    lines = re.sub(r"^(\w+): ", r"- `\1`: ", lines, flags=re.MULTILINE) if match[1] == "Call arguments" else lines
    return f"**{match[1]}**\n\n{lines}\n\n"
