"""How fast a served model answers, and how many requests it takes."""
