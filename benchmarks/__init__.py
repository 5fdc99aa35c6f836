"""Speed, as ratios measured side by side in one run: `make bench`; and the README's tables: `make results`."""
