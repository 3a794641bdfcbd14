"""`make chaos`: runs killed at random moments over a faulty store must give the tables of an undisturbed run."""
