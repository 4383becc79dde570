"""How do links from a page to a source file work on the site? Each file that a page links to becomes a page of the site.

In the repository ``../../pipeline/network/aspp.py`` leads to the file. The site holds what is below ``docs`` only, so there the
same link leads to a generated page with the text of the file.
"""  # noqa: INP001 - loaded by mkdocs

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_LINK = re.compile(r"\]\((?:\.\./)+((?:pipeline|workflows)/[\w/]+\.py)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each source file that some page links to."""
    root = Path(config.config_file_path).parent
    linked = {path for file in files.documentation_pages() for path in _LINK.findall(file.content_string)}
    for path in sorted(linked):
        if (root / path).is_file():  # else mkdocs finds a link that leads nowhere, and says on which page
            text = (root / path).read_text(encoding="utf-8")
            files.append(File.generated(config, _page(path), content=f"# {path}\n\n~~~~python\n{text}~~~~\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links lead to those pages."""
    del config
    folder = posixpath.dirname(page.file.src_uri)

    def to_page(link: re.Match[str]) -> str:
        target = _page(link[1])
        known = files.get_file_from_path(target) is not None
        return f"]({posixpath.relpath(target, folder or '.')})" if known else link[0]

    return _LINK.sub(to_page, markdown)


def _page(path: str) -> str:
    return f"source/{path}.md"
