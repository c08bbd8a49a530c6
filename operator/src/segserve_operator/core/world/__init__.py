"""The world as one pass observes it, and rules about it that need nothing else."""
