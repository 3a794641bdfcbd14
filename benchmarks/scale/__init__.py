"""Scale by simulation: the online path fed by replicas whose GPU is a timer (`python -m benchmarks.scale`)."""
