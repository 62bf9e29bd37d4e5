"""Docstrings for the API reference: the few words of reStructuredText that ours use, in Markdown."""

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?\.?([^`]+)`")
_EXAMPLE = re.compile(r"^>>> .+(?:\n.+)*", re.M)  # to the next empty line


def markdown(text: str) -> str:
    """Roles become code, the ``::`` before a block one colon, and examples blocks of code."""
    text = re.sub(r"::(?=\n\n)", ":", _ROLE.sub(r"`\1`", text))
    return _EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)


class Docstrings(Extension):
    """Griffe hands every object over once."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
