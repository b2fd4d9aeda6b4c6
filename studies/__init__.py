"""Everything of a study that outlasts a process: its file, its storage, checkpoints, results."""
