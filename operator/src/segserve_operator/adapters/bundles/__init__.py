"""Keeps what tells why a rollout was rolled back: its record, its servers' logs and statistics, in one archive."""
