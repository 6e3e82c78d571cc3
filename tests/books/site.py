# SPDX-License-Identifier: BSD-2-Clause
"""Check the documentation site that "make docs" built.

    python -m tests.books.site FOLDER

Every link within the site leads to a file and, if it names a place in it, to an
element with that id. No page loads anything from the network, and none shows the
hidden comments of a source page.
"""

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: elements that load what they name, and the attribute that names it
LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src"}
_HIDDEN = re.compile(
    r"(?:<|&lt;)!--\s*(?:prepare|not run|refused|prints|input|prose)"
)


@dataclass
class Page(HTMLParser):
    """The links and ids of one page.

    :ivar links: targets of links, and files that the page loads
    :ivar loads: the part of them that a browser loads by itself
    """

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Prepare the parser of the standard library."""
        super().__init__()

    def handle_starttag(
        self, tag: str, attrs: list[tuple[str, str | None]]
    ) -> None:
        """Note the id and the link of an element."""
        values = {name: value for name, value in attrs if value}
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        loaded = values.get(LOADS.get(tag, ""))
        if loaded and values.get("rel") not in {"canonical", "next", "prev"}:
            self.links.append(loaded)
            self.loads.append(loaded)


def read(folder: Path) -> dict[Path, Page]:
    """Parse all pages of a site."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        page = Page()
        page.feed(path.read_text())
        pages[path.resolve()] = page
    return pages


def problems(folder: Path) -> list[str]:
    """Return a line for each dead link, loaded address and shown comment."""
    pages = read(folder)
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        if _HIDDEN.search(path.read_text()):
            found.append(f"{name}: a hidden comment is shown")
        for address in page.loads:
            if urlsplit(address).netloc:
                found.append(f"{name}: loads {address}")
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
            if not target.is_file():
                found.append(f"{name}: the link {link} leads to no file")
            elif parts.fragment and target in pages:
                if unquote(parts.fragment) not in pages[target].ids:
                    found.append(f"{name}: the link {link} leads to no place")
    return found


def main() -> int:
    """Print the problems of a site; return the exit status."""
    found = problems(Path(sys.argv[1]))
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
