"""The world as one pass observes it, and rules that need only the world."""
