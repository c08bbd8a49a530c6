"""The operator of one machine: supervises, ends and examines the local platform."""
