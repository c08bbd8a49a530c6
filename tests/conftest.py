"""The plug-ins of all tests: which run, what counts, what a run leaves behind, how long the product waits in them."""

pytest_plugins = ["opened", "selection", "suite_run", "patience", "verdicts"]
