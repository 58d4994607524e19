"""Hooks of mkdocs.yml: pages that lie outside docs/, links to them, and diagrams that need no network."""

from __future__ import annotations

import hashlib
import importlib.util
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# They keep their place in the repository: benchmarks/results/sweep.md is the same path on the site.
OUTSIDE_DOCS = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/results/*.md",
    "benchmarks/results/paper/*.md",
    "examples/*.toml",
    "examples/gate/*.*",
)
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
# The theme would load Mermaid from unpkg.com. mermaidx carries a copy of the same file; only the file is used.
MERMAID = "assets/mermaid.min.js"
MERMAID_SHA256 = "74d7c46dabca328c2294733910a8aa1ed0c37451776e8d5295da38a2b758fb9b"  # mermaid 11.16.0, as on npm


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/, and Mermaid."""
    from mkdocs.structure.files import File

    outside = {path.relative_to(ROOT).as_posix(): path for glob in OUTSIDE_DOCS for path in ROOT.glob(glob)}
    for uri, path in sorted({**outside, MERMAID: _mermaid()}.items()):
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository into links that hold on the site, where docs/ is the root."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri)
    in_repository = folder if (ROOT / uri).is_file() else posixpath.join("docs", folder)

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(in_repository, link["path"])).removeprefix("docs/")
        if files.get_file_from_path(target) is None:
            return link[0]  # mkdocs says that it is broken
        return posixpath.relpath(target, folder or ".") + (link["anchor"] or "")

    return LINK.sub(on_site, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Load Mermaid on pages with a diagram only: it has 3.6 MB."""
    if '<pre class="mermaid">' not in html:
        return html
    address = posixpath.relpath(MERMAID, posixpath.dirname(page.url) or ".")
    return f'{html}\n<script src="{address}"></script>'


def _mermaid() -> Path:
    package = importlib.util.find_spec("mermaidx")
    if package is None or package.origin is None:
        raise SystemExit("mermaidx is not installed: run `make docs`, or pip install '.[docs]'")
    path = Path(package.origin).parent / "assets" / "mermaid.js"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != MERMAID_SHA256:
        raise SystemExit(f"{path} has the SHA-256 {digest}, not {MERMAID_SHA256}: see constraints.txt")
    return path
