"""Settings of the documentation; ``make docs`` builds it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

from sphinx.application import Sphinx
from sphinx.errors import ConfigError, ExtensionError

import nullport

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
SLOW = 30.0
"""Seconds that an example of the gallery may take."""

INCLUDED = {"asv_bench/README.md": "benchmarking.md", "generated/quick.md": "quick.md"}

project, author = "nullport", "The nullport authors"


def _release(number: str, changelog: str) -> str:
    """Return the version that the pages are of: one with a section of its own in the changelog."""
    return number if f"## [{number}]" in changelog else f"{number}, not released yet"


version = nullport.__version__
release = _release(version, (HERE.parent / "CHANGELOG.md").read_text("utf-8"))
project_copyright = author

extensions = [
    "links",
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_*", "examples", "generated"]
myst_enable_extensions = ["dollarmath", "deflist", "substitution"]
myst_substitutions = {"release": release}
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]  # the gallery's settings hold a class

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"nullport {release}"
html_static_path = ["_static"]
html_css_files = ["nullport.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False

nitpicky = True
nitpick_ignore_regex = [
    # Of other libraries, and of typing.
    ("py:.*", r"(torch|nn|jax|optax|numpy|np|matplotlib|collections|pathlib|typing)\..*"),
    ("py:.*", r"(Any|ArrayLike|Axes|Callable|Literal|Sequence|Tensor|Optimizer)\b.*"),
    # What public signatures and docstrings name in private modules, or by an alias.
    ("py:.*", r"nullport\w*\.(.*\.)?_.*"),
    ("py:.*", r"nullport\.lab\.(compare|diagnose)\.[a-z]+(\.(Point|Statistic|Teleport))?"),
    ("py:.*", r"(lightning|transformers|accelerate)(\..*)?"),
    (
        "py:.*",
        r"(.*\.)?(AnyOptimizer|Array|Cause|Clip|Closure|Group|Hold|LossFn|Matrix|MissingExtra|Own|Params|State|Vector|When|\w*Name|Objective)",
    ),
    ("py:class", "The gradient"),  # the beginning of a property's docstring, taken for its type
    ("py:attr", "graph"),
    ("py:meth", "state_dict"),  # inherited, and so described with nullport.Teleporter only
    ("py:class", r"nullport\.network\.T|contextlib\.AbstractContextManager"),
]

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"numpy_networks\.py",  # for the command line: prints, and no figure
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,
    "junit": "examples.xml",
    "image_srcset": ["2x"],
}


def setup(app: Sphinx) -> None:
    """Check what the pages need before, and how long the examples took after."""
    if not (HERE / "generated" / "quick.md").exists():
        msg = "docs/generated/quick.md is missing: `make docs` makes it before it runs Sphinx"
        raise ConfigError(msg)
    app.connect("source-read", _links)
    app.connect("autodoc-process-docstring", _stars)
    app.connect("build-finished", _in_time, priority=900)


def _links(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Lead links to files that are no pages to the pages that include them."""
    for file, page in INCLUDED.items():
        source[0] = re.sub(rf"\]\((\.\./)*{re.escape(file)}\)", f"](/{page})", source[0])


def _stars(
    _app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """Keep the star of shapes such as (*stack, out, in) from opening emphasis."""
    lines[:] = [re.sub(r"\(\*(?=\w+, )", r"(\\*", line) for line in lines]


def _in_time(app: Sphinx, exception: Exception | None) -> None:
    """Fail if an example was slow; those that have not changed are not run again."""
    record = Path(app.outdir) / sphinx_gallery_conf["junit"]  # type: ignore[operator]
    if exception is not None or not record.exists():
        return
    cases = ElementTree.parse(record).iter("testcase")
    slow = [case.attrib["name"] for case in cases if float(case.attrib["time"]) > SLOW]
    if slow:
        msg = f"examples that take more than {SLOW:g} s: {', '.join(slow)}"
        raise ExtensionError(msg)
