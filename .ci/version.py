"""What must agree when a version is cut: the tag, pyproject.toml, CITATION.cff and a dated section of CHANGELOG.md.

Run as ``python .ci/version.py [tag]``; without a tag only the files are compared. Prints what does not agree and ends
with status 1 if anything does not.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path


def problems(root: Path, tag: str | None) -> Iterator[str]:
    """What does not agree, one line each; without a tag an undated section of the changelog will do."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = re.search(r"^version: *(\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1].strip("\"'") != version:
        yield f"CITATION.cff has version {cited[1] if cited else 'none'}, pyproject.toml has {version}"
    headings = re.findall(r"^## \[([^\]]+)\](.*)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    known = dict(headings)
    if version not in known:
        yield f"CHANGELOG.md has no section [{version}]; it has {list(known)}"
    if tag is not None:
        if tag != f"v{version}":
            yield f"the tag is {tag}, pyproject.toml has {version}: it must be v{version}"
        if not re.fullmatch(r" - \d{4}-\d\d-\d\d", known.get(version, "")):
            yield f"CHANGELOG.md: [{version}] has no date, as in '## [{version}] - 2026-12-01'"


def main(arguments: list[str]) -> int:
    found = list(problems(Path(__file__).parents[1], arguments[0] if arguments else None))
    print("\n".join(found) if found else "version: tag, package, citation and changelog agree")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
