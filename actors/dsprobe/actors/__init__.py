"""Actors: replicas that pin a model, the pool that keeps them, and the executors that drive a plan."""

from dsprobe.actors.notebook import connect

__all__ = ["connect"]
