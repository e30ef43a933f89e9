"""Search spaces: which functions they have, which of them are equal, and what each costs."""
