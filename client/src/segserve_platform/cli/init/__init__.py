"""`segserve init`: writes the resource for an ONNX file from its contents, trial runs and images."""
