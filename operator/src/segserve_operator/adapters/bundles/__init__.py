"""Bundles for analysing a rollback: the rollout's record, its servers' logs and statistics, in one archive."""
