"""One module for each thing that is measured; each has `run(context)`, which yields figures."""
