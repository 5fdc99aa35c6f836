"""Speed, as ratios measured side by side in one run (`make bench`), and the tables of docs/results.md (`make results`)."""
