"""Which of our own functions run for one batch: `python -m tools.what_runs [--functions]`."""
