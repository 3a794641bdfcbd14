"""A Ray cluster of three hosts on one machine, from `ray up` to `ray down`: ``python -m benchmarks.cluster_lab``."""
