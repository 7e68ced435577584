"""The command line: one module per command, each with a click command named `command`.

`main` finds the command and imports nothing else; `errors` is the one place where an exception
becomes a sentence and an exit code; `output` prints answers as tables, JSON or YAML.
"""
