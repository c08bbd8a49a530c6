"""The operator's entry point: `python -m segserve_operator`."""

from segserve_operator.main import main

main()
