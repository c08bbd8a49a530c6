"""Finds out by asking: one file a kind of question, a registry of them, and what asks in the background."""
