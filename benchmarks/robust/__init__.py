"""A simulated federation under attack, for measuring the product's own rules."""
