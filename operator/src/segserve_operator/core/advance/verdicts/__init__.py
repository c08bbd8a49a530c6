"""Sources of verdicts about a rollout: each with its checks, its verdicts and its signal."""
