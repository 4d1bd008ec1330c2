"""What drafters offer, what their drafts are worth, how many are verified."""
