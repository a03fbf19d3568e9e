"""Speed, measured as ratios in one run on one machine. Not tests: nothing here passes or fails."""
