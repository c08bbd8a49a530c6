"""The comparator beside a gateway: it asks two revisions the same requests and counts how their answers differ."""
