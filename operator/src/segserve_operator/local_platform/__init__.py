"""The operator on one machine: the local platform's supervisor, and checks of its prerequisites."""
