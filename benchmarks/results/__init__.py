"""The tables of docs/results: their studies, what they come to, and the page that shows them."""
