"""Runs ask-and-tell loops in forked processes, some of which are killed; reads jobs, writes the ending signals."""

import json
import os
import signal
import sys
import time

import optuna

from dsprobe.config import DecodingConfig, Spec
from dsprobe.sweeps.config import SpaceConfig
from dsprobe.sweeps.space import SearchSpace
from dsprobe.sweeps.study import ExhaustedSpace, Study


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def after(function, calls):
    """The function, killing the process when it is called for the n-th time."""

    def wrapped(*args, **kwargs):
        wrapped.calls += 1
        if wrapped.calls == calls:
            die()
        return function(*args, **kwargs)

    wrapped.calls = 0
    return wrapped


def prepare(point):
    if point == "suggesting":
        optuna.Trial.suggest_float = after(optuna.Trial.suggest_float, 2)
    if point == "telling":
        optuna.Study.tell = after(optuna.Study.tell, 2)
    if point == "attributes":
        optuna.Trial.set_user_attr = after(optuna.Trial.set_user_attr, 2)
    if point == "enqueueing":
        optuna.Study.enqueue_trial = after(optuna.Study.enqueue_trial, 1)


def outcome(study, proposal):
    """Complete, stop or fail, as the setting and its place in the sequence decide."""
    level = proposal.parameters["filter.threshold"]
    harm = level * proposal.parameters.get("renoise.threshold", 0.6)
    loss = 1 - level + 0.05 * proposal.parameters.get("renoise.every", 0)
    place = len(study.finished())
    if place % 6 == 5:
        study.fail(proposal.number, "no reply")
    elif place % 4 == 3:
        study.stop(proposal.number, [harm, loss], "dominated", {"rung": 0.5}, constraints={"utility": loss - 0.5})
    else:
        study.complete(proposal.number, [harm, loss], constraints={"utility": loss - 0.5}, attributes={"rows": [1, 2]})


def propose(job, asked):
    prepare(job.get("point"))
    space = SearchSpace(SpaceConfig(stack=job["stack"]), DecodingConfig())
    sampler = Spec.model_validate(job["sampler"])
    with Study.open(job["storage"], "run", ["asr", "loss"], space, sampler, 5, constraints=["utility"]) as study:
        for proposed in range(job["trials"] - len(study.finished())):
            try:
                proposal = study.ask()
            except ExhaustedSpace:
                break
            if job.get("point") == "asked" and proposed == 1:
                os.write(asked, b"!")
                time.sleep(600)
            outcome(study, proposal)


def run(job):
    """The signal that ended the job's process (0 for none)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        propose(job, write)
        os._exit(0)
    os.close(write)
    if job.get("point") == "asked":
        os.read(read, 1)
        os.kill(child, signal.SIGKILL)
    if "delay" in job:
        time.sleep(job["delay"])
        os.kill(child, signal.SIGKILL)
    os.close(read)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"job {job} failed")
    return os.WTERMSIG(status)


json.dump([run(job) for job in json.load(sys.stdin)], sys.stdout)
