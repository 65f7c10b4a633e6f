"""Replaces links to files outside of docs/ with links to the repository, because the site has only docs/."""

import posixpath
import re

_LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s#]*)")


def on_page_markdown(markdown, page, config, files):
    """Replaces links to files outside of docs/ with links to the repository."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def rewrite(match):
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        if target.startswith("docs/"):
            return match[0]
        return f"{match[1]}{config.repo_url.rstrip('/')}/blob/main/{target}"

    return _LINK.sub(rewrite, markdown)
