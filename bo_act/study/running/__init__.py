"""Running a study: trials trained, by one worker or many."""
