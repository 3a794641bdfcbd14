"""`make bench`: run the CPU benchmarks that need no argument, cheap ones first, and print their figures."""

from __future__ import annotations

from benchmarks import commit_latency, decoding, guardrails, judging, recording, reduce, sweep, sweep_layer

if __name__ == "__main__":
    decoding.main()
    recording.main()
    guardrails.main()
    judging.main()
    reduce.main()
    commit_latency.main()
    sweep_layer.main()
    sweep.main()
