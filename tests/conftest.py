"""The plug-ins of all tests: which of them run, what counts, and what a run leaves behind."""

pytest_plugins = ["selection", "suite_run", "verdicts"]
