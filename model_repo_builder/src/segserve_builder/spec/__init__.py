"""What a model's spec says, as immutable typed values, and the names made of it."""
