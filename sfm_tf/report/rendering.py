"""How values get into a document without becoming part of its mark-up."""

import base64
import pathlib
from typing import Any

import jinja2
import markupsafe

_TEMPLATES = pathlib.Path(__file__).parent / "templates"

_MARKDOWN_ENTITIES = str.maketrans(
    {character: f"&#{ord(character)};" for character in "&<>|*`[]\\#"} | {"\n": " ", "\r": " "}
)
"""Characters that Markdown, or the HTML it may hold, gives a meaning; `_` has none in a word."""


def markdown_environment() -> jinja2.Environment:
    """Returns the templates for Markdown, which show every value as it reads, on one line.

    A value that a template calls `safe` is left as it is.
    """
    # Every value a template prints goes through `finalize`, as autoescape does for HTML.
    return environment(finalize=_escape)


def html_environment() -> jinja2.Environment:
    """Returns the templates for HTML, which show every value as it reads.

    Their filter `base64` turns bytes into text for a data URL.
    """
    templates = environment(autoescape=True)
    templates.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return templates


def _escape(value: object) -> str:
    if isinstance(value, markupsafe.Markup):
        return value
    return str(value).translate(_MARKDOWN_ENTITIES)


def environment(**options: Any) -> jinja2.Environment:
    """Returns the templates beside this module; a name they miss is an error.

    Args:
        **options: Further options of `jinja2.Environment`.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
