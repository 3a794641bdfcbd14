"""What a run tells about itself while it runs: metrics as data, logs, spans. No Ray here."""
