"""`make bench`: run the CPU benchmarks that need no argument, cheap ones first, and print their figures."""

from __future__ import annotations

from benchmarks import decoding, guardrails, judging, recording, sweep, sweep_layer

if __name__ == "__main__":
    decoding.main()
    recording.main()
    guardrails.main()
    judging.main()
    sweep_layer.main()
    sweep.main()
