"""`segserve init`: what an ONNX file says of itself, what can be found out by running it, and the resource of both."""
