"""What `tl.predict` does, in the order in which data flow: request, destination, job, provenance."""
