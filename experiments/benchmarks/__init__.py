"""Speed, as ratios against a peer in the same run; results are committed as JSON."""
