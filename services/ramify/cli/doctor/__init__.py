"""What is wrong with a store or a running system, why it matters, and what to do."""
