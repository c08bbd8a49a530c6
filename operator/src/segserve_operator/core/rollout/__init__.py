"""One rollout: the engine, its record, its decisions. Independent of models and groups."""
