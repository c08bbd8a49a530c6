"""A model's spec as immutable typed values, and the names derived from it."""
