"""What mkdocs.yml adds to the pages: roles of reStructuredText in docstrings, which Markdown does not know."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:meth|class|func|attr|mod):(?=<code>)")


def on_page_content(html: str, **_: Any) -> str:
    """Return a page without the names of roles, whose text stays as code."""
    return _ROLE.sub("", html)
