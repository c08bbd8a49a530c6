"""What surrounds the client `segserve`: the command line, platforms, typed resources, evaluation, benchmarks."""
