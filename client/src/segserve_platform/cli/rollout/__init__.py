"""`segserve rollout`: the rollout of a new revision, its evidence, and the actions on it."""
