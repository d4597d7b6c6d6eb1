"""The page on which people try the judge, and the policy that lets nothing but the page's own code run."""

import base64
import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).parent


def page_and_policy() -> tuple[str, str]:
    """The page as one file, and its Content-Security-Policy: only its own code runs, only this server is asked."""
    page = inlined((FOLDER / "page.html").read_text(encoding="utf-8"))
    rules = (
        "default-src 'none'",
        f"script-src {hashes(page, 'script')}",
        f"style-src {hashes(page, 'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return page, "; ".join(rules)


def inlined(page: str) -> str:
    """A page with its style and script in it, so that it loads nothing."""
    files = ("page.css", "examples.json", "page.js")
    style, examples, script = ((FOLDER / name).read_text(encoding="utf-8") for name in files)
    page = page.replace('<link rel="stylesheet" href="page.css">', f"<style>\n{style}</style>")
    page = page.replace(
        ' src="examples.json"></script>', f">\n{examples}</script>"
    )  # data, which needs no leave to run
    return page.replace('<script src="page.js"></script>', f"<script>\n{script}</script>")


def hashes(page: str, tag: str) -> str:
    """The hashes by which a policy allows the page's own elements of a kind."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
