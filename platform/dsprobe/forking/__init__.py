"""Forking: starting guarded runs from logged trajectories at the first step that differs, exactly."""
