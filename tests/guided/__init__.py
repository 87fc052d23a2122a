"""Coverage-guided fuzzing: what is tried (`targets`) and how (`run`)."""
