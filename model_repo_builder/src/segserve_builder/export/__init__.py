"""Turns torch networks into ONNX artifacts that segserve serves, checked against the original."""
