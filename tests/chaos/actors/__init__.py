"""Who plays in a round: each runs until the round is over, and counts how its calls ended."""
