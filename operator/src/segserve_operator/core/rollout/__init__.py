"""One rollout: the engine, its record, its decisions. Knows no model and no group."""
