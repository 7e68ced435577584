"""`kars completion`: the script that has a shell complete commands, options and files.

The scripts are click's: they run `kars` with `_KARS_COMPLETE` set each time they need words. Owns
only where such a script goes.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from kars_router.cli.examples import examples

VARIABLE: Final = "_KARS_COMPLETE"


@click.command(
    "completion",
    epilog=examples(
        (
            "bash, once, where bash-completion is",
            "kars completion bash > ~/.local/share/bash-completion/completions/kars",
        ),
        ("zsh, once, into a directory of fpath", "kars completion zsh > ~/.zfunc/_kars"),
        ("fish, once", "kars completion fish > ~/.config/fish/completions/kars.fish"),
    ),
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(context: click.Context, *, shell: str) -> None:
    """Print the script that completes words in a shell.

    It completes commands, options and their values, and the names of files, and needs `kars` on
    PATH. Bash has to be 4.4 or newer. Instead of keeping it in a file, ~/.bashrc can have the line
    `eval "$(kars completion bash)"`, and ~/.zshrc the same for zsh, after compinit.
    """
    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(context.find_root().command, {}, "kars", VARIABLE).source())
