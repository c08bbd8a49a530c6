"""Pictures of answers, which the client and the steps inside Triton draw alike. Class names are untrusted."""


def printable(text: str, most: int = 60) -> str:
    """Return the text as one line of at most `most` characters, unprintable characters replaced."""
    clean = "".join(character if character.isprintable() else "�" for character in text[: most + 1])
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"
