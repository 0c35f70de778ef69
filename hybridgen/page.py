"""The HTML pages that commands write: one frame with its colours, and what makes a page of a template that fills it."""

from pathlib import Path
from typing import Any

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% block title %}{% endblock %}</title>
{% block head %}{% endblock %}
<style>
:root {
  color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5b6570; --line: #dde1e6; --card: #f7f8fa;
  --accent: #1f5fa8; --warn: #8a5a00; --warn-paper: #fff6e0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e4e7eb; --soft: #9aa4af; --line: #2f363e; --card: #1b2026; --accent: #5aa2ea;
    --warn: #f0c066; --warn-paper: #2c2414;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { overflow-wrap: anywhere; }
[hidden] { display: none !important; }
{% block style %}{% endblock %}
</style>
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""


def rendered(template: Path, **values: Any) -> str:
    """The page of a template that extends `frame`: its blocks are title, head, style and body. Values are escaped, and
    one that the template asks for and that is not given is jinja2's UndefinedError."""
    from jinja2 import DictLoader, Environment, StrictUndefined  # which takes its time

    frame = DictLoader({"frame": FRAME})
    environment = Environment(
        loader=frame, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
