"""One file for each search algorithm; `base` says what a policy is."""
