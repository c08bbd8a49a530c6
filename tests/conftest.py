"""The plug-ins of all tests: which of them run, what a run leaves behind, and how long the product waits in them."""

pytest_plugins = ["selection", "suite_run", "patience"]
