"""From nothing to a prepared data folder with a data card."""
