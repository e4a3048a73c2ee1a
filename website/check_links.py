# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks a built site: `python website/check_links.py build/site`.

Every link, picture, script and style leads to a file of the site, and every anchor to an element of its page. Links to
this repository on GitHub lead to files that it has. No page loads anything from elsewhere. Nothing uses the network.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


ROOT = Path(__file__).parents[1]
OURS = re.compile(r"^/trl-entropy/trl-entropy/(?:blob|tree)/main/(.+)$")
# What a page loads by itself; an `a` is followed by the reader
LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """The links of a page, what it loads, and the elements that links may lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADS and LOADS[tag] in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given[LOADS[tag]])


def problem(target: str, path: Path, pages: dict[Path, Page], site: Path, loads: bool) -> str | None:
    """What is wrong with a link, or `None`."""
    parts = urlsplit(target)
    if parts.scheme in ("mailto", "data", "javascript"):
        return None
    if parts.scheme or parts.netloc:
        if loads:
            return "is loaded from elsewhere"
        ours = OURS.match(parts.path) if parts.netloc == "github.com" else None
        return "is no file of the repository" if ours and not (ROOT / unquote(ours[1])).exists() else None
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if parts.path.startswith("/"):
        file = site / parts.path.lstrip("/")
    if file.is_dir():
        file = file / "index.html"
    if not file.exists():
        return "does not exist"
    anchor = unquote(parts.fragment)
    if anchor and file in pages and anchor not in pages[file].anchors and not anchor.startswith("__"):
        return "has no such anchor"
    return None


def check(site: Path) -> tuple[list[str], int]:
    """All problems of a site, one sentence each, and the number of links."""
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found, count = [], 0
    for path, page in pages.items():
        if path.name == "404.html":  # served under any address, so that its links are those of the server's root
            continue
        for target, loads in [*((link, False) for link in page.links), *((load, True) for load in page.loads)]:
            count += 1
            if reason := problem(target, path, pages, site, loads):
                found.append(f"{path.relative_to(site)}: {target} {reason}.")
    return sorted(set(found)), count


def main() -> int:
    problems, count = check(Path(sys.argv[1]))
    print(*problems, sep="\n", end="\n" if problems else "")
    if not count:
        problems = ["no links"]
    print(f"{count} links, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
