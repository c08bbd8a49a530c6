"""Capture beside a gateway: samples of callers' requests and their answers, redacted and written to a store."""
