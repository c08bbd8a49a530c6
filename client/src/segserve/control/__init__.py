"""The control plane: a platform's models, pools and rollouts as typed resources, for threads and for asyncio."""
