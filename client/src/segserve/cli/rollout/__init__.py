"""`segserve rollout`: how a new revision comes to serve, what decides it, and a person's word in it."""
