"""The control plane: models, pools and rollouts of a platform as typed resources, for threads and for asyncio."""
