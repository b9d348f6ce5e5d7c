"""What people typed, saw, clicked and bought: the log, from raw files to rows with a history."""
