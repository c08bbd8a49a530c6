"""The steps of a pipeline (preprocess, network, postprocess) as functions, and their options."""
