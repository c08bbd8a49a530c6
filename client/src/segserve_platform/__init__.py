"""The platform around the client `segserve`: command line, control of models, evaluation, benchmarks."""
