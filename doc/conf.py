# SPDX-License-Identifier: BSD-2-Clause
"""The configuration of the documentation site, which "make docs" builds.

Sphinx reads copies of the pages in ``build/site``, which has the layout of the
repository. So a relative link works both in the site and in a git web view.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build/site"
# the drivers import qubes, of which tests/host has a stand-in
sys.path[:0] = [str(ROOT), str(ROOT / "tests/host")]

from doc.plain import pages, plain  # noqa: E402

#: the third group of the navigation; the list in README.md makes the others
REFERENCE = [
    "doc/errors",
    "doc/manpages/qubes-storage-zfs",
    "doc/manpages/qvm-zfs",
    "doc/glossary",
    "doc/support",
    "doc/performance-tables",
    "CHANGELOG",
    "SECURITY",
]
#: the first page in README.md that is for maintainers
FIRST_FOR_MAINTAINERS = "doc/design"
PACKAGE = "qubes_storage_zfs"
MODULE = """
.. automodule:: {name}
   :members:
   :undoc-members:
   :show-inheritance:
"""


def toctree(names: list[str], caption: str = "") -> str:
    """Return a hidden list of pages, in Markdown."""
    lines = ["```{toctree}", ":hidden:"]
    lines += [f":caption: {caption}"] if caption else []
    return "\n".join(["", *lines, "", *(f"/{name}" for name in names), "```\n"])


def groups() -> dict[str, list[str]]:
    """Return the names of pages for each group of the navigation."""
    parts = (ROOT / "README.md").read_text().split("\n## ")
    (listing,) = (part for part in parts if "(doc/releasing.md)" in part)
    names = re.findall(r"\]\(([\w/-]+)\.(?:md|rst)\)", listing)
    listed = [name for name in dict.fromkeys(names) if name not in REFERENCE]
    first = listed.index(FIRST_FOR_MAINTAINERS)
    reference = [name for name in REFERENCE if [*ROOT.glob(f"{name}.*")]]
    return {
        "For users": listed[:first],
        "For maintainers": listed[first:],
        "Reference": [*reference, "api/index"],
    }


def copy_pages() -> None:
    """Copy the pages, and the files that they link to.

    README.md becomes the first page of the site.
    """
    extra = {
        "README.md": "".join(
            toctree(names, caption) for caption, names in groups().items()
        ),
        "doc/design.md": toctree(
            [
                str(page.with_suffix(""))
                for page in pages()
                if page.parent.name == "decisions"
            ]
        ),
    }
    manual = (
        path.relative_to(ROOT) for path in ROOT.glob("doc/manpages/*.rst")
    )
    for page in [*pages(), *manual]:
        text = (ROOT / page).read_text()
        if page.suffix == ".md":
            text = plain(text, keep_lines=True) + extra.get(str(page), "")
        for link in re.findall(r"\]\(([^)\s:#]+)", text):
            linked = (ROOT / page.parent / link).resolve()
            if linked.is_file() and linked.suffix not in {".md", ".rst"}:
                target = SITE / linked.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(linked, target)
        text = re.sub(r"(?<=\]\()((?:\.\./)*)README\.md", r"\1index.md", text)
        name = "index.md" if str(page) == "README.md" else str(page)
        target = SITE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def title(name: str, sign: str = "=") -> str:
    """Return a heading, in reStructuredText."""
    return f"{name}\n{sign * len(name)}\n"


def write_reference() -> None:
    """Write a page for each module, grouped by the packages they are in."""
    folder = SITE / "api"
    folder.mkdir(parents=True)
    packages = sorted(
        path.parent for path in ROOT.glob(f"{PACKAGE}/*/__init__.py")
    )
    for package in packages:
        names = []
        for path in sorted(package.glob("*.py")):
            if path.name != "__init__.py":
                names.append(f"{PACKAGE}.{package.name}.{path.stem}")
                text = title(path.stem) + MODULE.format(name=names[-1])
                (folder / f"{names[-1]}.rst").write_text(text)
        listed = "".join(f"   {name}\n" for name in names)
        (folder / f"{package.name}.rst").write_text(
            title(package.name)
            + MODULE.format(name=f"{PACKAGE}.{package.name}")
            + f"\n.. toctree::\n   :maxdepth: 1\n\n{listed}"
        )
    listed = "".join(f"   {package.name}\n" for package in packages)
    (folder / "index.rst").write_text(
        title("Python modules")
        + MODULE.format(name=PACKAGE)
        + f"\n.. toctree::\n   :maxdepth: 1\n\n{listed}"
    )


shutil.rmtree(SITE, ignore_errors=True)
copy_pages()
write_reference()

project = "qubes-storage-zfs"
project_copyright = "the qubes-storage-zfs authors; BSD-2-Clause"
version = release = (ROOT / "version").read_text().strip()
root_doc = "index"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
# links to headings, as git web views have them
myst_heading_anchors = 4
autodoc_mock_imports = ["libzfs_core", "lxml", "qubesadmin"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 60
add_module_names = False
# two modules may have a class of the same name
suppress_warnings = ["ref.python"]
smartquotes = False
highlight_language = "text"
html_theme = "furo"
html_title = project
html_static_path = [str(ROOT / "doc/site.css")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False
