"""Actors: replicas that pin a model, the pool that keeps them, and the executors that drive a plan."""

from dsprobe.actors.notebook import connect
from dsprobe.models import remote

__all__ = ["connect"]

remote.use("dsprobe.actors.weights:WeightCache")
