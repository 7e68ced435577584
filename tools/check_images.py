"""Check the Dockerfiles without a container engine: their steps, done in a temporary directory.

Usage: check_images.py [DOCKERFILE...]

For each Dockerfile the files that its build stage copies are copied, as `.dockerignore` lets them
through, and its `RUN` lines are run, with `/src` and `/opt` moved into the temporary directory.
Then the image's entry point is started with its variables, as its user and on a read-only tree
where we may do that, otherwise as we are. What only an engine can do is left out: the base image,
and the stage that installs Debian's packages.

Exits with 1 at the first thing that is wrong.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
# What each is asked when it has been installed, and a word of its answer.
DOCKERFILES = {
    "Dockerfile": ("plugins", "toolpolicy"),
    "contrib/operator/Dockerfile": ("crds", "mcpservers.kars.azure.com"),
}


class WrongError(Exception):
    """What is wrong, in a sentence."""


@dataclass
class Stage:
    """One stage of a Dockerfile: its instructions in order, and what its variables are."""

    base: str
    name: str = ""
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """The arguments of every instruction of that name."""
        return [text for name, text in self.steps if name == instruction]

    def variables(self) -> dict[str, str]:
        """What ARG and ENV say, without quotes."""
        pairs = (
            pair for each in ("ARG", "ENV") for text in self.all(each) for pair in shlex.split(text)
        )
        return dict(pair.split("=", 1) for pair in pairs)

    def copies(self) -> Iterator[tuple[list[str], str]]:
        """Sources and target of each COPY from the build's context."""
        for text in self.all("COPY"):
            *sources, target = shlex.split(text)
            if not sources[0].startswith("--from="):
                yield sources, target


def stages(dockerfile: Path) -> list[Stage]:
    """The stages of a Dockerfile; what stands before the first one is of no concern here."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: list[Stage] = []
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name))
        elif instruction and found:
            found[-1].steps.append((instruction, " ".join(rest.split())))
    return found


def ignored(path: str, rules: Sequence[str]) -> bool:
    """Whether `.dockerignore` keeps a file out of the build; the last rule that fits decides."""
    parents = [str(each) for each in (PurePosixPath(path), *PurePosixPath(path).parents)][:-1]
    found = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        names = [*parents, *(PurePosixPath(each).name for each in parents)]
        deep = pattern.removeprefix("**/")
        if any(fnmatch(each, deep) for each in (names if deep != pattern else parents)):
            found = not rule.startswith("!")
    return found


def ignore_rules() -> list[str]:
    """The lines of `.dockerignore` that say something."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def copy(stage: Stage, target: Path) -> None:
    """Copy what the stage copies. Raises WrongError if there is no such file for it."""
    rules = ignore_rules()
    for sources, where in stage.copies():
        for source in sources:
            for path in files(source):
                if ignored(path, rules):
                    continue
                inside = PurePosixPath(where)
                name = inside / PurePosixPath(path).name if where.endswith("/") else inside
                if (ROOT / source).is_dir():
                    name = inside / PurePosixPath(path).relative_to(source)
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, target / name)
            if not any(not ignored(path, rules) for path in files(source)):
                raise WrongError(f"COPY {source}: nothing of it is in the build's context")


def files(source: str) -> list[str]:
    """A file, or the files below a directory, as git knows them or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def run(stage: Stage, scratch: Path) -> None:
    """Run what the stage runs, in its directory. Raises WrongError."""
    for line in stage.all("RUN"):
        moved = re.sub(r"(?<![\w/])/(opt|src)\b", lambda found: f"{scratch}{found[0]}", line)
        # The tools of the Python that runs this, as the base image would have its own.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, **stage.variables(), "PATH": path}
        done = subprocess.run(
            ["sh", "-euc", moved],
            cwd=scratch / "src",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-5:]
            raise WrongError(f"RUN {line}: {' '.join(last)}")


def start(stage: Stage, scratch: Path, *arguments: str) -> str:
    """Start the entry point of a stage with some arguments; its stdout. Raises WrongError."""
    (entry,) = (json.loads(text) for text in stage.all("ENTRYPOINT"))
    variables = {k: v.replace("/opt/", f"{scratch}/opt/") for k, v in stage.variables().items()}
    path = variables.pop("PATH").replace("${PATH}", os.defpath)
    program = shutil.which(entry[0], path=path)
    if program is None:
        raise WrongError(f"ENTRYPOINT {entry[0]}: there is no such program in {path}")
    done = subprocess.run(
        [*confinement(stage, scratch), program, *entry[1:], *arguments],
        cwd="/",
        env={**variables, "PATH": path, "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WrongError(f"{shlex.join([*entry, *arguments])}: {done.stderr.strip()}")
    return done.stdout


def confinement(stage: Stage, scratch: Path) -> list[str]:
    """What stands before a command so that it runs as in the image; nothing without the rights.

    The tree is read-only in a view of the files that only the command has.
    """
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        return []
    user, group = stage.all("USER")[0].split(":")
    as_user = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    where = [f"{scratch}/opt/kars/bin/python", "-c", "import os; print(os.__file__)"]
    ours, theirs = (
        subprocess.run([*before, *where], capture_output=True, check=False).stdout
        for before in ([], as_user)
    )
    if ours != theirs:
        return []  # the Python that runs this is for us alone
    read_only = f"mount --bind {scratch} {scratch} && mount -o remount,bind,ro {scratch}"
    refused = f"! touch {scratch}/opt/written 2>/dev/null"
    script = f'{read_only} && {refused} && exec {shlex.join(as_user)} "$@"'
    return ["unshare", "--mount", "sh", "-euc", script, "sh"]


def main(names: Sequence[str]) -> int:
    """Check each Dockerfile; see the module's docstring."""
    for name in names or DOCKERFILES:
        question, word = DOCKERFILES[name]
        with tempfile.TemporaryDirectory(prefix="image-") as directory:
            scratch = Path(directory)
            scratch.chmod(0o755)
            (scratch / "src").mkdir()
            (scratch / "opt").mkdir()
            first, last = stages(ROOT / name)
            try:
                copy(first, scratch / "src")
                run(first, scratch)
                version = start(last, scratch, "--version").strip()
                if word not in start(last, scratch, question):
                    raise WrongError(f"{question} does not name {word}")
            except WrongError as wrong:
                print(f"{name}: {wrong}", file=sys.stderr)
                return 1
            confined = "as its user, read-only" if confinement(last, scratch) else "as we are"
            print(f"{name}: {version}, started {confined}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
