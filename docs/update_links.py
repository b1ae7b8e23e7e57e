"""Bring the line numbers of links such as [`choose_way`](../lambda_layer.py#L1) in the pages here up to date.

python docs/update_links.py              # a test fails while there is something to do
"""

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<file>[^)#]+\.py)#L\d+\)")


def updated(page: Path) -> str:
    """The text of a page, each of its links at the line which defines the name in it.

    Raises:
        LookupError: a file has no such name.
    """

    def at_its_line(link: re.Match[str]) -> str:
        name, file = link["name"], link["file"]
        last = name.split(".")[-1]
        # a function or class, an attribute where it is first set, or a constant
        definition = re.compile(rf"\s*(def|class) {last}\b|\s*(self\.\w+, )*self\.{last}\b.* = |{last} = ")
        for number, line in enumerate((page.parent / file).read_text(encoding="utf-8").splitlines(), start=1):
            if definition.match(line):
                return f"[`{name}`]({file}#L{number})"
        raise LookupError(f"{page.name}: {file} defines no {name}")

    return LINK.sub(at_its_line, page.read_text(encoding="utf-8"))


def pages() -> list[Path]:
    """The README and every page here."""
    return [HERE.parent / "README.md", *sorted(HERE.glob("*.md"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(updated(page), encoding="utf-8")
