"""Models in a pool: roles, conditions, SLOs, and the plan that brings the world to the spec."""
