"""The comparator beside a gateway: it sends the same requests to two revisions and counts how their answers differ."""
