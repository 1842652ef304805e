"""The report of a prediction: what is in it, its pictures, and the page."""
