"""What is known of a rollout, and a person's word in it."""
