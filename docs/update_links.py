"""Bring up to date what pages cannot know by themselves: line numbers in links into the code, and the address.

python docs/update_links.py              # a test fails while there is something to do

A link such as [`choose_way`](../lambda_ops/rule.py#L1) gets the line that defines the name. The repository's address
stands in `pyproject.toml`, under [project.urls], and goes from there into the pages, the notebook and `CITATION.cff`.
"""

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<file>[^)#]+\.py)#L\d+\)")
UNKNOWN = "<your fork's address>"
NOTEBOOK = "LambdaNetworks.ipynb"
# Where the address is written: what stands before it, it or what it leads to, what stands after it
CLONED = re.compile(r"(git clone |git\+)(<[^>]+>|https://[^\s`]+)")
FROM_THE_HUB = re.compile(r"(torch\.hub\.load\(\")([^\"]+)(?=\", \"resnet50_lambda\", num)")
OPENED = re.compile(rf"(\[`{NOTEBOOK}`\]\()([^)]+)")
IN_THE_NOTEBOOK = re.compile(r"(REPOSITORY = \\\")([^\"\\]*)")
CITED = re.compile(r"^(#? ?)repository-code: .*$", re.M)


def address() -> str | None:
    """The repository's; None as long as pyproject.toml has none."""
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "(https://.+?)/?"$', text, re.M)
    return found[1] if found else None


def updated(page: Path) -> str:
    """The text of a page, each of its links at the line which defines the name in it, with the address.

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

    return with_address(LINK.sub(at_its_line, page.read_text(encoding="utf-8")), address())


def with_address(text: str, known: str | None) -> str:
    """A text with that address in all its places; without one, in words where it cannot be left out."""
    owner_and_name = "/".join(known.split("/")[-2:]) if known else "<owner>/<name>"
    colab = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{NOTEBOOK}"
    code = f'repository-code: "{known}"' if known else "# repository-code: where [project.urls] has it"
    text = CLONED.sub(rf"\g<1>{known or UNKNOWN}", text)
    text = FROM_THE_HUB.sub(rf"\g<1>{owner_and_name}", text)
    text = OPENED.sub(rf"\g<1>{colab if known else NOTEBOOK}", text)
    text = IN_THE_NOTEBOOK.sub(rf"\g<1>{known or ''}", text)
    return CITED.sub(code, text)


def pages() -> list[Path]:
    """The README and every page here."""
    return [PROJECT / "README.md", *sorted(HERE.glob("*.md"))]


def files() -> list[Path]:
    """All that is kept up to date."""
    return [*pages(), PROJECT / NOTEBOOK, PROJECT / "CITATION.cff"]


if __name__ == "__main__":
    for file in files():
        file.write_text(updated(file), encoding="utf-8")
