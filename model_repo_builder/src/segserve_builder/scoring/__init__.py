"""Quality of the answers that one server gives to a golden set, measured against labels."""
