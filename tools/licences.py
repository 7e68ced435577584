"""Hold the licence of everything that is installed in this environment to an allow-list.

What a distribution declares is read in this order: an SPDX expression, classifiers, the free text.
Of several licences all must be allowed, unless they are plainly alternatives (`A OR B`).

Usage: licences.py

Prints one line for each licence and one for each problem; exits with 1 if there is a problem.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections import defaultdict

# SPDX identifiers. All are permissive; MPL-2.0 asks for the changed files of its own work only,
# and we change none.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
    "Unlicense",
    "Zlib",
}
# What classifiers and free text call them. BSD alone is what the classifier says, whichever it is.
ALIASES = {
    "apache 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd license": "BSD",
    "expat license": "MIT",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}
# Leaves of the classifier tree that name no licence.
NO_LICENCE = {"DFSG approved", "OSI Approved"}


def first_of(metadata: importlib.metadata.PackageMetadata, name: str) -> str:
    """The first value of a field that a distribution may not have; empty without one."""
    values: list[str] = metadata.get_all(name) or []
    return values[0] if values else ""


def declared(metadata: importlib.metadata.PackageMetadata) -> str:
    """The licence expression of one distribution, in SPDX's words; empty if it declares none."""
    expression = first_of(metadata, "License-Expression")
    if expression:
        return expression
    leaves = [
        classifier.rsplit(" :: ", 1)[-1]
        for classifier in metadata.get_all("Classifier") or []
        if classifier.startswith("License :: ")
    ]
    named = sorted({ALIASES.get(leaf.lower(), leaf) for leaf in leaves if leaf not in NO_LICENCE})
    if named:
        return " AND ".join(named)
    # Some put the whole text here; its first line is its name, if anything is.
    text = first_of(metadata, "License").strip().split("\n")[0].strip()
    return ALIASES.get(text.lower(), text)


def allowed(expression: str) -> bool:
    """Whether an SPDX expression is covered by the allow-list."""
    names = re.split(r"\s+(?:AND|OR|WITH)\s+", expression.replace("(", "").replace(")", ""))
    only_alternatives = " AND " not in expression and " WITH " not in expression
    judge = any if only_alternatives else all
    return judge(name in ALLOWED for name in names)


def main() -> int:
    """Judge every distribution of the running interpreter; see the module's docstring."""
    by_licence: dict[str, list[str]] = defaultdict(list)
    for distribution in importlib.metadata.distributions():
        by_licence[declared(distribution.metadata)].append(distribution.metadata["Name"])
    refused = {licence for licence in by_licence if not allowed(licence)}
    for licence, names in sorted(by_licence.items()):
        line = f"{licence or 'no licence declared'}: {', '.join(sorted(set(names)))}"
        print(f"not on the allow-list: {line}" if licence in refused else line)
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
