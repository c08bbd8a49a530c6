"""One call from image to result, without I/O: sessions, retries, credentials, hooks."""
