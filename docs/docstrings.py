"""Docstrings for the API reference: the few words of reStructuredText that ours use, in Markdown."""

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?\.?([^`]+)`")


def markdown(text: str) -> str:
    """Roles become code, and the ``::`` before a block one colon."""
    return re.sub(r"::(?=\n\n)", ":", _ROLE.sub(r"`\1`", text))


class Docstrings(Extension):
    """Griffe hands every object over once."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
