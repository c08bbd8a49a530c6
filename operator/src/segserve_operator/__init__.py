"""Keeps what is served equal to what the resources ask for, on a cluster or on one machine."""
