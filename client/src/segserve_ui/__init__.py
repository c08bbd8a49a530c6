"""The web page of a platform: a server on loopback in the user's own process, with the rights of that user."""
